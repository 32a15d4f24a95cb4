"""Who opens and closes connections, and who waits: `pgdbpool.keeper` in simulated time.

`Threaded` is a keeper task that plans whenever it is woken or something falls due, and an opener task for each
connect. `Inline` is its one caller's own task. They are written after the real ones, line by line: what these do with
a connection (`pgdbpool.session`) is the real thing.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Protocol

from pgdbpool.core.group import Group, Waiter
from pgdbpool.core.lane import Slot
from pgdbpool.core.plan import Order
from pgdbpool.errors import DBOfflineError, PoolClosed, PoolExhausted, PoolTimeout
from pgdbpool.session import Sessions

from .book import Book, BookedTopology
from .clock import Bell, Clock, hear, sleep
from .monitor import Monitor
from .shared import Violation

SHORTEST_SLEEP = 0.01
LONGEST_SLEEP = 5.0
TEND_EVERY = 1.0
INLINE_LIMIT = 0.5
INLINE_SHARE = 20


class Keeper(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    async def wait(self, group: Group, began: float, deadline: float, first: bool) -> Slot: ...
    async def tend(self) -> None: ...


class Parked(Waiter):
    """A waiting task."""

    __slots__ = ("bell", "book", "enqueued", "first", "group", "rank", "who")

    def __init__(self, book: Book, group: Group, since: float, first: bool) -> None:
        self.bell = Bell()
        super().__init__(since, self.bell.ring)
        self.book = book
        self.group = group
        self.first = first
        self.who = book.who()
        self.enqueued = False
        self.rank = 0  # its place in the queue, set by the queue

    @property
    def claimed(self) -> bool:
        return not self._unclaimed

    def claim(self) -> bool:
        self.book.others_run()
        mine = super().claim()
        self.book.others_run()
        return mine

    def receive(self, slot: Slot) -> bool:
        book = self.book
        if not super().receive(slot):
            book.counts["kept by a giver that was held up"] += 1
            return False
        book.hands_over(slot)
        book.hold(slot, self.who)
        book.counts["handed over"] += 1
        if book.clock.trace:
            book.say(f"hands {slot.conn} of {slot.lane.group.name} to {self.who}")
        return True

    def leave(self) -> bool:
        settle = self._settle

        def slowly(key: None, left: bool) -> bool:
            if left:  # it has seen nothing, and something may come now
                self.book.others_run()
            return settle(key, left)

        self._settle = slowly
        try:
            return super().leave()
        finally:
            self._settle = settle


class Threaded:
    """One keeper task, and opener tasks that come and go."""

    def __init__(
        self,
        clock: Clock,
        book: Book,
        topology: BookedTopology,
        sessions: Sessions,
        listens: bool,
        monitor: Monitor | None,
    ) -> None:
        self._clock = clock
        self._book = book
        self._topology = topology
        self._sessions = sessions
        self._monitor = monitor
        self._heard: deque[Slot] = deque()
        self.listens = listens
        self.bell = Bell()
        self.awake = False
        self.next_look = 0.0
        self.parked: dict[Parked, None] = {}
        self._running = False
        self._openers = 0
        for group in topology.groups:
            group.wish = self._wish
        topology.born = self._born

    def start(self) -> None:
        self._running = True
        if self._monitor is not None:
            self._topology.monitored = True
            self._topology.alarm = self._alarm
            self._monitor.start(self.bell)
        self._clock.spawn("keeper", self._run())

    def stop(self) -> None:
        self._running = False
        self.bell.ring()
        if self._monitor is not None:
            self._monitor.stop()

    def _wish(self) -> None:
        self._unlocked("a wish")
        self._book.others_run()
        self.bell.ring()

    def _alarm(self) -> None:
        self._unlocked("an alarm")
        self._book.others_run()
        self._monitor.alarm()  # type: ignore[union-attr]

    def _unlocked(self, what: str) -> None:
        if self._book.lock.held:
            raise Violation(f"{what} with the pool's lock held")

    def _born(self, slot: Slot) -> None:
        """Listen to it."""
        self._unlocked("a birth")
        if self.listens:
            session = slot.conn
            session.on_goodbye = partial(self._hear, slot)
            if session.told:  # epoll tells of what was there before
                self._hear(slot)

    def _hear(self, slot: Slot) -> None:
        self._heard.append(slot)
        self.bell.ring()

    async def tend(self) -> None:
        pass

    async def wait(self, group: Group, began: float, deadline: float, first: bool) -> Slot:
        clock, book = self._clock, self._book
        waiter = Parked(book, group, began, first)
        self.parked[waiter] = None
        try:
            await clock.breath()
            group.enqueue(waiter, first=first)
            waiter.enqueued = True
            book.counts["waits"] += 1
            if clock.trace:
                book.say(f"waits for {group.name} until {deadline:.3f}, {len(group.waiters)} in the queue")
            if waiter.slot is None and group.may_grow():
                await clock.breath()
                self.bell.ring()
            if not await hear(waiter.bell, deadline):
                group.abandon(waiter)
        except BaseException:
            if not group.abandon(waiter) and not waiter.leave() and waiter.slot is not None:
                book.counts["interrupted with a slot"] += 1
                group.give(waiter.slot, clock.now)
            raise
        finally:
            del self.parked[waiter]
        if not waiter.leave():
            if waiter.slot is not None:
                return waiter.slot
            if waiter.error is not None:
                raise waiter.error
        group.timed_out(clock.now - began)
        raise PoolTimeout(group=group.name, waited=clock.now - began)

    @property
    def busy(self) -> bool:
        """Whether somebody will look at the plan in a moment."""
        return self.awake or self.bell.rung or self._openers > 0

    async def _run(self) -> None:
        clock = self._clock
        while True:
            self.awake = True
            while self._heard:
                slot = self._heard.popleft()
                if not slot.conn.closed:
                    self._book.counts["goodbyes"] += 1
                    self._sessions.heard(slot)
                await clock.breath()
            due = await self._round()
            if not self._running:
                self._bury()
                return
            self.next_look = clock.now + min(max(due - clock.now, SHORTEST_SLEEP), LONGEST_SLEEP)
            self.awake = False
            await hear(self.bell, self.next_look)

    async def _round(self) -> float:
        clock, topology = self._clock, self._topology
        self._sessions.abort()
        await self._sessions.tell_outages()
        tell_events(self._book, topology)
        self._bury()
        await clock.breath()
        now = clock.now
        if self._running:
            for order in topology.plan(now):
                self._start_opener(order)
        due = min(group.tend(now) for group in topology.groups)
        self._bury()
        await clock.breath()
        return min(due, topology.tend(now), topology.due(now))

    def _bury(self) -> None:
        for group in self._topology.groups:
            self._sessions.bury(group)

    def _start_opener(self, order: Order) -> None:
        self._openers += 1
        self._clock.spawn("opener", self._open(order), self._clock.wake_delay())

    async def _open(self, order: Order) -> None:
        while True:
            self._openers -= 1  # a connect may take long: nobody looks at the plan meanwhile
            await self._sessions.open(order)
            self._openers += 1
            await self._clock.breath()
            orders = self._topology.plan(self._clock.now) if self._running else []
            self._bury()  # the plan may have made room
            self.bell.ring()  # what is due may have changed, and this task may be busy for long
            if not orders:
                self._openers -= 1
                return
            order, *others = orders
            for other in others:
                self._start_opener(other)


class Inline:
    """Everything in the one caller's own time."""

    def __init__(self, clock: Clock, book: Book, topology: BookedTopology, sessions: Sessions) -> None:
        self._clock = clock
        self._book = book
        self._topology = topology
        self._sessions = sessions
        for group in topology.groups:
            group.wish = partial(sessions.bury, group)

    def start(self) -> None:
        for group in self._topology.groups:
            group.tend_at = 0.0

    def stop(self) -> None:
        for group in self._topology.groups:
            self._sessions.bury(group)

    async def wait(self, group: Group, began: float, deadline: float, first: bool) -> Slot:
        clock, topology, sessions = self._clock, self._topology, self._sessions
        while True:
            if group.closed:
                raise PoolClosed
            tell_events(self._book, topology)
            orders = []
            if clock.now < deadline:
                orders = topology.plan(clock.now, only=group, demand=1)
                if not orders and group.closing:  # it has made room
                    sessions.bury(group)
                    orders = topology.plan(clock.now, only=group, demand=1)
            if orders:
                await sessions.open(orders[0], deadline)
            slot = group.take(clock.now)
            if slot is not None:
                return slot
            if group.refusal is not None and not group.route:
                raise DBOfflineError(group.refusal)
            if not orders and not group.may_grow() and not group.paused:
                self._book.counts["exhausted"] += 1
                raise PoolExhausted(group=group.name)
            now = clock.now
            if now >= deadline or group.paused:
                group.timed_out(now - began)
                raise PoolTimeout(group=group.name, waited=now - began)
            if not orders:
                await sleep(max(SHORTEST_SLEEP, min(topology.due(now, group), deadline) - now))

    async def tend(self) -> None:
        clock, topology, sessions = self._clock, self._topology, self._sessions
        now = clock.now
        for group in topology.groups:
            group.tend_at = now + TEND_EVERY
            group.tend(now)
            sessions.bury(group)
        topology.tend(now)
        await sessions.look_at([lane for group in topology.groups for lane in group.lanes])
        await sessions.tell_outages()
        tell_events(self._book, topology)
        orders = topology.plan(now)
        while orders:
            order = orders.pop(0)
            began = clock.now
            try:
                await sessions.open(order, limit=INLINE_LIMIT)
            except BaseException:
                for other in orders:
                    topology.cancelled(other)
                raise
            endpoint = order.lane.endpoint
            if endpoint.fault is not None:
                spent = clock.now - began
                endpoint.next_try = max(endpoint.next_try, began + INLINE_SHARE * spent)


def tell_events(book: Book, topology: BookedTopology) -> None:
    """As the herald does."""
    while topology.events:
        event = topology.events.popleft()
        book.counts[f"event: {event.kind.value}"] += 1
        if book.clock.trace:
            book.say(f"event: {event.message}")
