"""Time, and those who live in it.

One queue of events, ordered by time and then by the sequence in which they were asked for: nothing else decides what
comes next. A *task* is a coroutine, and stands for a thread. It awaits where a thread would wait::

    await sleep(0.5)
    await hear(bell, until)       # sleep until somebody rings, at most until then; true if somebody rang

Between two of these it runs alone, unless core comes to a place where a thread could lose the processor (a lock about
to be taken, an operation on a shared container): there `Clock.preempt` lets others take some steps, inside the call. So
a task may find that time has passed though it did not wait.
"""

from __future__ import annotations

import types
import zlib
from collections.abc import Callable, Coroutine, Generator
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

FOREVER = float("inf")

_WAKE = 50e-6  # s, at most, from the bell to the first instruction
_AWAY = 2e-3  # s, at most, that a thread loses the processor for
_OTHERS = 6  # steps that others take meanwhile, at most
_DEPTH = 2  # threads that have lost the processor inside core at a time
_STEPS = 200_000  # more than any run needs: something turns in a circle


class Interrupted(BaseException):
    """As KeyboardInterrupt in a thread, or CancelledError in a task."""


class Timer:
    """An event to come. Without an action it is over, or was called off."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Bell:
    """Rung once, it stays rung until one task has heard it. At most one task waits at a time."""

    __slots__ = ("rung", "task")

    def __init__(self) -> None:
        self.rung = False
        self.task: Task | None = None

    def ring(self) -> None:
        self.rung = True
        if self.task is not None:
            self.task.wake()


@types.coroutine
def sleep(seconds: float) -> Generator[float, bool | None, None]:
    """Do nothing for so long."""
    yield seconds


@types.coroutine
def hear(bell: Bell, until: float = FOREVER) -> Generator[tuple[Bell, float], bool | None, bool]:
    """Wait for the bell; false if the time is over."""
    return bool((yield bell, until))


class Clock:
    """The queue of events, and what time it is."""

    def __init__(self, random: Random, preemption: float, trace: Callable[[str], None] | None = None) -> None:
        self.began = self.now = 100.0
        self.steps = 0
        self.digest = 0  # of all steps so far: two runs with the same digest were the same
        self.trace = trace
        self._random = random.random
        self._preemption = preemption
        self._events: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._depth = 0
        self.on_preempt: Callable[[], None] = lambda: None
        self.running: Task | None = None
        self.tasks: list[Task] = []

    def at(self, time: float, action: Callable[[], None]) -> Timer:
        timer = Timer(action)
        heappush(self._events, (max(time, self.now), next(self._numbers), timer))
        return timer

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        return self.at(self.now + seconds, action)

    def spawn(self, name: str, steps: Coroutine[Any, Any, None], delay: float = 0.0) -> Task:
        task = Task(self, name, steps)
        self.tasks.append(task)
        self.after(delay, task.resume)
        return task

    def step(self, until: float = FOREVER) -> bool:
        """The next event, if there is one before `until`."""
        events = self._events
        while events:
            if events[0][0] > until:
                return False
            time, number, timer = heappop(events)
            action = timer.action
            if action is None:
                continue
            timer.action = None
            self.now = time
            self.steps += 1
            if self.steps > _STEPS:
                raise AssertionError(f"no end after {_STEPS} steps")
            self.digest = zlib.crc32(b"%d %r" % (number, time), self.digest)
            action()
            return True
        return False

    def abandon(self) -> None:
        """Nothing happens any more: let go of all tasks, wherever they are."""
        self._depth = _DEPTH  # what they do on their way out concerns nobody else
        for task in tuple(self.tasks):
            task.abandon()
        self.tasks.clear()
        self._events.clear()

    def preempt(self) -> None:
        """Here a thread could lose the processor."""
        if self._depth >= _DEPTH or self._random() >= self._preemption:
            return
        until = self.now + _AWAY * self._random()
        outer = self.running
        self._depth += 1
        self.on_preempt()
        try:
            for _ in range(1 + int(_OTHERS * self._random())):
                if not self.step(until):
                    break
        finally:
            self._depth -= 1
            self.running = outer

    @property
    def calm(self) -> bool:
        """Whether nobody is in the middle of a call of core."""
        return self._depth == 0

    async def breath(self) -> None:
        """Between two lines of the shell a thread may lose the processor as well."""
        if self._random() < self._preemption:
            await sleep(_AWAY * self._random())

    def wake_delay(self) -> float:
        return _WAKE * self._random()

    def say(self, what: str) -> None:
        """A line of the trace. The caller asks first whether there is one: words cost time."""
        if self.trace is not None:
            who = self.running.name if self.running is not None else "world"
            self.trace(f"{self.now:12.6f}  {self.steps:6d}  {who:<14}  {what}")


class Task:
    """A thread, as a coroutine."""

    __slots__ = ("_bell", "_clock", "_error", "_running", "_steps", "_timer", "done", "name")

    def __init__(self, clock: Clock, name: str, steps: Coroutine[Any, Any, None]) -> None:
        self._clock = clock
        self._steps = steps
        self._timer: Timer | None = None
        self._bell: Bell | None = None
        self._error: BaseException | None = None
        self._running = False
        self.name = name
        self.done = False

    def wake(self) -> None:
        """Its bell was rung: on with it, in a moment."""
        bell = self._bell
        if bell is not None:
            bell.task = None
            self._bell = None
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._clock.after(self._clock.wake_delay(), lambda: self._go_on(bell))

    def interrupt(self) -> None:
        """Raise Interrupted where it waits now, or waits next."""
        if self.done:
            return
        self._error = Interrupted()
        if not self._running:
            if self._timer is not None:
                self._timer.cancel()
            if self._bell is not None:
                self._bell.task = None
                self._bell = None
            self._timer = self._clock.after(self._clock.wake_delay(), self.resume)

    def resume(self) -> None:
        self._go_on(None)

    def abandon(self) -> None:
        """Its coroutine is closed, and what it does on its way out counts for nothing."""
        try:
            self._steps.close()
        except BaseException:
            pass

    def _go_on(self, bell: Bell | None) -> None:
        clock = self._clock
        if self._bell is not None:  # its time is over
            bell, self._bell = self._bell, None
            bell.task = None
        self._timer = None
        rung = False
        if bell is not None:
            rung, bell.rung = bell.rung, False
        outer, clock.running = clock.running, self
        self._running = True
        try:
            while True:
                error, self._error = self._error, None
                wanted = self._steps.send(rung or None) if error is None else self._steps.throw(error)
                if self._error is None:
                    break
                rung = False  # interrupted while it ran: now it waits
        except (StopIteration, Interrupted):
            self.done = True
            clock.tasks.remove(self)
            return
        finally:
            self._running = False
            clock.running = outer
        self._wait(wanted)

    def _wait(self, wanted: Any) -> None:
        clock = self._clock
        if isinstance(wanted, tuple):
            bell, until = wanted
            if bell.rung:
                self._timer = clock.after(clock.wake_delay(), lambda: self._go_on(bell))
                return
            assert bell.task is None, "two tasks wait for one bell"
            bell.task = self
            self._bell = bell
        else:
            until = clock.now + wanted
        self._timer = clock.at(until, self.resume) if until < FOREVER else None
