"""What the callers met, as numbers: the operations of a client and the story of the servers, put together.

An operation that has not ended is one of a caller that hangs; it counts as having lasted until we gave up. A write that
was acknowledged has to be in the database exactly once; one that failed without doubt must not be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from bench.failover.ops import Caller, Kind, Op
from bench.failover.story import Story
from bench.turns import quantile

WINDOW = 2.0  # s over which a returning standby's share is looked at
NEVER = "never"  # infinity, where it is written down
NO_CONNECTION = {
    "PoolTimeout",
    "PoolExhausted",
    "TooManyWaiting",
    "DBOfflineError",
    "TimeoutError",
}  # errors of a checkout
FAIR = 0.4  # of the reads of the two standbys


@dataclass(frozen=True)
class Figures:
    """One client in one scenario. Times are in seconds; ``None``: does not apply, ``inf``: it never happened."""

    peer: str
    operations: int
    callers: int
    before: int
    """Failures before anything was done to a server."""
    failed_writes: int
    """Failures from the first blow on."""
    failed_reads: int
    failed_checkouts: int
    """Those of them in which no connection was to be had."""
    failed_on_return: int
    """Failures from the moment on at which the standby of the story was of use again."""
    writes_in_flight: int
    """Callers that had a write under way while a blow fell, added up over the blows."""
    reads_in_flight: int
    hung: int
    longest: float
    longest_read: float
    longest_write: float
    stall_read: float
    """As `longest_read`, without the time in which a blow was falling: that is the harness's."""
    first_write: float | None
    first_read: float | None
    reads: Mapping[str, int]
    """Reads of the calm at the end, by server."""
    writes: Mapping[str, int]
    share: float | None
    """The part of the standbys' reads that the standby of the story has in the calm."""
    fair_after: float | None
    """When it had `FAIR` of them, after its return."""
    p99_ratio: float | None
    """99 % of the reads of the calm are faster than so many times what 99 % of those on other servers are."""
    connects: int
    lost: int
    twice: int
    phantoms: int
    """Writes that are there although the caller was told that they failed."""
    seconds: float
    """From the first blow to the end."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """What the callers were told, and how often."""
    stale: float | None = None
    """Where a name moves: writes reached the old primary for so long after the new one had let the pool in. 0: none."""

    @property
    def failed(self) -> int:
        return self.failed_writes + self.failed_reads

    @property
    def in_flight(self) -> int:
        return self.writes_in_flight + self.reads_in_flight

    def as_json(self) -> dict[str, Any]:
        return {key: NEVER if value == inf else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Figures:
        values: dict[str, Any] = {key: inf if value == NEVER else value for key, value in content.items()}
        return cls(**values)


def figures(
    peer: str,
    callers: Sequence[Caller],
    ops: Sequence[Op],
    hung: Mapping[int, float],
    story: Story,
    stale: float | None = None,
) -> Figures:
    """Look at all of it. ``hung``: the callers that did not end, and since when."""
    blow = story.faults[0][0] if story.faults else story.began
    after = [op for op in ops if op.ended >= blow]
    failures = [op for op in after if op.outcome != "done"]
    calm = [op for op in ops if op.outcome == "done" and story.calm[0] <= op.ended <= story.calm[1]]
    calm_reads = [op for op in calm if op.kind == "read"]
    writes = [op for op in ops if op.kind == "write"]
    return Figures(
        peer=peer,
        operations=len(ops),
        callers=len(callers),
        before=sum(op.outcome != "done" for op in ops) - len(failures),
        failed_writes=sum(op.kind == "write" for op in failures),
        failed_reads=sum(op.kind == "read" for op in failures),
        failed_checkouts=sum(op.error.partition(":")[0] in NO_CONNECTION for op in failures),
        failed_on_return=sum(op.ended >= story.returned for op in failures) if story.returned else 0,
        writes_in_flight=in_flight("write", callers, ops, hung, story),
        reads_in_flight=in_flight("read", callers, ops, hung, story),
        hung=len(hung),
        longest=longest(("read", "write"), callers, after, hung, story),
        longest_read=longest(("read",), callers, after, hung, story),
        longest_write=longest(("write",), callers, after, hung, story),
        stall_read=max([outside(op, story) for op in after if op.kind == "read"], default=0.0),
        first_write=first_success("write", ops, story),
        first_read=first_success("read", ops, story),
        reads=by_server("read", calm, story),
        writes=by_server("write", calm, story),
        share=share(calm_reads, story),
        fair_after=fair_after(ops, story),
        p99_ratio=p99_ratio(calm_reads, story),
        connects=story.connects,
        lost=sum(op.outcome == "done" and not story.rows[op.id] for op in writes),
        twice=sum(story.rows[op.id] > 1 for op in writes),
        phantoms=sum(op.outcome == "failed" and story.rows[op.id] > 0 for op in writes),
        seconds=story.over - blow,
        errors=dict(Counter(f"{op.kind}: {op.error}" for op in failures).most_common(8)),
        stale=stale,
    )


def in_flight(kind: Kind, callers: Sequence[Caller], ops: Sequence[Op], hung: Mapping[int, float], story: Story) -> int:
    """The callers that had an operation of this kind under way while a blow fell, added up over the blows."""
    of_kind = {caller.number for caller in callers if caller.kind == kind}
    total = 0
    for begin, end in story.faults:
        hit = {op.caller for op in ops if op.began <= end and op.ended >= begin}
        hit |= {caller for caller, since in hung.items() if since <= end}
        total += len(hit & of_kind)
    return total


def longest(
    kinds: tuple[Kind, ...], callers: Sequence[Caller], ops: Sequence[Op], hung: Mapping[int, float], story: Story
) -> float:
    """The longest operation of these kinds, those that have not ended included."""
    kind_of = {caller.number: caller.kind for caller in callers}
    ended = [op.took for op in ops if op.kind in kinds]
    waiting = [story.over - since for caller, since in hung.items() if kind_of[caller] in kinds]
    return max(ended + waiting, default=0.0)


def outside(op: Op, story: Story) -> float:
    """How long an operation lasted while no blow was falling."""
    return op.took - sum(max(0.0, min(op.ended, end) - max(op.began, begin)) for begin, end in story.faults)


def first_success(kind: Kind, ops: Sequence[Op], story: Story) -> float | None:
    """Seconds from the moment a healthy answer was possible to the first one."""
    possible = story.possible.get(kind)
    if possible is None:
        return None
    right = story.writer if kind == "write" else None
    ended = [
        op.ended
        for op in ops
        if op.kind == kind and op.outcome == "done" and op.ended >= possible.after and right in (None, op.server)
    ]
    return max(0.0, min(ended) - possible.at) if ended else inf


def by_server(kind: Kind, ops: Sequence[Op], story: Story) -> dict[str, int]:
    """How many operations of this kind each server has done."""
    counts = Counter(op.server for op in ops if op.kind == kind)
    return {name: counts[port] for port, name in story.servers.items() if counts[port]}


def share(reads: Sequence[Op], story: Story) -> float | None:
    """The part of the standbys' reads that the standby of the story has; nothing is as bad as none."""
    if story.watched is None:
        return None
    on_standbys = [op for op in reads if op.server != story.writer]
    return sum(op.server == story.watched for op in on_standbys) / len(on_standbys) if on_standbys else 0.0


def fair_after(ops: Sequence[Op], story: Story) -> float | None:
    """Seconds from the return of a standby until it had its share for the first time."""
    if story.returned is None:
        return None
    reads = sorted((op for op in ops if op.kind == "read" and op.outcome == "done"), key=lambda op: op.ended)
    reads = [op for op in reads if op.ended >= story.returned and op.server != story.writer]
    start = 0
    own = 0
    for place, op in enumerate(reads):
        own += op.server == story.watched
        while reads[start].ended < op.ended - WINDOW:
            own -= reads[start].server == story.watched
            start += 1
        if op.ended >= story.returned + WINDOW and own >= FAIR * (place - start + 1):
            return op.ended - story.returned
    return inf


def p99_ratio(reads: Sequence[Op], story: Story) -> float | None:
    """How much the standby of the story makes the slowest reads slower."""
    others = [op.took for op in reads if op.server not in (story.watched, story.writer)]
    everybody = [op.took for op in reads]
    these, those = quantile(everybody, 0.99), quantile(others, 0.99)
    return these / those if story.watched is not None and these is not None and those else None
