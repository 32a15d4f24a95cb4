"""Adds up what several processes have written.

What is counted is added. What is believed of an endpoint is what most processes believe that have looked lately; where
they do not agree, `views` says who believes what. One event that several processes have noticed is one `Happening`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from ..core.events import Event, EventKind
from ..core.evidence import Role
from ..core.stats import Counters, EndpointStats, GroupStats, LaneStats
from ..holders import Holder
from .record import Counts, GroupSample, PoolRecord, Sample, Worker

_SAME_EVENT = 10.0  # s within which several processes notice the same thing
_OF_ONE_POOL = (EventKind.LEAK_SUSPECTED, EventKind.LEAK_ENDED)
_FRESH = 5.0  # s: older beliefs count only if nobody has newer ones


class EndpointSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint, over all processes."""

    stats: EndpointStats
    """What most processes believe; `open`, `leased` and `opening` are sums."""
    views: dict[str, int]
    """Role and health as processes see them, such as ``primary, up``, and how many see it so."""


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """One event, and how many pools noticed it."""

    event: Event
    """As the first of them did."""
    pools: int


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A connection in somebody's hands."""

    pid: int
    pool: str = ""
    """The name of its pool."""
    holder: Holder


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One application on this host."""

    at: float
    """When the newest of the files was written, in seconds since the epoch; 0 if there is none."""
    workers: int
    pools: int
    groups: dict[str, GroupStats]
    endpoints: tuple[EndpointSummary, ...]
    events: tuple[Happening, ...]
    """The oldest first."""
    holders: tuple[Held, ...]
    """The longest first."""
    samples: tuple[Sample, ...]
    """The last minutes, the oldest first. The last one is about a time that has not ended yet."""


def merged(workers: Sequence[Worker], *, samples_since: float = 0.0) -> Summary:
    """All processes as one. `samples_since`, in seconds since the epoch, leaves out older samples."""
    pools = [pool for worker in workers for pool in worker.pools]
    return Summary(
        at=max((worker.at for worker in workers), default=0.0),
        workers=len(workers),
        pools=len(pools),
        groups=_groups(pools),
        endpoints=_endpoints(workers),
        events=_events(pools),
        holders=_holders(workers),
        samples=_samples(pools, samples_since),
    )


# -- what is counted --------------------------------------------------------------------------------------------


def _groups(pools: Iterable[PoolRecord]) -> dict[str, GroupStats]:
    found: dict[str, list[GroupStats]] = {}
    for pool in pools:
        for name, group in pool.stats.groups.items():
            found.setdefault(name, []).append(group)
    return {name: _group(groups) for name, groups in found.items()}


_GAUGES = ("limit", "open", "idle", "leased", "opening", "closing")
_OF_GROUPS = ("configured_limit", "least", "waiting")


def _group(groups: list[GroupStats]) -> GroupStats:
    lanes: dict[str, list[LaneStats]] = {}
    for group in groups:
        for lane in group.endpoints:
            lanes.setdefault(lane.endpoint, []).append(lane)
    first, *others = groups
    if not others:
        return first
    return msgspec.structs.replace(
        first,
        **{field: sum(getattr(group, field) for group in groups) for field in (*_GAUGES, *_OF_GROUPS)},
        longest_wait=max(group.longest_wait for group in groups),
        longest_use=max(group.longest_use for group in groups),
        paused=all(group.paused for group in groups),
        counters=_sum([group.counters for group in groups]),
        endpoints=tuple(_lane(several) for several in lanes.values()),
    )


def _lane(lanes: list[LaneStats]) -> LaneStats:
    return msgspec.structs.replace(
        lanes[0],
        live=any(lane.live for lane in lanes),
        **{field: sum(getattr(lane, field) for lane in lanes) for field in _GAUGES},
        counters=_sum([lane.counters for lane in lanes]),
    )


def _sum(counters: list[Counters]) -> Counters:
    total, *others = counters
    for each in others:
        total = total + each
    return total


# -- what is believed -------------------------------------------------------------------------------------------


def _endpoints(workers: Sequence[Worker]) -> tuple[EndpointSummary, ...]:
    newest = max((worker.at for worker in workers), default=0.0)
    found: dict[str, list[tuple[bool, EndpointStats]]] = {}
    for worker in workers:
        fresh = newest - worker.at < max(_FRESH, 3 * worker.interval)
        for pool in worker.pools:
            for endpoint in pool.stats.endpoints:
                found.setdefault(endpoint.endpoint, []).append((fresh, endpoint))
    return tuple(_endpoint(beliefs) for beliefs in found.values())


def _endpoint(beliefs: list[tuple[bool, EndpointStats]]) -> EndpointSummary:
    every = [stats for _, stats in beliefs]
    fresh = [stats for is_fresh, stats in beliefs if is_fresh] or every
    views = Counter(_view(stats) for stats in fresh)
    most, _ = views.most_common(1)[0]
    chosen = min((stats for stats in fresh if _view(stats) == most), key=_answered)
    errors = [stats for stats in every if stats.last_error_age is not None]
    latest = min(errors, key=lambda stats: stats.last_error_age or 0.0, default=chosen)
    sums = {field: sum(getattr(stats, field) for stats in every) for field in ("open", "leased", "opening")}
    stats = msgspec.structs.replace(
        chosen,
        **sums,
        last_role=_last_role(chosen, fresh),
        last_error=latest.last_error,
        last_error_age=latest.last_error_age,
    )
    return EndpointSummary(stats=stats, views=dict(views))


def _last_role(chosen: EndpointStats, fresh: list[EndpointStats]) -> str:
    """A process that has begun since the server went down does not know what it was; others may."""
    if chosen.last_role != Role.UNKNOWN:
        return chosen.last_role
    known = Counter(stats.last_role for stats in fresh if stats.health == chosen.health)
    del known[Role.UNKNOWN]
    return known.most_common(1)[0][0] if known else chosen.last_role


def _view(stats: EndpointStats) -> str:
    return f"{stats.role}, {'fenced' if stats.fenced is not None else stats.health}"


def _answered(stats: EndpointStats) -> float:
    return float("inf") if stats.answered is None else stats.answered


# -- what happened ----------------------------------------------------------------------------------------------


def _events(pools: Iterable[PoolRecord]) -> tuple[Happening, ...]:
    """What one pool says twice happened twice; what two pools say of a server within a short time happened once."""
    told = sorted(
        ((event, number) for number, pool in enumerate(pools) for event in pool.events), key=lambda each: each[0].at
    )
    found: list[tuple[Event, set[int]]] = []
    last: dict[tuple[str, str, int], list[tuple[Event, set[int]]]] = {}
    for event, number in told:
        whose = number if event.kind in _OF_ONE_POOL else -1
        same = last.setdefault((event.kind, event.endpoint, whose), [])
        same[:] = [(first, who) for first, who in same if event.at - first.at < _SAME_EVENT]
        for _, who in same:
            if number not in who:
                who.add(number)
                break
        else:
            found.append((event, {number}))
            same.append(found[-1])
    return tuple(Happening(event=event, pools=len(who)) for event, who in found)


def _holders(workers: Sequence[Worker]) -> tuple[Held, ...]:
    held = [
        Held(pid=worker.pid, pool=pool.stats.name, holder=holder)
        for worker in workers
        for pool in worker.pools
        for holder in pool.holders
    ]
    return tuple(sorted(held, key=lambda each: -each.holder.since))


# -- the last minutes -------------------------------------------------------------------------------------------


def _samples(pools: Iterable[PoolRecord], since: float) -> tuple[Sample, ...]:
    found: dict[float, list[Sample]] = {}
    for pool in pools:
        for sample in pool.samples(since):
            found.setdefault(sample.at, []).append(sample)
    return tuple(_sample(at, found[at]) for at in sorted(found))


def _sample(at: float, samples: list[Sample]) -> Sample:
    if len(samples) == 1:
        return samples[0]
    groups: dict[str, list[GroupSample]] = {}
    endpoints: Counter[str] = Counter()
    for sample in samples:
        for name, group in sample.groups.items():
            groups.setdefault(name, []).append(group)
        for label, requests in sample.endpoints.items():
            endpoints[label] += requests
    return Sample(at, {name: _group_sample(several) for name, several in groups.items()}, dict(endpoints))


def _group_sample(several: list[GroupSample]) -> GroupSample:
    return GroupSample(
        sum(each.requests for each in several),
        sum(each.waits for each in several),
        sum(each.timeouts for each in several),
        sum(each.wait_time for each in several),
        sum(each.use_time for each in several),
        _add([each.wait_times for each in several]),
        _add([each.use_times for each in several]),
        sum(each.prompt for each in several),
    )


def _add(several: list[Counts]) -> Counts:
    total: Counter[int] = Counter()
    for counts in several:
        for place, count in counts:
            total[place] += count
    return tuple(sorted(total.items()))
