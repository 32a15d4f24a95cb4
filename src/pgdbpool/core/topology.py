"""The endpoints, what is believed of them, and what follows: routes, and which connections to open.

Topology owns the set of endpoints; nothing else keeps a list of its own. Evidence comes in (`opened`,
`open_failed`, `reported`, `session_lost`), belief changes, and when a belief that matters has changed every group
gets a new route. `plan` says which connections should be opened now.

The route of a group, computed from scratch each time::

    candidates  endpoints that bear one of the group's tags
    rank        (how well the role fits target_session_attrs, priority); a role that does not fit drops out
    tiers       candidates of equal rank that are usable: not down, and something open or nothing in the way
    route       the first tier; with `spill` all of them

While a role is wanted that no endpoint is known to have, belief may be stale: `plan` then tries the group's
endpoints all the same, spaced by backoff, and each session opened tells its role.

All private methods are called with the lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from ..errors import DBOfflineError
from .endpoint import BACKOFF, Endpoint, backoff
from .evidence import Fault, Health, Report, Role, session_fault
from .group import Group, Lock, Tier
from .lane import Lane
from .slot import Slot

SEARCH_EVERY = 0.1  # s, at most: between two looks at one endpoint while nothing is believed usable


def fit(target: str, report: Report) -> int | None:
    """How well a server suits a group: 0 as asked, 1 unknown yet, 2 second choice; None: not at all.

    The words are libpq's ``target_session_attrs``, and ``prefer-primary``.
    """
    if target == "any":
        return 0
    role, read_only = report
    if role is Role.UNKNOWN:
        return 1
    standby = role is Role.STANDBY
    match target:
        case "primary":
            return None if standby else 0
        case "standby":
            return 0 if standby else None
        case "read-write":
            return None if standby or read_only else 0
        case "read-only":
            return 0 if standby or read_only else None
        case "prefer-standby":
            return 0 if standby else 2
        case "prefer-primary":
            return 2 if standby else 0
    raise AssertionError(f"target_session_attrs {target!r} passed validation")


class Order(NamedTuple):
    """One connection to open now; its place is reserved. To be answered by `opened` or `open_failed`."""

    lane: Lane
    generation: int
    since: float


class Topology:
    """The set of endpoints of one pool, and the groups that use them."""

    def __init__(
        self, endpoints: Sequence[Endpoint], groups: Sequence[Group], lock: Lock, random: Callable[[], float]
    ) -> None:
        self.endpoints = list(endpoints)
        self.groups = list(groups)
        self._lock = lock
        self._random = random
        self._turn = 0
        self.born: Callable[[Slot], None] = lambda slot: None  # set by the shell: a slot is about to be put to use
        self.closed = True
        for group in self.groups:
            group.on_empty = self._reroute

    def attach(self, group: Group, endpoint: Endpoint) -> None:
        """Let a group use an endpoint. Before `open`."""
        lane = Lane(group, endpoint)
        group.lanes.append(lane)
        endpoint.lanes.append(lane)

    def open(self) -> None:
        """Compute the first routes. Nothing is known yet: every endpoint may be tried."""
        with self._lock:
            self.closed = False
            for group in self.groups:
                group.closed = False
            self._reroute()

    def close(self) -> None:
        """No more checkouts; idle connections go now, leased ones when they come back."""
        with self._lock:
            self.closed = True
            for group in self.groups:
                group.closed = True
            self._reroute()
            for group in self.groups:
                for lane in group.lanes:
                    group.retire_lane(lane, "closed")

    def reset(self, lock: Lock, random: Callable[[], float]) -> None:
        """Start empty, as in a new process: belief about the servers stays, connections do not."""
        self._lock = lock
        self._random = random
        for group in self.groups:
            group.reset(lock, random)
        for endpoint in self.endpoints:
            endpoint.reset(random)
            for lane in endpoint.lanes:
                lane.reset()
        if not self.closed:
            self._reroute()

    # -- evidence -----------------------------------------------------------------------------------------------

    def opened(self, order: Order, conn: Any, clean: Callable[[], bool], report: Report, now: float) -> str | None:
        """A connection was opened: put it to use. Returns None, or why it was put among those to close instead."""
        lane = order.lane
        group, endpoint = lane.group, lane.endpoint
        with self._lock:
            lane.opening -= 1
            endpoint.connecting -= 1
            lane.connects += 1
            lane.connect_time += now - order.since
            changed = endpoint.health is not Health.UP or endpoint.fault is not None
            endpoint.connected()
            self._set_poll_after(endpoint)
            changed |= self._believe(endpoint, report)
            changed |= lane.setup_error is not None
            if self.closed:
                reason = "closed"
            elif fit(group.settings.target_session_attrs, report) is None:
                reason = "role"
            elif order.generation != lane.generation:
                reason = "retired"
            elif lane.total >= group.limit:  # made smaller meanwhile
                reason = "resized"
            else:
                reason = None
            slot = Slot(lane, conn, clean, lane.generation, now, group.lifetime())
            lane.slots.add(slot)
            lane.open += 1
            lane.setup_error = None
            lane.setup_failures = 0
            if reason is not None:
                group._retire(slot, reason)
            if changed or lane.open == 1:
                self._reroute()
        if reason is None:
            self.born(slot)
            group.give(slot, now)
        return reason

    def open_failed(self, order: Order, fault: Fault, error: str, now: float) -> list[Group]:
        """A connection could not be opened. Returns the groups whose `reconnect_failed` is to be called now."""
        lane = order.lane
        with self._lock:
            lane.opening -= 1
            lane.failures += 1
            endpoint = lane.endpoint
            endpoint.connecting -= 1
            endpoint.connect_failed(fault, error, now)
            if fault is Fault.REFUSED:
                self._raise_generation(endpoint, "broken")
            self._set_poll_after(endpoint)
            self._reroute()
            return self._to_tell(endpoint, now)

    def _to_tell(self, endpoint: Endpoint, now: float) -> list[Group]:
        """Groups for which the endpoint has failed for longer than they bear, each once in an outage."""
        failing = now - (now if endpoint.failing_since is None else endpoint.failing_since)
        groups = [
            lane.group
            for lane in endpoint.lanes
            if failing >= lane.group.settings.reconnect_timeout and lane.group.name not in endpoint.told
        ]
        endpoint.told.update(group.name for group in groups)
        return groups

    def setup_failed(self, order: Order, error: str, now: float) -> None:
        """The server let us in, but the connection could not be made ready for its group."""
        lane = order.lane
        with self._lock:
            lane.opening -= 1
            lane.endpoint.connecting -= 1
            lane.endpoint.connected()
            lane.failures += 1
            lane.setup_error = error
            first, longest = BACKOFF[Fault.MISCONFIGURED]
            lane.next_try = now + backoff(first, longest, lane.setup_failures, self._random)
            lane.setup_failures += 1
            self._set_poll_after(lane.endpoint)
            self._reroute()

    def cancelled(self, order: Order) -> None:
        """The attempt was given up by us: no evidence."""
        with self._lock:
            order.lane.opening -= 1
            order.lane.endpoint.connecting -= 1

    def reported(self, endpoint: Endpoint, report: Report) -> None:
        """A session that said one thing of its server now says another."""
        with self._lock:
            if self._believe(endpoint, report):
                self._reroute()

    def session_lost(self, slot: Slot, sqlstate: str | None, error: str, now: float) -> bool:
        """A session broke. Returns whether the idle sessions of the endpoint should be looked at."""
        fault = session_fault(sqlstate)
        if fault is None or slot.generation != slot.lane.generation:
            return False
        endpoint = slot.lane.endpoint
        with self._lock:
            endpoint.session_lost(error, now)
            self._set_poll_after(endpoint)
            if fault is Fault.CRASHED:
                self._raise_generation(endpoint, "broken")
                self._reroute()
        return fault is not Fault.CRASHED

    def silent(self, endpoint: Endpoint, error: str, now: float) -> None:
        """A session got no answer in time to a question of ours: nothing there will."""
        with self._lock:
            endpoint.silent(error, now)
            self._raise_generation(endpoint, "broken")
            self._set_poll_after(endpoint)
            self._reroute()

    def _believe(self, endpoint: Endpoint, report: Report) -> bool:
        """Take over a new role; groups that must not stay there leave."""
        if report == endpoint.report or report.role is Role.UNKNOWN:
            return False
        endpoint.report = report
        for lane in endpoint.lanes:
            if fit(lane.group.settings.target_session_attrs, report) is None:
                lane.group.retire_lane(lane, "role")
        return True

    def _raise_generation(self, endpoint: Endpoint, reason: str) -> None:
        for lane in endpoint.lanes:
            lane.group.retire_lane(lane, reason)

    def _set_poll_after(self, endpoint: Endpoint) -> None:
        """Where something broke, look at every socket before it is handed out, however short its rest."""
        sound = endpoint.health is Health.UP
        for lane in endpoint.lanes:
            after = lane.group.poll_after
            lane.poll_after = after if sound else min(after, 0.0)
            if not sound and after != float("inf"):
                for slot in tuple(lane.idle):
                    slot.fresh_until = 0.0

    # -- routes -------------------------------------------------------------------------------------------------

    def reroute(self) -> None:
        """Compute all routes again."""
        with self._lock:
            self._reroute()

    def _reroute(self) -> None:
        for group in self.groups:
            tiers = [] if group.closed or group.paused else self._tiers(group)
            if not group.settings.spill:
                tiers = tiers[:1]
            for lane in group.lanes:
                lane.live = any(lane in tier for tier in tiers)
            old = [list(tier.lanes) for tier in group.route]
            if tiers != old:
                group.route = tuple(Tier(tier, group.policy) for tier in tiers)
            if tiers:
                for lane in group.lanes:
                    if lane.searches:
                        lane.searches = 0
                        lane.next_try = 0.0
            group.refusal = self._refusal(group)
            if group.refusal is not None and not tiers and not group.paused:
                group.fail_waiters(partial(DBOfflineError, group.refusal))
            group.match(locked=True)

    def _tiers(self, group: Group) -> list[list[Lane]]:
        ranked = sorted(
            (
                (rank, lane.endpoint.priority, lane)
                for lane in group.lanes
                if lane.usable and (rank := fit(group.settings.target_session_attrs, lane.endpoint.report)) is not None
            ),
            key=lambda each: each[:2],
        )
        return [[lane for *_, lane in tier] for _, tier in groupby(ranked, key=lambda each: each[:2])]

    def _refusal(self, group: Group) -> str | None:
        """The servers' words, where every endpoint of the group refuses us for a reason no retry will mend."""
        if any(lane.open or not lane.refused for lane in group.lanes):
            return None
        words = "; ".join(
            f"{lane.endpoint.label}: {lane.setup_error or lane.endpoint.last_error}" for lane in group.lanes
        )
        return f"group {group.name!r}: every endpoint refuses the connection: {words}"

    # -- what to open -------------------------------------------------------------------------------------------

    def plan(self, now: float, only: Group | None = None, demand: int | None = None) -> list[Order]:
        """The connections to open now, their places reserved.

        First for those who wait, then what the balancers wished for, then up to `min_count`. With `only` and
        `demand`: for that group, as if so many waited, and nothing else.
        """
        orders: list[Order] = []
        with self._lock:
            if self.closed:
                return orders
            if only is not None:
                self._serve(only, demand or 0, orders, now)
                return orders
            self._turn += 1  # so that no group is always last where connects are scarce
            start = self._turn % len(self.groups)
            groups = self.groups[start:] + self.groups[:start]
            for group in groups:
                # A search asks every endpoint: the one asked first may never answer.
                under_way = group.opening if group.route else 0
                self._serve(group, len(group.waiters) - under_way, orders, now)
            for group in groups:
                for lane in group.lanes:
                    if lane.wished:
                        lane.wished = False
                        if lane.live and lane.may_open(now):
                            orders.append(self._order(lane, now))
            for group in groups:
                self._keep_warm(group, orders, now)
        return orders

    def _serve(self, group: Group, demand: int, orders: list[Order], now: float) -> None:
        while demand > 0 and not group.paused:
            lane = self._lane_to_open(group, now)
            if lane is None:
                self._make_room(group, demand)
                return
            orders.append(self._order(lane, now))
            demand -= 1

    def _make_room(self, group: Group, demand: int) -> None:
        """Where `total_count` is used up by connections that rest off the route, close as many as are wanted."""
        if group.total_limit is None or group.total < group.total_limit or not group.route:
            return
        demand -= sum(lane.closing for lane in group.lanes)  # on their way already
        for lane in group.lanes:
            if demand > 0 and not lane.live:
                demand -= group.drop_idle(lane, lambda slot: True, "displaced", demand)

    def _lane_to_open(self, group: Group, now: float) -> Lane | None:
        """Where the next connection for a waiter should be opened; None: nowhere at this moment."""
        for tier in group.route:
            able = [lane for lane in tier.lanes if lane.may_open(now)]
            if able:
                return min(able, key=lambda lane: (lane.open + lane.opening) * lane.per_weight)
        if group.route:
            return None
        # Nothing is believed usable: ask each endpoint in turn, the likeliest first.
        target = group.settings.target_session_attrs
        able = [lane for lane in group.lanes if lane.may_open(now, urgent=True) and not lane.opening]
        if not able:
            return None
        lane = min(able, key=lambda lane: (lane.next_try, fit(target, lane.endpoint.report) or 0))
        lane.next_try = now + backoff(SEARCH_EVERY, SEARCH_EVERY, 0, self._random)
        lane.searches += 1
        return lane

    def _keep_warm(self, group: Group, orders: list[Order], now: float) -> None:
        """Open what is wanted though nobody waits; where `total_count` is scarce, the preferred endpoints first."""
        target = group.settings.target_session_attrs
        for lane in sorted(
            group.lanes, key=lambda lane: (fit(target, lane.endpoint.report) or 0, lane.endpoint.priority)
        ):
            while self._wanted(lane) and lane.may_open(now):
                orders.append(self._order(lane, now))

    def _wanted(self, lane: Lane) -> bool:
        """Whether a connection is wanted though nobody waits: to keep warm, or to see whether it can be had again."""
        endpoint, group = lane.endpoint, lane.group
        if fit(group.settings.target_session_attrs, endpoint.report) is None:
            return False
        if lane.open + lane.opening < group.min_count:
            return True
        failing = endpoint.fault is not None or lane.setup_error is not None
        suspect = endpoint.health is not Health.UP and endpoint.last_error is not None
        return (failing or suspect) and not lane.opening

    def _order(self, lane: Lane, now: float) -> Order:
        lane.opening += 1
        lane.endpoint.connecting += 1
        return Order(lane, lane.generation, now)

    def due(self, now: float, only: Group | None = None) -> float:
        """When `plan` could have something new to say though nothing happens: a backoff or a search ends."""
        due = float("inf")
        with self._lock:
            for group in self.groups if only is None else [only]:
                searching = not group.route and not group.paused and bool(group.waiters or only)
                for lane in group.lanes:
                    endpoint = lane.endpoint
                    if (searching or self._wanted(lane)) and lane.room and not endpoint.connecting:
                        next_try = endpoint.urgent_try if searching else endpoint.next_try
                        due = min(due, max(next_try, lane.next_try))
        return due

    def unreachable(self, group: Group) -> str:
        """Why a group can use no endpoint: a few words for each."""
        target = group.settings.target_session_attrs
        parts = []
        for endpoint in map(attrgetter("endpoint"), group.lanes):
            if fit(target, endpoint.report) is None and endpoint.fault is None:
                words = f"is a {endpoint.role.value}, not {target}"
                if endpoint.role is Role.PRIMARY and endpoint.report.read_only:
                    words = f"takes no writes, not {target}"
            else:
                words = endpoint.last_error or "not tried yet"
            parts.append(f"{endpoint.label}: {words}")
        return "; ".join(parts)
