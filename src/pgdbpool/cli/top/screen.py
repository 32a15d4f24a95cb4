"""One picture of one application: endpoints, groups, what happened lately, and who holds connections for long.

It fits 80 columns and 24 lines, and uses more where there is more. The small bars at the right of a group show what was
done in each two seconds, against the group's best: a failover is a gap in them.
"""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pgdbpool.cli.output import event_mark, milliseconds, size, table, word
from pgdbpool.core.evidence import Health
from pgdbpool.core.shown import role_of
from pgdbpool.core.stats import EndpointStats, GroupStats
from pgdbpool.printable import one_line
from pgdbpool.publish import STEP, Held, Summary

from . import figures

BARS = " ▁▂▃▄▅▆▇█"
GAUGE = 6  # cells
LONG = 1.0  # s: a lease that lasts longer is shown
LEAST, MOST = 9, 60  # bars of history
HOLDERS = 5


def picture(
    name: str, summary: Summary, now: float, width: int, height: int, others: int = 0, keys: str = ""
) -> RenderableType:
    """All of it, for a screen of this size; `others` is how many more applications there are."""
    endpoints, groups = _endpoints(summary, now, width), _groups(summary, now, width)
    used = 2 + endpoints.row_count + 3 + groups.row_count + 3
    room = max(3, height - used - 1)
    holders = [held for held in summary.holders if held.holder.since >= LONG][: min(HOLDERS, room // 2)]
    return Group(
        _head(name, summary, now, others, keys),
        endpoints,
        groups,
        *_events(summary, room - len(holders)),
        *(_holder(held) for held in holders),
    )


def _head(name: str, summary: Summary, now: float, others: int, keys: str) -> RenderableType:
    head = Table.grid(expand=True)
    head.add_column(no_wrap=True)
    head.add_column(justify="right", no_wrap=True)
    processes = f"{summary.workers} process{'' if summary.workers == 1 else 'es'}"
    if summary.pools != summary.workers:
        processes += f", {summary.pools} pools"
    left = Text.assemble((name, "bold"), f"  {processes}")
    if others:
        left.append(f"  and {others} more application{'' if others == 1 else 's'}", "dim")
    right = Text(time.strftime("%H:%M:%S", time.localtime(now)), "dim")
    if keys:
        right.append(f"  {keys}", "dim")
    head.add_row(left, right)
    return head


def _endpoints(summary: Summary, now: float, width: int) -> Table:
    shown = table(
        "endpoint", "role", "state", "lag", "open", "in use", "done/s", "share", right=("lag", "open", "in use")
    )
    shown.columns[6].justify = "right"
    shown.expand = True
    cells = GAUGE if width >= 100 else 4
    rates = figures.of_endpoints(figures.lately(summary.samples, now), figures.span(summary.samples, now))
    # One that is down does nothing, whatever it did some seconds ago: what the others do is all that is done.
    up = {each.stats.endpoint for each in summary.endpoints if each.stats.health != Health.DOWN}
    total = sum(rate for endpoint, rate in rates.items() if endpoint in up)
    for each in summary.endpoints:
        stats = each.stats
        rate = rates.get(stats.endpoint, 0.0)
        does = stats.endpoint in up
        shown.add_row(
            stats.endpoint,
            word(stats.role) if stats.role == stats.last_role else Text(role_of(stats), "dim"),
            _state(stats, each.views),
            size(stats.lag),
            str(stats.open),
            str(stats.leased),
            f"{rate:,.0f}" if does else "",
            _share(rate / total, cells) if does and total else "",
        )
    return shown


def _share(share: float, cells: int) -> Text:
    return Text("█" * round(cells * share), "blue").append(f" {share:.0%}", "default")


def _state(stats: EndpointStats, views: dict[str, int]) -> Text:
    state = Text("fenced", "bold red") if stats.fenced is not None else word(stats.health)
    if stats.health == "down" and stats.down_for is not None:
        state.append(f" {stats.down_for:.0f} s", "dim")
    elif stats.fault is not None:
        state.append(f" {stats.fault}", "yellow")
    if len(views) > 1:
        state.append(f" ({max(views.values())} of {sum(views.values())})", "yellow")
    return state


def _groups(summary: Summary, now: float, width: int) -> Table:
    samples = figures.lately(summary.samples, now)
    seconds = figures.span(summary.samples, now)
    lately = {name: figures.of_group(samples, name, seconds) for name in summary.groups}
    timeouts = any(each.timeouts for each in lately.values())
    names = ("waiting", *(["timed out"] if timeouts else []), "done/s", "wait p99", "use p50", "use p99")
    heads = [Text(head) for head in ("group", "in use", *names)]

    def fill(gauge: int) -> tuple[list[list[Text]], int]:
        rows = [_row(stats, lately[name], gauge, timeouts=timeouts) for name, stats in summary.groups.items()]
        columns = zip(heads, *rows, strict=True)
        return rows, width - sum(2 + max(cell.cell_len for cell in column) for column in columns)

    rows, left = fill(GAUGE)
    if left < 0:
        rows, left = fill(max(0, GAUGE + left))
    bars = min(MOST, left - 4)  # they get what the others leave
    shown = table("group", "in use", *names, *([f"last {bars * STEP:.0f} s"] if bars >= LEAST else []), right=names)
    for column in shown.columns:
        column.no_wrap = True
    shown.expand = True
    for name, row in zip(summary.groups, rows, strict=True):
        if bars >= LEAST:
            row.append(Text(_bars(figures.history(summary.samples, name, now, bars)), "green"))
        shown.add_row(*row)
    return shown


def _row(stats: GroupStats, lately: figures.Figures, gauge: int, *, timeouts: bool) -> list[Text]:
    row = [
        Text(stats.group, "bold").append(" paused" if stats.paused else "", "yellow"),
        _gauge(stats, gauge),
        Text(str(stats.waiting), "bold yellow" if stats.waiting else "dim"),
    ]
    if timeouts:
        row.append(Text(str(lately.timeouts), "bold red" if lately.timeouts else "dim"))
    row.append(Text(f"{lately.rate:,.0f}"))
    return row + [Text(_limit(each)) for each in (lately.wait_p99, lately.use_p50, lately.use_p99)]


def _gauge(stats: GroupStats, cells: int) -> Text:
    """Leased, idle, and what could still be opened."""
    limit = max(1, stats.limit)
    leased = min(cells, -(-stats.leased * cells // limit))
    idle = min(cells - leased, -(-stats.idle * cells // limit))
    gauge = Text("█" * leased, "yellow" if stats.leased >= limit else "blue")
    gauge.append("▒" * idle, "blue").append("░" * (cells - leased - idle), "dim")
    return gauge.append(f"{' ' if cells else ''}{stats.leased}/{stats.limit}", "default")


def _limit(seconds: float | None) -> str:
    """The upper limit of a place in a histogram."""
    if seconds is None:
        return ""
    if seconds >= 1:
        return f"{seconds:.0f} s"
    return f"{seconds * 1000:.0f} ms" if seconds == 0 or seconds > 0.005 else milliseconds(seconds)


def _bars(counts: list[int]) -> str:
    best = max(counts, default=0) or 1
    return "".join(BARS[-(-count * (len(BARS) - 1) // best)] for count in counts)


def _events(summary: Summary, room: int) -> list[Text]:
    lines = []
    for happening in summary.events[-room:]:
        event = happening.event
        line = Text(time.strftime("%H:%M:%S ", time.localtime(event.at)), "dim", no_wrap=True, overflow="ellipsis")
        line.append_text(event_mark(event.kind)).append(f" {one_line(event.message)}")
        if summary.pools > 1:
            line.append(f" ({happening.pools} of {summary.pools} pools)", "dim")
        lines.append(line)
    return lines


def _holder(held: Held) -> Text:
    holder = held.holder
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{holder.since:6.1f} s ", "yellow" if holder.since > 10 else "dim")
    who = one_line(f"{holder.where}, {holder.state}, {holder.thread}")
    line.append(holder.group, "bold").append(f" {who} of {one_line(f'{held.pool}, process')} {held.pid}")
    return line
