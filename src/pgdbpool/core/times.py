"""How often something took how long: a histogram in which counting costs next to nothing.

There is one count for each power of two. `math.frexp` gives the exponent of a duration, which indexes a list, from its
end where it is negative: ``times[frexp(seconds or TINY)[1]] += 1`` takes some 80 ns. That line is written out where it
is on the fast path. There are counts for 0.2 ns to 68 years; what no clock shows, however short or long, would be in
the wrong one, but is not an error.

Whoever reads gets fewer and coarser counts, in order: one for each of `BOUNDS`, and one for what took longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import frexp

TINY = 2.0**-31  # s: what a duration of nothing counts as. The exponent of 0 is that of half a second.

BOUNDS = tuple(2.0**exponent for exponent in range(-20, 11))
"""Upper limits in seconds, from about 1 us to 17 min. What took exactly so long counts among those above."""

_SIZE = 64  # exponents -32 to 31
_FIRST, _LAST = -20, 10


def no_times() -> list[int]:
    """Nothing counted yet."""
    return [0] * _SIZE


def count(times: list[int], seconds: float) -> None:
    """Count one."""
    times[frexp(seconds or TINY)[1]] += 1


def add(several: Iterable[Sequence[int]]) -> list[int]:
    """The sum of several, at least one."""
    return [sum(each) for each in zip(*several, strict=True)]


def in_order(times: Sequence[int]) -> tuple[int, ...]:
    """One count for each of `BOUNDS`, and one for all above."""
    half = _SIZE // 2
    ordered = [*times[half:], *times[:half]]
    first, last = half + _FIRST, half + _LAST
    return (sum(ordered[: first + 1]), *ordered[first + 1 : last + 1], sum(ordered[last + 1 :]))


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The time within which this share was done, as the next limit above; None if nothing was counted."""
    most = share * sum(counts)
    done = 0
    for count, bound in zip(counts, (*BOUNDS, float("inf")), strict=True):
        done += count
        if count and done >= most:
            return bound
    return None
