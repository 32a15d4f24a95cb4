"""What is in the file of one process: JSON, so that it can be looked at by hand, with the number of its format.

A process that is newer or older than its reader may write another format; the reader leaves such files out and says so.
Unknown fields are no difference: they are not heeded.
"""

from __future__ import annotations

import msgspec

from ..core.events import Event
from ..core.stats import NO_TIMES, PoolStats
from ..holders import Holder
from .alive import Identity

VERSION = 1

STEP = 2.0
"""Seconds that a `Sample` is about. Its beginning is a multiple of it, so that those of several processes add up."""
HISTORY = 150
"""How many samples are kept: five minutes."""
EVENTS = 100
"""How many events are kept."""
HOLDERS = 20
"""Of how many leases it is said who holds them: the oldest."""
CALLS = 12
"""How many calls of a holder's stacks are kept: the innermost."""

Counts = tuple[tuple[int, int], ...]
"""A histogram without its empty places: the number of the place in `pgdbpool.core.times.BOUNDS`, and the count."""


class GroupSample(msgspec.Struct, frozen=True, array_like=True):
    """What one group did in the time of a sample. Times are seconds."""

    requests: int = 0
    """Leases that ended."""
    waits: int = 0
    """Callers that had to wait, `timeouts` included; those that had not are the `prompt` ones."""
    timeouts: int = 0
    wait_time: float = 0.0
    use_time: float = 0.0
    wait_times: Counts = ()
    use_times: Counts = ()
    prompt: int = 0
    """Leases that ended and had not been waited for."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """What happened in `STEP` seconds."""

    at: float
    """When they began, in seconds since the epoch."""
    groups: dict[str, GroupSample]
    """Those that did something."""
    endpoints: dict[str, int]
    """How many leases ended on each endpoint, of those where any did."""


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One pool of a process."""

    kind: str
    """``threaded``, ``non-threaded`` or ``asyncio``."""
    stats: PoolStats
    """Counted since the pool was made, in this process."""
    events: tuple[Event, ...] = ()
    """The last ones, the oldest first."""
    holders: tuple[Holder, ...] = ()
    """Who holds a connection, the longest first."""
    raw_samples: tuple[msgspec.Raw, ...] = msgspec.field(default=(), name="samples")

    def samples(self, since: float = 0.0) -> tuple[Sample, ...]:
        """The last minutes, or those samples that began at `since` or later, the oldest first.

        The last one is about a time that has not ended yet. Most of a file is samples, and most readers know most of
        them already: so each is decoded only when it is asked for.
        """
        found: list[Sample] = []
        for raw in reversed(self.raw_samples):
            try:
                sample = _sample.decode(raw)
            except (msgspec.MsgspecError, RecursionError):  # nonsense: it is left out
                continue
            if sample.at < since:
                break
            found.append(sample)
        return tuple(reversed(found))


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One process, and what its pools are doing."""

    version: int = VERSION
    name: str
    """Of the application."""
    identity: Identity
    at: float
    """When this was written, in seconds since the epoch."""
    interval: float
    """Seconds from one writing to the next."""
    by_itself: bool
    """False: it writes when it is used, and may be silent for as long as it has nothing to do."""
    pools: tuple[PoolRecord, ...]

    @property
    def pid(self) -> int:
        return self.identity.pid


_END_OF_TIME = 253_402_300_800.0  # the year 10000: clocks and calendars show no later one


class _Head(msgspec.Struct):
    version: int


_sample = msgspec.json.Decoder(Sample)
_worker = msgspec.json.Decoder(Worker)
_head = msgspec.json.Decoder(_Head)


def raw(sample: Sample) -> msgspec.Raw:
    """A sample as it is in the file: one that has ended is encoded once, and not at each writing."""
    return msgspec.Raw(msgspec.json.encode(sample))


def encoded(worker: Worker) -> bytes:
    return msgspec.json.encode(worker)


def decoded(data: bytes) -> Worker | None:
    """None if it is in the format of another version. Raises ValueError if it is no such thing at all."""
    try:
        if _head.decode(data).version != VERSION:
            return None
        worker = _worker.decode(data)
    except msgspec.MsgspecError as error:  # a ValueError, but its class says nothing to a reader
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if wrong := _nonsense(worker):
        raise ValueError(wrong)
    return worker


def _nonsense(worker: Worker) -> str:
    """What is wrong with a record whose types are right, or an empty string: a clock or a histogram that is none."""
    moments = [worker.at, *(event.at for pool in worker.pools for event in pool.events)]
    if not all(0 <= at < _END_OF_TIME for at in moments):
        return "a time is none"
    groups = [group for pool in worker.pools for group in pool.stats.groups.values()]
    counters = [group.counters for group in groups] + [lane.counters for group in groups for lane in group.endpoints]
    histograms = [times for each in counters for times in (each.wait_times, each.use_times, each.connect_times)]
    if any(len(times) != len(NO_TIMES) for times in histograms):
        return "a histogram has not as many places as it should"
    return ""
