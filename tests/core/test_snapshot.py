"""Copies of containers that change while they are copied."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator

import pytest

from pgdbpool.core.snapshot import snapshot
from pgdbpool.core.stats import Books

from .harness import Rules, World


class Changing(deque):  # type: ignore[type-arg]
    """Another thread pushes something in the middle of the first copies."""

    changes = 2

    def __iter__(self) -> Iterator[object]:
        for thing in super().__iter__():
            if self.changes:
                self.changes -= 1
                self.append(object())
            yield thing


class ChangingQueue(OrderedDict):  # type: ignore[type-arg]
    """Another thread takes out what the copy comes to next."""

    changes = 2

    def __iter__(self) -> Iterator[object]:
        if self.changes:
            self.changes -= 1
            raise KeyError(next(super().__iter__()))
        return super().__iter__()


def test_such_a_container_cannot_be_copied_in_one_go():
    with pytest.raises(RuntimeError, match="mutated"):
        list(Changing([1, 2]))


def test_a_copy_is_of_one_moment():
    stack = Changing([1, 2])
    copy = snapshot(stack)
    assert copy[:2] == [1, 2]
    assert len(copy) == len(stack) == 4


def test_an_error_with_another_cause_is_told():
    class Broken(Changing):
        def __iter__(self) -> Iterator[object]:
            raise RuntimeError("for good")

    with pytest.raises(RuntimeError, match="for good"):
        snapshot(Broken())


def test_what_is_idle_may_change_while_the_pool_looks_at_it():
    def world() -> World:
        world = World(rules=[Rules(connection_count=3)])
        world.grow(count=2)
        world.lane.idle = ChangingStack(world.lane.idle)
        return world

    class ChangingStack(Changing):
        def append(self, thing: object) -> None:  # another thread gives back the one that rested longest
            slot = super().popleft()
            super().append(slot)

    tended = world()
    tended.group.tend(tended.now)
    drained = world()
    drained.topology.drain(drained.group, drained.now)
    assert len(drained.bury()) == 2
    fallen = world()
    fallen.missed()
    fallen.missed()
    assert not fallen.lane.idle
    for each in tended, drained, fallen:
        assert each.lane.idle.changes < 2, "it was looked at"


def test_so_may_the_queue_while_statistics_are_read():
    world = World()
    world.wait()
    world.group.waiters = ChangingQueue(world.group.waiters)
    world.group.waiters.changes = 2
    [group] = Books("p", world.topology, threading.Lock()).read(world.now + 1).groups.values()
    assert (group.waiting, group.longest_wait, world.group.waiters.changes) == (1, 1.0, 0)


def test_real_threads_change_what_is_copied():
    things: deque[int] = deque(range(50))
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            things.append(things.popleft())

    threads = [threading.Thread(target=change) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            assert 48 <= len(snapshot(things)) <= 50
    finally:
        over.set()
        for thread in threads:
            thread.join()
