"""Checkout, return, waiting, and taking connections out of the pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from pgdbpool.core.evidence import Fault
from pgdbpool.core.group import ABORTED, BROKEN, Group, Waiter
from pgdbpool.core.lane import Slot
from pgdbpool.core.stats import lane_counters
from pgdbpool.errors import PoolClosed, TooManyWaiting

from .harness import Caller, Place, Rules, World, places

INF = float("inf")

# -- taking and giving ------------------------------------------------------------------------------------------


def test_the_connection_used_last_is_taken_first():
    world = World(rules=[Rules(connection_count=3)])
    world.grow(count=3)
    slots = [world.lease() for _ in range(3)]
    for slot in slots:
        world.give(slot)
    assert [world.take() for _ in range(4)] == [*reversed(slots), None]


def test_nobody_is_served_before_those_who_wait():
    world = World()
    world.wait()
    slot = world.grow()[0]
    assert world.take() is None
    assert slot not in world.lane.idle


def test_a_connection_rests_from_the_moment_it_comes_back():
    world = World()
    slot = world.grow()[0]
    world.lease().holder = "somebody"
    world.now += 7
    world.give(slot)
    assert (slot.rested, slot.fresh_until, slot.holder) == (107, 107.5, None)


def test_a_connection_whose_life_is_over_is_not_handed_out():
    world = World(rules=[Rules(max_lifetime=60)])
    slot = world.grow()[0]
    world.now = slot.expires
    assert world.take() is None
    assert world.bury() == [(slot, "lifetime")]
    assert world.wishes == ["g"]


def test_a_connection_whose_life_ended_in_use_goes_when_it_comes_back():
    world = World(rules=[Rules(max_lifetime=60)])
    world.grow()
    slot = world.lease()
    world.now = slot.expires
    world.give(slot)
    assert world.bury() == [(slot, "lifetime")]


@pytest.mark.parametrize(("draw", "life"), [(0.0, 100.0), (1.0, 90.0)])
def test_a_life_ends_up_to_a_tenth_early(draw: float, life: float):
    world = World(rules=[Rules(max_lifetime=100)], random=lambda: draw)
    assert world.grow()[0].expires == pytest.approx(world.now + life)


def test_without_max_lifetime_a_connection_lives_for_ever():
    assert World().grow()[0].expires == INF


def test_an_old_connection_left_in_the_stack_is_passed_over():
    world = World()
    old, new = world.grow(count=2)
    world.lane.idle.clear()
    world.lane.idle.extend([new, old])
    old.generation -= 1
    assert world.take() is new
    assert world.bury() == [(old, "retired")]


def test_the_neighbours_are_asked_until_one_has_something():
    world = World(places("a", "b", "c"))
    slots = world.grow(world.group.lanes[2], 2)
    taken = {world.take(), world.take()}
    assert taken == set(slots)
    assert world.take() is None


# -- waiting ----------------------------------------------------------------------------------------------------


def test_first_come_first_served():
    world = World()
    world.grow()
    slot = world.lease()
    first, second = world.wait(), world.wait()
    world.give(slot)
    assert (first.slot, second.slot) == (slot, None)
    world.give(slot)
    assert second.slot is slot


def test_one_that_drew_a_dead_connection_goes_to_the_front():
    world = World()
    world.wait()
    unlucky = world.wait(first=True)
    assert next(iter(world.group.waiters)) is unlucky


def test_one_that_goes_to_the_front_is_let_in_though_too_many_wait():
    world = World(rules=[Rules(max_waiting=1)])
    world.wait()
    world.wait(first=True)
    with pytest.raises(TooManyWaiting):
        world.wait()


def test_too_many_waiters_are_turned_away_and_counted():
    world = World(rules=[Rules(max_waiting=2)])
    world.wait()
    world.wait()
    with pytest.raises(TooManyWaiting, match=r"group 'g': 2 callers wait already \(max_waiting = 2\)"):
        world.wait()
    assert (world.group.rejections, len(world.group.waiters)) == (1, 2)


def test_one_who_joins_looks_once_more():
    world = World()
    slot = world.grow()[0]
    assert world.wait().slot is slot


def test_one_who_left_gets_nothing_and_loses_nothing():
    world = World()
    world.grow()
    slot = world.lease()
    leaver, other = world.wait(), world.wait()
    assert world.group.abandon(leaver)
    world.give(slot)
    assert (leaver.slot, leaver.woken) == (None, 0)
    assert other.slot is slot


def test_one_who_was_served_cannot_leave():
    world = World()
    caller = world.wait()
    slot = world.grow()[0]
    assert not world.group.abandon(caller)
    assert caller.slot is slot
    assert caller.woken == 1


def test_one_who_leaves_while_a_giver_holds_them_has_left():
    world = World()
    caller = world.wait()
    world.group.waiters.popitem(last=False)  # the giver's first step
    assert world.group.abandon(caller)
    assert not caller.claim()


def test_a_giver_passes_over_those_who_left_meanwhile():
    world = World()
    world.grow()
    slot = world.lease()
    gone = world.wait()
    assert gone.claim()  # about to leave the queue
    world.give(slot)
    assert list(world.lane.idle) == [slot]
    assert gone.slot is None


class Delayed(Caller):
    """A caller that gives up while its giver is held up at one point of the hand-over."""

    __slots__ = ("_settled", "at", "gave_up", "left")

    def __init__(self, group: Group, at: str) -> None:
        super().__init__()
        self.group = group
        self.at = at
        self.gave_up = self.left = False
        self._settled, self._settle = self._settle, self._slowly

    def _held_up(self, at: str) -> None:
        if at == self.at and not self.gave_up:
            self.gave_up = True
            self.group.abandon(self)
            self.left = self.leave()

    def receive(self, slot: Slot) -> bool:
        self._held_up("claimed")
        return super().receive(slot)

    def _slowly(self, key: None, left: bool) -> bool:
        self._held_up("published")
        left = self._settled(key, left)
        self._held_up("settled")
        return left


def delayed(world: World, at: str) -> Delayed:
    waiter = Delayed(world.group, at)
    world.group.enqueue(waiter)
    return waiter


def test_a_giver_held_up_before_it_hands_over_keeps_what_its_waiter_no_longer_waits_for():
    world = World()
    world.grow()
    slot = world.lease()
    waiter = delayed(world, "claimed")
    world.give(slot)
    assert waiter.left
    assert waiter.slot is None
    assert list(world.lane.idle) == [slot]


def test_a_giver_held_up_before_it_hands_over_serves_the_next_instead():
    world = World()
    world.grow()
    slot = world.lease()
    waiter, second = delayed(world, "claimed"), world.wait()
    world.give(slot)
    assert waiter.left
    assert (waiter.slot, second.slot, second.woken) == (None, slot, 1)
    assert not world.lane.idle


@pytest.mark.parametrize("at", ["claimed", "published", "settled"])
def test_wherever_a_giver_is_held_up_one_of_the_two_has_the_slot(at):
    world = World()
    world.grow()
    slot = world.lease()
    waiter = delayed(world, at)
    world.give(slot)
    assert waiter.left is (waiter.slot is None)
    assert list(world.lane.idle) == ([slot] if waiter.left else [])
    assert waiter.leave() is waiter.left, "asked again, it says the same"


def test_what_was_retired_while_its_giver_was_held_up_is_not_put_to_rest():
    world = World()
    world.grow()
    slot = world.lease()

    waiter = delayed(world, "claimed")
    waiter.on_wake = lambda waiter: world.topology.drain(world.group, world.now)
    world.give(slot)
    assert waiter.left
    assert not world.lane.idle
    assert [each for each, _ in world.bury()] == [slot]


def test_one_whose_giver_was_interrupted_after_it_published_has_the_slot():
    def interrupted(key, left):
        if waiter.woken == 0:
            raise KeyboardInterrupt
        return settle(key, left)

    world = World()
    world.grow()
    slot = world.lease()
    waiter = Caller()
    settle, waiter._settle = waiter._settle, interrupted
    world.group.enqueue(waiter)
    with pytest.raises(KeyboardInterrupt):
        world.give(slot)
    assert waiter.woken == 1
    assert not waiter.leave()
    assert waiter.slot is slot


def test_one_that_left_wants_no_error_either():
    world = World()
    waiter = world.wait()
    world.group.waiters.clear()
    assert waiter.claim()  # by one that is held up
    assert waiter.leave()
    waiter.fail(PoolClosed("closed"))
    assert waiter.leave()


def test_a_slot_nobody_wanted_in_the_end_goes_back_to_the_stack():
    world = World()
    slot = world.grow()[0]
    gone = Caller()
    gone.claim()
    world.group.enqueue(gone)
    assert list(world.lane.idle) == [slot]


def test_every_wait_can_be_ended_with_an_error_of_its_own():
    world = World()
    first, gone, second = world.wait(), world.wait(), world.wait()
    gone.claim()
    world.group.fail_waiters(lambda: PoolClosed("closed"))
    assert isinstance(first.error, PoolClosed)
    assert isinstance(second.error, PoolClosed)
    assert first.error is not second.error
    assert (gone.error, gone.woken) == (None, 0)
    assert not world.group.waiters


def test_one_whom_a_giver_took_out_and_forgot_rejoins_in_front_and_is_served():
    world = World()
    first, second = world.wait(), world.wait()
    assert world.group.waiters.popitem(last=False)[0] is first  # by a giver that is interrupted now
    world.group.rejoin(first)
    assert list(world.group.waiters) == [first, second]
    slot = world.grow()[0]
    assert (first.slot, first.woken, second.slot) == (slot, 1, None)


def test_one_who_rejoins_looks_at_once():
    world = World()
    caller = world.wait()
    world.group.waiters.clear()
    slot = world.grow()[0]
    world.group.rejoin(caller)
    assert caller.slot is slot


def test_one_who_still_waits_or_was_claimed_does_not_rejoin():
    world = World()
    waiting, claimed = world.wait(), world.wait()
    world.group.waiters.pop(claimed)
    assert claimed.claim()
    world.group.rejoin(waiting)
    world.group.rejoin(claimed)
    assert list(world.group.waiters) == [waiting]


def test_nobody_waits_for_a_closed_group():
    world = World()
    world.topology.close()
    with pytest.raises(PoolClosed, match="group 'g' hands out no connection"):
        world.wait()


def test_a_waiter_is_claimed_once():
    waiter = Waiter(0.0, lambda: None)
    assert [waiter.claim(), waiter.claim()] == [True, False]


def test_a_group_may_grow_while_there_is_room_on_its_route_or_no_route():
    world = World([Place("a"), Place("b", priority=1)], [Rules(connection_count=1)])
    assert world.group.may_grow()
    world.grow()
    assert not world.group.may_grow()
    world.group.paused = True
    world.topology.reroute(world.now)
    assert world.group.may_grow()


def test_a_group_may_grow_where_connections_off_its_route_can_give_way():
    world = World([Place("a"), Place("b", priority=1)], [Rules(connection_count=2, total_count=2)])
    world.grow(world.group.lanes[1], 2)
    assert world.route() == [["a"]]
    assert not world.lane.room
    assert world.group.may_grow()


# -- between two steps of somebody else -------------------------------------------------------------------------


class Moment(float):
    """A time at whose comparison with the end of a slot's life something happens: the middle of `give` or `take`."""

    def __new__(cls, at: float, happens: Callable[[], object]) -> Moment:
        moment = super().__new__(cls, at)
        moment.happens = happens
        return moment

    happens: Callable[[], object]

    def __ge__(self, other: float) -> bool:
        self.happens()
        return float(self) >= other


def test_a_waiter_who_joins_in_the_middle_of_a_return_is_served():
    world = World()
    world.grow()
    slot = world.lease()
    callers: list[Caller] = []
    world.group.give(slot, Moment(world.now, lambda: callers.append(world.wait())))
    assert callers[0].slot is slot


class Stack(deque[Slot]):
    """An idle stack at whose push something happens just before."""

    happens: Callable[[], object]

    def append(self, slot: Slot) -> None:
        self.happens()
        super().append(slot)


def test_a_waiter_who_joins_just_before_the_push_is_served():
    world = World()
    world.grow()
    slot = world.lease()
    callers: list[Caller] = []
    world.lane.idle = Stack()
    world.lane.idle.happens = lambda: callers.append(world.wait())
    world.give(slot)
    assert callers[0].slot is slot


def test_a_newcomer_does_not_pass_those_who_wait_though_something_is_idle():
    world = World()
    slot = world.grow()[0]
    world.group.waiters[Caller()] = None  # has joined, and not yet looked again
    assert world.take() is None
    world.group.match()
    assert slot not in world.lane.idle


def test_a_connection_returned_in_the_middle_of_close_is_closed():
    world = World()
    world.grow()
    slot = world.lease()
    world.group.give(slot, Moment(world.now, world.topology.close))
    assert [slot for slot, _ in world.bury()] == [slot]
    assert world.group.total == 0


def test_a_drain_in_the_middle_of_a_hand_off_to_one_who_leaves_closes_the_connection():
    class Leaving(Caller):
        def claim(self) -> bool:
            world.group.retire_lane(world.lane, "drained")
            return False

    world = World()
    slot = world.grow()[0]
    world.group.enqueue(Leaving())
    assert [slot for slot, _ in world.bury()] == [slot]
    assert world.group.total == 0


# -- taking out -------------------------------------------------------------------------------------------------


def test_a_retired_connection_keeps_its_place_until_it_is_buried():
    world = World()
    slot = world.grow()[0]
    world.lease()
    world.group.retire(slot, "broken")
    assert (world.lane.open, world.lane.closing, world.lane.total) == (0, 1, 1)
    world.bury()
    assert world.lane.total == 0


def test_a_connection_is_retired_once():
    world = World()
    slot = world.grow()[0]
    world.lease()
    world.group.retire(slot, "broken")
    world.group.retire(slot, "broken")
    assert world.lane.closing == 1
    assert world.lane.closed_by == {"broken": 1}


def test_what_was_lost_is_retired_and_gives_room():
    world = World(rules=[Rules(connection_count=2)])
    world.grow(count=2)
    slot = world.lease()
    del world.wishes[:]
    world.group.reclaim(lambda slots: [slot for slot in slots if slot not in world.lane.idle])
    assert (world.lane.open, world.lane.closing, world.wishes) == (1, 1, ["g"])
    assert world.bury() == [(slot, "lost")]
    assert world.lane.room


def test_where_nothing_is_lost_nobody_is_woken_to_close_anything():
    world = World()
    world.grow()
    del world.wishes[:]
    world.group.reclaim(lambda slots: [])
    assert (world.lane.open, world.wishes) == (1, [])


def test_a_connection_whose_call_was_ended_on_a_dead_server_goes_as_aborted():
    world = World()
    world.grow()
    slot = world.lease()
    slot.expires = ABORTED
    world.give(slot)
    assert world.bury() == [(slot, "aborted")]
    assert world.lane.closed_by["aborted"] == 1


def test_what_a_connection_that_is_gone_has_counted_is_added_once():
    world = World()
    world.grow()
    slot = world.lease()
    slot.use_times[0] += 1
    ledger = world.lane.ledger.without(slot)
    assert (ledger.gone.uses, ledger.live) == (1, ())
    assert ledger.without(slot) is ledger


class Interrupted(BaseException):
    """Raised in the middle of something."""


@pytest.mark.parametrize("kind", ["closing", "slots"])
def test_retiring_that_is_interrupted_leaves_the_numbers_right_once_it_is_buried(kind: str):
    class Queue(deque):  # type: ignore[type-arg]
        def append(self, item: object) -> None:
            super().append(item)
            raise Interrupted

    class Slots(set):  # type: ignore[type-arg]
        def remove(self, item: object) -> None:
            super().remove(item)
            raise Interrupted

    world = World()
    world.grow(count=2)
    slot = world.lease()
    slot.use_times[0] += 1
    if kind == "closing":
        world.group.closing = Queue()
    else:
        world.lane.slots = Slots(world.lane.slots)
    with pytest.raises(Interrupted):
        world.group.retire(slot, "broken")
    world.group.closing, world.lane.slots = deque(world.group.closing), set(world.lane.slots)
    assert world.bury() == [(slot, "broken")]
    assert (world.lane.open, world.lane.closing, world.lane.total, world.endpoint.open) == (1, 0, 1, 1)
    assert (len(world.lane.slots), lane_counters(world.lane).requests) == (1, 1)


def test_numbers_that_an_interrupted_caller_left_wrong_are_set_right():
    world = World()
    world.grow(count=1)
    world.order()  # reserved, and then nobody opens it
    world.lane.slots.clear()
    world.lane.closing = 2  # popped from the list of those to close, and no more said
    world.group.recount()
    assert (world.lane.open, world.lane.opening, world.lane.closing) == (0, 0, 0)
    assert (world.endpoint.open, world.endpoint.connecting) == (0, 0)


def test_a_goodbye_takes_an_idle_connection_out_at_once():
    world = World()
    slot = world.grow()[0]
    assert world.group.goodbye(slot)
    assert world.bury() == [(slot, "broken")]
    assert world.wishes == ["g"]
    assert not world.group.goodbye(slot)


def test_a_goodbye_takes_a_leased_connection_out_when_it_comes_back():
    world = World()
    slot = world.grow()[0]
    world.lease()
    assert not world.group.goodbye(slot)
    assert slot.expires == BROKEN
    world.give(slot)
    assert world.bury() == [(slot, "broken")]


def test_draining_replaces_idle_connections_now_and_leased_ones_when_they_come_back():
    world = World()
    idle, leased = world.grow(count=2)
    if world.lease() is idle:
        idle, leased = leased, idle
    world.group.retire_lane(world.lane, "drained")
    assert world.bury() == [(idle, "drained")]
    world.give(leased)
    assert world.bury() == [(leased, "retired")]


def test_somebody_may_take_a_slot_in_the_moment_it_is_to_be_dropped():
    world = World()
    kept, taken = world.grow(count=2)

    def unwanted(slot: object) -> bool:
        if taken in world.lane.idle:
            assert world.take() is taken
        return True

    assert world.group.drop_idle(world.lane, unwanted, "idle") == 1
    assert world.bury() == [(kept, "idle")]
    assert world.lane.slots == {taken}


# -- resizing ---------------------------------------------------------------------------------------------------


def test_a_smaller_size_closes_the_surplus_among_the_idle_longest_rested_first():
    world = World(rules=[Rules(connection_count=3)])
    slots = world.grow(count=3)
    old = list(world.lane.idle)[:2]
    world.group.resize(1, 0)
    assert world.bury() == [(slot, "resized") for slot in old]
    assert world.lane.slots == set(slots) - set(old)
    assert world.wishes == ["g"]


def test_a_smaller_size_closes_the_surplus_among_the_leased_when_they_come_back():
    world = World(rules=[Rules(connection_count=3)])
    world.grow(count=3)
    leased = [world.lease() for _ in range(3)]
    world.group.resize(2, 0)
    for slot in leased:
        world.give(slot)
    assert [reason for _, reason in world.bury()] == ["resized"]
    assert len(world.lane.idle) == 2


def leased_and_resized(sizes: list[int], count: int = 4) -> tuple[World, list[Slot]]:
    """So many leased connections, and these sizes one after the other."""
    world = World(rules=[Rules(connection_count=count, max_lifetime=60)])
    world.grow(count=count)
    leased = [world.lease() for _ in range(count)]
    for size in sizes:
        world.group.resize(size, 0)
    return world, leased


@pytest.mark.parametrize("sizes", [[2], [2, 2], [3, 2], [3, 2, 2], [1, 2], [1, 4, 2], [1, 3, 1, 2]])
def test_sizes_one_after_the_other_close_no_more_leased_connections_than_the_last_one_asks_for(sizes: list[int]):
    world, leased = leased_and_resized(sizes)
    for slot in leased:
        world.give(slot)
    assert [reason for _, reason in world.bury()] == ["resized"] * 2
    assert len(world.lane.idle) == 2
    for slot in world.lane.idle:
        assert slot.born + 54 <= slot.expires <= slot.born + 60


def test_a_size_made_larger_again_closes_nothing():
    world, leased = leased_and_resized([1, 4])
    for slot in leased:
        world.give(slot)
    assert world.bury() == []
    assert len(world.lane.idle) == 4


def test_leased_connections_that_are_going_anyway_are_part_of_the_surplus():
    world, leased = leased_and_resized([4])
    world.group.goodbye(leased[0])
    world.group.resize(3, 0)
    for slot in leased:
        world.give(slot)
    assert world.bury() == [(leased[0], "broken")]
    assert len(world.lane.idle) == 3


def test_a_larger_size_gives_room():
    world = World(rules=[Rules(connection_count=1)])
    world.grow()
    assert not world.lane.room
    world.group.resize(2, 2)
    assert world.lane.room
    assert world.places_of(world.plan()) == ["db1:5432"]


# -- tending ----------------------------------------------------------------------------------------------------


def test_what_rested_too_long_is_closed_down_to_min_count():
    world = World(rules=[Rules(connection_count=4, min_count=1, max_idle=10)])
    world.grow(count=4)
    oldest_first = list(world.lane.idle)
    assert world.group.tend(world.now) == world.now + 10
    world.now += 10
    assert world.group.tend(world.now) == INF
    assert world.bury() == [(slot, "idle") for slot in oldest_first[:3]]


def test_what_rested_a_shorter_time_stays():
    world = World(rules=[Rules(connection_count=2, max_idle=10)])
    world.grow(count=2)
    world.lease()
    slot = world.lease()
    world.now += 6
    world.give(slot)
    world.now += 6
    assert world.group.tend(world.now) == 116
    assert world.bury() == []


def test_without_max_idle_nothing_rests_too_long():
    world = World()
    world.grow(count=2)
    world.now += 1e6
    assert world.group.tend(world.now) == INF
    assert world.lane.open == 2


def test_tending_closes_idle_connections_at_the_end_of_their_life_whatever_min_count():
    world = World(rules=[Rules(min_count=2, max_lifetime=100)])
    slots = world.grow(count=2)
    assert world.group.tend(world.now) == slots[0].expires
    world.now = slots[0].expires
    assert world.group.tend(world.now) == INF
    assert [reason for _, reason in world.bury()] == ["lifetime", "lifetime"]


def test_tending_leaves_leased_connections_alone():
    world = World(rules=[Rules(min_count=1, max_lifetime=100, max_idle=1)])
    world.grow()
    world.lease()
    world.now += 1000
    assert world.group.tend(world.now) == INF
    assert world.lane.open == 1


def test_what_is_leased_may_come_back_at_once_and_is_looked_at_when_it_may_have_rested_too_long():
    world = World(rules=[Rules(max_idle=1)])
    world.grow()
    slot = world.lease()
    due = world.group.tend(world.now)
    world.give(slot)
    world.now += 1
    assert due == world.now
    world.group.tend(due)
    assert world.bury() == [(slot, "idle")]


def test_what_is_leased_is_looked_at_when_its_life_is_over_for_it_may_have_come_back():
    world = World(rules=[Rules(max_lifetime=100)])
    world.grow()
    slot = world.lease()
    assert world.group.tend(world.now) == slot.expires
    world.now = slot.expires
    assert world.group.tend(world.now) == INF


# -- failover ---------------------------------------------------------------------------------------------------


def test_a_waiter_is_served_by_the_next_endpoint_when_the_first_dies():
    world = World(places("a", "b"), [Rules(connection_count=1)])
    world.grow()
    world.lease()
    caller = world.wait()
    world.failed(world.order(world.group.lanes[0]), Fault.REFUSED)
    for order in world.plan():
        world.opened(order)
    assert caller.slot is not None
    assert caller.slot.lane.endpoint.label == "b"


def test_the_queue_can_be_left_from_anywhere_in_constant_time():
    """Leaving a queue of 100,000 from its middle a thousand times takes no longer than from one of 1,000."""
    world = World()
    few = [world.wait() for _ in range(1_000)]
    looked_at: list[object] = []

    class Counted(Caller):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            looked_at.append(other)
            return self is other

        __hash__ = Caller.__hash__

    leaver = Counted()
    world.group.enqueue(leaver)
    for _ in range(1_000):
        world.wait()
    assert world.group.abandon(leaver)
    assert not looked_at, "the others in the queue were looked at"
    assert len(world.group.waiters) == 2_000
    for caller in few[::2]:
        assert world.group.abandon(caller)
    slots = world.grow(count=2)
    assert [caller.slot for caller in few[1:4:2]] == slots, "first come, first served"
