"""From the samples of the last minutes to the figures of a screen: rates, and quantiles of waits and uses.

A sample is finished when every process has had time to write what happened in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from pgdbpool.core.times import BOUNDS
from pgdbpool.publish import STEP, GroupSample, Sample

LATELY = 10.0  # s: what the figures are about
LATE = 1.5  # s: how late a process may write


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One group lately. Times are seconds, and upper limits: the histograms have a place for each power of two."""

    rate: float = 0.0
    """Leases that ended, in a second."""
    timeouts: int = 0
    wait_p99: float | None = None
    use_p50: float | None = None
    use_p99: float | None = None


def finished(samples: Sequence[Sample], now: float) -> list[Sample]:
    """Those that nothing more can be added to."""
    return [sample for sample in samples if sample.at + STEP + LATE <= now]


def lately(samples: Sequence[Sample], now: float) -> list[Sample]:
    """The finished ones of the last seconds."""
    done = finished(samples, now)
    last = now - LATE - STEP
    return [sample for sample in done if sample.at > last - LATELY]


def span(samples: Sequence[Sample], now: float) -> float:
    """Seconds that the figures of `lately` are about: fewer where the application began a moment ago."""
    if not samples:
        return LATELY
    end = (now - LATE) // STEP * STEP
    return min(LATELY, max(STEP, end - min(sample.at for sample in samples)))


def of_group(samples: Sequence[Sample], group: str, seconds: float = LATELY) -> Figures:
    """The figures of one group in these samples, which are about so many seconds."""
    found = [sample.groups[group] for sample in samples if group in sample.groups]
    if not found:
        return Figures()
    prompt = sum(each.prompt for each in found)
    return Figures(
        rate=sum(each.requests for each in found) / seconds,
        timeouts=sum(each.timeouts for each in found),
        wait_p99=_quantile((each.wait_times for each in found), 0.99, prompt),
        use_p50=_quantile((each.use_times for each in found), 0.5),
        use_p99=_quantile((each.use_times for each in found), 0.99),
    )


def of_endpoints(samples: Sequence[Sample], seconds: float = LATELY) -> dict[str, float]:
    """Leases that ended on each endpoint, in a second."""
    total: Counter[str] = Counter()
    for sample in samples:
        total.update(sample.endpoints)
    return {endpoint: count / seconds for endpoint, count in total.items()}


def history(samples: Sequence[Sample], group: str, now: float, width: int) -> list[int]:
    """How many leases ended in each of the last `width` finished samples, nothing where there is none."""
    last = (now - LATE) // STEP * STEP - STEP
    counts = {round(sample.at / STEP): sample.groups.get(group, GroupSample()).requests for sample in samples}
    newest = round(last / STEP)
    return [counts.get(place, 0) for place in range(newest - width + 1, newest + 1)]


def _quantile(histograms: Iterable[Sequence[tuple[int, int]]], share: float, below: int = 0) -> float | None:
    """The upper limit of the place that it is in; `below` so many were shorter than all. None: there was nothing."""
    total: Counter[int] = Counter()
    for counts in histograms:
        for place, count in counts:
            total[place] += count
    wanted = share * (sum(total.values()) + max(0, below))
    if not wanted:
        return None
    done = max(0, below)
    if done >= wanted:
        return 0.0
    for place in sorted(total):
        done += total[place]
        if done >= wanted:
            return BOUNDS[place] if place < len(BOUNDS) else float("inf")
    return None
