"""When to open a connection, and where: for those who wait, for the balancers' wishes, and to keep warm.

Places are reserved as orders are given, so limits hold however long the connecting takes. While a role is wanted that
no endpoint is known to have, belief may be stale. A pool with a monitor leaves the search to its probes; without one
the plan asks each of the group's endpoints in turn all the same, spaced by backoff, and each session opened tells its
role.

A waiter is not kept waiting while a place is free on an endpoint that is up. So a connection under way elsewhere counts
as its own only if that endpoint is up as well, and only for so long (`HOPE`): a connect may hang.

All methods are called with the pool's lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from .endpoint import backoff
from .evidence import Fault, Health
from .group import Group
from .lane import HOPE, Lane, Place
from .server import suits

# s, and up to as much again: without a monitor, between two looks at an endpoint that no group may use as it is, and so
# has no session that would tell of a change; and at one that is fenced, and will not stay so for long. After a planned
# switchover it may be back as a standby in a second, so there the looks begin close together, each span twice the last.
LOOK_EVERY = 10.0
LOOK_EVERY_FENCED = 2.0
FIRST_LOOK_FENCED = 0.25
# s, at most: between two looks at one endpoint while nothing is believed usable. It grows to the second number. Every
# other look is a new connection, so that a second is long enough to find where a name leads now.
SEARCH_EVERY = 0.1
SEARCH_LONGEST = 0.45
_SEARCHES = 20  # after so many it has doubled, after twice as many it is three times as long


class Order(NamedTuple):
    """One connection to open now; its place is reserved. To be answered by `opened` or `open_failed`."""

    group: Group
    lane: Lane
    generation: int
    since: float
    place: Place
    search: bool = False
    """Nothing is believed usable: it is opened to see whether that is still so."""

    @property
    def wanted(self) -> bool:
        """Whether it still is: False once its endpoint is down, the group has to leave it, or needs room."""
        return self.generation == self.lane.generation and not self.place.revoked


class Planner:
    """Says which connections should be opened."""

    def __init__(self, groups: Sequence[Group], random: Callable[[], float]) -> None:
        self._groups = groups
        self.random = random
        self.monitored = False  # somebody else finds out whether an endpoint is back
        self._turn = 0

    def plan(self, now: float, only: Group | None = None, demand: int | None = None) -> list[Order]:
        """The connections to open now, their places reserved.

        First for those who wait, then what the balancers wished for, then up to `min_count`. With `only` and
        `demand`: for that group, as if so many waited, and nothing else.
        """
        orders: list[Order] = []
        try:
            if only is None:
                self._plan(orders, now)
            else:
                self._serve(only, demand or 0, orders, now, alone=True)
        except BaseException:  # no memory to be had: nobody will carry out those that were reserved
            for order in orders:
                free(order)
            raise
        return orders

    def _plan(self, orders: list[Order], now: float) -> None:
        self._turn += 1  # so that no group is always last where connects are scarce
        start = self._turn % len(self._groups)
        groups = [*self._groups[start:], *self._groups[:start]]
        for group in groups:
            self._serve(group, len(group.waiters) - self._under_way(group, now), orders, now)
        for group in groups:
            for lane in group.lanes:
                if lane.wished:
                    lane.wished = False
                    if lane.live and lane.may_open(now):
                        orders.append(self.order(group, lane, now))
        for group in groups:
            self._keep_warm(group, orders, now)
        if not self.monitored:
            self._look_again(groups, orders, now)

    def _under_way(self, group: Group, now: float) -> int:
        """How many waiters may count on a connection that is being opened."""
        if not group.route:  # a search asks every endpoint: the one asked first may never answer
            return 0
        if not self._has_promise(group, now):
            return group.opening  # there is no better place for them
        up = [lane for lane in group.lanes if lane.endpoint.health is Health.UP]
        return sum(not place.late(now) for lane in up for place in lane.places)

    def _has_promise(self, group: Group, now: float) -> bool:
        return any(self._promising(lane, now) for tier in group.route for lane in tier.lanes)

    def _promising(self, lane: Lane, now: float) -> bool:
        """Whether a waiter may hope to be served by a new connection here, before long."""
        up = lane.endpoint.health is Health.UP and lane.could_open(now)
        return up and not any(place.late(now) for place in lane.places)

    def _serve(self, group: Group, demand: int, orders: list[Order], now: float, *, alone: bool = False) -> None:
        """Order connections for so many waiters; `alone`: just so many."""
        while demand > 0 and not group.paused:
            lane = self._lane_to_open(group, now)
            if lane is None:
                self._make_room(group, demand, now)
                return
            order = self.order(group, lane, now)
            orders.append(order)
            if not group.route:
                orders[-1] = order._replace(search=True)
            elif not alone and lane.endpoint.health is not Health.UP and self._has_promise(group, now):
                continue  # another for the same waiter, since this connect may hang
            demand -= 1

    def _make_room(self, group: Group, demand: int, now: float) -> None:
        """Where `total_count` is used up by connections that rest off the route, close as many as are wanted.

        Not if that would not help: then the next look at what to keep warm would open them again.
        """
        if group.total_limit is None or group.total < group.total_limit or not group.route:
            return
        able = [lane for lane in group.lanes if lane.live and lane.could_open(now)]
        demand = min(demand, sum(max(0, group.limit - lane.total) for lane in able))
        demand -= sum(lane.closing for lane in group.lanes)  # on their way already
        for lane in group.lanes:
            if demand > 0 and not lane.live:
                demand -= group.drop_idle(lane, lambda slot: True, "displaced", demand)
        if not any(lane.endpoint.health is Health.UP for lane in able):
            return
        # What is being opened where that may take long gives way, too.
        demand -= sum(place.revoked for lane in group.lanes for place in lane.places)
        for place in [place for lane in group.lanes for place in lane.uncertain(now)][: max(0, demand)]:
            place.revoked = True

    def _lane_to_open(self, group: Group, now: float) -> Lane | None:
        """Where the next connection for a waiter should be opened; None: nowhere at this moment."""
        for tier in group.route:
            able = [lane for lane in tier.lanes if lane.may_open(now)]
            if able:
                return min(able, key=lambda lane: (not self._promising(lane, now), _load(lane)))
        if group.route or self.monitored:
            return None
        # Nothing is believed usable: ask each endpoint in turn, the likeliest first.
        target = group.settings.target_session_attrs
        able = [lane for lane in group.lanes if lane.may_open(now, urgent=True) and not lane.opening]
        if not able:
            return None
        lane = min(able, key=lambda lane: (lane.next_try, suits(target, lane.found) or 0))
        span = min(SEARCH_EVERY * (1 + lane.searches / _SEARCHES), SEARCH_LONGEST)
        lane.next_try = now + backoff(span, span, 0, self.random)
        lane.searches += 1
        return lane

    def _keep_warm(self, group: Group, orders: list[Order], now: float) -> None:
        """Open what is wanted though nobody waits; where `total_count` is scarce, the preferred endpoints first."""
        target = group.settings.target_session_attrs
        able = [lane for lane in group.lanes if lane.may_open(now) and self._wanted(group, lane)]
        for lane in sorted(able, key=partial(_preference, target)):
            while self._wanted(group, lane) and lane.may_open(now):
                orders.append(self.order(group, lane, now))

    def _look_again(self, groups: Sequence[Group], orders: list[Order], now: float) -> None:
        """Connect, once in a while, where no group has anything, to see whether that is still right."""
        for group in groups:
            for lane in group.lanes:
                endpoint = lane.endpoint
                if not _unseen(lane) or now < endpoint.next_look:
                    continue
                every = LOOK_EVERY
                if endpoint.fenced_by is not None:
                    every = min(LOOK_EVERY_FENCED, FIRST_LOOK_FENCED * 2.0 ** min(endpoint.looks, 20))
                    endpoint.looks += 1
                first, endpoint.next_look = not endpoint.next_look, now + every * (1.0 + self.random())
                if not first and lane.may_open(now):
                    orders.append(self.order(group, lane, now))

    def _wanted(self, group: Group, lane: Lane) -> bool:
        """Whether a connection is wanted though nobody waits: to keep warm, or to see whether it can be had again."""
        endpoint = lane.endpoint
        if group.refusal is not None and lane.refused:  # callers are sent away: nobody else would ask again
            return not lane.opening
        if self.monitored and (endpoint.health is Health.DOWN or endpoint.fault is Fault.STARTING):
            return False
        if endpoint.health is not Health.DOWN and suits(group.settings.target_session_attrs, lane.found) is None:
            return False
        if lane.open + lane.opening < group.min_count:
            return True
        if lane.opening:
            return False
        if self.monitored:  # its probes cannot tell whether there is room again, or a setup succeeds
            return endpoint.fault in (Fault.FULL, Fault.ENDED) or lane.refused
        suspect = endpoint.health is not Health.UP and endpoint.last_error is not None
        return suspect or endpoint.fault is not None or lane.setup_error is not None

    def order(self, group: Group, lane: Lane, now: float) -> Order:
        """Reserve a place."""
        order = Order(group, lane, lane.generation, now, Place(now))
        lane.places.add(order.place)
        lane.endpoint.connecting += 1
        return order

    def due(self, now: float, only: Group | None = None) -> float:
        """When `plan` could have something new to say though nothing happens: a backoff or a search ends."""
        due = float("inf")
        for group in self._groups if only is None else [only]:
            searching = not (group.route or group.paused or self.monitored) and bool(group.waiters or only)
            waiting = only is not None or len(group.waiters) > self._under_way(group, now)
            for lane in group.lanes:
                endpoint = lane.endpoint
                if group.waiters:  # who count on what is being opened, and not for ever
                    due = min([due, *(place.since + HOPE for place in lane.places if not place.late(now))])
                wanted = searching or self._wanted(group, lane)
                wanted = (wanted and lane.room) or (waiting and lane.live and group.room_on(lane, now))
                if wanted and not endpoint.connecting and lane.opening < (1 if searching else endpoint.most_connecting):
                    next_try = endpoint.urgent_try if searching else endpoint.next_try
                    due = min(due, max(next_try, lane.next_try))
                if not self.monitored and _unseen(lane):
                    due = min(due, max(endpoint.next_look, now + SEARCH_EVERY))
        return due


def _preference(target: str, lane: Lane) -> tuple[int, int]:
    return suits(target, lane.found) or 0, lane.endpoint.priority


def free(order: Order) -> bool:
    """Give its place back. False: that was done before. Lock held."""
    places, place = order.lane.places, order.place
    if place not in places:
        return False
    reached(order)
    places.remove(place)
    return True


def reached(order: Order) -> None:
    """Its server has let it in: others may connect there. Lock held."""
    if order.place.connecting and order.place in order.lane.places:
        order.place.connecting = False
        order.lane.endpoint.connecting -= 1


def _load(lane: Lane) -> float:
    return (lane.open + lane.opening) * lane.per_weight


def _unseen(lane: Lane) -> bool:
    """Whether nothing would tell of a change at the endpoint: it is not used, nor tried again for other reasons."""
    endpoint = lane.endpoint
    tried_again = lane.live or endpoint.health is Health.DOWN or (lane.refused and lane.rank is not None)
    return not (tried_again or endpoint.open or endpoint.connecting)
