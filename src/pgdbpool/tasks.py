"""Tasks: who opens and closes the connections of an AsyncPool, and who waits; the asyncio relative of `keeper`.

No thread keeps the pool, and no task. The listener's descriptor is one more that the event loop looks at: when it
rings, or when something falls due, `_round` looks at the plan and starts a task for each connection to open. So nobody
who waits is what others wait for: a caller that is cancelled cancels nothing but its own waiting.

All of it runs in the loop of the pool. What may come from another thread is handed over to the loop: what the monitor
finds out (`Told`), a connection for a waiter after `resume` there (`Pending`), a wish (`wake`), and the end of a pool
that the garbage collector has found (`abandon`).

The life of a keeper::

    made ──start──▶ keeps ──stop──▶ halted     the pool is closed
                      ├──loop ends──▶ halted   nobody closed it: all its connections are closed
                      └──abandon────▶ halted   nobody knows the pool any more: idle connections are closed
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any

from . import background
from .background import nobodys
from .clock import monotonic
from .config import MonitorSettings
from .core.endpoint import Endpoint
from .core.evidence import Fault, Sighting
from .core.group import Group, Waiter
from .core.lane import Slot
from .core.plan import Order
from .core.snapshot import snapshot
from .core.topology import Topology
from .drivers.cancel import LIMIT
from .herald import Herald
from .keeper import TimedOut
from .lifecycle import is_ending
from .listener import DeafListener, EpollListener, listener
from .loopend import LoopEnd
from .monitor import Subscription, subscribe
from .publish import writer as publisher
from .seldom import traced
from .session import Sessions
from .told import Told as ToldHere

logger = logging.getLogger("pgdbpool")

_SHORTEST_SLEEP = 0.01  # s
_LONGEST_SLEEP = 5.0
_REST = 0.5  # s after a round that has failed
_PAUSE = 0.1  # s after somebody else has cancelled one of our tasks, most likely because the loop ends
_LAST_WORDS = 1.0  # s that the end of a loop waits for what is under way
_LOOK_EVERY = 0.1  # s between two looks whether something was lost, while somebody waits
_LOOK_SHARE = 50  # ... and at most one part in so many of the loop's time


class Pending(Waiter):
    """A waiting task. It is woken in the loop only; what another thread hands over takes the way through the loop.

    On that way it may come too late: the task has left. Then it is passed on.
    """

    __slots__ = ("_thread", "future")

    def __init__(self, since: float, future: asyncio.Future[None]) -> None:
        super().__init__(since, partial(_wake, future))
        self.future = future
        self._thread = get_ident()

    def receive(self, slot: Slot) -> bool:
        if get_ident() == self._thread:
            return super().receive(slot)
        return self._hand_over(self._receive_late, slot)

    def fail(self, error: Exception) -> None:
        if get_ident() == self._thread:
            self.error = error
            self.wake()
        else:
            self._hand_over(self.fail, error)

    def _receive_late(self, slot: Slot) -> None:
        if not super().receive(slot):
            slot.lane.group.give(slot, monotonic())

    def _hand_over(self, what: Callable[..., None], *args: Any) -> bool:
        try:
            self.future.get_loop().call_soon_threadsafe(what, *args, context=nobodys())
        except RuntimeError:  # the loop was closed, and nobody waits
            return False
        return True


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Told(ToldHere):
    """Hands what the monitor finds out about one endpoint over to the loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sessions: Sessions,
        endpoint: Endpoint,
        how: MonitorSettings,
        wake: Callable[[], None],
    ) -> None:
        super().__init__(sessions, endpoint, how, wake)
        self._loop = loop

    def _believe(self, sighting: Sighting, seconds: float, since: float) -> None:
        self._hand_over(super()._believe, sighting, seconds, since)

    def _disbelieve(self, fault: Fault, error: str, speaks: bool) -> None:
        self._hand_over(super()._disbelieve, fault, error, speaks)

    def _desert(self, address: str, error: str) -> None:
        self._hand_over(super()._desert, address, error)

    def _hand_over(self, what: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed, and the pool was not
            self._loop.call_soon_threadsafe(what, *args, context=nobodys())


class Tasks:
    """What keeps one pool in one loop. `at_loop_end`: called when the loop ends and the pool was not closed before."""

    def __init__(
        self,
        name: str,
        topology: Topology,
        sessions: Sessions,
        timed_out: TimedOut,
        herald: Herald,
        how: MonitorSettings | None,
        at_loop_end: Callable[[], None],
    ) -> None:
        self._name = name
        self._topology = topology
        self._sessions = sessions
        self._timed_out = timed_out
        self._herald = herald
        self._monitor = how
        self._at_loop_end = at_loop_end
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0  # that of the loop
        self._listener = listener()
        self.references = self._listener.references  # says how many there are to a slot in our books
        self.reclaim: Callable[[Group], bool] = _nothing  # set by the pool: retires what is in nobody's hands
        self.look_for_leaks: Callable[[float], float] = _never  # likewise: reports leases held for too long
        self.look_for_forgotten: Callable[[float], float] = _never  # likewise: retires what nobody refers to
        self._look_at: dict[Group, float] = {}  # not before
        self._lookers: dict[Group, asyncio.TimerHandle] = {}
        self._owed: set[Group] = set()  # a look that came too early, to be made up for
        self._openers: dict[asyncio.Task[None], Order] = {}
        self._began_in: asyncio.AbstractEventLoop | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._telling: asyncio.Task[None] | None = None
        self._subscriptions: list[Subscription] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop_end: LoopEnd | None = None
        self._rung = False
        self._quiet_until = 0.0  # nothing is opened before

    # -- life -------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep the pool in this loop, which is running, from now on."""
        self.loop = self._began_in = loop
        self._thread = get_ident()
        self._loop_end = LoopEnd(self._end_of_loop, self._loop_closed)
        if isinstance(self._listener, EpollListener):
            nobodys().run(loop.add_reader, self._listener.descriptor, self._ring)
        self._subscribe(loop)
        self.wake()

    def _subscribe(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the endpoints probed."""
        topology = self._topology
        topology.monitored = False
        if self._monitor is None:
            return
        try:
            for endpoint in topology.endpoints:
                told = Told(loop, self._sessions, endpoint, self._monitor, self.wake)
                self._subscriptions.append(subscribe(endpoint.settings, self._monitor, told))  # type: ignore[arg-type]
        except (RuntimeError, OSError, MemoryError) as error:  # no thread or descriptor to be had: as without a monitor
            self._drop_subscriptions()
            if not is_ending(error):
                logger.error("%s: cannot start the monitor\n%s", self._name, traced(error))
            return
        topology.monitored = True
        topology.alarm = self._alarm

    def _drop_subscriptions(self) -> None:
        for each in self._subscriptions:
            each.drop()
        self._subscriptions = []

    def _alarm(self) -> None:
        for each in self._subscriptions:
            each.alarm()

    def _halt(self) -> list[asyncio.Task[None]]:
        """Open nothing more, and listen no more. Returns the tasks that were cancelled and have not ended yet."""
        loop, self.loop = self.loop, None
        self._drop_subscriptions()
        if self._loop_end is not None:
            self._loop_end.forget()
        if loop is None or loop.is_closed():
            return []
        if self._timer is not None:
            self._timer.cancel()
        for looker in self._lookers.values():
            looker.cancel()
        self._lookers.clear()
        self._owed.clear()
        if isinstance(self._listener, EpollListener):
            loop.remove_reader(self._listener.descriptor)
        tasks = list(self._openers)
        if self._telling is not None:
            tasks.append(self._telling)
        for task in tasks:
            task.cancel()
        return [task for task in tasks if not task.done()]

    async def stop(self, timeout: float) -> None:
        """Open nothing more, and listen no more. Attempts to connect are given up."""
        tasks = self._halt()
        self._herald.deliver(self._topology.events)
        self._bury()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)

    def abandon(self) -> None:
        """Nobody knows the pool any more: close what is idle. Called by the garbage collector, so anywhere."""
        loop = self.loop
        if loop is None or loop.is_closed():
            self._end()
            return
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._end, context=nobodys())

    def disown(self) -> None:
        """In a forked child: the loop is the parent's."""
        self.loop = None
        if self._loop_end is not None:
            self._loop_end.forget()

    def _end(self) -> None:
        self._halt()
        self._topology.close()
        self._bury()

    async def _end_of_loop(self) -> None:
        tasks = self._halt()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORDS)
        self._at_loop_end()
        if self._endings:
            await asyncio.wait(self._endings, timeout=_LAST_WORDS)

    def _loop_closed(self) -> None:
        self._at_loop_end()

    def end_now(self) -> None:
        """The loop has ended, and whoever had a connection with it: close all of them."""
        self._end()
        for group in self._topology.groups:
            for lane in group.lanes:
                for slot in snapshot(lane.slots):
                    group.retire(slot, "closed")
        self._bury()

    # -- what a pool asks of its keeper -----------------------------------------------------------------------

    def opened(self, slot: Slot) -> None:
        """A connection was opened, and is about to be put to use."""
        self._listener.add(slot, self._sessions.driver.descriptor(slot.conn))

    def closing(self, slot: Slot) -> None:
        """A connection is about to be closed."""
        self._listener.forget(slot)

    def end(self, slot: Slot) -> None:
        """Close what was left in the middle of a statement: by a task, where the loop still runs."""
        if self._began_in is not None and asyncio._get_running_loop() is self._began_in:
            ending = background.task(self._sessions.end(slot, LIMIT))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
        else:
            self._sessions.end_now(slot)

    def wish(self, group: Group) -> None:
        """Something may have to be opened or closed."""
        self.wake()

    def wake(self) -> None:
        """Have a round soon."""
        loop = self.loop
        if loop is None or self._rung:
            return
        try:
            self._rung = True  # first: in the loop of another thread the round may come at once
            if get_ident() == self._thread:
                loop.call_soon(self._round, context=nobodys())
            else:
                loop.call_soon_threadsafe(self._round, context=nobodys())
        except RuntimeError:  # the loop was closed, and the pool was not
            pass
        except BaseException:  # a signal handler: one round too many does no harm, and none at all would for ever
            self._rung = False
            raise

    async def wait(self, group: Group, began: float, deadline: float, first: bool) -> Slot:
        """A slot, before the deadline. Raises PoolTimeout and relatives."""
        loop = asyncio.get_running_loop()
        waiter = Pending(began, loop.create_future())
        group.enqueue(waiter, first=first)
        timer = None
        try:
            if waiter.slot is None:
                if group.may_grow():
                    self.wake()
                rest = deadline - monotonic()
                if rest != float("inf"):
                    timer = loop.call_later(max(rest, 0.0), self._over, group, waiter, context=nobodys())
                self._look_later(group)
            await waiter.future
        except BaseException:  # cancelled: what was handed over, or is about to be, goes to the next
            if not group.abandon(waiter) and not waiter.leave() and waiter.slot is not None:
                group.give(waiter.slot, monotonic())
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if not waiter.leave():
            if waiter.slot is not None:
                return waiter.slot
            if waiter.error is not None:
                raise waiter.error
        if not self._look(group):
            self._owed.add(group)  # it will find what was lost for the next one
            self._look_later(group)
        group.timed_out(monotonic() - began)
        raise self._timed_out(group, began)

    def _over(self, group: Group, waiter: Pending) -> None:
        if group.abandon(waiter) or waiter.leave():  # a giver in another thread may have claimed it, and be held up
            waiter.wake()

    # -- what somebody waits for may have been lost -----------------------------------------------------------

    def _look_later(self, group: Group) -> None:
        """Look from now on, for as long as somebody waits."""
        if self.loop is not None and group not in self._lookers:
            pause = max(_LOOK_EVERY, self._look_at.get(group, 0.0) - monotonic())
            self._lookers[group] = self.loop.call_later(pause, self._look_again, group, context=nobodys())

    def _look_again(self, group: Group) -> None:
        del self._lookers[group]
        if group.waiters or group in self._owed:
            self._look(group)
        if group.waiters or group in self._owed:
            self._look_later(group)

    def _look(self, group: Group) -> bool:
        """Whether it was time for a look, and there was one."""
        began = monotonic()
        if began < self._look_at.get(group, 0.0):
            return False
        self._owed.discard(group)
        self.reclaim(group)
        ended = monotonic()
        self._look_at[group] = ended + max(_LOOK_EVERY, _LOOK_SHARE * (ended - began))
        return True

    # -- in the loop ------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        for slot in self._listener.sleep(0):
            self._sessions.heard(slot)
        self.wake()

    def _round(self) -> None:
        self._rung = False
        if self.loop is None:
            return
        due = 0.0
        try:
            due = self._look_after()
        except Exception as error:  # neither a bug nor want of memory must stop the pool from healing
            due = monotonic() + _REST
            background.say(error, f"{self._name}: the keeper failed")
        finally:  # nor must a signal handler that raises
            self._sleep(min(max(due - monotonic(), _SHORTEST_SLEEP), _LONGEST_SLEEP))

    def _sleep(self, seconds: float) -> None:
        last = self._timer
        if self.loop is not None:
            self._timer = self.loop.call_later(seconds, self.wake, context=nobodys())
        if last is not None:
            last.cancel()

    def _look_after(self) -> float:
        self._sessions.abort()
        now = monotonic()
        next_look = min(self.look_for_leaks(now), self.look_for_forgotten(now))
        self._herald.deliver(self._topology.events)
        self._bury()
        for opener, order in tuple(self._openers.items()):
            if not order.wanted:
                opener.cancel()
        if self.loop is not None and any(each.gone for each in self._subscriptions):  # the monitor's thread has died
            for each in self._subscriptions:
                each.cancel()  # and not `drop`: no thread would do it
            self._subscriptions = []
            self._topology.unwatched()
            self._subscribe(self.loop)
        now = monotonic()
        publisher.tend(now)
        quiet = now < self._quiet_until
        self._start_openers([] if quiet else self._topology.plan(now))
        if self._topology.outages and (self._telling is None or self._telling.done()):
            self._telling = background.task(self._sessions.tell_outages())
        due = min(group.tend(now) for group in self._topology.groups)
        if isinstance(self._listener, DeafListener):
            due = min(due, now + 1.0)
        self._bury()
        due = min(due, next_look, self._topology.tend(now))
        return min(due, self._quiet_until if quiet else self._topology.due(now))

    def _bury(self) -> None:
        for group in self._topology.groups:
            self._sessions.bury(group)

    def _start_openers(self, orders: list[Order]) -> None:
        """A task for each order. None of them is lost, whatever happens."""
        left = list(orders)
        try:
            for order in orders:
                self._start_opener(order)
                left.remove(order)
        except BaseException:
            for order in left:
                self._topology.cancelled(order)
            raise

    def _start_opener(self, order: Order) -> None:
        work = self._open(order)
        try:
            opener = background.task(work)
        except BaseException:
            work.close()
            raise
        self._openers[opener] = order
        opener.add_done_callback(self._opener_ended)

    async def _open(self, order: Order) -> None:
        try:
            await self._sessions.open(order)
        except asyncio.CancelledError:  # its place was given back
            self._was_cancelled(order)

    def _opener_ended(self, opener: asyncio.Task[None]) -> None:
        order = self._openers.pop(opener)
        if opener.cancelled():  # before it began
            self._topology.cancelled(order)
            self._was_cancelled(order)
        elif (error := opener.exception()) is not None:
            self._topology.hindered(order, type(error).__name__, monotonic())
            background.say(error, f"{self._name}: an attempt to connect failed in an unforeseen way")
        self.wake()

    def _was_cancelled(self, order: Order) -> None:
        if order.wanted:  # not by us: whoever cancels every task there is ends the loop, and a new one would outlive it
            self._quiet_until = monotonic() + _PAUSE


def _nothing(group: Group) -> bool:
    return False


def _never(now: float) -> float:
    return float("inf")
