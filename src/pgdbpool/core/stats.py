"""Statistics: frozen values, exact, made without stopping anybody.

While a slot is leased its counters are written by its holder alone; here they are added to what its lane remembers
of slots that are gone. A reset keeps the counters and remembers where they stood.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from .group import Group
from .lane import Lane
from .topology import Topology


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What has been counted since the start or the last `pop_stats`. Times are seconds."""

    requests: int = 0
    waits: int = 0
    wait_time: float = 0.0
    use_time: float = 0.0
    timeouts: int = 0
    rejections: int = 0
    connects: int = 0
    connect_time: float = 0.0
    connect_failures: int = 0
    rollbacks: int = 0
    closed: Mapping[str, int] = {}

    def since(self, mark: Counters) -> Counters:
        """The difference to an earlier state."""
        values: dict[str, Any] = {}
        for field in self.__struct_fields__:
            now, then = getattr(self, field), getattr(mark, field)
            values[field] = dict(Counter(now) - Counter(then)) if field == "closed" else now - then
        return Counters(**values)

    def __add__(self, other: Counters) -> Counters:
        values: dict[str, Any] = {}
        for field in self.__struct_fields__:
            a, b = getattr(self, field), getattr(other, field)
            values[field] = dict(Counter(a) + Counter(b)) if field == "closed" else a + b
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
    counters: Counters


class GroupStats(msgspec.Struct, frozen=True, kw_only=True):
    """One group, over all its endpoints."""

    group: str
    limit: int
    open: int
    idle: int
    leased: int
    opening: int
    waiting: int
    longest_wait: float
    paused: bool
    counters: Counters
    endpoints: tuple[LaneStats, ...]


class EndpointStats(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of one endpoint, and what is open there."""

    endpoint: str
    role: str
    read_only: bool
    health: str
    fault: str | None
    priority: int
    weight: float
    open: int
    leased: int
    opening: int
    last_error: str | None


class PoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a pool."""

    groups: Mapping[str, GroupStats]
    endpoints: tuple[EndpointStats, ...]


def lane_counters(lane: Lane) -> Counters:
    """Exact when the pool's lock is held: no slot can go, so none is counted twice or not at all."""
    slots = list(lane.slots)
    return Counters(
        requests=lane.uses + sum(slot.uses for slot in slots),
        waits=lane.waits + sum(slot.waits for slot in slots),
        wait_time=lane.wait_time + sum(slot.wait_time for slot in slots),
        use_time=lane.use_time + sum(slot.use_time for slot in slots),
        connects=lane.connects,
        connect_time=lane.connect_time,
        connect_failures=lane.failures,
        rollbacks=lane.rollbacks + sum(slot.rollbacks for slot in slots),
        closed=dict(lane.closed_by),
    )


Marks = dict[object, Counters]
_ZERO = Counters()


def read(topology: Topology, now: float, marks: Marks, *, reset: bool = False) -> PoolStats:
    """The statistics of a pool. With `reset`, counting starts anew. The caller holds the pool's lock."""
    groups = {group.name: _group_stats(group, now, marks, reset) for group in topology.groups}
    return PoolStats(groups=groups, endpoints=endpoints(topology))


def _since(key: object, counters: Counters, marks: Marks, reset: bool) -> Counters:
    since = counters.since(marks.get(key, _ZERO))
    if reset:
        marks[key] = counters
    return since


def _group_stats(group: Group, now: float, marks: Marks, reset: bool) -> GroupStats:
    lanes = [_lane_stats(lane, marks, reset) for lane in group.lanes]
    own = Counters(timeouts=group.timeouts, rejections=group.rejections)
    counters = _since(group, own, marks, reset)
    for lane in lanes:
        counters = counters + lane.counters
    limit = sum(lane.limit for lane in lanes)
    return GroupStats(
        group=group.name,
        limit=limit if group.total_limit is None else min(limit, group.total_limit),
        open=_sum(lanes, "open"),
        idle=_sum(lanes, "idle"),
        leased=_sum(lanes, "leased"),
        opening=_sum(lanes, "opening"),
        waiting=len(group.waiters),
        longest_wait=max((now - waiter.since for waiter in tuple(group.waiters)), default=0.0),
        paused=group.paused,
        counters=counters,
        endpoints=tuple(lanes),
    )


def _sum(lanes: Sequence[LaneStats], field: str) -> int:
    return sum(getattr(lane, field) for lane in lanes)


def _lane_stats(lane: Lane, marks: Marks, reset: bool) -> LaneStats:
    idle = len(lane.idle)
    return LaneStats(
        endpoint=lane.endpoint.label,
        live=lane.live,
        limit=lane.group.limit,
        open=lane.open,
        idle=idle,
        leased=lane.open - idle,
        opening=lane.opening,
        counters=_since(lane, lane_counters(lane), marks, reset),
    )


def endpoints(topology: Topology) -> tuple[EndpointStats, ...]:
    """What is believed of each endpoint."""
    return tuple(
        EndpointStats(
            endpoint=endpoint.label,
            role=endpoint.role.value,
            read_only=endpoint.report.read_only,
            health=endpoint.health.value,
            fault=endpoint.fault.value if endpoint.fault else None,
            priority=endpoint.priority,
            weight=endpoint.weight,
            open=endpoint.open,
            leased=sum(lane.leased for lane in topology.lanes(endpoint)),
            opening=endpoint.connecting,
            last_error=endpoint.last_error,
        )
        for endpoint in topology.endpoints
    )
