"""Balancers: which lane of a tier a checkout asks first.

A balancer is made for one tier, whenever the route is computed anew, and then called once per checkout, by any
thread. It may read `Lane.leased`, `Lane.weight` (which is smaller for a while after the endpoint came back),
`Lane.latency` and `Lane.endpoint`; it must not block. It names only the first choice: where that lane has no idle
connection the group looks at the others of the tier. A user's own is anything that, called with the lanes of a tier,
gives something that, called without arguments, gives one of them.

`LeastBusy` is what nginx calls ``least_conn``; its ties, and all of `RoundRobin`, follow a cycle in which each lane
appears in proportion to its weight, spread out evenly (nginx's "smooth weighted round robin").
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate, cycle
from typing import Protocol

from .lane import Lane

_LONGEST_CYCLE = 64
_LARGEST_SHARE = 256  # a lane never gets more than this many times the share of another


class Balancer(Protocol):
    """Made with the lanes of a tier; called without arguments it names one of them."""

    def __call__(self) -> Lane: ...


Policy = Callable[[Sequence[Lane]], Balancer]


def weighted_cycle(weights: Sequence[float]) -> tuple[int, ...]:
    """Indices in which index i appears in proportion to weights[i], as evenly spread as can be.

    >>> weighted_cycle([2, 1])
    (0, 1, 0)
    """
    least = min(weights)
    shares = [min(weight / least, _LARGEST_SHARE) for weight in weights]
    # The shortest cycle that is exact to one part in a hundred, or else the longest allowed.
    scale = 0
    while True:
        scale += 1
        counts = [max(1, round(share * scale)) for share in shares]
        exact = all(abs(n - s * scale) <= 0.01 * s * scale for n, s in zip(counts, shares, strict=True))
        if exact or sum(counts) >= _LONGEST_CYCLE:
            break
    total = sum(counts)
    credit = [0] * len(counts)
    order = []
    for _ in range(total):
        credit = [have + n for have, n in zip(credit, counts, strict=True)]
        best = max(range(len(credit)), key=credit.__getitem__)
        credit[best] -= total
        order.append(best)
    return tuple(order)


class RoundRobin:
    """Each lane in its turn, by weight."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        order = weighted_cycle([lane.weight for lane in lanes])
        self._next = cycle([lanes[i] for i in order]).__next__  # atomic

    def __call__(self) -> Lane:
        return self._next()


class LeastBusy(RoundRobin):
    """The lane with the fewest leased connections per weight; ties rotate by weight."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        super().__init__(lanes)
        self._lanes = tuple(lanes)

    def __call__(self) -> Lane:
        best = self._next()
        leased = best.open - len(best.idle)
        if leased <= 0:  # nobody can have fewer
            return best
        least = leased * best.per_weight
        for lane in self._lanes:
            load = (lane.open - len(lane.idle)) * lane.per_weight
            if load < least:
                best, least = lane, load
        return best


class Random:
    """Any lane, by weight."""

    def __init__(self, lanes: Sequence[Lane], random: Callable[[], float] = random.random) -> None:
        self._lanes = tuple(lanes)
        *self._bounds, self._total = accumulate(lane.weight for lane in lanes)
        self._random = random

    def __call__(self) -> Lane:
        return self._lanes[bisect(self._bounds, self._random() * self._total)]


class FastestServer:
    """``latency``: the lane on which a caller would be served first, as far as that can be told.

    The cost of a lane is its peak EWMA times the number of callers it would have; ties rotate by weight.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._first = RoundRobin(lanes)
        self._lanes = tuple(lanes)

    def __call__(self) -> Lane:
        best = self._first()
        least = best.latency.cost * (best.open - len(best.idle) + 1) * best.per_weight
        for lane in self._lanes:
            cost = lane.latency.cost * (lane.open - len(lane.idle) + 1) * lane.per_weight
            if cost < least:
                best, least = lane, cost
        return best


POLICIES: dict[str, Policy] = {
    "least-busy": LeastBusy,
    "round-robin": RoundRobin,
    "random": Random,
    "latency": FastestServer,
}
