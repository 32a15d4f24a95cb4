"""What one pool did in the last minutes: events, and samples of what was counted.

A sample is the difference of the counters between the last look before it began and the last look before it ended; so
what a look finds belongs to the time of the look, also after a long rest. The one that has not ended yet is made anew
each time.
"""

from __future__ import annotations

from collections import deque
from time import thread_time
from typing import Protocol

import msgspec

from ..clock import monotonic
from ..core.events import Event
from ..core.snapshot import snapshot
from ..core.stats import Counters, PoolStats, Times
from ..holders import Holder
from .record import CALLS, EVENTS, HISTORY, HOLDERS, STEP, Counts, GroupSample, PoolRecord, Sample, raw

_HOLDERS_SHARE = 200  # who holds what is looked for in at most one part in so many of the time


class Subject(Protocol):
    """A pool, as far as a chronicle knows it."""

    def stats(self, *, all_time: bool = False) -> PoolStats: ...
    def holders(self, group: str | None = None) -> list[Holder]: ...


class Chronicle:
    """The last minutes of one pool. Used by one thread at a time, except for `heard`."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.forget()

    def forget(self) -> None:
        """Begin anew, as in a new process."""
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._samples: deque[msgspec.Raw] = deque(maxlen=HISTORY)
        self._mark: PoolStats | None = None  # where the counters stood when the present sample began
        self._last: PoolStats | None = None  # ... and at the last look
        self._began = 0.0
        self._holders: tuple[Holder, ...] = ()
        self._look_again = 0.0

    def heard(self, event: Event) -> None:
        """Something happened. May be called by any thread."""
        self._events.append(event)

    def record(self, pool: Subject, now: float) -> PoolRecord:
        """Everything, at `now` in seconds since the epoch."""
        stats = pool.stats(all_time=True)
        return PoolRecord(
            kind=self._kind,
            stats=stats,
            events=tuple(snapshot(self._events)),
            holders=self._who_holds(pool, stats),
            raw_samples=self._sampled(stats, now),
        )

    def _sampled(self, stats: PoolStats, now: float) -> tuple[msgspec.Raw, ...]:
        began = now // STEP * STEP
        if self._mark is None or self._last is None or began < self._began:  # the first time, or the clock was set back
            self._mark, self._began = stats, began
            self._samples.clear()
        elif began > self._began:
            self._samples.append(raw(_difference(self._mark, self._last, self._began)))
            self._mark, self._began = self._last, began
        self._last = stats
        return *self._samples, raw(_difference(self._mark, stats, self._began))

    def _who_holds(self, pool: Subject, stats: PoolStats) -> tuple[Holder, ...]:
        leased = sum(group.leased for group in stats.groups.values())
        if leased and monotonic() >= self._look_again:
            began = thread_time()
            self._holders = tuple(_shortened(holder) for holder in pool.holders()[:HOLDERS])
            self._look_again = monotonic() + _HOLDERS_SHARE * (thread_time() - began)
        elif not leased:
            self._holders = ()
        return self._holders


def _shortened(holder: Holder) -> Holder:
    """With the innermost calls of its stacks."""
    return msgspec.structs.replace(holder, checkout=holder.checkout[-CALLS:], stack=holder.stack[-CALLS:])


def _difference(before: PoolStats, after: PoolStats, at: float) -> Sample:
    """What was counted between the two; of a lane that was not there before, all."""
    groups = {}
    endpoints: dict[str, int] = {}
    for name, group in after.groups.items():
        old = before.groups.get(name)
        sample = _group(old.counters if old else _NOTHING, group.counters)
        if sample != _QUIET:
            groups[name] = sample
        earlier = {lane.endpoint: lane.counters.requests for lane in old.endpoints} if old else {}
        for lane in group.endpoints:
            requests = lane.counters.requests - earlier.get(lane.endpoint, 0)
            if requests:
                endpoints[lane.endpoint] = endpoints.get(lane.endpoint, 0) + requests
    return Sample(at, groups, endpoints)


_NOTHING = Counters()
_QUIET = GroupSample()


def _group(before: Counters, after: Counters) -> GroupSample:
    return GroupSample(
        after.requests - before.requests,
        after.waits - before.waits,
        after.timeouts - before.timeouts,
        after.wait_time - before.wait_time,
        after.use_time - before.use_time,
        _counts(before.wait_times, after.wait_times),
        _counts(before.use_times, after.use_times),
        max(0, after.prompt - before.prompt),  # one that is read in the middle of a checkout may be one too small
    )


def _counts(before: Times, after: Times) -> Counts:
    return tuple((place, new - old) for place, (old, new) in enumerate(zip(before, after, strict=True)) if new > old)
