"""How the commands write: tables for a terminal, the same as plain text for a file or a pipe, or JSON.

Colours follow rich, which honours NO_COLOR. What is not a terminal has no width: nothing is folded or cut there.

Servers, applications and files have a say in much of what is shown. So whatever way text takes to the output, no
character in it that a terminal would act on gets there (`pgdbpool.printable`).
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pgdbpool.core.stats import to_builtins
from pgdbpool.printable import UNPRINTABLE, printable

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of tables.")]

WIDE = 10_000
STYLES = {
    "primary": "bold magenta",
    "standby": "cyan",
    "up": "green",
    "suspect": "yellow",
    "down": "bold red",
}
EVENTS = {
    "endpoint-up": ("▲", "green"),
    "recovered": ("▲", "green"),
    "failover-finished": ("▲", "bold green"),
    "leak-ended": ("▲", "green"),
    "outage-ended": ("▲", "green"),
    "outage": ("▼", "yellow"),
    "endpoint-down": ("▼", "bold red"),
    "failover-started": ("▼", "bold red"),
    "fenced": ("▼", "bold red"),
    "leak-suspected": ("▼", "yellow"),
}
SIZES = ("B", "kB", "MB", "GB", "TB")


def console(*, stderr: bool = False) -> Console:
    """Where to write."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)  # [fe80::1]:5432 is no markup
    if not made.is_terminal:
        made.width = WIDE
    made.push_render_hook(_PrintableHook())
    return made


class _PrintableHook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [Printable(each) for each in renderables]


class Printable:
    """Something to show, with one character in the place of each that a terminal would act on."""

    def __init__(self, inside: RenderableType) -> None:
        self._inside = inside

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._inside, options):
            if segment.control or segment.text.isprintable():  # what rich itself tells the terminal to do
                yield segment
            else:
                yield Segment(UNPRINTABLE.sub(_INSTEAD if _can_show(_INSTEAD) else "?", segment.text), segment.style)


_INSTEAD = "\N{REPLACEMENT CHARACTER}"


def json_of(value: Any, indent: int = 0) -> str:
    """As JSON, with the names of the fields, and with the quantiles of histograms: see `Stats.to_json`."""
    encoded = msgspec.json.encode(to_builtins(value))
    text = (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()
    # JSON itself escapes the lower half of what a terminal acts on.
    return text if text.isprintable() else UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def print_json(value: Any) -> None:
    """As JSON, indented, with the names of the fields."""
    print(json_of(value, indent=2))


def complain(words: object, command: str = "") -> None:
    """Say on stderr what is wrong."""
    print(f"pgdbpool{command and ' '}{command}: {printable(str(words))}", file=sys.stderr)


def table(*names: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """A calm table: a rule under the head and nothing else."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", title=title)
    made.title_justify = "left"
    made.title_style = "bold"
    for name in names:
        made.add_column(name, justify="right" if name in right else "left", no_wrap=name in right)
    return made


def word(text: str) -> Text:
    """A role or a health, in its colour."""
    return Text(text, STYLES.get(text, ""))


def mark(good: bool) -> Text:
    """A tick or a cross, as far as the output can show them."""
    if not _can_show("✓✗"):
        return Text("ok", "green") if good else Text("!!", "bold red")
    return Text("✓", "green") if good else Text("✗", "bold red")


def event_mark(kind: str) -> Text:
    """Whether an event made things better, worse, or neither."""
    sign, style = EVENTS.get(kind, ("·", "yellow"))
    if not _can_show(sign):
        sign = {"▲": "+", "▼": "-"}.get(sign, " ")
    return Text(sign, style)


def _can_show(text: str) -> bool:
    try:
        text.encode(getattr(sys.__stdout__, "encoding", None) or "ascii")  # rich may stand in for sys.stdout
    except UnicodeEncodeError:
        return False
    return True


def milliseconds(seconds: float | None) -> str:
    """Readable from a microsecond on: ``0.003 ms``, ``0.28 ms``, ``12.3 ms``, ``850 ms``."""
    if seconds is None:
        return ""
    value = seconds * 1000
    if value < 0.1:
        return f"{value:.3f} ms"
    return f"{value:.2f} ms" if value < 1 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def bytes_of(text: str) -> int:
    """``16GB``, ``512 MB``: what `size` writes. Raises typer.BadParameter."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) *([kMGT]?B)", text.strip(), re.ASCII)
    if match is None:
        raise typer.BadParameter("expected a size such as 16GB or 512MB")
    return int(float(match[1]) * 1024 ** SIZES.index(match[2]))


def size(count: int | None) -> str:
    """Bytes in the largest unit that keeps it readable: ``0 B``, ``64 MB``, ``1.5 GB``."""
    if count is None:
        return ""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(SIZES) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {SIZES[unit]}" if value >= 10 or value == int(value) else f"{value:.1f} {SIZES[unit]}"
