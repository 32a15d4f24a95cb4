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
from typing import Any, Literal

import msgspec

from . import shown, times
from .endpoint import Endpoint
from .evidence import Health, Role
from .group import Group, Lock
from .lane import Lane
from .snapshot import snapshot
from .topology import Topology

Times = tuple[int, ...]
"""How often something took how long: a count for each of `pgdbpool.core.times.BOUNDS`, and one for what took longer."""
NO_TIMES: Times = times.in_order(times.no_times())


Histogram = Literal["wait", "use", "connect"]
"""Whose durations: waits for a connection, leases, connects."""
_HISTOGRAMS: tuple[Histogram, ...] = ("wait", "use", "connect")
_QUANTILES = {"p50": 0.5, "p99": 0.99}


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all statistics."""

    def to_json(self) -> str:
        """As JSON, with the names of the fields.

        Beside each histogram are its median and 99th percentile: ``wait_p50``, ``wait_p99``, ``use_p50``, ``use_p99``,
        ``connect_p50`` and ``connect_p99``, as `Counters.quantile` gives them; null for more than 17 minutes, too.
        """
        return msgspec.json.encode(to_builtins(self)).decode()


class Counters(Stats, frozen=True, kw_only=True):
    """What has been counted since the start or the last `pop_stats`. Times are seconds.

    What ends in ``_times`` is a histogram: a count for each of ``pgdbpool.core.times.BOUNDS``, which are the powers of
    two from about a microsecond to 17 minutes, and one for what took longer. See `quantile`.
    """

    requests: int = 0
    """Leases that have ended."""
    prompt: int = 0
    """Those of them that had not been waited for."""
    waits: int = 0
    """Callers that had to wait: those that got a connection, counted when their lease begins, and the `timeouts`.

    ``prompt + waits`` are all callers but those that wait now, were turned away, or gave up by themselves.
    """
    wait_time: float = 0.0
    """How long these waits lasted, in sum."""
    wait_times: Times = NO_TIMES
    """How many of them lasted how long."""
    use_time: float = 0.0
    """How long the leases that have ended lasted, in sum."""
    use_times: Times = NO_TIMES
    """How many of them lasted how long."""
    timeouts: int = 0
    """Callers whose deadline passed, or who got ``PoolExhausted``. Of groups only: a caller in vain has no endpoint.

    They are among the `waits` of the group, and their time is in its `wait_time` and `wait_times`.
    """
    rejections: int = 0
    """Callers turned away by ``max_waiting``. Of groups only."""
    connects: int = 0
    """Connections opened."""
    connect_time: float = 0.0
    """How long that took, in sum: TLS, login and the first questions included."""
    connect_times: Times = NO_TIMES
    """How many of them took how long."""
    connect_failures: int = 0
    """Connections that could not be opened or made ready."""
    rollbacks: int = 0
    """Transactions that were rolled back on return."""
    leaks: int = 0
    """Leases that lasted longer than ``leak_threshold``."""
    closed: Mapping[str, int] = {}
    """Connections closed, by reason.

    ``lifetime`` and ``idle`` (their limits), ``broken`` (by the server or the network), ``retired`` (in use when its
    like were given up), ``role`` (its server has another role now), ``fenced`` (a promotion elsewhere has overtaken
    this primary), ``aborted`` (its server was found dead while it was in use), ``drained``, ``resized``, ``displaced``
    (``total_count`` was needed on a better endpoint), ``reset`` (its callable failed), ``busy`` (came back in the
    middle of a statement, or of a transaction block of the driver's), ``lost`` (nobody held it any more), ``closed``
    (by its user, or with the pool).
    """

    def since(self, mark: Counters) -> Counters:
        """The difference to an earlier state."""
        return _fieldwise(self, mark, sub)

    def __add__(self, other: Counters) -> Counters:
        return _fieldwise(self, other, add)

    def quantile(self, of: Histogram, share: float) -> float | None:
        """The seconds within which this share of the waits, uses or connects was done; None if nothing was counted.

        `of` is ``"wait"``, ``"use"`` or ``"connect"``, `share` between 0 and 1: ``quantile("use", 0.99)``. It is the
        upper limit of a place in the histogram, so at most twice the exact value; ``inf`` above 17 minutes. Callers who
        did not have to wait count among the waits, as waits of nothing. Raises ValueError for another name or share.
        """
        if of not in _HISTOGRAMS:
            raise ValueError(f"quantile: expected 'wait', 'use' or 'connect', got {of!r}")
        if not 0 <= share <= 1:
            raise ValueError(f"quantile: expected a share between 0 and 1, got {share!r}")
        counts: Times = getattr(self, f"{of}_times")
        if of == "wait" and self.prompt:
            if self.prompt >= share * (self.prompt + sum(counts)):
                return 0.0
            counts = (counts[0] + self.prompt, *counts[1:])
        return times.quantile(counts, share)

    def __repr__(self) -> str:
        return shown.counters(self)


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


class LaneStats(Stats, frozen=True, kw_only=True):
    """One group's connections to one endpoint."""

    endpoint: str
    """``host:port``."""
    live: bool
    """Whether callers are sent there now."""
    limit: int
    """The most connections: ``connection_count``."""
    open: int
    """Connections there are: ``idle + leased``."""
    idle: int
    """At rest."""
    leased: int
    """In somebody's hands."""
    opening: int
    """Being opened."""
    closing: int
    """Being closed."""
    counters: Counters
    """What has been counted on these connections."""

    def __repr__(self) -> str:
        return shown.lane(self)


class GroupStats(Stats, frozen=True, kw_only=True):
    """One group, over all its endpoints. Times are seconds."""

    group: str
    """Its name."""
    limit: int
    """The most connections that callers can have now: ``connection_count`` for each endpoint that they are sent to.

    These are the endpoints that are ``live``, and while the group is paused those that would be. So a group that wants
    a standby does not count the primary, none counts a server that is down, and one without ``spill`` counts only the
    endpoints it prefers.
    At most ``total_count``. Where leases last on an endpoint that callers are no longer sent to, `leased` may be more.
    """
    configured_limit: int
    """The same over all endpoints of the group, whatever is believed of them."""
    least: int
    """Its ``min_count``: connections that are kept open on each endpoint."""
    open: int
    """Connections there are: ``idle + leased``."""
    idle: int
    """At rest."""
    leased: int
    """In somebody's hands."""
    opening: int
    """Being opened."""
    closing: int
    """Being closed."""
    waiting: int
    """Callers that wait for a connection at this moment."""
    longest_wait: float
    """For how long the first of them has waited."""
    longest_use: float
    """For how long the oldest lease has lasted."""
    paused: bool
    """Whether `pause` was called."""
    counters: Counters
    """The sum over its endpoints."""
    endpoints: tuple[LaneStats, ...]
    """Each endpoint that it may use."""

    def __repr__(self) -> str:
        return shown.group(self)


class EndpointStats(Stats, frozen=True, kw_only=True):
    """What is believed of one endpoint, and what is open there. Times are seconds."""

    endpoint: str
    """``host:port``."""
    role: str
    """``primary``, ``standby`` or ``unknown``, as last reported; ``unknown`` while it is down."""
    last_role: str
    """The same, but while it is down what it was before."""
    read_only: bool
    """Whether ``default_transaction_read_only`` is on there."""
    demoted: bool
    """Whether it says primary, took writes before, and now refuses them."""
    fenced: str | None
    """Why it must not be used though it says primary."""
    health: str
    """``up``, ``suspect`` (unproven, or something broke) or ``down`` (not to be used until it answers)."""
    fault: str | None
    """Why the last connect failed, unless one has succeeded since.

    ``refused``, ``timeout``, ``waiting``, ``unreachable``, ``unresolved``, ``starting``, ``full``, ``misconfigured``,
    ``local`` or ``ended``: the page on metrics says what each means.
    """
    down_for: float | None
    """For how long it has been down."""
    answered: float | None
    """How long ago it last let us in or answered a probe."""
    priority: int
    """As configured."""
    weight: float
    """As configured."""
    share: float
    """The part of its weight that it gets now: 0 while it is down, then less than 1 for ``slow_start`` seconds."""
    open: int
    """Connections of this pool, over all groups."""
    leased: int
    """Those in somebody's hands."""
    opening: int
    """Being opened."""
    position: int | None
    """At the last probe: how many bytes of WAL a primary had written, a standby replayed."""
    lag: int | None
    """At the last probe: how many bytes of WAL a standby was behind its primary."""
    probe_time: float | None
    """How long the last answer to a probe took."""
    last_error: str | None
    """The words of its last error, however long ago."""
    last_error_age: float | None
    """How long ago that was."""

    def __repr__(self) -> str:
        return shown.endpoint(self)


class PoolStats(Stats, frozen=True, kw_only=True):
    """One moment of a pool."""

    name: str
    """That of the pool."""
    at: float
    """When it was read, in seconds since the epoch."""
    failovers: int
    """How often another server has become the primary."""
    events: Mapping[str, int]
    """How many events of each kind there were; see `pgdbpool.EventKind`."""
    groups: Mapping[str, GroupStats]
    """Each group, by its name."""
    endpoints: tuple[EndpointStats, ...]
    """Each endpoint, in the order of the configuration."""

    def __repr__(self) -> str:
        return shown.pool(self)

    def _repr_html_(self) -> str:
        """For notebooks."""
        return shown.pool_as_html(self)


def to_builtins(value: Any) -> Any:
    """What JSON is made of: the fields, and beside each histogram its median and 99th percentile."""
    return _with_quantiles(msgspec.to_builtins(value))


def _with_quantiles(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_with_quantiles(each) for each in value]
    if not isinstance(value, dict):
        return value
    made = {key: _with_quantiles(each) for key, each in value.items()}
    if isinstance(value.get("use_times"), list | tuple) and "prompt" in value:  # that is what `Counters` look like
        counters = msgspec.convert(value, Counters)
        for of in _HISTOGRAMS:
            made |= {f"{of}_{name}": counters.quantile(of, share) for name, share in _QUANTILES.items()}
    return made


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
    vain = times.in_order(group.vain_times)
    own = reached[group] = Counters(
        waits=sum(vain),
        wait_time=group.vain_time,
        wait_times=vain,
        timeouts=sum(vain),
        rejections=group.rejections,
    )
    counters = own.since(marks.get(group, _ZERO))
    for lane in lanes:
        counters = counters + lane.counters
    held = [slot.taken for lane in group.lanes for slot in lane.ledger.live if slot.held]
    return GroupStats(
        group=group.name,
        limit=group.capacity,
        configured_limit=group.configured_limit,
        least=group.min_count,
        open=_sum(lanes, "open"),
        idle=_sum(lanes, "idle"),
        leased=_sum(lanes, "leased"),
        opening=_sum(lanes, "opening"),
        closing=_sum(lanes, "closing"),
        waiting=len(group.waiters),
        longest_wait=max((now - waiter.since for waiter in snapshot(group.waiters)), default=0.0),
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
            last_role=_last_role(endpoint).value,
            read_only=endpoint.report.read_only,
            demoted=endpoint.demoted,
            fenced=endpoint.fenced_by,
            health=endpoint.health.value,
            fault=endpoint.fault.value if endpoint.fault else None,
            down_for=_age(endpoint.down_since, now),
            answered=_age(endpoint.answered_at, now),
            priority=endpoint.priority,
            weight=endpoint.weight,
            share=_share(endpoint, topology),
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


def _last_role(endpoint: Endpoint) -> Role:
    return endpoint.role_before if endpoint.health is Health.DOWN else endpoint.role


def _share(endpoint: Endpoint, topology: Topology) -> float:
    if endpoint.health is Health.DOWN:
        return 0.0
    return min((lane.share for lane in topology.lanes(endpoint)), default=1.0)


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
