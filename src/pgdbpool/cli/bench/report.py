"""What was measured, as frozen values: for the screen and for ``--json``. Times are seconds."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pgdbpool.core.stats import PoolStats

from .load import Load, Samples


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """How long something took."""

    p50: float
    p99: float
    longest: float


class GroupResult(msgspec.Struct, frozen=True, kw_only=True):
    """One group."""

    group: str
    operations: int
    rate: float
    """Operations in a second."""
    failed: int
    failures: dict[str, int]
    """How often each error came."""
    wait: Times | None
    """From asking for a connection to having it."""
    use: Times | None
    """From having it to having given it back."""
    share: dict[str, float]
    """What part each endpoint had of the operations."""


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole."""

    ok: bool
    threads: int
    seconds: float
    operations: int
    rate: float
    groups: tuple[GroupResult, ...]


def report(load: Load, threads: int, stats: PoolStats) -> BenchReport:
    """From the samples and from what the pool has counted meanwhile."""
    groups = tuple(_group(name, samples, load.lasted, stats) for name, samples in load.samples().items())
    operations = sum(group.operations for group in groups)
    return BenchReport(
        ok=all(group.operations and not group.failed for group in groups),
        threads=threads,
        seconds=load.lasted,
        operations=operations,
        rate=operations / load.lasted if load.lasted else 0.0,  # nothing: interrupted before it began
        groups=groups,
    )


def _group(name: str, samples: Samples, seconds: float, stats: PoolStats) -> GroupResult:
    requests = {lane.endpoint: lane.counters.requests for lane in stats.groups[name].endpoints}
    total = sum(requests.values()) or 1
    return GroupResult(
        group=name,
        operations=len(samples.uses),
        rate=len(samples.uses) / seconds if seconds else 0.0,
        failed=sum(samples.failures.values()),
        failures=dict(samples.failures),
        wait=_times(samples.waits),
        use=_times(samples.uses),
        share={endpoint: count / total for endpoint, count in requests.items()},
    )


def _times(samples: Sequence[float]) -> Times | None:
    if not samples:
        return None
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Times(p50=ordered[last // 2], p99=ordered[int(last * 0.99)], longest=ordered[last])
