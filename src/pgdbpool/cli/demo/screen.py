"""The live display for a terminal: what the pool believes, what it does, and what was done to the servers.

Fits 80 columns and 24 lines. The small bars at the right of a group show the operations done in each of the last
seconds, each half second against the group's best one: a failover is a gap in them.
"""

from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pgdbpool import Pool
from pgdbpool.testing import Cluster

from .load import GROUPS
from .measure import STEP, Measure, Outcome, Pace, Tally
from .scenario import Scenario

BARS = " ▁▂▃▄▅▆▇█"
SHARE_BARS = 6
ROLE_STYLES = {"primary": "bold magenta", "standby": "cyan"}
# Cells of each column: as many as the widest that can come, so that nothing moves when numbers grow.
ENDPOINT_COLUMNS = {
    "role": len("primary"),
    "state": len("suspect"),
    "conn": 4,
    "queries/s": len("queries/s"),
    "share": SHARE_BARS + len(" 100%"),
    "p50 ms": 6,
    "p99 ms": 6,
}
LEFT = ("role", "state", "share")
HEALTH_STYLES = {"up": "green", "suspect": "yellow", "down": "bold red"}


class Screen:
    """Draws in a thread of its own, for the length of a ``with`` block. What was drawn last stays."""

    def __init__(self, console: Console, cluster: Cluster, pool: Pool, measure: Measure, scenario: Scenario) -> None:
        self._console = console
        self._names = {node.port: node.name for node in cluster.nodes}
        self._pool = pool
        self._measure = measure
        self._scenario = scenario
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=5)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def render(self) -> RenderableType:
        """One picture."""
        return Group(self._head(), self._endpoints(), self._groups(), self._events())

    def _head(self) -> RenderableType:
        elapsed, duration = self._measure.elapsed(), self._scenario.duration
        done = sum(tally.ended[Outcome.DONE] for tally in self._tallies().values())
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column()
        head.add_column(ratio=1)
        head.add_column(justify="right")
        head.add_row(
            Text("pgdbpool demo", "bold"),
            ProgressBar(total=duration, completed=min(elapsed, duration)),
            Text(f"{min(elapsed, duration):.0f} of {duration:.0f} s, {done} operations"),
        )
        return head

    def _tallies(self) -> dict[str, Tally]:
        return {group: self._measure.groups[group] for group in GROUPS}

    def _endpoints(self) -> Table:
        table = _table()
        table.add_column("endpoint", width=max(map(len, self._names.values())) + len(" :65535"), no_wrap=True)
        for name, width in ENDPOINT_COLUMNS.items():
            table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True, width=width)
        pace = self._measure.pace()
        for endpoint in self._pool.endpoints():
            port = int(endpoint.endpoint.rpartition(":")[2])
            down = endpoint.health == "down"  # what it did in the last seconds is no pace of now
            now = Pace() if down else pace.get(port, Pace())
            table.add_row(
                Text(f"{self._names[port]} ").append(f":{port}", "dim"),
                Text(endpoint.role, ROLE_STYLES.get(endpoint.role, "dim")),
                Text(endpoint.health, HEALTH_STYLES.get(endpoint.health, "")),
                str(endpoint.open),
                "" if down else f"{now.rate:.0f}",
                Text() if down else _share(now.share),
                _milliseconds(now.p50) if now.rate else "",
                _milliseconds(now.p99) if now.rate else "",
            )
        return table

    def _groups(self) -> Table:
        table = _table()
        table.add_column("group", width=max(map(len, GROUPS)), no_wrap=True)
        for name in ("in use", "idle", "waiting", "done/s", "failed"):
            table.add_column(name, justify="right", no_wrap=True, width=max(6, len(name)))
        width = max(20, min(60, self._console.width - 58))
        table.add_column(f"done, last {width * STEP:.0f} s", no_wrap=True, min_width=width)
        stats = self._pool.stats().groups
        for name, tally in self._tallies().items():
            group = stats[name]
            failed = tally.ended[Outcome.FAILED] + tally.ended[Outcome.DOUBT]
            table.add_row(
                Text(name, "bold"),
                str(group.leased),
                str(group.idle),
                Text(str(group.waiting), "bold yellow" if group.waiting else ""),
                f"{tally.rate(self._measure.elapsed()):.0f}",
                Text(str(failed), "red" if failed else "dim"),
                Text(self._history(tally, width), "green"),
            )
        return table

    def _history(self, tally: Tally, width: int) -> str:
        now = int(self._measure.elapsed() / STEP)
        best = max(tuple(tally.per_step.values()), default=1)
        values = [tally.per_step[step] for step in range(max(0, now - width), now)]
        return "".join(BARS[-(-value * (len(BARS) - 1) // best)] for value in values)

    def _events(self) -> RenderableType:
        used = 1 + (len(self._names) + 3) + (len(GROUPS) + 3) + 1
        room = max(2, self._console.height - used - 1)
        text = Text(no_wrap=True, overflow="ellipsis")
        for event in self._scenario.events[-room:]:
            text.append(f"\n{event.at:5.1f} s ", "dim")
            text.append("▲ " if event.good else "▼ ", "green" if event.good else "bold red")
            text.append(event.text)
        return text


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds < 1 else 0}f}"


def _share(share: float) -> Text:
    return Text("█" * round(share * SHARE_BARS), "blue").append(f" {share:.0%}", "default")


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
