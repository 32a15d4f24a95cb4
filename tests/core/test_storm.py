"""The lock-free hand-off under real threads, with impatient callers.

Each session knows who holds it, so that a slot in two hands is seen by whoever comes second. The containers that core
shares between threads without a lock are replaced by ones that let another thread run, every now and then, before or
after each of their atomic operations: there the threads meet at all the places where they can.
"""

from __future__ import annotations

import random
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from time import sleep
from typing import Any

import pytest

from pgdbpool.core import stats
from pgdbpool.core.group import Group
from pgdbpool.core.lane import Lane, Slot
from pgdbpool.keeper import Parked

from .harness import UNKNOWN, Rules, World, clean, places

LIMIT = 30.0  # s: only ever reached when something is lost


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


chance = random.Random(1)


def let_others_run() -> None:
    if chance.random() < 0.25:
        sleep(0)  # only gives the interpreter away


class Jumpy(deque[Any]):
    """A deque around whose operations other threads like to run."""

    def __bool__(self) -> bool:
        let_others_run()
        answer = len(self) > 0
        let_others_run()
        return answer

    def append(self, item: object) -> None:
        let_others_run()
        super().append(item)
        let_others_run()

    def pop(self) -> Any:
        let_others_run()
        item = super().pop()
        let_others_run()
        return item


class JumpyQueue(OrderedDict[Any, None]):
    """The same for the waiters."""

    def __bool__(self) -> bool:
        let_others_run()
        answer = len(self) > 0
        let_others_run()
        return answer

    def __setitem__(self, waiter: Any, nothing: None) -> None:
        let_others_run()
        super().__setitem__(waiter, nothing)
        let_others_run()

    def popitem(self, last: bool = True) -> Any:
        let_others_run()
        item = super().popitem(last)
        let_others_run()
        return item


class Impatient(Parked):
    """A parked thread around whose claim, and while it is handed something, other threads like to run."""

    def claim(self) -> bool:
        let_others_run()
        mine = super().claim()
        let_others_run()
        return mine

    def _settle(self, left: bool) -> bool:
        let_others_run()
        left = super()._settle(left)
        let_others_run()
        return left


class Session:
    def __init__(self) -> None:
        self.holders: list[int] = []


class Storm:
    """A pool of a few slots that stay open, and many threads that want one."""

    def __init__(self, slots: int, endpoints: int = 2) -> None:
        labels = [f"db{i}" for i in range(endpoints)]
        self.world = World(places(*labels), [Rules(connection_count=slots)], lock=threading.Lock())
        self.group = self.world.group
        self.group.waiters = JumpyQueue()
        for lane in self.group.lanes:
            lane.idle = Jumpy()
        self.group.lead(self.group.route)
        for lane in self.group.lanes:
            for _ in range(slots):
                self.open(lane)
        self.slots = self.group.total
        self.timeouts = count()
        self.served = count()
        self.errors: list[BaseException] = []

    def open(self, lane: Lane) -> None:
        order = self.world.order(lane)
        self.world.topology.opened(order, Session(), clean, UNKNOWN, self.world.now)

    def obtain(self, group: Group, patience: float) -> Slot | None:
        """As the threaded keeper does; None: gave up."""
        slot = group.take(self.world.now)
        if slot is not None:
            return slot
        waiter = Impatient(self.world.now)
        group.enqueue(waiter)
        if not waiter.park(patience):
            group.abandon(waiter)
        if waiter.leave():
            next(self.timeouts)
            return None
        assert waiter.slot is not None
        return waiter.slot

    def hold(self, slot: Slot, me: int) -> None:
        holders = slot.conn.holders
        holders.append(me)
        assert holders == [me], "a slot in two hands"
        sleep(0)
        assert slot not in slot.lane.idle
        assert holders == [me], "a slot in two hands"
        holders.pop()
        slot.used(self.world.now)
        next(self.served)

    def run(self, threads: int, body: Callable[[int, random.Random], None]) -> None:
        together = threading.Barrier(threads)

        def guarded(me: int) -> None:
            try:
                together.wait(LIMIT)
                body(me, random.Random(me))
            except BaseException as error:
                self.errors.append(error)

        running = [threading.Thread(target=guarded, args=(i,), daemon=True) for i in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(LIMIT)
        assert self.errors == []
        assert not any(thread.is_alive() for thread in running), "somebody waits for ever"

    def check_nothing_is_lost(self, slots: int) -> None:
        idle = [slot for lane in self.group.lanes for slot in lane.idle]
        assert len(idle) == len(set(idle)) == self.group.total == slots
        assert not self.group.waiters
        for lane in self.group.lanes:
            assert set(lane.idle) == lane.slots
        counters = stats.Books("pool", self.world.topology, nullcontext()).read(self.world.now).groups["g"].counters
        assert counters.requests == next(self.served)


def test_impatient_callers_lose_nothing_and_share_nothing():
    storm = Storm(slots=2, endpoints=1)

    def body(me: int, chance: random.Random) -> None:
        for _ in range(200):
            slot = storm.obtain(storm.group, chance.choice([0.0, 0.0, 0.00002, 0.0002]))
            if slot is not None:
                storm.hold(slot, me)
                storm.group.give(slot, storm.world.now)

    storm.run(16, body)
    # However the threads fell: from here on nobody can get a slot, and everybody gives up.
    held = [storm.group.take(storm.world.now) for _ in range(storm.slots)]
    assert None not in held

    def hopeless(me: int, chance: random.Random) -> None:
        for _ in range(200):
            assert storm.obtain(storm.group, 0.0) is None

    before = next(storm.timeouts)
    storm.run(16, hopeless)
    assert next(storm.timeouts) - before - 1 == 16 * 200
    for slot in held:
        storm.group.give(slot, storm.world.now)
    storm.check_nothing_is_lost(2)


def test_patient_callers_are_all_served():
    storm = Storm(slots=1)

    def body(me: int, chance: random.Random) -> None:
        for _ in range(100):
            slot = storm.obtain(storm.group, LIMIT)
            assert slot is not None
            storm.hold(slot, me)
            storm.group.give(slot, storm.world.now)

    storm.run(16, body)
    assert next(storm.timeouts) == 0
    storm.check_nothing_is_lost(2)


def test_giving_up_in_the_moment_of_the_hand_off_loses_nothing():
    """One slot goes to and fro between a giver and callers that give up at once."""
    storm = Storm(slots=1, endpoints=1)
    slot = storm.group.take(storm.world.now)
    assert slot is not None
    rounds = 1500
    accepted = count()

    def body(me: int, chance: random.Random) -> None:
        for _ in range(rounds):
            if me == 0:
                storm.group.give(slot, storm.world.now)
                # Whoever has it now brings it back.
                again = storm.obtain(storm.group, LIMIT)
                assert again is slot
            else:
                got = storm.obtain(storm.group, 0.0)
                if got is not None:
                    next(accepted)
                    storm.group.give(got, storm.world.now)

    storm.run(4, body)
    storm.group.give(slot, storm.world.now)
    assert storm.group.take(storm.world.now) is slot


def test_draining_and_pausing_in_the_midst_of_it_lose_nothing():
    storm = Storm(slots=2)
    world, group = storm.world, storm.group
    done = threading.Event()
    owner_is_done = threading.Event()

    def replace() -> None:
        """What a keeper does."""
        for group in world.groups:
            while group.closing:
                slot, _ = group.closing.popleft()
                assert slot.conn.holders == [], "closed in somebody's hands"
                group.buried(slot)
        for lane in group.lanes:
            while lane.room:
                storm.open(lane)

    def body(me: int, chance: random.Random) -> None:
        if me == 0:
            for _ in range(150):
                with group.lock:
                    group.retire_lane(group.lanes[chance.randrange(2)], "drained")
                group.paused = chance.random() < 0.3
                world.topology.reroute(world.now)
                replace()
            group.paused = False
            world.topology.reroute(world.now)
            owner_is_done.set()
            while not done.wait(0.001):
                replace()
            return
        rounds = 0
        while rounds < 100 or not owner_is_done.is_set():
            rounds += 1
            slot = storm.obtain(group, chance.choice([0.0, 0.0002, 0.002]))
            if slot is None:
                continue
            if slot.generation != slot.lane.generation:
                group.retire(slot, "retired")
                continue
            storm.hold(slot, me)
            group.give(slot, world.now)
        if next(finished) == 6:
            done.set()

    finished = count()
    storm.run(8, body)
    replace()
    storm.check_nothing_is_lost(4)
    assert all(slot.generation == lane.generation for lane in group.lanes for slot in lane.idle)
