"""Who opens and closes connections, and who waits: `pgdbpool.keeper` in simulated time.

`Threaded` is a keeper task that plans whenever it is woken or something falls due, and an opener task for each
connect. `Inline` is its one caller's own task.
"""

from __future__ import annotations

from typing import Protocol

from pgdbpool.core.group import Group, Waiter
from pgdbpool.core.slot import Slot
from pgdbpool.core.topology import Order
from pgdbpool.errors import DBOfflineError, PoolClosed, PoolExhausted, PoolTimeout

from .clock import Bell, Clock, Steps
from .shell import Shell

SHORTEST_SLEEP = 0.01
LONGEST_SLEEP = 5.0
HANDOVER_LIMIT = 5.0
TEND_EVERY = 1.0
INLINE_LIMIT = 0.5
INLINE_SHARE = 20


class Keeper(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def wait(self, group: Group, began: float, deadline: float, first: bool) -> Steps: ...
    def tend(self) -> Steps: ...


class Parked(Waiter):
    """A waiting task."""

    __slots__ = ("bell", "enqueued", "first", "group", "rank", "shell", "who")

    def __init__(self, shell: Shell, group: Group, since: float, first: bool) -> None:
        super().__init__(since)
        self.shell = shell
        self.group = group
        self.first = first
        self.who = shell.who()
        self.bell = Bell()
        self.enqueued = False
        self.rank = 0  # its place in the queue, set by the queue

    @property
    def claimed(self) -> bool:
        return not self._unclaimed

    def claim(self) -> bool:
        clock = self.shell.clock
        self.shell.others_run()
        mine = super().claim()
        if mine:
            self.shell.others_run()
            if clock.trace:
                clock.say(f"claims the waiter of {self.who}")
        return mine

    def receive(self, slot: Slot) -> None:
        self.shell.hold(slot, self.who)
        self.shell.counts["handed over"] += 1
        if self.shell.clock.trace:
            self.shell.clock.say(f"hands {slot.conn} of {slot.lane.group.name} to {self.who}")
        super().receive(slot)

    def wake(self) -> None:
        self.bell.ring()


class Threaded:
    """One keeper task, and opener tasks that come and go."""

    def __init__(self, shell: Shell, listens: bool) -> None:
        self._shell = shell
        self._clock: Clock = shell.clock
        self._topology = shell.topology
        self.bell = Bell()
        self.awake = False
        self.next_look = 0.0
        self.parked: dict[Parked, None] = {}
        self._running = False
        self._openers = 0
        for group in self._topology.groups:
            group.wish = self.wish
        if listens:
            shell.on_heard = self.bell.ring

    def start(self) -> None:
        self._running = True
        self._clock.spawn("keeper", self._run())

    def stop(self) -> None:
        self._running = False
        self.bell.ring()

    def wish(self) -> None:
        self._shell.must_be_unlocked("a wish")
        self._shell.others_run()
        self.bell.ring()

    def tend(self) -> Steps:
        return
        yield

    def wait(self, group: Group, began: float, deadline: float, first: bool) -> Steps:
        clock, shell = self._clock, self._shell
        waiter = Parked(shell, group, began, first)
        self.parked[waiter] = None
        try:
            yield from clock.breath()
            group.enqueue(waiter, first=first)
            waiter.enqueued = True
            shell.counts["waits"] += 1
            if clock.trace:
                clock.say(f"waits for {group.name} until {deadline:.3f}, {len(group.waiters)} in the queue")
            if waiter.slot is None and group.may_grow():
                yield from clock.breath()
                self.bell.ring()
            if not (yield waiter.bell, deadline) and not group.abandon(waiter):
                yield waiter.bell, clock.now + HANDOVER_LIMIT
        except BaseException:
            if not group.abandon(waiter):
                if waiter.slot is None and waiter.error is None:
                    yield waiter.bell, clock.now + HANDOVER_LIMIT
                if waiter.slot is not None:
                    shell.counts["interrupted with a slot"] += 1
                    shell.give(waiter.slot)
            raise
        finally:
            del self.parked[waiter]
        if waiter.slot is not None:
            return waiter.slot
        if waiter.error is not None:
            raise waiter.error
        group.timeouts += 1
        raise PoolTimeout(group=group.name, waited=clock.now - began)

    @property
    def busy(self) -> bool:
        """Whether somebody will look at the plan in a moment."""
        return self.awake or self.bell.rung or self._openers > 0

    def _run(self) -> Steps:
        clock, shell = self._clock, self._shell
        while True:
            self.awake = True
            while shell.heard:
                shell.heard_of(shell.heard.popleft())
                yield from clock.breath()
            due = yield from self._round()
            if not self._running:
                self._bury()
                return
            self.next_look = clock.now + min(max(due - clock.now, SHORTEST_SLEEP), LONGEST_SLEEP)
            self.awake = False
            yield self.bell, self.next_look

    def _round(self) -> Steps:
        clock = self._clock
        self._bury()
        yield from clock.breath()
        now = clock.now
        if self._running:
            for order in self._shell.plan():
                self._start_opener(order)
        due = min(group.tend(now) for group in self._topology.groups)
        self._bury()
        yield from clock.breath()
        return min(due, self._topology.due(now))

    def _bury(self) -> None:
        for group in self._topology.groups:
            self._shell.bury(group)

    def _start_opener(self, order: Order) -> None:
        self._openers += 1
        self._clock.spawn("opener", self._open(order), self._clock.wake_delay())

    def _open(self, order: Order) -> Steps:
        while True:
            self._openers -= 1  # a connect may take long: nobody looks at the plan meanwhile
            yield from self._shell.open(order)
            self._openers += 1
            yield from self._clock.breath()
            orders = self._shell.plan() if self._running else []
            self._bury()  # the plan may have made room
            if not orders:
                self._openers -= 1
                self.bell.ring()
                return
            order, *others = orders
            for other in others:
                self._start_opener(other)


class Inline:
    """Everything in the one caller's own time."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._clock = shell.clock
        self._topology = shell.topology
        for group in self._topology.groups:
            group.wish = lambda group=group: shell.bury(group)

    def start(self) -> None:
        for group in self._topology.groups:
            group.tend_at = 0.0

    def stop(self) -> None:
        for group in self._topology.groups:
            self._shell.bury(group)

    def wait(self, group: Group, began: float, deadline: float, first: bool) -> Steps:
        clock, shell, topology = self._clock, self._shell, self._topology
        while True:
            if group.closed:
                raise PoolClosed
            orders = shell.plan(only=group, demand=1)
            if not orders and group.closing:  # it has made room
                shell.bury(group)
                orders = shell.plan(only=group, demand=1)
            if orders:
                yield from shell.open(orders[0], deadline)
            slot = shell.take(group)
            if slot is not None:
                return slot
            if group.refusal is not None and not group.route:
                raise DBOfflineError(group.refusal)
            if not orders and not group.may_grow() and not group.paused:
                shell.counts["exhausted"] += 1
                raise PoolExhausted(group=group.name)
            now = clock.now
            if now >= deadline or group.paused:
                group.timeouts += 1
                raise PoolTimeout(group=group.name, waited=now - began)
            if not orders:
                due = topology.due(now, group)
                yield max(SHORTEST_SLEEP, min(due, deadline) - now)

    def tend(self) -> Steps:
        clock, shell = self._clock, self._shell
        now = clock.now
        for group in self._topology.groups:
            group.tend_at = now + TEND_EVERY
            group.tend(now)
            shell.bury(group)
        orders = shell.plan()
        while orders:
            order = orders.pop(0)
            began = clock.now
            try:
                yield from shell.open(order, began + INLINE_LIMIT)
            except BaseException:
                shell.cancel(orders)
                raise
            endpoint = order.lane.endpoint
            if endpoint.fault is not None:
                spent = clock.now - began
                endpoint.next_try = max(endpoint.next_try, began + INLINE_SHARE * spent)
