"""How often something took how long: a histogram in which counting costs next to nothing.

There is one count for each power of two: as a whole number of the shortest of `BOUNDS`, a duration has as many bits as
its count has places before it. So ``times[(seconds * PER_SECOND).__trunc__().bit_length()] += 1`` counts it; ``int()``
would take half as long again. That line is written out where it is on the fast path. There are counts for up to 278 000
years: for whatever a clock shows.

Whoever reads gets one count for each of `BOUNDS`, and one for what took longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

PER_SECOND = 2.0**20

BOUNDS = tuple(2.0**exponent for exponent in range(-20, 11))
"""Upper limits in seconds, from about 1 us to 17 min. What took exactly so long counts among those above."""

_SIZE = 64


def no_times() -> list[int]:
    """Nothing counted yet."""
    return [0] * _SIZE


def count(times: list[int], seconds: float) -> None:
    """Count one."""
    times[(seconds * PER_SECOND).__trunc__().bit_length()] += 1


def add(several: Iterable[Sequence[int]]) -> list[int]:
    """The sum of several, at least one."""
    return [sum(each) for each in zip(*several, strict=True)]


def in_order(times: Sequence[int]) -> tuple[int, ...]:
    """One count for each of `BOUNDS`, and one for all above."""
    return (*times[: len(BOUNDS)], sum(times[len(BOUNDS) :]))


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The time within which this share was done, as the next limit above; None if nothing was counted."""
    most = share * sum(counts)
    done = 0
    for count, bound in zip(counts, (*BOUNDS, float("inf")), strict=True):
        done += count
        if count and done >= most:
            return bound
    return None
