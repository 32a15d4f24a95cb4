"""What core shares between threads, made so that the simulation sees it and threads can meet there.

Before each operation on a shared container, and before the lock is taken, another thread may run for a while. With the
lock held nobody else runs: who needs the lock would have to wait, and a step of a task cannot wait inside core.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pgdbpool.core.lane import Slot


class Violation(BaseException):
    """A promise was broken. Not an `Exception`, so that nobody on the way takes it for an error of a server."""


class Lock:
    """The pool's lock. It is not reentrant, and nobody waits for it: two that want it at a time are one too many."""

    def __init__(self, let_others_run: Callable[[], None]) -> None:
        self.held = False
        self.taken = 0  # how often
        self._let_others_run = let_others_run

    def __enter__(self) -> None:
        if self.held:
            raise Violation("the pool's lock is taken by somebody who holds it: a deadlock")
        self._let_others_run()
        self.held = True
        self.taken += 1

    def __exit__(self, *error: object) -> None:
        self.held = False


class Shared(deque[Any]):
    """A deque before whose operations others may run."""

    def __init__(self, let_others_run: Callable[[], None]) -> None:
        super().__init__()
        self.let_others_run = let_others_run

    def __bool__(self) -> bool:
        self.let_others_run()
        return len(self) > 0

    def append(self, item: object) -> None:
        self.let_others_run()
        super().append(item)

    def pop(self) -> Any:  # type: ignore[override]
        self.let_others_run()
        return super().pop()

    def popleft(self) -> Any:
        self.let_others_run()
        return super().popleft()

    def remove(self, item: object) -> None:
        self.let_others_run()
        super().remove(item)


class Queue(OrderedDict[Any, None]):
    """The waiters of a group: first come, first served, but for those who had their turn and drew a dead connection."""

    def __init__(self, let_others_run: Callable[[], None], most: int) -> None:
        super().__init__()
        self.let_others_run = let_others_run
        self._most = most
        self._last = self._first = 0

    def __bool__(self) -> bool:
        self.let_others_run()
        return len(self) > 0

    def __setitem__(self, waiter: Any, nothing: None) -> None:
        self.let_others_run()
        if self._most and len(self) >= self._most and not waiter.first:
            raise Violation(f"{waiter.who} joins a queue of {len(self)}, and max_waiting is {self._most}")
        super().__setitem__(waiter, nothing)
        self._last += 1
        waiter.rank = self._last

    def move_to_end(self, waiter: Any, last: bool = True) -> None:
        if last or not waiter.first:
            raise Violation(f"{waiter.who} has pushed in")
        self.let_others_run()
        super().move_to_end(waiter, last=False)
        self._first -= 1
        waiter.rank = self._first

    def pop(self, waiter: Any, *default: Any) -> Any:
        self.let_others_run()
        return super().pop(waiter, *default)

    def popitem(self, last: bool = True) -> Any:
        if last:
            raise Violation("the last of the queue is to be served")
        self.let_others_run()
        waiter = next(iter(self), None)
        if any(other.rank < waiter.rank for other in self):
            raise Violation(f"{waiter.who} is served before one that came first")
        return super().popitem(last=False)


class Slots:
    """A set of slots that is walked in the order of their making: a plain set goes by their addresses."""

    def __init__(self, slots: Iterable[Slot] = ()) -> None:
        self._slots = dict.fromkeys(slots)

    def add(self, slot: Slot) -> None:
        self._slots[slot] = None

    def remove(self, slot: Slot) -> None:
        del self._slots[slot]

    def discard(self, slot: Slot) -> None:
        self._slots.pop(slot, None)

    def __contains__(self, slot: object) -> bool:
        return slot in self._slots

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)
