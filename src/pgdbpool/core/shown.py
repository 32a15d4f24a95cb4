"""Statistics as a human reads them: what `repr` says, and a table for notebooks.

Servers, applications and files have a say in much of what is shown. In the text there is nothing that a terminal would
act on, in the table nothing that a browser would.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from .evidence import Health, Role
from .times import BOUNDS

if TYPE_CHECKING:
    from .stats import Counters, EndpointStats, GroupStats, LaneStats, PoolStats

Row = tuple[str, ...]

_GROUPS: Row = ("group", "in use", "idle", "waiting", "leases", "timeouts", "wait p99", "use p50", "use p99")
_SERVERS: Row = ("server", "role", "health", "open", "in use", "lag")


def role_of(stats: EndpointStats) -> str:
    """Its role; while it is down what it was: ``was primary``."""
    if stats.role == Role.UNKNOWN and stats.last_role != Role.UNKNOWN:
        return f"was {stats.last_role}"
    return stats.role


def pool(stats: PoolStats) -> str:
    """A line for the pool, one for each group and one for each server."""
    groups = [_GROUPS, *(_group_row(group) for group in stats.groups.values())]
    servers = [_SERVERS, *(_server_row(endpoint) for endpoint in stats.endpoints)]
    return "\n".join([f"<{_head(stats)}>", *_lined_up(groups), *_lined_up(servers)])


def pool_as_html(stats: PoolStats) -> str:
    """The same as two tables, and the last error of each server."""
    groups = [_group_row(group) for group in stats.groups.values()]
    servers = [(*_server_row(each), each.last_error or "") for each in stats.endpoints]
    head = f"<p>{escape(_head(stats))}</p>"
    return head + _table(_GROUPS, groups) + _table((*_SERVERS, "last error"), servers)


def group(stats: GroupStats) -> str:
    """In one line."""
    counters = stats.counters
    parts = [
        f"{_in_use(stats)} in use",
        f"{stats.idle} idle",
        f"{stats.waiting} waiting",
        f"{counters.requests} leases",
        f"{counters.timeouts} timeouts",
    ]
    paused = ", paused" if stats.paused else ""
    return f"<GroupStats {plain(stats.group)}: {', '.join(parts)}{paused}>"


def lane(stats: LaneStats) -> str:
    """In one line."""
    used = "" if stats.live else ", not used now"
    return f"<LaneStats {plain(stats.endpoint)}: {stats.leased} of {stats.limit} in use, {stats.idle} idle{used}>"


def endpoint(stats: EndpointStats) -> str:
    """In one line."""
    _, role, health, *_ = _server_row(stats)
    return f"<EndpointStats {plain(stats.endpoint)}: {role}, {health}, {stats.leased} of {stats.open} open in use>"


def counters(stats: Counters) -> str:
    """What is not zero. Of a histogram: the upper limits of its places in seconds, and how many were in each."""
    parts = []
    for field in stats.__struct_fields__:
        value = getattr(stats, field)
        if isinstance(value, tuple):
            value = {limit: count for limit, count in zip((*BOUNDS, float("inf")), value, strict=True) if count}
        if value:
            parts.append(f"{field}={value!r}")
    return f"Counters({', '.join(parts)})"


def plain(text: str) -> str:
    """Without what a terminal would act on."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def seconds(value: float | None) -> str:
    """A duration in three digits."""
    if value is None:
        return "-"
    if value == float("inf"):
        return f"> {BOUNDS[-1]:.0f} s"
    return f"{value:.3g} s" if value >= 1 or value == 0 else f"{value * 1000:.3g} ms"


def _head(stats: PoolStats) -> str:
    at = f" at {datetime.fromtimestamp(stats.at, UTC):%Y-%m-%d %H:%M:%S} UTC" if stats.at else ""
    return f"PoolStats of {plain(stats.name)}{at}, {stats.failovers} failovers"


def _in_use(stats: GroupStats) -> str:
    return f"{stats.leased} of {stats.limit}"


def _group_row(stats: GroupStats) -> Row:
    counted = stats.counters
    return (
        plain(stats.group) + (" (paused)" if stats.paused else ""),
        _in_use(stats),
        str(stats.idle),
        str(stats.waiting),
        str(counted.requests),
        str(counted.timeouts),
        seconds(counted.quantile("wait", 0.99)),
        seconds(counted.quantile("use", 0.5)),
        seconds(counted.quantile("use", 0.99)),
    )


def _server_row(stats: EndpointStats) -> Row:
    health = "fenced" if stats.fenced is not None else stats.health
    if stats.health == Health.DOWN and stats.down_for is not None:
        health += f" for {seconds(stats.down_for)}"
    elif stats.fault is not None:
        health += f", {stats.fault}"
    lag = "" if stats.lag is None else f"{stats.lag} B"
    return plain(stats.endpoint), role_of(stats), health, str(stats.open), str(stats.leased), lag


def _lined_up(rows: Sequence[Row]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _table(head: Row, rows: Sequence[Row]) -> str:
    def line(tag: str, cells: Sequence[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
