"""Tasks: who opens and closes the connections of an AsyncPool, and who waits; the asyncio relative of `keeper`.

No thread and no task of its own keeps the pool. The listener's descriptor is one more that the event loop looks at:
when it rings, or when something falls due, `_round` looks at the plan and starts a task for each connection to open.
All of it runs in the loop of the pool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from .config import MonitorSettings
from .core.endpoint import Endpoint
from .core.evidence import Fault, Sighting
from .core.group import Group, Waiter
from .core.lane import Slot
from .core.plan import Order
from .core.topology import Topology
from .errors import PoolTimeout
from .herald import Herald
from .listener import DeafListener, EpollListener, listener
from .monitor import Subscription, subscribe
from .session import Sessions

logger = logging.getLogger("pgdbpool")

_SHORTEST_SLEEP = 0.01  # s
_LONGEST_SLEEP = 5.0


class Pending(Waiter):
    """A waiting task. Woken in the loop only."""

    __slots__ = ("future",)

    def __init__(self, since: float, future: asyncio.Future[None]) -> None:
        super().__init__(since)
        self.future = future

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Told:
    """Hands what the monitor finds out about one endpoint over to the loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, topology: Topology, endpoint: Endpoint, wake: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._topology = topology
        self._endpoint = endpoint
        self._wake = wake

    def probed(self, sighting: Sighting, seconds: float) -> None:
        self._hand_over(self._take_probe, sighting, seconds)

    def probe_failed(self, fault: Fault, error: str) -> None:
        self._hand_over(self._take_failure, fault, error)

    def in_a_hurry(self) -> bool:
        return self._topology.searching(monotonic())  # reads only; to be a moment late does not matter

    def _hand_over(self, what: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed, and the pool was not
            self._loop.call_soon_threadsafe(what, *args)

    def _take_probe(self, sighting: Sighting, seconds: float) -> None:
        if self._topology.probed(self._endpoint, sighting, seconds, monotonic()):
            self._wake()

    def _take_failure(self, fault: Fault, error: str) -> None:
        self._topology.probe_failed(self._endpoint, fault, error, monotonic())
        self._wake()


class Tasks:
    """What keeps one pool in one loop."""

    def __init__(
        self,
        name: str,
        topology: Topology,
        sessions: Sessions,
        timed_out: Callable[[Group, float], PoolTimeout],
        herald: Herald,
        how: MonitorSettings | None,
    ) -> None:
        self._name = name
        self._topology = topology
        self._sessions = sessions
        self._timed_out = timed_out
        self._herald = herald
        self._monitor = how
        self.loop: asyncio.AbstractEventLoop | None = None
        self._listener = listener()
        self._openers: dict[asyncio.Task[None], Order] = {}
        self._telling: asyncio.Task[None] | None = None
        self._subscriptions: list[Subscription] = []
        self._timer: asyncio.TimerHandle | None = None
        self._rung = False

    # -- life -------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep the pool in this loop from now on."""
        self.loop = loop
        if isinstance(self._listener, EpollListener):
            loop.add_reader(self._listener.descriptor, self._ring)
        self._topology.monitored = False
        if self._monitor is not None:
            try:
                self._subscriptions = [
                    subscribe(
                        endpoint.settings,  # type: ignore[arg-type]
                        self._monitor,
                        Told(loop, self._topology, endpoint, self.wake),
                    )
                    for endpoint in self._topology.endpoints
                ]
            except RuntimeError:  # no threads to be had: as without a monitor
                logger.exception("%s: cannot start the monitor", self._name)
            else:
                self._topology.monitored = True
                self._topology.alarm = self._alarm
        self.wake()

    def _alarm(self) -> None:
        for each in self._subscriptions:
            each.alarm()

    async def stop(self) -> None:
        """Open nothing more, and listen no more. Attempts to connect are given up."""
        loop, self.loop = self.loop, None
        for each in self._subscriptions:
            each.cancel()
        if loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(self._listener, EpollListener):
            loop.remove_reader(self._listener.descriptor)
        openers = list(self._openers)
        for opener in openers:
            opener.cancel()
        if openers:
            await asyncio.wait(openers)
        self._herald.deliver(self._topology.events)
        for group in self._topology.groups:
            self._sessions.bury(group)

    def abandon(self) -> None:
        """Nobody knows the pool any more: close everything. Called by the garbage collector, so anywhere."""
        for each in self._subscriptions:
            each.cancel()
        loop = self.loop
        if loop is None or loop.is_closed():
            self._end()
            return
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        loop, self.loop = self.loop, None
        if loop is not None and not loop.is_closed():
            if self._timer is not None:
                self._timer.cancel()
            if isinstance(self._listener, EpollListener):
                loop.remove_reader(self._listener.descriptor)
            for opener in tuple(self._openers):
                opener.cancel()
        self._topology.close()
        for group in self._topology.groups:
            for slot in group.every_slot():
                self._sessions.driver.close(slot.conn)

    # -- what a pool asks of its keeper -----------------------------------------------------------------------

    def opened(self, slot: Slot) -> None:
        """A connection was opened, and is about to be put to use."""
        self._listener.add(slot, self._sessions.driver.descriptor(slot.conn))

    def closing(self, slot: Slot) -> None:
        """A connection is about to be closed."""
        self._listener.forget(slot)

    def wish(self, group: Group) -> None:
        """Something may have to be opened or closed."""
        self.wake()

    def wake(self) -> None:
        """Have a round soon."""
        if self.loop is not None and not self._rung:
            self._rung = True
            self.loop.call_soon(self._round)

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
                    timer = loop.call_later(max(rest, 0.0), self._over, group, waiter)
            await waiter.future
        except BaseException:  # cancelled: what was handed over goes to the next
            if not group.abandon(waiter) and waiter.slot is not None:
                group.give(waiter.slot, monotonic())
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if waiter.slot is not None:
            return waiter.slot
        if waiter.error is not None:
            raise waiter.error
        group.timeouts += 1
        raise self._timed_out(group, began)

    def _over(self, group: Group, waiter: Pending) -> None:
        if group.abandon(waiter):
            waiter.wake()

    # -- in the loop ------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        for slot in self._listener.sleep(0):
            self._sessions.heard(slot)
        self.wake()

    def _round(self) -> None:
        self._rung = False
        if self.loop is None:
            return
        due = monotonic() + _LONGEST_SLEEP
        try:
            due = min(due, self._look_after())
        except Exception:  # a bug must not stop the pool from healing
            logger.exception("%s: the keeper failed, and goes on", self._name)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(max(due - monotonic(), _SHORTEST_SLEEP), self.wake)

    def _look_after(self) -> float:
        self._sessions.abort()
        self._herald.deliver(self._topology.events)
        self._bury()
        for opener, order in tuple(self._openers.items()):
            if not order.wanted:
                opener.cancel()
        now = monotonic()
        for order in self._topology.plan(now):
            self._start_opener(order)
        if self._topology.outages and (self._telling is None or self._telling.done()):
            self._telling = asyncio.ensure_future(self._sessions.tell_outages())
        due = min(group.tend(now) for group in self._topology.groups)
        if isinstance(self._listener, DeafListener):
            due = min(due, now + 1.0)
        self._bury()
        return min(due, self._topology.tend(now), self._topology.due(now))

    def _bury(self) -> None:
        for group in self._topology.groups:
            self._sessions.bury(group)

    def _start_opener(self, order: Order) -> None:
        opener = asyncio.ensure_future(self._open(order))
        self._openers[opener] = order
        opener.add_done_callback(self._opened)

    async def _open(self, order: Order) -> None:
        try:
            await self._sessions.open(order)
        except asyncio.CancelledError:  # by us: the places were given back
            pass

    def _opened(self, opener: asyncio.Task[None]) -> None:
        order = self._openers.pop(opener)
        if opener.cancelled():  # before it began
            self._topology.cancelled(order)
        self.wake()
