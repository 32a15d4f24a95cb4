"""Taking turns: A B C A B C ..., so that what disturbs the machine disturbs all alike."""

import gc
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

Timer = Callable[[int], float]
"""Runs something so many times and says how long it took, in seconds."""

T = TypeVar("T")


def settle() -> None:
    """Give every measure the same start: nothing to collect, and no old objects to look through.

    The collector stays on, as it does in an application.
    """
    gc.collect()
    gc.freeze()


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The same items in the same circle, another one first: nobody always follows the same break."""
    by %= len(items) or 1
    return [*items[by:], *items[:by]]


def calibrate(timer: Timer, seconds: float) -> int:
    """How many loops take about so long; the best of three, since one may have been interrupted."""
    loops = 1
    while (taken := min(timer(loops) for _ in range(3))) < seconds / 4:
        loops = loops * 4 if taken <= 0 else max(loops + 1, min(loops * 4, round(loops * seconds / taken)))
    return max(1, round(loops * seconds / taken))


def take_turns(timers: Mapping[str, Timer], seconds: float, blocks: int) -> dict[str, list[float]]:
    """Run all in turn, so many blocks of about ``seconds`` each; gives the seconds per loop by block."""
    settle()
    loops = {name: calibrate(timer, seconds) for name, timer in timers.items()}
    values: dict[str, list[float]] = {name: [] for name in timers}
    for block in range(blocks):
        for name in rotated(list(timers), block):
            values[name].append(timers[name](loops[name]) / loops[name])
    return values


def ratio(these: Sequence[float | None], those: Sequence[float | None]) -> float | None:
    """How many times ``those`` these are: the median of the ratios of neighbours in time."""
    pairs = [
        this / that
        for this, that in zip(these, those, strict=True)
        if this is not None and that is not None and that > 0
    ]
    return median(pairs) if pairs else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which this share of the values lies."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
