"""How the commands write: tables for a terminal, the same as plain text for a file or a pipe, or JSON.

Colours follow rich, which honours NO_COLOR. What is not a terminal has no width: nothing is folded or cut there.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    return made


def print_json(value: Any) -> None:
    """As JSON, indented, with the names of the fields."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


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
