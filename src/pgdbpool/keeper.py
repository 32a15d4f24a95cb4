"""Who opens and closes connections, and who waits: the two threading models.

`Threaded`: one keeper thread for each pool looks at the plan whenever somebody kicks it or something falls due, and
starts an opener thread for each connection to open; a frozen server thus holds up nobody but its own opener. Callers
wait on a lock of their own.

`Inline`: no thread, no lock. The caller opens what it needs; at the limit it is told so at once, since it would wait
for itself. What falls due is looked at on the way back from a checkout, at most once a second.

Both have the same methods, so the pool does not ask which one it has. `wait` is a coroutine, as it is for asyncio, and
never suspends: see `pgdbpool.base`.
"""

from __future__ import annotations

import logging
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from . import ending
from .background import Errands, Worker, say
from .clock import monotonic
from .config import MonitorSettings
from .core.group import Group, Waiter
from .core.lane import Slot
from .core.plan import Order
from .core.topology import Topology
from .drivers.blocking import keep_to, run
from .drivers.cancel import LIMIT
from .errors import DBOfflineError, Error, PoolClosed, PoolExhausted, PoolTimeout
from .habitat import Door, look_for_fork, look_for_loop, may_monitor, refuse_greenlets
from .herald import Herald
from .lifecycle import is_ending
from .listener import listener
from .monitor import Subscription, subscribe
from .publish import writer as publisher
from .seldom import traced
from .session import Sessions
from .told import Told
from .wording import log_raised

logger = logging.getLogger("pgdbpool")

_SHORTEST_SLEEP = 0.01  # s
_LONGEST_SLEEP = 5.0
_LONGEST_REST = 1.0  # s of the keeper after it has failed
_FIRST_LOOK = 0.1  # s of waiting after which a caller looks whether something was lost; later it looks less often
_LOOK_SHARE = 20  # ... and for at most one part in so many of the time
_TEND_EVERY = 1.0
_INLINE_LIMIT = 0.5  # s that an unasked-for connect may hold up a caller of the non-threaded model
_INLINE_SHARE = 20  # ... and at most one part in so many of its time
_BESIDE_OTHERS = 2.0  # s for a connect that a caller of the non-threaded model wants, where another endpoint will do

TimedOut = Callable[[Group, float], PoolTimeout]


class Keeper(Protocol):
    """What a pool asks of its threading model."""

    # Set by the pool: retires what is in nobody's hands, and returns whether there was any; see `lost`.
    reclaim: Callable[[Group], bool]
    # Likewise: reports leases held for too long, and returns when to look again; see `leaks`.
    look_for_leaks: Callable[[float], float]
    # Likewise: retires what nobody refers to any more; see `forgotten`.
    look_for_forgotten: Callable[[float], float]

    @property
    def references(self) -> Callable[[Slot], int]:
        """Says how many references to a slot the keeper has in its books."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def abandon(self) -> None:
        """Nobody knows the pool any more: close everything. Called by the garbage collector, so anywhere."""

    def at_exit(self) -> None:
        """The process ends: go on without threads, and keep no connection open. See `ending`."""

    def opened(self, slot: Slot) -> None:
        """A connection was opened, and is about to be put to use."""

    def closing(self, slot: Slot) -> None:
        """A connection is about to be closed."""

    def end(self, slot: Slot) -> None:
        """Close one whose server may be busy with its statement, and have that ended before; see `Sessions.end`."""

    def wish(self, group: Group) -> None:
        """Something may have to be opened or closed."""

    async def wait(self, group: Group, began: float, deadline: float, first: bool) -> Slot:
        """A slot, by whatever means, before the deadline. Raises PoolTimeout and relatives."""

    def tend(self, now: float) -> None:
        """A caller on its way back found that `Group.tend_at` has come."""


class Parked(Waiter):
    """A waiting thread."""

    __slots__ = ("_lock",)

    def __init__(self, since: float) -> None:
        self._lock = lock = allocate_lock()
        lock.acquire()
        super().__init__(since, lock.release)

    def park(self, seconds: float) -> bool:
        """Sleep until woken; False when the time is over."""
        if seconds > threading.TIMEOUT_MAX:
            seconds = threading.TIMEOUT_MAX
        return self._lock.acquire(True, seconds if seconds > 0.0 else 0.0)


class Threaded:
    """One keeper thread, and opener threads that come and go."""

    def __init__(
        self,
        name: str,
        topology: Topology,
        sessions: Sessions,
        timed_out: TimedOut,
        herald: Herald,
        how: MonitorSettings | None,
    ) -> None:
        self._name = name
        self._topology = topology
        self._sessions = sessions
        self._timed_out = timed_out
        self._herald = herald
        self._monitor = how
        self._listener = listener()
        self.references = self._listener.references
        self.reclaim: Callable[[Group], bool] = _nothing
        self.look_for_leaks: Callable[[float], float] = _never
        self.look_for_forgotten: Callable[[float], float] = _never
        self._subscriptions: list[Subscription] = []
        self._look_again: dict[Group, float] = {}  # when, so that many waiters do not all look
        self._keeper: Worker | None = None
        self._errands = Errands()
        self._stopped = False  # for good: a caller that waits may come to `start` after `stop`
        self._abandoned = False
        self._ending = False  # the process is
        self._telling = False  # some thread tells what has happened; written by the keeper and by that one
        self._short_of_threads = False
        self._starting = threading.RLock()  # as that of the pool, see `Pool._new_lock`

    def start(self) -> None:
        """Start the thread, unless there is one; not after `stop`."""
        with self._starting:
            if self._stopped or not (self._keeper is None or self._keeper.gone):
                return
            refuse_greenlets()
            look_for_fork(self._name)
            try:
                self._keeper = Worker(f"{self._name} keeper", self._run)
                self._keeper.start()
            except BaseException:  # no more threads to be had, or interrupted: the next one tries again
                self._keeper = None
                raise

    def stop(self) -> None:
        """The thread closes what is to be closed, and ends."""
        with self._topology.lock:  # from here on it changes nothing that another keeper of the pool has set
            self._stopped = True
        self._listener.wake()

    def abandon(self) -> None:
        # The collector may have interrupted us while we hold the lock: the thread will take it, not the collector.
        self._abandoned = self._stopped = True
        self._listener.wake()

    def at_exit(self) -> None:
        self._ending = True
        self.stop()
        worker = self._keeper
        if worker is not None:
            worker.join(ending.LAST_WORDS)
        self._topology.unwatched()  # which ends attempts to connect; what is leased is closed when it comes back
        ending.begin(self._topology, self._sessions)

    def wish(self, group: Group) -> None:
        if self._ending:
            self._sessions.bury(group)
        self._listener.wake()

    def wake(self) -> None:
        """Something may have to be done."""
        self._listener.wake()

    def opened(self, slot: Slot) -> None:
        self._listener.add(slot, self._sessions.driver.descriptor(slot.conn))

    def closing(self, slot: Slot) -> None:
        self._listener.forget(slot)

    def end(self, slot: Slot) -> None:
        """Close what was left in the middle of a statement, by a thread of its own: a frozen server may hold it up."""
        end_now = partial(self._sessions.end_now, slot)
        if self._ending:
            end_now()
            return
        try:
            self._errands.start(f"{self._name} canceller", partial(self._end, slot), end_now)
        except (RuntimeError, MemoryError):  # no more threads to be had
            end_now()

    def _end(self, slot: Slot) -> None:
        run(self._sessions.end(slot, LIMIT))

    def tend(self, now: float) -> None:
        """A caller has returned a connection, and the process ends: else nobody is asked to."""
        ending.close_idle(self._topology, self._sessions)
        self._herald.deliver(self._topology.events)

    async def wait(self, group: Group, began: float, deadline: float, first: bool) -> Slot:
        return self.stand_in_line(group, began, deadline, first)

    def stand_in_line(self, group: Group, began: float, deadline: float, first: bool) -> Slot:
        """The same, as a plain function."""
        while True:
            waiter = Parked(began)
            try:
                group.enqueue(waiter, first=first)
                if waiter.slot is None and group.may_grow():
                    self._employ(group, deadline)
                    group.wish()  # and not `wake`: the pool may have been closed, and opened with another keeper
                if not self._sleep(group, waiter, deadline):
                    group.abandon(waiter)
            except BaseException:  # interrupted: what was handed over goes to the next
                if not group.abandon(waiter) and not waiter.leave() and waiter.slot is not None:
                    group.give(waiter.slot, monotonic())
                raise
            if not waiter.leave():
                if waiter.slot is not None:
                    return waiter.slot
                if waiter.error is not None:
                    raise waiter.error
            if monotonic() >= deadline:
                self._look(group)
                group.timed_out(monotonic() - began)
                raise self._timed_out(group, began)
            first = True

    def _employ(self, group: Group, deadline: float) -> None:
        """See to it that there is a keeper. Where no thread is to be had the caller opens what it waits for itself."""
        try:
            self.start()
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, Error):  # threads are no threads here
                raise
        else:
            if not self._ending:
                return
        for order in self._topology.plan(monotonic(), only=group, demand=1):
            run(self._sessions.open(order, deadline))

    def _sleep(self, group: Group, waiter: Parked, deadline: float) -> bool:
        """Wait to be woken; False at the deadline.

        After some time look whether a signal handler has raised at a bad moment elsewhere: whoever held a connection
        may have lost it, whoever was to wake us may have forgotten us.
        """
        pause = _FIRST_LOOK
        while True:
            rest = deadline - monotonic()
            if waiter.park(rest if rest < pause else pause):
                return True
            if rest <= pause:
                return False
            look_for_loop(self._name)
            if waiter.slot is not None or waiter.error is not None:
                return True
            if group.may_grow():
                self._employ(group, deadline)
            forgotten = not waiter.unclaimed
            group.rejoin(waiter)
            self._look(group)
            pause = min(2 * pause, _LONGEST_SLEEP)
            if forgotten:
                waiter.park(min(pause, deadline - monotonic()))
                return True  # perhaps with nothing: should it come later its giver keeps it

    def _look(self, group: Group) -> None:
        now = monotonic()
        if now >= self._look_again.get(group, 0.0):
            self._look_again[group] = now + _FIRST_LOOK
            self.reclaim(group)
            self._look_again[group] = now + max(_FIRST_LOOK, _LOOK_SHARE * (monotonic() - now))

    # -- the keeper thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._keep()
        finally:
            self._cancel()

    def _cancel(self) -> None:
        for each in self._subscriptions:
            each.cancel()
        self._subscriptions.clear()

    def _subscribe(self) -> None:
        """Have the endpoints probed."""
        how, topology, subscriptions = self._monitor, self._topology, self._subscriptions
        with topology.lock:
            if self._stopped:
                return
            topology.monitored = False
        if how is None or not may_monitor(self._name):
            return
        try:
            for endpoint in topology.endpoints:
                told = Told(self._sessions, endpoint, how, self.wake)
                subscriptions.append(subscribe(endpoint.settings, how, told))  # type: ignore[arg-type]
        except (RuntimeError, OSError, MemoryError) as error:  # no thread or descriptor to be had: as without a monitor
            self._cancel()
            if not is_ending(error):
                logger.error("%s: cannot start the monitor\n%s", self._name, traced(error))
            return

        def alarm() -> None:
            for each in subscriptions:
                each.alarm()

        with topology.lock:
            if not self._stopped:  # else another keeper may have the pool by now
                topology.monitored = True
                topology.alarm = alarm

    def _unsubscribe(self) -> None:
        """Go on without a monitor: event loops do not work here any more."""
        self._cancel()
        self._topology.unwatched()

    def _keep(self) -> None:
        heard: list[Slot] = []
        failures = 0
        subscribed = False
        while not self._stopped:
            try:
                if not subscribed:
                    self._subscribe()
                    subscribed = True
                for slot in heard:
                    self._sessions.heard(slot)
                heard = []
                due = self._round()
                if not self._stopped:
                    heard = self._listener.sleep(min(max(due - monotonic(), _SHORTEST_SLEEP), _LONGEST_SLEEP))
                failures = 0
            except BaseException as error:  # neither a bug nor want of memory must stop the pool from healing
                heard = []
                failures = self._failed(error, failures)
        if self._abandoned:
            self._topology.close()
        self._round()
        self._bury()

    def _failed(self, error: BaseException, before: int) -> int:
        """It has, so many times in a row before: rest, since it may do so again. Returns how often it has now."""
        say(error, f"{self._name}: the keeper failed")
        with suppress(BaseException):
            time.sleep(min(_SHORTEST_SLEEP * 2**before, _LONGEST_REST))
        return min(before + 1, 10)

    def _round(self) -> float:
        self._sessions.abort()
        now = monotonic()
        next_look = min(self.look_for_leaks(now), self.look_for_forgotten(now))
        self._tell()
        if self._subscriptions and not may_monitor(self._name):
            self._unsubscribe()
        if any(each.gone for each in self._subscriptions):  # the monitor's thread has died
            self._unsubscribe()
            self._subscribe()
        self._bury()
        next_look = min(next_look, self._errands.sweep())
        now = monotonic()
        publisher.tend(now)
        if not self._stopped:
            self._start_openers(self._topology.plan(now))
        due = min(group.tend(now) for group in self._topology.groups)
        self._bury()
        return min(due, next_look, self._topology.tend(now), self._topology.due(now))

    def _tell(self) -> None:
        """Tell what has happened; where callables of the user's are told, by a thread of its own.

        They may hang, as a mail does while the network is down, and must not keep us from opening connections then.
        """
        events, outages = self._topology.events, self._topology.outages
        if self._telling or not (events or outages):
            return
        if not (outages or self._herald.has_listeners):
            self._herald.deliver(events)
            return
        self._telling = True
        try:
            self._errands.start(f"{self._name} herald", self._tell_all, self._told)
        except (RuntimeError, MemoryError):  # no more threads to be had
            self._tell_all()

    def _tell_all(self) -> None:
        try:
            while self._topology.events or self._topology.outages:
                try:
                    run(self._sessions.tell_outages())
                    self._herald.deliver(self._topology.events)
                except SystemExit as error:  # of the user's: here nobody would hear of it
                    log_raised(f"{self._name}: a callable that was told of an event", error)
        finally:
            self._told()

    def _told(self) -> None:
        self._telling = False
        self._listener.wake()  # something may have happened in this moment

    def _bury(self) -> None:
        for group in self._topology.groups:
            self._sessions.bury(group)

    def _start_openers(self, orders: list[Order]) -> None:
        """A thread for each order. None of them is lost, whatever happens."""
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
        opener = [order]
        work, undo = partial(self._open, opener), partial(self._give_back, opener)
        try:
            self._errands.start(f"{self._name} opener", work, undo)
        except (RuntimeError, MemoryError) as error:
            # No more threads to be had, or the main thread has ended and others work on: then this one does it,
            # though a frozen server may hold it up.
            if not is_ending(error) and not self._short_of_threads:
                self._short_of_threads = True  # said once
                words = f"cannot start a thread to connect to {order.lane.endpoint.label}"
                logger.error("%s: %s\n%s", self._name, words, traced(error))
            self._open(opener)

    def _give_back(self, opener: list[Order]) -> None:
        """The order that it was carrying out, unless it has been answered."""
        if self._topology.cancelled(opener[0]):
            self._listener.wake()

    def _open(self, opener: list[Order]) -> None:
        """Carry out an order, and whatever the plan says next."""
        while True:
            order = opener[0]
            try:
                run(self._sessions.open(order))
            except SystemExit:  # of a user's callable: here nobody would hear of it, and the next would follow at once
                now = monotonic()
                again = self._topology.order(order.group, order.lane, now)  # that one's place was given back
                self._topology.setup_failed(again, "a callable given in the configuration raised SystemExit", now)
            except BaseException as error:  # before or after it did anything: want of memory, mostly
                self._topology.hindered(order, type(error).__name__, monotonic())
                say(error, f"{self._name}: an attempt to connect failed in an unforeseen way")
            orders = [] if self._stopped else self._topology.plan(monotonic())
            if orders:
                opener[0], *others = orders
                self._start_openers(others)
            self._bury()  # the plan may have made room
            self._listener.wake()  # what is due may have changed, and this thread may be busy for long
            if not orders:
                return


def _limit(order: Order) -> float:
    """Seconds for a connect in the caller's own time: one that hangs keeps it from the endpoints beside this one."""
    others = (lane for lane in order.group.lanes if lane is not order.lane)
    return _BESIDE_OTHERS if any(order.search or lane.live for lane in others) else float("inf")


class Inline:
    """Everything in the caller's own time."""

    def __init__(
        self, topology: Topology, sessions: Sessions, timed_out: TimedOut, holders: Any, herald: Herald, door: Door
    ) -> None:
        self._herald = herald
        self._topology = topology
        self._sessions = sessions
        self._timed_out = timed_out
        self._holders = holders
        self._door = door  # which only the thread that owns the pool can pass
        self._ending = False  # the process is
        self._depth = 0  # above 1 a callable of the user's, or a signal handler, uses the pool in the middle of it
        self.references = _none
        self.reclaim: Callable[[Group], bool] = _nothing
        self.look_for_leaks: Callable[[float], float] = _never
        self.look_for_forgotten: Callable[[float], float] = _never

    def start(self) -> None:
        for group in self._topology.groups:
            group.tend_at = 0.0

    def opened(self, slot: Slot) -> None:
        keep_to(slot.conn, self._door)

    def closing(self, slot: Slot) -> None: ...

    def end(self, slot: Slot) -> None:
        self._sessions.end_now(slot)

    def stop(self) -> None:
        for group in self._topology.groups:
            self._sessions.bury(group)

    def abandon(self) -> None:
        self._topology.close()
        self.stop()

    def at_exit(self) -> None:
        self._ending = True
        ending.begin(self._topology, self._sessions)

    def wish(self, group: Group) -> None:
        self._depth += 1
        try:
            self._sessions.bury(group)
        finally:
            self._depth -= 1

    async def wait(self, group: Group, began: float, deadline: float, first: bool) -> Slot:
        with self._door:
            self._depth += 1
            try:
                return await self._wait(group, began, deadline)
            finally:
                self._depth -= 1

    async def _wait(self, group: Group, began: float, deadline: float) -> Slot:
        while True:
            if group.closed:
                raise PoolClosed(f"the pool is closed, group {group.name!r} hands out no connection")
            self._set_right()
            now = monotonic()
            self.look_for_leaks(now)
            self.look_for_forgotten(now)
            if self._topology.events:
                self._herald.deliver(self._topology.events)
            orders = []
            if now < deadline:
                orders = self._topology.plan(now, only=group, demand=1)
                if not orders and group.closing:  # it has made room
                    self._sessions.bury(group)
                    orders = self._topology.plan(now, only=group, demand=1)
            if orders:
                await self._sessions.open(orders[0], deadline, limit=_limit(orders[0]), callers_own=True)
            slot = group.take(monotonic())
            if slot is not None:
                return slot
            if group.refusal is not None and not group.route:
                self._herald.deliver(self._topology.events)
                raise DBOfflineError(group.refusal)
            if not orders and not group.may_grow() and not group.paused:
                if self.reclaim(group):
                    continue
                group.timed_out(monotonic() - began)
                used = "its 1 connection is" if group.total == 1 else f"all {group.total} connections are"
                raise PoolExhausted(
                    f"group {group.name!r}: {used} in use, and nobody else could return one: {self._holders(group)}",
                    group=group.name,
                )
            now = monotonic()
            if now >= deadline or group.paused:
                group.timed_out(now - began)
                raise self._timed_out(group, began)
            if not orders:
                due = self._topology.due(now, group)
                time.sleep(max(_SHORTEST_SLEEP, min(due, deadline) - now))

    def _set_right(self) -> None:
        """Finish what a signal handler may have interrupted when the pool was last at work."""
        if self._depth == 1:
            for group in self._topology.groups:
                self._sessions.bury(group)
                group.recount()

    def tend(self, now: float) -> None:
        if not self._door.open:
            return
        self._depth += 1
        try:
            if self._ending:
                ending.close_idle(self._topology, self._sessions)
                self._herald.deliver(self._topology.events)
            else:
                self._tend(now)
        finally:
            self._depth -= 1

    def _tend(self, now: float) -> None:
        self._set_right()
        for group in self._topology.groups:
            group.tend_at = now + _TEND_EVERY
            group.tend(now)
            self._sessions.bury(group)
        self._topology.tend(now)
        # Nobody listens while we are away, and what rests off the route might never be asked.
        run(self._sessions.look_at([lane for group in self._topology.groups for lane in group.lanes]))
        run(self._sessions.tell_outages())
        self.look_for_leaks(now)
        self.look_for_forgotten(now)
        self._herald.deliver(self._topology.events)
        publisher.pass_by()
        orders = self._topology.plan(now)
        while orders:
            order = orders.pop(0)
            began = monotonic()
            try:
                run(self._sessions.open(order, limit=_INLINE_LIMIT))
            except BaseException:  # interrupted: the others will not be opened
                for other in orders:
                    self._topology.cancelled(other)
                raise
            endpoint = order.lane.endpoint
            if endpoint.fault is not None:
                spent = monotonic() - began
                endpoint.next_try = max(endpoint.next_try, began + _INLINE_SHARE * spent)


def _nothing(group: Group) -> bool:
    return False


def _never(now: float) -> float:
    return float("inf")


def _none(slot: Slot) -> int:
    return 0
