"""Statistics: frozen values, exact, made without stopping anybody.

While a slot is leased its counters are written by its holder alone. They are added up here when somebody asks, without
the pool's lock: each lane has a `Ledger` of its slots and of those that are gone, which is swapped whole. So nothing is
missed and nothing counted twice. What happens in the few microseconds of the adding up is in the result or is not: of
two numbers that belong together, such as a lease and its seconds, one may be there already. Once nothing happens, all
are exact.

`pop` keeps the counters and remembers where they stood.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import add, sub
from typing import Any

import msgspec

from . import times
from .endpoint import Endpoint
from .evidence import Role
from .group import Group, Lock
from .lane import Lane
from .topology import Topology

Times = tuple[int, ...]
"""How often something took how long: a count for each of `pgdbpool.core.times.BOUNDS`, and one for what took longer."""
NO_TIMES: Times = times.in_order(times.no_times())


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What has been counted since the start or the last `pop_stats`. Times are seconds."""

    requests: int = 0
    prompt: int = 0
    waits: int = 0
    wait_time: float = 0.0
    wait_times: Times = NO_TIMES
    use_time: float = 0.0
    use_times: Times = NO_TIMES
    timeouts: int = 0
    rejections: int = 0
    connects: int = 0
    connect_time: float = 0.0
    connect_times: Times = NO_TIMES
    connect_failures: int = 0
    rollbacks: int = 0
    leaks: int = 0
    closed: Mapping[str, int] = {}

    def since(self, mark: Counters) -> Counters:
        """The difference to an earlier state."""
        return _fieldwise(self, mark, sub)

    def __add__(self, other: Counters) -> Counters:
        return _fieldwise(self, other, add)


def _fieldwise(one: Counters, two: Counters, operator: Any) -> Counters:
    values: dict[str, Any] = {}
    for field in one.__struct_fields__:
        a, b = getattr(one, field), getattr(two, field)
        if isinstance(a, tuple):
            values[field] = tuple(map(operator, a, b))
        elif isinstance(a, Mapping):
            values[field] = dict(operator(Counter(a), Counter(b)))
        else:
            values[field] = operator(a, b)
    return Counters(**values)


class LaneStats(msgspec.Struct, frozen=True, kw_only=True):
    """One group's connections to one endpoint."""

    endpoint: str
    live: bool
    limit: int
    open: int
    idle: int
    leased: int
    opening: int
    closing: int
    counters: Counters


class GroupStats(msgspec.Struct, frozen=True, kw_only=True):
    """One group, over all its endpoints."""

    group: str
    limit: int
    least: int
    open: int
    idle: int
    leased: int
    opening: int
    closing: int
    waiting: int
    longest_wait: float
    longest_use: float
    paused: bool
    counters: Counters
    endpoints: tuple[LaneStats, ...]


class EndpointStats(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of one endpoint, and what is open there."""

    endpoint: str
    role: str
    read_only: bool
    demoted: bool
    fenced: str | None
    health: str
    fault: str | None
    down_for: float | None
    answered: float | None
    priority: int
    weight: float
    share: float
    open: int
    leased: int
    opening: int
    position: int | None
    lag: int | None
    probe_time: float | None
    last_error: str | None
    last_error_age: float | None


class PoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a pool."""

    name: str
    at: float
    failovers: int
    events: Mapping[str, int]
    groups: Mapping[str, GroupStats]
    endpoints: tuple[EndpointStats, ...]


def to_json(value: PoolStats | GroupStats | EndpointStats | Counters) -> str:
    """As JSON, with the names of the fields."""
    return msgspec.json.encode(value).decode()


Marks = Mapping[object, Any]  # lane or group -> Counters, topology -> Counter of events


class Books:
    """The statistics of one pool. May be read from any thread."""

    def __init__(self, name: str, topology: Topology, lock: Lock) -> None:
        self._name = name
        self._topology = topology
        self._marks: Marks = {}  # where the counters stood at the last `pop`; swapped whole
        self._lock = lock  # of its own: two that pop at the same moment must not both get the same

    def reset(self, lock: Lock) -> None:
        """As in a new process."""
        self._marks = {}
        self._lock = lock

    def read(self, now: float, at: float = 0.0, *, all_time: bool = False) -> PoolStats:
        """Everything, at `now` on the pool's clock and `at` on that of the world.

        With `all_time` since the start, whatever has been popped meanwhile.
        """
        marks = {} if all_time else self._marks  # before the counters: these may have grown since, and no less
        return self._read(now, at, marks)[0]

    def pop(self, now: float, at: float = 0.0) -> PoolStats:
        """The same, and counting begins anew."""
        with self._lock:
            result, self._marks = self._read(now, at, self._marks)
        return result

    def _read(self, now: float, at: float, marks: Marks) -> tuple[PoolStats, Marks]:
        reached: dict[object, Any] = {}
        groups = {group.name: _group_stats(group, now, marks, reached) for group in self._topology.groups}
        noted = reached[self._topology] = self._topology.noted.copy()
        noted = noted - marks.get(self._topology, Counter())
        result = PoolStats(
            name=self._name,
            at=at,
            failovers=noted["failover-finished"],
            events={str(kind): count for kind, count in noted.items()},
            groups=groups,
            endpoints=endpoints(self._topology, now),
        )
        return result, reached


def _group_stats(group: Group, now: float, marks: Marks, reached: dict[object, Any]) -> GroupStats:
    lanes = [_lane_stats(lane, marks, reached) for lane in group.lanes]
    own = reached[group] = Counters(timeouts=group.timeouts, rejections=group.rejections)
    counters = own.since(marks.get(group, _ZERO))
    for lane in lanes:
        counters = counters + lane.counters
    limit = sum(lane.limit for lane in lanes)
    held = [slot.taken for lane in group.lanes for slot in lane.ledger.live if slot.held]
    return GroupStats(
        group=group.name,
        limit=limit if group.total_limit is None else min(limit, group.total_limit),
        least=group.min_count,
        open=_sum(lanes, "open"),
        idle=_sum(lanes, "idle"),
        leased=_sum(lanes, "leased"),
        opening=_sum(lanes, "opening"),
        closing=_sum(lanes, "closing"),
        waiting=len(group.waiters),
        longest_wait=max((now - waiter.since for waiter in group.waiters.copy()), default=0.0),
        longest_use=now - min(held, default=now),
        paused=group.paused,
        counters=counters,
        endpoints=tuple(lanes),
    )


_ZERO = Counters()


def _sum(lanes: Sequence[LaneStats], field: str) -> int:
    return sum(getattr(lane, field) for lane in lanes)


def _lane_stats(lane: Lane, marks: Marks, reached: dict[object, Any]) -> LaneStats:
    counters = reached[lane] = lane_counters(lane)
    idle = len(lane.idle)
    leased = max(0, lane.open - idle)  # in the middle of a checkout one of them may be ahead
    return LaneStats(
        endpoint=lane.endpoint.label,
        live=lane.live,
        limit=lane.group.limit,
        open=idle + leased,
        idle=idle,
        leased=leased,
        opening=lane.opening,
        closing=lane.closing,
        counters=counters.since(marks.get(lane, _ZERO)),
    )


def lane_counters(lane: Lane) -> Counters:
    """What has been counted on all connections there have been."""
    ledger = lane.ledger
    tallies = [ledger.gone, *ledger.live]
    # A lease that was waited for is among the waits from its beginning, and among the uses only at its end. Read in
    # this order, what happens meanwhile can only make `prompt` too small.
    use_times = times.add(tally.use_times for tally in tallies)
    unended = ledger.lost + sum(slot.waited_for == slot.uses for slot in ledger.live)
    wait_times = times.add(tally.wait_times for tally in tallies)
    uses, waits = sum(use_times), sum(wait_times)
    return Counters(
        requests=uses,
        prompt=max(0, uses - waits + unended),
        waits=waits,
        wait_time=sum(tally.wait_time for tally in tallies),
        wait_times=times.in_order(wait_times),
        use_time=sum(tally.use_time for tally in tallies),
        use_times=times.in_order(use_times),
        connects=sum(lane.connect_times),
        connect_time=lane.connect_time,
        connect_times=times.in_order(lane.connect_times),
        connect_failures=lane.failures,
        rollbacks=sum(tally.rollbacks for tally in tallies),
        leaks=lane.leaks,
        closed=dict(lane.closed_by),
    )


def endpoints(topology: Topology, now: float) -> tuple[EndpointStats, ...]:
    """What is believed of each endpoint."""
    return tuple(
        EndpointStats(
            endpoint=endpoint.label,
            role=endpoint.role.value,
            read_only=endpoint.report.read_only,
            demoted=endpoint.demoted,
            fenced=endpoint.fenced_by,
            health=endpoint.health.value,
            fault=endpoint.fault.value if endpoint.fault else None,
            down_for=_age(endpoint.down_since, now),
            answered=_age(endpoint.answered_at, now),
            priority=endpoint.priority,
            weight=endpoint.weight,
            share=min((lane.share for lane in topology.lanes(endpoint)), default=1.0),
            open=endpoint.open,
            leased=sum(max(0, lane.leased) for lane in topology.lanes(endpoint)),
            opening=endpoint.connecting,
            position=endpoint.position,
            lag=lag(endpoint, topology.endpoints),
            probe_time=endpoint.probe_time,
            last_error=endpoint.last_error,
            last_error_age=_age(endpoint.last_error_at, now),
        )
        for endpoint in topology.endpoints
    )


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else max(0.0, now - since)


def lag(endpoint: Endpoint, others: Sequence[Endpoint]) -> int | None:
    """Bytes of WAL that a standby is behind its primary, as of the last probe of each; None if that is not known."""
    if endpoint.role is not Role.STANDBY or endpoint.position is None or endpoint.identity is None:
        return None
    written = [
        other.position
        for other in others
        if other.role is Role.PRIMARY
        and other.fenced_by is None
        and other.position is not None
        and other.identity is not None
        and other.identity.system == endpoint.identity.system
    ]
    return max(0, max(written) - endpoint.position) if written else None
