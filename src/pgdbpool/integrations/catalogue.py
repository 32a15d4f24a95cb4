"""Every metric that leaves the process: its names, its unit, and where its values are in the statistics.

Names, units and attributes of what begins with ``db.client.connection`` are those of OpenTelemetry's semantic
conventions for database clients; what these have no name for begins with ``pgdbpool``.

A sample has labels in our own words (``group``, ``endpoint``, ``state``, ...). `otel` and `prometheus` translate them.
Values are such that those of several processes can be added up: what is believed of an endpoint is a count of the pools
that believe it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from operator import sub
from typing import NamedTuple

from ..core.evidence import Health, Role
from ..core.stats import Counters, LaneStats, PoolStats, Times
from ..core.times import BOUNDS


class Kind(Enum):
    """What sort of number it is."""

    COUNTER = "counter"  # only grows
    SUM = "sum"  # goes up and down; those of several processes are added
    MOST = "most"  # of several processes the largest counts
    LEAST = "least"  # of several processes the smallest counts
    HISTOGRAM = "histogram"


class Histogram(NamedTuple):
    """How many took how long. Seconds."""

    counts: Times
    """One for each of `LIMITS`, and one for what took longer."""
    total: float

    def __add__(self, other: Histogram) -> Histogram:  # type: ignore[override]
        counts = tuple(one + two for one, two in zip(self.counts, other.counts, strict=True))
        return Histogram(counts, self.total + other.total)

    def since(self, before: Histogram) -> Histogram:
        """The difference to an earlier state."""
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Histogram(counts, self.total - before.total)


Value = float | Histogram
Labels = Mapping[str, str]


class Sample(NamedTuple):
    """One value."""

    labels: Labels
    value: Value


class Metric(NamedTuple):
    """One metric. `read` finds its samples."""

    name: str
    """In OpenTelemetry."""
    prometheus: str
    """There, without the ``_total`` of a counter."""
    kind: Kind
    unit: str
    """In OpenTelemetry's notation (UCUM)."""
    help: str
    read: Callable[[PoolStats], Iterable[Sample]]


_FIRST, _LAST = BOUNDS.index(2.0**-16), BOUNDS.index(2.0**7)
LIMITS = BOUNDS[_FIRST : _LAST + 1]
"""The limits of exported histograms, from 15 us to 128 s: each is a time series for every group and endpoint."""


def histogram(counts: Times, total: float) -> Histogram:
    """What the pool has counted, with the counts beyond `LIMITS` added to the first and the last."""
    return Histogram(
        (sum(counts[: _FIRST + 1]), *counts[_FIRST + 1 : _LAST + 1], sum(counts[_LAST + 1 :])), float(total)
    )


def _waits(counters: Counters) -> Histogram:
    """How long all leases had to wait: those that had not are among the shortest."""
    waits = histogram(counters.wait_times, counters.wait_time)
    return waits._replace(counts=(waits.counts[0] + counters.prompt, *waits.counts[1:]))


def _wait_times(stats: PoolStats) -> Iterator[Sample]:
    """For each group and endpoint; and with an empty endpoint, of those callers that got no connection anywhere."""
    for name, group in stats.groups.items():
        vain, total = group.counters.wait_times, group.counters.wait_time
        for lane in group.endpoints:
            yield Sample({"group": name, "endpoint": lane.endpoint}, _waits(lane.counters))
            vain = tuple(map(sub, vain, lane.counters.wait_times))
            total -= lane.counters.wait_time
        yield Sample({"group": name, "endpoint": ""}, histogram(vain, max(0.0, total) if any(vain) else 0.0))


def never_less(before: Value | None, now: Value) -> Value:
    """A counter that is read while others count may be one short of what it was: to a reader that is a restart."""
    if before is None:
        return now
    if isinstance(before, Histogram) and isinstance(now, Histogram):
        counts = tuple(max(one, two) for one, two in zip(before.counts, now.counts, strict=True))
        return Histogram(counts, max(before.total, now.total))
    return max(before, now)


# -- where values are -------------------------------------------------------------------------------------------


def _lanes(value: Callable[[LaneStats], Value]) -> Callable[[PoolStats], Iterator[Sample]]:
    """One for each group and endpoint."""

    def read(stats: PoolStats) -> Iterator[Sample]:
        for name, group in stats.groups.items():
            for lane in group.endpoints:
                yield Sample({"group": name, "endpoint": lane.endpoint}, value(lane))

    return read


def _states(stats: PoolStats) -> Iterator[Sample]:
    for name, group in stats.groups.items():
        for lane in group.endpoints:
            labels = {"group": name, "endpoint": lane.endpoint}
            yield Sample({**labels, "state": "idle"}, lane.idle)
            yield Sample({**labels, "state": "used"}, lane.leased)


def _groups(field: str) -> Callable[[PoolStats], Iterator[Sample]]:
    """One for each group."""

    def read(stats: PoolStats) -> Iterator[Sample]:
        for name, group in stats.groups.items():
            yield Sample({"group": name}, getattr(group, field))

    return read


def _group_counters(value: Callable[[Counters], int]) -> Callable[[PoolStats], Iterator[Sample]]:
    def read(stats: PoolStats) -> Iterator[Sample]:
        for name, group in stats.groups.items():
            yield Sample({"group": name}, value(group.counters))

    return read


def _closed(stats: PoolStats) -> Iterator[Sample]:
    for name, group in stats.groups.items():
        for lane in group.endpoints:
            for reason, count in lane.counters.closed.items():
                yield Sample({"group": name, "endpoint": lane.endpoint, "reason": reason}, count)


def _endpoints(field: str) -> Callable[[PoolStats], Iterator[Sample]]:
    """One for each endpoint of which it is known."""

    def read(stats: PoolStats) -> Iterator[Sample]:
        for endpoint in stats.endpoints:
            value = getattr(endpoint, field)
            if value is not None:
                yield Sample({"endpoint": endpoint.endpoint}, value)

    return read


def _beliefs(field: str, words: Iterable[str]) -> Callable[[PoolStats], Iterator[Sample]]:
    """1 for what is believed of an endpoint, and 0 for what else could be."""
    choices = tuple(str(word) for word in words)

    def read(stats: PoolStats) -> Iterator[Sample]:
        for endpoint in stats.endpoints:
            for word in choices:
                yield Sample({"endpoint": endpoint.endpoint, field: word}, int(getattr(endpoint, field) == word))

    return read


def _fenced(stats: PoolStats) -> Iterator[Sample]:
    for endpoint in stats.endpoints:
        yield Sample({"endpoint": endpoint.endpoint}, int(endpoint.fenced is not None))


def _failovers(stats: PoolStats) -> Iterator[Sample]:
    yield Sample({}, stats.failovers)


def _events(stats: PoolStats) -> Iterator[Sample]:
    for kind, count in stats.events.items():
        yield Sample({"kind": kind}, count)


# -- the metrics ------------------------------------------------------------------------------------------------

METRICS = (
    Metric(
        "db.client.connection.count",
        "pgdbpool_connections",
        Kind.SUM,
        "{connection}",
        "Connections there are, by state: idle or used.",
        _states,
    ),
    Metric(
        "db.client.connection.max",
        "pgdbpool_connections_max",
        Kind.SUM,
        "{connection}",
        "The most connections that callers can have now, on the endpoints that suit the group.",
        _groups("limit"),
    ),
    Metric(
        "pgdbpool.connection.configured_max",
        "pgdbpool_connections_configured_max",
        Kind.SUM,
        "{connection}",
        "The most connections by the configuration, over all endpoints.",
        _groups("configured_limit"),
    ),
    Metric(
        "db.client.connection.idle.max",
        "pgdbpool_connections_idle_max",
        Kind.SUM,
        "{connection}",
        "The most connections that may be idle at the same time.",
        _groups("limit"),
    ),
    Metric(
        "db.client.connection.idle.min",
        "pgdbpool_connections_idle_min",
        Kind.SUM,
        "{connection}",
        "Connections that are kept open on each endpoint when there is nothing to do.",
        _groups("least"),
    ),
    Metric(
        "db.client.connection.pending_requests",
        "pgdbpool_pending_requests",
        Kind.SUM,
        "{request}",
        "Callers that wait for a connection now.",
        _groups("waiting"),
    ),
    Metric(
        "db.client.connection.timeouts",
        "pgdbpool_timeouts",
        Kind.COUNTER,
        "{timeout}",
        "Callers that got no connection before their deadline.",
        _group_counters(lambda counters: counters.timeouts),
    ),
    Metric(
        "db.client.connection.create_time",
        "pgdbpool_create_time_seconds",
        Kind.HISTOGRAM,
        "s",
        "How long connections took to be opened and made ready.",
        _lanes(lambda lane: histogram(lane.counters.connect_times, lane.counters.connect_time)),
    ),
    Metric(
        "db.client.connection.wait_time",
        "pgdbpool_wait_time_seconds",
        Kind.HISTOGRAM,
        "s",
        "How long callers waited, those included that did not have to; without an endpoint if they got no connection.",
        _wait_times,
    ),
    Metric(
        "db.client.connection.use_time",
        "pgdbpool_use_time_seconds",
        Kind.HISTOGRAM,
        "s",
        "How long connections were held, from checkout to return.",
        _lanes(lambda lane: histogram(lane.counters.use_times, lane.counters.use_time)),
    ),
    Metric(
        "pgdbpool.connection.opening",
        "pgdbpool_connections_opening",
        Kind.SUM,
        "{connection}",
        "Connections that are being opened.",
        _lanes(lambda lane: lane.opening),
    ),
    Metric(
        "pgdbpool.connection.create_failures",
        "pgdbpool_create_failures",
        Kind.COUNTER,
        "{connection}",
        "Connections that could not be opened or made ready.",
        _lanes(lambda lane: lane.counters.connect_failures),
    ),
    Metric(
        "pgdbpool.connection.closed",
        "pgdbpool_connections_closed",
        Kind.COUNTER,
        "{connection}",
        "Connections closed, by reason.",
        _closed,
    ),
    Metric(
        "pgdbpool.rejections",
        "pgdbpool_rejections",
        Kind.COUNTER,
        "{request}",
        "Callers turned away by max_waiting.",
        _group_counters(lambda counters: counters.rejections),
    ),
    Metric(
        "pgdbpool.rollbacks",
        "pgdbpool_rollbacks",
        Kind.COUNTER,
        "{transaction}",
        "Transactions that were rolled back on return.",
        _lanes(lambda lane: lane.counters.rollbacks),
    ),
    Metric(
        "pgdbpool.leaks",
        "pgdbpool_leaks",
        Kind.COUNTER,
        "{lease}",
        "Leases that lasted longer than leak_threshold.",
        _lanes(lambda lane: lane.counters.leaks),
    ),
    Metric(
        "pgdbpool.longest_wait",
        "pgdbpool_longest_wait_seconds",
        Kind.MOST,
        "s",
        "For how long the first of those that wait has waited.",
        _groups("longest_wait"),
    ),
    Metric(
        "pgdbpool.longest_use",
        "pgdbpool_longest_use_seconds",
        Kind.MOST,
        "s",
        "For how long the oldest lease has lasted.",
        _groups("longest_use"),
    ),
    Metric(
        "pgdbpool.failovers",
        "pgdbpool_failovers",
        Kind.COUNTER,
        "{failover}",
        "How often another server has become the primary, as each process has seen it.",
        _failovers,
    ),
    Metric(
        "pgdbpool.events",
        "pgdbpool_events",
        Kind.COUNTER,
        "{event}",
        "Events, by kind, as each process has seen them.",
        _events,
    ),
    Metric(
        "pgdbpool.endpoint.health",
        "pgdbpool_endpoint_health",
        Kind.SUM,
        "{pool}",
        "How many pools believe that an endpoint is in this health.",
        _beliefs("health", Health),
    ),
    Metric(
        "pgdbpool.endpoint.role",
        "pgdbpool_endpoint_role",
        Kind.SUM,
        "{pool}",
        "How many pools believe that an endpoint has this role.",
        _beliefs("role", Role),
    ),
    Metric(
        "pgdbpool.endpoint.fenced",
        "pgdbpool_endpoint_fenced",
        Kind.SUM,
        "{pool}",
        "How many pools do not use an endpoint because a promotion elsewhere has overtaken it.",
        _fenced,
    ),
    Metric(
        "pgdbpool.endpoint.share",
        "pgdbpool_endpoint_share",
        Kind.LEAST,
        "1",
        "The part of its weight that an endpoint gets, 0 while it is down.",
        _endpoints("share"),
    ),
    Metric(
        "pgdbpool.endpoint.lag",
        "pgdbpool_endpoint_lag_bytes",
        Kind.MOST,
        "By",
        "How many bytes of WAL a standby was behind its primary at the last probe.",
        _endpoints("lag"),
    ),
    Metric(
        "pgdbpool.endpoint.probe_time",
        "pgdbpool_endpoint_probe_time_seconds",
        Kind.MOST,
        "s",
        "How long the last answer to a probe took.",
        _endpoints("probe_time"),
    ),
)
