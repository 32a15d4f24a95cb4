"""Everything that can happen to a pool, in any order, with every invariant looked at after every step.

The machine is the outside of core: callers that take, wait, give up and return; a keeper that plans, opens, closes
and tends; servers that die, come back, change roles and refuse. It does one step of one of them at a time, so that
core is seen in every state in which a lock would let another thread see it.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from contextlib import nullcontext
from itertools import groupby

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgdbpool.core import stats, times
from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.evidence import Fault, Health, Report
from pgdbpool.core.group import Group, outlived
from pgdbpool.core.lane import Lane, Slot
from pgdbpool.core.plan import Order
from pgdbpool.core.server import fit
from pgdbpool.errors import DBOfflineError, PoolClosed, TooManyWaiting

from .harness import PRIMARY, STANDBY, UNKNOWN, Caller, Place, Rules, World, clean

ENDPOINTS = st.lists(
    st.builds(Place, st.just(""), st.sampled_from([0, 0, 1]), st.sampled_from([1, 1, 3])), min_size=2, max_size=3
)
GROUP = st.builds(
    Rules,
    st.just(""),
    connection_count=st.integers(1, 3),
    total_count=st.sampled_from([None, None, 1, 3]),
    min_count=st.integers(0, 1),
    max_waiting=st.sampled_from([0, 0, 3]),
    max_lifetime=st.sampled_from([0.0, 64.0]),
    max_idle=st.sampled_from([0.0, 16.0]),
    target_session_attrs=st.sampled_from(["any", "primary", "standby", "prefer-standby", "prefer-primary"]),
    spill=st.booleans(),
    balance=st.sampled_from(["least-busy", "round-robin"]),
)
PICK = st.integers(0, 60)  # the index of something, modulo how many there are
SECONDS = st.sampled_from([1 / 64, 1 / 8, 1.0, 8.0, 64.0])  # sums of these are exact
FAULTS = [Fault.REFUSED, Fault.TIMEOUT, Fault.STARTING, Fault.FULL, Fault.MISCONFIGURED]
SOON = 90.0  # s in which a healed pool serves everybody: the longest backoff, and a few more steps


class Server:
    """What is really there."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.report: Report = STANDBY
        self.life = 0  # raised when its sessions end


class Session:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.life = server.life

    @property
    def alive(self) -> bool:
        return self.life == self.server.life


class Pool(RuleBasedStateMachine):
    @initialize(places=ENDPOINTS, rules=st.tuples(GROUP, GROUP))
    def begin(self, places: list[Place], rules: tuple[Rules, Rules]) -> None:
        places = [Place("abc"[i], place.priority, place.weight) for i, place in enumerate(places)]
        rules = tuple(Rules(**{**vars(each), "name": name}) for name, each in zip(("one", "two"), rules, strict=True))
        draws = random.Random(7)
        self.world = World(places, rules, random=draws.random, now=128.0)
        self.topology = self.world.topology
        self.books = stats.Books("pool", self.topology, nullcontext())
        self.topology.born = self.all_slots_append
        self.servers = {endpoint: Server() for endpoint in self.world.endpoints}
        self.servers[self.world.endpoint].report = PRIMARY
        self.unready: set[Group] = set()  # groups whose `configure` raises
        self.forget()
        for pick in (0, 1):
            self.a_crowd_comes(pick)
        self.the_keeper_does_its_round()
        self.the_keeper_does_its_round()

    def forget(self) -> None:
        """As at the beginning of a process."""
        self.slots: set[Slot] = set()  # born, and not yet buried
        self.orders: list[Order] = []
        self.queue: dict[Group, list[Caller]] = {group: [] for group in self.world.groups}
        self.handed: list[Caller] = []  # woken, and not yet looked
        self.left: list[Caller] = []
        self.hands: list[Slot] = []
        self.burying: list[Slot] = []
        self.old: set[Slot] = set()  # drained
        self.counted: defaultdict[tuple[Group, str], list[int]] = defaultdict(times.no_times)
        self.waited_for: set[Slot] = set()
        self.counts: dict[Group, Counter[str]] = {group: Counter() for group in self.world.groups}
        self.closed: dict[Group, Counter[str]] = {group: Counter() for group in self.world.groups}
        self.most: dict[Lane, int] = {}
        self.foreign: list[Slot] = getattr(self, "foreign", [])

    def all_slots_append(self, slot: Slot) -> None:
        self.slots.add(slot)

    @property
    def now(self) -> float:
        return self.world.now

    def group(self, pick: int) -> Group:
        return self.world.groups[pick % 2]

    def some_endpoint(self, pick: int) -> Endpoint:
        return self.world.endpoints[pick % len(self.world.endpoints)]

    # -- callers ------------------------------------------------------------------------------------------------

    @rule(pick=PICK, patience=SECONDS)
    def checkout(self, pick: int, patience: float) -> None:
        group = self.group(pick)
        slot = group.take(self.now)
        if slot is None:
            self.join(group, Caller(self.now, self.now + patience))
            return
        assert not self.queue[group], "a newcomer was served before those who wait"
        self.check_may_be_used(slot)
        assert not group.paused
        assert not group.closed
        if self.verify(slot):
            self.hold(slot)

    def join(self, group: Group, caller: Caller, *, first: bool = False) -> None:
        caller.group = group
        caller.on_wake = self.woken
        queue = self.queue[group]
        queue.insert(0 if first else len(queue), caller)
        full = group.settings.max_waiting and len(queue) > group.settings.max_waiting
        try:
            group.enqueue(caller, first=first)
        except TooManyWaiting:
            assert full
            assert not first
            self.counts[group]["rejections"] += 1
            queue.remove(caller)
        except PoolClosed:
            assert group.closed
            queue.remove(caller)
        except DBOfflineError:
            assert not group.route
            assert all(self.refused(lane) for lane in group.lanes)
            queue.remove(caller)

    def refused(self, lane: Lane) -> bool:
        return not lane.open and (lane.setup_error is not None or lane.endpoint.fault is Fault.MISCONFIGURED)

    def woken(self, caller: Caller) -> None:
        queue = self.queue[caller.group]
        if caller.error is None:
            assert queue[0] is caller, "not first come, first served"
            assert caller.slot.lane.live, "handed out off the route"
        queue.remove(caller)
        self.handed.append(caller)

    def check_may_be_used(self, slot: Slot) -> None:
        lane = slot.lane
        assert slot.generation == lane.generation, "an old generation was handed out to be used"
        assert self.now < slot.expires
        assert lane.live, "handed out off the route"
        assert any(lane in tier.lanes for tier in lane.group.route)

    def verify(self, slot: Slot) -> bool:
        """What the shell does between having a slot and letting its caller have it."""
        lane, group = slot.lane, slot.lane.group
        if slot.generation != lane.generation or self.now >= slot.expires:
            group.retire(slot, outlived(slot))
            return False
        if not slot.conn.alive:
            group.retire(slot, "broken")
            self.lost(slot, None)
            return False
        self.topology.reported(slot, self.servers[lane.endpoint].report, self.now)
        if slot.generation != lane.generation or self.now >= slot.expires:
            group.retire(slot, "role")
            return False
        return True

    def hold(self, slot: Slot) -> None:
        assert slot not in self.old, "an old generation was handed out to be used"
        slot.taken = self.now
        self.hands.append(slot)

    def lost(self, slot: Slot, sqlstate: str | None) -> None:
        if self.topology.session_lost(slot, sqlstate, "lost", self.now):
            for lane in self.topology.lanes(slot.lane.endpoint):
                for other in tuple(lane.idle):
                    if not other.conn.alive:
                        lane.idle.remove(other)
                        lane.group.retire(other, "broken")

    @precondition(lambda self: self.handed)
    @rule(pick=PICK)
    def look_at_what_was_handed_over(self, pick: int) -> None:
        self.accept(self.handed.pop(pick % len(self.handed)))

    def accept(self, caller: Caller) -> Slot | None:
        assert caller.woken == 1
        assert (caller.slot is None) != (caller.error is None)
        slot, group = caller.slot, caller.group
        if slot is None:
            return None
        if self.verify(slot):
            assert slot.generation == slot.lane.generation
            self.counts[group]["waits"] += 1
            self.counts[group]["wait_time"] += self.now - caller.since
            times.count(self.counted[group, "wait_times"], self.now - caller.since)
            slot.waited(self.now - caller.since)
            self.waited_for.add(slot)
            self.hold(slot)
            return slot
        again = Caller(caller.since, caller.deadline)
        self.join(group, again, first=True)
        return None

    @precondition(lambda self: any(self.queue.values()))
    @rule(pick=PICK)
    def a_waiter_is_cancelled(self, pick: int) -> None:
        waiting = [caller for queue in self.queue.values() for caller in queue]
        self.leave(waiting[pick % len(waiting)])

    def leave(self, caller: Caller) -> None:
        assert caller.group.abandon(caller), "waits, and cannot leave"
        self.queue[caller.group].remove(caller)
        self.left.append(caller)

    @precondition(lambda self: self.handed)
    @rule(pick=PICK)
    def a_waiter_is_cancelled_too_late(self, pick: int) -> None:
        caller = self.handed.pop(pick % len(self.handed))
        assert not caller.group.abandon(caller), "was served, and could leave"
        if caller.slot is not None:
            caller.group.give(caller.slot, self.now)

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        for group, queue in self.queue.items():
            for caller in [caller for caller in queue if caller.deadline <= self.now]:
                self.leave(caller)
                waited = self.now - caller.since
                group.timed_out(waited)
                self.counts[group]["timeouts"] += 1
                self.counts[group]["waits"] += 1
                self.counts[group]["wait_time"] += waited
                times.count(self.counted[group, "wait_times"], waited)

    def end_of_use(self, pick: int) -> Slot:
        slot = self.hands.pop(pick % len(self.hands))
        slot.used(self.now)
        times.count(self.counted[slot.lane.group, "use_times"], self.now - slot.taken)
        self.counts[slot.lane.group]["requests"] += 1
        self.counts[slot.lane.group]["prompt"] += slot not in self.waited_for
        self.waited_for.discard(slot)
        self.counts[slot.lane.group]["use_time"] += self.now - slot.taken
        return slot

    @precondition(lambda self: self.hands)
    @rule(pick=PICK)
    def a_connection_comes_back(self, pick: int) -> None:
        slot = self.end_of_use(pick)
        if slot.conn.alive:
            slot.lane.group.give(slot, self.now)
        else:
            slot.lane.group.retire(slot, "broken")
            self.lost(slot, None)

    @precondition(lambda self: self.hands)
    @rule(pick=PICK)
    def a_connection_comes_back_in_a_transaction(self, pick: int) -> None:
        slot = self.end_of_use(pick)
        slot.rollbacks += 1
        self.counts[slot.lane.group]["rollbacks"] += 1
        slot.lane.group.give(slot, self.now)

    @precondition(lambda self: self.hands)
    @rule(pick=PICK, sqlstate=st.sampled_from([None, "57P01", "57P02", "25P03"]))
    def a_session_is_lost_in_use(self, pick: int, sqlstate: str | None) -> None:
        slot = self.end_of_use(pick)
        slot.lane.group.retire(slot, "broken")
        self.lost(slot, sqlstate)

    # -- the keeper ---------------------------------------------------------------------------------------------

    @rule()
    def plan(self) -> None:
        self.planned()

    @rule()
    def the_keeper_does_its_round(self) -> None:
        """All that is to be done, at once: so that the machine gets far, and not only into trouble."""
        self.begin_to_close()
        self.end_of_closing()
        self.planned()
        self.world.now += 1 / 64
        while self.orders:
            self.answer(self.orders.pop())
        while self.handed:
            self.accept(self.handed.pop())

    @rule()
    def everybody_returns_what_they_have(self) -> None:
        self.world.now += 1 / 8
        while self.hands:
            self.a_connection_comes_back(0)

    @rule(pick=PICK)
    def a_crowd_comes(self, pick: int) -> None:
        for _ in range(3):
            self.checkout(pick, 64.0)

    def planned(self) -> list[Order]:
        before = {endpoint: endpoint.connecting for endpoint in self.world.endpoints}
        searching = {group for group in self.world.groups if not group.route and self.queue[group]}
        orders = self.topology.plan(self.now)
        self.orders += orders
        for endpoint, connecting in before.items():
            most = 2 if endpoint.health is Health.UP and endpoint.fault is None else 1
            assert endpoint.connecting <= max(connecting, most), "too many connects at a time"
        for order in orders:
            endpoint = order.lane.endpoint
            next_try = endpoint.urgent_try if order.lane.group in searching else endpoint.next_try
            assert next_try <= self.now, "a connect before the end of its backoff"
        return orders

    @rule(pick=PICK)
    def plan_for_one(self, pick: int) -> None:
        group = self.group(pick)
        orders = self.topology.plan(self.now, only=group, demand=1)
        assert all(order.lane.group is group for order in orders)
        self.orders += orders

    @precondition(lambda self: self.orders)
    @rule(pick=PICK)
    def a_connect_ends(self, pick: int) -> None:
        self.answer(self.orders.pop(pick % len(self.orders)))

    def answer(self, order: Order) -> None:
        lane = order.lane
        group, server = lane.group, self.servers[lane.endpoint]
        if server.fault is not None:
            self.counts[group]["connect_failures"] += 1
            self.topology.open_failed(order, server.fault, f"is {server.fault.value}", self.now)
        elif group in self.unready:
            self.counts[group]["connect_failures"] += 1
            self.topology.setup_failed(order, "configure raised", self.now)
        else:
            self.counts[group]["connects"] += 1
            self.counts[group]["connect_time"] += self.now - order.since
            times.count(self.counted[group, "connect_times"], self.now - order.since)
            before = len(group.closing)
            reason = self.topology.opened(order, Session(server), clean, server.report, self.now)
            if reason is not None:
                assert len(group.closing) > before
                self.slots.add(group.closing[-1][0])

    @precondition(lambda self: self.orders)
    @rule(pick=PICK)
    def a_connect_is_given_up(self, pick: int) -> None:
        self.topology.cancelled(self.orders.pop(pick % len(self.orders)))

    @rule(pick=PICK)
    def tend(self, pick: int) -> None:
        group = self.group(pick)
        due = group.tend(self.now)
        assert due > self.now
        for lane in group.lanes:
            assert all(slot.expires >= due for slot in lane.idle), "a life ends before somebody looks"

    @rule()
    def begin_to_close(self) -> None:
        for group in self.world.groups:
            while group.closing:
                slot, reason = group.closing.popleft()
                self.closed[group][reason] += 1
                self.burying.append(slot)

    @precondition(lambda self: self.burying)
    @rule()
    def end_of_closing(self) -> None:
        for slot in self.burying:
            slot.lane.group.buried(slot)
            self.slots.remove(slot)
        self.burying.clear()

    @precondition(lambda self: not self.topology.closed)
    @rule(seconds=SECONDS)
    def due_never_lies(self, seconds: float) -> None:
        """If there is nothing to open now, there is nothing before `due`, and `due` is not now."""
        if self.planned():
            return
        due = self.topology.due(self.now)
        assert due > self.now, "asks for a look at once when there is nothing to see"
        if self.now + seconds < due:
            then = self.topology.plan(self.now + seconds)
            assert not then, f"said {due}, and at {self.now + seconds} opens {then}"

    # -- servers ------------------------------------------------------------------------------------------------

    @rule(pick=PICK, fault=st.sampled_from([*FAULTS, None, None]))
    def a_server_changes(self, pick: int, fault: Fault | None) -> None:
        server = self.servers[self.some_endpoint(pick)]
        server.fault = fault
        if fault in (Fault.REFUSED, Fault.STARTING):
            server.life += 1

    @rule(pick=PICK)
    def promote(self, pick: int) -> None:
        for server in self.servers.values():
            server.report = STANDBY
        self.servers[self.some_endpoint(pick)].report = PRIMARY

    @rule(pick=PICK)
    def sessions_are_terminated(self, pick: int) -> None:
        self.servers[self.some_endpoint(pick)].life += 1

    @rule(pick=PICK, silent_about_it=st.booleans())
    def a_session_reports_its_role(self, pick: int, silent_about_it: bool) -> None:
        endpoint = self.some_endpoint(pick)
        self.world.reported(endpoint, UNKNOWN if silent_about_it else self.servers[endpoint].report)

    @rule(pick=PICK)
    def a_server_is_silent(self, pick: int) -> None:
        self.topology.silent(self.some_endpoint(pick), "no answer", self.now)

    @precondition(lambda self: self.slots)
    @rule(pick=PICK)
    def a_server_says_goodbye(self, pick: int) -> None:
        slots = sorted(self.slots, key=lambda slot: (slot.lane.group.name, slot.lane.endpoint.label, slot.born))
        slot = slots[pick % len(slots)]
        slot.conn.life = -1
        if slot.lane.group.goodbye(slot):
            self.topology.session_lost(slot, None, "goodbye", self.now)

    @rule(pick=PICK, ready=st.booleans())
    def a_configure_callable_raises_or_not(self, pick: int, ready: bool) -> None:
        (self.unready.discard if ready else self.unready.add)(self.group(pick))

    # -- its owner ----------------------------------------------------------------------------------------------

    @rule(pick=PICK, size=st.integers(1, 3), warm=st.integers(0, 1))
    def resize(self, pick: int, size: int, warm: int) -> None:
        group = self.group(pick)
        for lane in group.lanes:
            self.most[lane] = max(self.most.get(lane, 0), lane.total)
        group.resize(size, warm)
        self.topology.reroute(self.now)

    @rule(pick=PICK)
    def pause(self, pick: int) -> None:
        self.group(pick).paused = True
        self.topology.reroute(self.now)

    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        self.group(pick).paused = False
        self.topology.reroute(self.now)

    @rule(pick=PICK)
    def drain(self, pick: int) -> None:
        group = self.group(pick)
        for lane in group.lanes:
            self.old |= lane.slots
            group.retire_lane(lane, "drained")

    @precondition(lambda self: not self.topology.closed)
    @rule()
    def close(self) -> None:
        self.topology.close()
        for group in self.world.groups:
            group.fail_waiters(lambda: PoolClosed("closed"))

    @precondition(lambda self: self.topology.closed)
    @rule()
    def open(self) -> None:
        self.topology.open()

    @rule()
    def fork(self) -> None:
        """The machine goes on as the child."""
        for group in self.world.groups:
            for slot in group.every_slot():
                slot.generation = -1
        self.foreign += self.hands
        self.topology.reset(self.world.lock, self.world.random)
        self.forget()

    @precondition(lambda self: self.foreign)
    @rule()
    def a_connection_of_the_parent_comes_back(self) -> None:
        slot = self.foreign.pop()
        slot.lane.group.give(slot, self.now)

    # -- the invariants -----------------------------------------------------------------------------------------

    @invariant()
    def a_slot_is_in_exactly_one_place(self) -> None:
        leased = [*self.hands, *(caller.slot for caller in self.handed if caller.slot is not None)]
        idle = [slot for group in self.world.groups for lane in group.lanes for slot in lane.idle]
        closing = [slot for group in self.world.groups for slot, _ in group.closing]
        everywhere = [*leased, *idle, *closing, *self.burying]
        assert len(everywhere) == len(set(everywhere)), "a slot is in two places"
        assert set(everywhere) == self.slots, "a slot is nowhere"
        for lane in self.lanes():
            assert set(lane.idle) <= lane.slots
            assert lane.slots == {slot for slot in (*idle, *leased) if slot.lane is lane}

    def lanes(self) -> list[Lane]:
        return [lane for group in self.world.groups for lane in group.lanes]

    @invariant()
    def never_more_than_connection_count_and_total_count(self) -> None:
        for lane in self.lanes():
            # What was open before a group was made smaller may stay until it comes back, but never grows.
            most = self.most[lane] = max(lane.group.limit, min(self.most.get(lane, 0), lane.total))
            assert lane.total <= most
        for group in self.world.groups:
            assert group.total_limit is None or group.total <= group.total_limit

    @invariant()
    def counts_agree_with_containers(self) -> None:
        for lane in self.lanes():
            assert lane.open == len(lane.slots)
            assert lane.opening == sum(order.lane is lane for order in self.orders)
            closing = [slot for slot, _ in lane.group.closing] + self.burying
            assert lane.closing == sum(slot.lane is lane for slot in closing)
            assert lane.total == lane.open + lane.opening + lane.closing
        for endpoint in self.world.endpoints:
            assert endpoint.connecting == sum(order.lane.endpoint is endpoint for order in self.orders)
            assert endpoint.connecting <= 2
            assert endpoint.open == sum(lane.open for lane in self.topology.lanes(endpoint))

    @invariant()
    def a_waiter_that_left_lost_no_slot(self) -> None:
        for caller in self.left:
            assert (caller.slot, caller.error, caller.woken) == (None, None, 0)

    @invariant()
    def a_hand_off_is_never_lost(self) -> None:
        for group in self.world.groups:
            if self.queue[group]:
                assert not any(lane.idle for lane in group.lanes if lane.live), "somebody waits beside an idle slot"

    @invariant()
    def first_come_first_served(self) -> None:
        for group in self.world.groups:
            assert list(group.waiters) == self.queue[group]

    @invariant()
    def nothing_idle_is_of_an_old_generation(self) -> None:
        for lane in self.lanes():
            assert all(slot.generation == lane.generation for slot in lane.idle)

    @invariant()
    def the_route_is_what_belief_says(self) -> None:
        for group in self.world.groups:
            route = [list(tier.lanes) for tier in group.route]
            assert route == self.expected_route(group)
            for lane in group.lanes:
                assert lane.live == any(lane in tier for tier in route)

    def expected_route(self, group: Group) -> list[list[Lane]]:
        if group.closed or group.paused:
            return []
        ranked = []
        for lane in group.lanes:
            endpoint = lane.endpoint
            rank = fit(group.settings.target_session_attrs, endpoint.report)
            way_in = endpoint.fault is None and lane.setup_error is None
            if rank is not None and endpoint.health is not Health.DOWN and (lane.open or way_in):
                ranked.append(((rank, endpoint.priority), lane))
        ranked.sort(key=lambda each: each[0])
        tiers = [[lane for _, lane in tier] for _, tier in groupby(ranked, key=lambda each: each[0])]
        return tiers if group.settings.spill else tiers[:1]

    @invariant()
    def statistics_are_exact(self) -> None:
        moment = self.books.read(self.now)
        for group in self.world.groups:
            read, counts = moment.groups[group.name], self.counts[group]
            for field in read.counters.__struct_fields__:
                if field.endswith("_times"):
                    assert getattr(read.counters, field) == times.in_order(self.counted[group, field]), field
                elif field != "closed":
                    assert getattr(read.counters, field) == counts[field], field
            closing = Counter(reason for _, reason in group.closing)
            assert Counter(read.counters.closed) == self.closed[group] + closing
            assert read.open == read.idle + read.leased
            assert read.waiting == len(self.queue[group])
            waits = [self.now - caller.since for caller in self.queue[group]]
            assert read.longest_wait == max(waits, default=0.0)

    # -- the end ------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """The servers are well again: everybody is served, soon."""
        if not hasattr(self, "world"):
            return
        self.unready.clear()
        for server in self.servers.values():
            server.fault = None
        self.topology.open()
        for pick in (0, 1):
            self.resume(pick)
        while self.hands:
            self.a_connection_comes_back(0)
        served: set[Group] = set()
        end = self.now + SOON
        while len(served) < 2 or any(self.queue.values()) or self.handed:
            assert self.now < end, f"{self.topology.due(self.now)} {[self.topology.unreachable(g) for g in self.queue]}"
            for group in self.world.groups:
                if group not in served and not self.queue[group]:
                    self.join(group, Caller(self.now))
            while self.handed:
                slot = self.accept(self.handed.pop())
                if slot is not None:
                    served.add(slot.lane.group)
                    self.a_connection_comes_back(self.hands.index(slot))
            self.begin_to_close()
            self.end_of_closing()
            self.planned()
            self.world.now += 1 / 64
            while self.orders:
                self.answer(self.orders.pop())
            for pick in (0, 1):
                self.tend(pick)
            if not self.handed:
                self.world.now += 1 / 16


TestPool = Pool.TestCase
TestPool.settings = settings(derandomize=True, deadline=None, max_examples=150, stateful_step_count=50)
