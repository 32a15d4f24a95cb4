"""Monitor: one thread with an event loop of its own that probes the endpoints of all pools of the process.

Pools that name the same endpoint share its watch. An application that keeps its own threads or its own loop busy
cannot make a healthy server look dead: the probes wait elsewhere, and time that this loop itself was kept from running
is not counted against the server.

The life of a watch::

    probe ──answered──▶ tell, rest for `interval` ± 10 % ──▶ probe
      │                            ▲ alarm, or a wanted role is missing: 0.1 s
      └─no answer in timeout / 2──▶ one more probe beside it, on a new connection, and so on up to `fall` of them;
                                   each that fails is told, the first that is answered ends the others

So a server that freezes is found out after at most ``interval * 1.1 + timeout * (fall + 1) / 2`` seconds. A probe is
one question on a connection that is kept for a while. When the server ends that connection, a new one is made at once:
that alone is no failure. It is replaced where the endpoint's name may lead elsewhere now, see `renewal`: beside the
probes, which go on on the old one until the new one has answered.

The thread starts with the first subscription and ends after the last. All of `Watch` runs in it, and nowhere else.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import sleep
from typing import Protocol

import psycopg
from psycopg import pq

from . import forks
from .background import Worker, nobodys, say
from .clock import monotonic
from .config import EndpointSettings, MonitorSettings
from .core.endpoint import BACKOFF, backoff
from .core.evidence import MISSES, SILENT, Fault, Sighting
from .drivers import ConnectFailed, DriverTimeout, NoServer, names, psycopg3, steps
from .drivers.asynchronous import Allowance, drive, password, reach
from .drivers.sealed import Sealed
from .probe import Asked, asking, key_of, name_of, request
from .renewal import Renewal
from .search import HURRY, Search
from .seldom import say_seldom

logger = logging.getLogger("pgdbpool")

_TURNED_AWAY = frozenset({Fault.FULL, Fault.MISCONFIGURED, Fault.LOCAL})

_LAST_WORDS = 1.0  # s


class Subscriber(Protocol):
    """Who is told. All of it is called in the monitor's thread, and must not block."""

    def probed(self, sighting: Sighting, seconds: float, since: float) -> None:
        """A probe was answered after so many seconds, on a connection that was made at `since`."""

    def probe_failed(self, fault: Fault, error: str) -> None:
        """A probe failed."""

    def in_a_hurry(self) -> bool:
        """Whether to probe ten times a second."""

    def in_doubt(self) -> bool:
        """Whether only a new connection can tell what the endpoint's name leads to."""

    def is_urgent(self) -> bool:
        """Whether that should be found out soon."""

    def ended(self) -> None:
        """The subscription was cancelled. Called by whoever does that."""


class Subscription:
    """One pool's interest in one endpoint."""

    def __init__(self, monitor: Monitor, where: EndpointSettings, how: MonitorSettings, subscriber: Subscriber) -> None:
        self._monitor = monitor
        self.where = where
        self.how = how
        self.subscriber = subscriber

    def alarm(self) -> None:
        """Something may be wrong: probe now. May be called from any thread; does not wait."""
        self._monitor.call(self._monitor.ring, self)

    @property
    def gone(self) -> bool:
        """Whether nobody probes it any more, since the monitor's thread has died."""
        return self._monitor.gone

    def cancel(self) -> None:
        """Nothing more is told after what is being told at this moment. Does not wait."""
        self._monitor.forget(self)
        self.subscriber.ended()

    def drop(self) -> None:
        """`cancel`, by the monitor's thread: the garbage collector may have interrupted one that holds our lock."""
        self._monitor.call(self.cancel)


class Watch:
    """What probes one endpoint."""

    def __init__(self, where: EndpointSettings, search: Search) -> None:
        self._where = where
        self._search = search
        self.subscriptions: list[Subscription] = []
        self.session: pq.abc.PGconn | None = None
        self._since = 0.0  # when it was made
        self._renewal = Renewal(random.random)
        self._renewing: asyncio.Task[None] | None = None
        self._successor: Asked | None = None  # takes the place of the session before the next probe
        self._refusals = 0  # new connections in a row that could not be had beside the session
        self._new: set[pq.abc.PGconn] = set()  # connected, and not answered yet
        self.bell = asyncio.Event()
        self._spread = False  # its name has several addresses
        self._turn = 0  # which of them is asked first
        self._misses = 0
        self._pooled = False  # a pooler is in between, said the last answer
        self._turned_away = 0  # times in a row that the server spoke, and would not let us in
        self._turned_away_for: Fault | None = None

    async def run(self) -> None:
        """Probe again and again."""
        following = asyncio.create_task(self._follow_the_name())
        try:
            while True:
                began = monotonic()
                self.bell.clear()
                try:
                    await self._round()
                    self._renew_if_due()
                    await self._rest(began)
                except Exception as error:  # a bug must not blind the pools
                    self._failed(error)
                    await asyncio.sleep(HURRY)
        finally:
            self._search.over(self)
            tasks = [following] if self._renewing is None else [following, self._renewing]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _failed(self, error: Exception) -> None:
        """An error of our own, or of this machine: no evidence, and nobody is told but the log."""
        words = f"the monitor failed to probe {self._where.label}, and goes on: {type(error).__name__}"
        say_seldom(logging.ERROR, words, error=error)

    async def _rest(self, began: float) -> None:
        if self._turned_away:
            # To ask more often would not help, and wrong passwords in quick succession are taken for an attack.
            first, longest = BACKOFF[self._turned_away_for or Fault.MISCONFIGURED]
            await asyncio.sleep(max(first, backoff(first, longest, self._turned_away - 1, random.random)))
            return
        hurry = 0 < self._misses < self._fall or self._searching
        pause = min((each.how.interval for each in self.subscriptions), default=1.0) * random.uniform(0.9, 1.1)
        gone = self._search.pause(self, began)
        if hurry:
            pause = min(pause, HURRY if gone is None else gone)
        pause = min(pause, max(self._renewal_due() - began, HURRY / 2))
        # However often the alarm rings, a probe begins at most so often.
        least = min(pause, HURRY / 2)
        if gone is not None:
            least, pause = gone, max(pause, gone)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, began + pause - monotonic())):
                await self.bell.wait()
        await asyncio.sleep(max(0.0, began + least - monotonic()))

    @property
    def _searching(self) -> bool:
        return any(each.subscriber.in_a_hurry() for each in self.subscriptions)

    @property
    def _timeout(self) -> float:
        return min((each.how.timeout for each in self.subscriptions), default=1.0)

    @property
    def _fall(self) -> int:
        return max((each.how.fall for each in self.subscriptions), default=1)

    # -- a new connection, before it is needed ------------------------------------------------------------------

    def _renewal_due(self) -> float:
        # Without a session every probe is one; else one may be under way, or have come and not been taken over yet.
        if self.session is None or self._renewing is not None or self._successor is not None:
            return float("inf")
        doubted = any(each.subscriber.in_doubt() for each in self.subscriptions)
        urgent = doubted and any(each.subscriber.is_urgent() for each in self.subscriptions)
        return self._renewal.due(monotonic(), doubted=doubted, urgent=urgent)

    def _renew_if_due(self) -> None:
        now = monotonic()
        if self._renewal_due() <= now:
            self._renewal.began(now)
            self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        """See what the name leads to now."""
        try:
            self._successor = asked = await self._attempt(fresh=True)
            self._refusals = 0
            self._renewal.renewed(monotonic(), self._life)
            self._tell(asked)
        except ConnectFailed as error:
            self._not_renewed(error)
        except Exception as error:
            self._failed(error)
        finally:
            self._renewing = None
            self.bell.set()

    def _not_renewed(self, error: ConnectFailed) -> None:
        """Beside a session that answers one failure says little. But sessions live on where nobody gets in any more."""
        self._refusals += 1
        if error.fault in _TURNED_AWAY:
            first, longest = BACKOFF[error.fault]
            self._renewal.put_off(monotonic(), max(first, backoff(first, longest, self._refusals - 1, random.random)))
        elif error.fault not in SILENT and self._refusals >= self._fall:
            self._refusals = 0
            self.drop_session()
            self._tell_failure(error.fault, str(error))

    def _take_over(self) -> None:
        if self._successor is not None:
            self._keep(self._successor)
            self._successor = None

    def _keep(self, asked: Asked) -> None:
        if self.session is not asked.session:
            self._drop()
            self.session, self._since = asked.session, asked.since

    @property
    def _life(self) -> float:
        return min((each.how.max_lifetime for each in self.subscriptions), default=MonitorSettings().max_lifetime)

    async def _follow_the_name(self) -> None:
        """Look the name up every few seconds; other addresses are a reason to see what is there."""
        host = name_of(self._where)
        while host is not None:
            try:
                addresses = frozenset(await names.look_up_here(host))
                self._renewal.resolved(addresses, monotonic(), self._life)
                if self._renewal_due() <= monotonic():
                    self.bell.set()
            except (OSError, UnicodeError):
                pass  # whoever connects will hear of it
            await asyncio.sleep(self._renewal.look_up_every * random.uniform(0.8, 1.2))

    # -- probes -------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """One probe, and others beside it if it is not answered soon."""
        self._take_over()
        attempts = {asyncio.create_task(self._attempt(fresh=False))}
        left = 0 if self._misses >= self._fall else self._fall - 1
        next_at = monotonic() + self._timeout / 2
        asked = None
        try:
            while attempts and asked is None:
                limit = max(0.0, next_at - monotonic()) if left else None
                done, attempts = await asyncio.wait(attempts, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    if self._renewing is not None:  # no more connections at a time than the sizing page says
                        self._renewing.cancel()
                    left -= 1
                    next_at = monotonic() + self._timeout / 2
                    attempts.add(asyncio.create_task(self._attempt(fresh=True)))
                for attempt in done:
                    try:
                        asked = attempt.result()
                    except ConnectFailed as error:
                        if error.fault not in (Fault.TIMEOUT, Fault.WAITING):
                            left = 0  # the next round, soon, asks again
                        self._tell_failure(error.fault, str(error))
                    except Exception as error:
                        self._failed(error)
        finally:
            for attempt in attempts:
                attempt.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)
        if asked is not None:
            if self.session is not asked.session:
                self._renewal.renewed(monotonic(), self._life)
            self._keep(asked)
            self._tell(asked)

    def _tell(self, asked: Asked) -> None:
        self._misses = self._turned_away = 0
        self._pooled = asked.sighting.pooled
        self._search.over(self)
        sighting = asked.sighting._replace(spread=self._spread)
        self._tell_all(lambda each: each.probed(sighting, asked.seconds, asked.since))

    def _tell_failure(self, fault: Fault, error: str) -> None:
        self._misses += fault in MISSES
        turned_away = fault in _TURNED_AWAY
        if turned_away:
            self._search.over(self)
        else:
            self._search.failed(self, fault, monotonic())
        self._turned_away, self._turned_away_for = (self._turned_away + 1, fault) if turned_away else (0, None)
        self._tell_all(lambda each: each.probe_failed(fault, error))

    def _tell_all(self, tell: Callable[[Subscriber], object]) -> None:
        for each in tuple(self.subscriptions):
            try:
                tell(each.subscriber)
            except Exception as error:  # a bug in one pool must not blind the others
                words = f"what a probe of {self._where.label} has found out could not be told to a pool"
                say_seldom(logging.ERROR, words, error=error)

    def _allowance(self) -> Allowance:
        # To be connected takes many words of the server's. Where each takes its time, from the other end of the world,
        # all of them may take long; a server that is dead says none.
        now = monotonic()
        return Allowance(now + self._timeout, until=now + max(self._timeout, self._where.connect_timeout))

    async def _attempt(self, *, fresh: bool) -> Asked:
        """Ask the question: on the connection that is kept, else on a new one. Raises ConnectFailed."""
        allowance = self._allowance()
        session = None if fresh else self.session
        try:
            if session is not None:
                try:
                    return await drive(asking(session, self._since, pooled=self._pooled), allowance)
                except psycopg.Error:  # the server has ended it
                    if session is self.session:
                        self._drop()
            secret = self._where.password
            if callable(secret):
                secret = await password(secret, monotonic() + self._where.connect_timeout)
                allowance = self._allowance()  # for the time that this took nobody can blame the server
            places = self._in_turn(await request(self._where, secret, allowance))
            try:
                return await reach(places, self._connecting, allowance)
            except psycopg.Error:  # and this one, too: somebody ends sessions, or the server goes down at this moment
                return await reach(places, self._connecting, allowance)
        except DriverTimeout as error:
            if session is not None and session is self.session:
                self._drop()
            # Connected it was: a pooler may let us in, and have no server for us.
            fault = Fault.WAITING if self._pooled or isinstance(error, NoServer) else Fault.TIMEOUT
            raise ConnectFailed(f"a probe got no answer within {self._timeout:g} s", fault) from error
        except psycopg.Error as error:
            raise ConnectFailed(str(error).strip(), psycopg3.fault(error) or Fault.ENDED) from error
        except ConnectFailed:
            raise
        except Exception:  # an error of our own: nobody knows what is still to come on that session
            if session is not None and session is self.session:
                self.drop_session()
            raise

    def _in_turn(self, places: list[Sealed]) -> list[Sealed]:
        """The addresses of the name; while a role is missing each new connection asks another one first."""
        self._spread = len(places) > 1
        self._turn += self._searching
        first = self._turn % len(places)
        return [*places[first:], *places[:first]]

    def _connecting(self, conninfo: Sealed) -> steps.Steps[Asked]:
        """Connect, and ask."""
        session = yield from steps.connecting(conninfo)
        self._new.add(session)
        try:
            return (yield from asking(session, pooled=self._pooled or self._where.pooler is not None))
        except BaseException:
            session.finish()
            raise
        finally:
            self._new.discard(session)

    def _drop(self) -> None:
        if self.session is not None:
            self.session.finish()
            self.session = None

    def drop_session(self) -> None:
        """End the session, and the one that was to follow."""
        self._take_over()
        self._drop()

    def disown(self) -> None:
        """In a forked child: the sessions are the parent's."""
        successor = [] if self._successor is None else [self._successor.session]
        for session in (*self._new, *successor, *([] if self.session is None else [self.session])):
            steps.disown(session)


class Monitor:
    """One thread and its watches."""

    def __init__(self) -> None:
        self._loop = nobodys().run(asyncio.SelectorEventLoop)  # which has a callback from the beginning
        self._loop.time = monotonic  # type: ignore[method-assign]  # which goes on when a test stands the time still
        self._search = Search(random.random)
        self._watches: dict[object, tuple[Watch, asyncio.Task[None]]] = {}  # written in the thread only
        self._stopping: set[asyncio.Task[None]] = set()
        self.subscriptions = 0  # written with `_lock` held
        self._ended = False
        self._closing = False
        self._worker = Worker("pgdbpool monitor", self._run)
        self._over = threading.Event()
        try:
            self._worker.start()
        except BaseException:  # no more threads to be had
            self._loop.close()
            raise

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Have the thread do something."""
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(function, *args, context=nobodys())

    def _run(self) -> None:
        try:
            while not self._go_on():
                sleep(HURRY)
        finally:
            self._closing = True
            for watch, task in self._watches.values():
                self._stop(watch, task)
            while self._stopping:
                with suppress(RuntimeError):  # asked to stop once more, by the end of the process
                    self._loop.run_until_complete(self._stopped())
            self._loop.close()
            self._over.set()

    def _go_on(self) -> bool:
        """Let the loop run until it is told to stop. False: something else has ended it, such as want of memory."""
        try:
            self._loop.run_forever()
        except BaseException as error:
            say(error, "the monitor failed")
            return self._ended
        return True

    @property
    def gone(self) -> bool:
        """Whether its thread has died."""
        return not self._ended and self._worker.gone

    def let_go(self) -> None:
        """Its thread has died, or never began: nobody else closes the loop."""
        if not self._loop.is_running():
            self._loop.close()

    async def _stopped(self) -> None:
        # Of a copy, since those that end leave the set.
        await asyncio.gather(*tuple(self._stopping), return_exceptions=True)

    def add(self, subscription: Subscription) -> None:  # in the thread
        key = key_of(subscription.where)
        if key not in self._watches:
            self._begin(key, Watch(subscription.where, self._search))
        watch, _ = self._watches[key]
        watch.subscriptions.append(subscription)
        watch.bell.set()

    def _begin(self, key: object, watch: Watch) -> None:
        if self._closing:
            return
        task = self._loop.create_task(watch.run())
        self._watches[key] = watch, task
        task.add_done_callback(partial(self._watch_ended, key, watch))

    def _watch_ended(self, key: object, watch: Watch, task: asyncio.Task[None]) -> None:
        """If nobody has stopped it, it has died, for want of memory, say: begin again."""
        if not self._closing and self._watches.get(key) == (watch, task):
            if not task.cancelled() and (error := task.exception()) is not None:
                say(error, "the monitor failed to probe an endpoint")
            self._loop.call_later(HURRY, self._begin, key, watch, context=nobodys())

    def ring(self, subscription: Subscription) -> None:  # in the thread
        found = self._watches.get(key_of(subscription.where))
        if found is not None:
            found[0].bell.set()

    def remove(self, subscription: Subscription) -> None:  # in the thread
        key = key_of(subscription.where)
        watch, task = self._watches.get(key, (None, None))
        if watch is None or task is None or subscription not in watch.subscriptions:
            return
        watch.subscriptions.remove(subscription)
        if not watch.subscriptions:
            del self._watches[key]
            self._stop(watch, task)

    def _stop(self, watch: Watch, task: asyncio.Task[None]) -> None:
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        task.add_done_callback(lambda _: watch.drop_session())
        task.cancel()

    def forget(self, subscription: Subscription) -> None:
        """See `Subscription.cancel`."""
        global _monitor
        self.call(self.remove, subscription)
        with _lock:
            if self._ended:
                return
            self.subscriptions -= 1
            if not self.subscriptions:
                self._ended = True
                if _monitor is self:
                    _monitor = None
                if self._worker.gone:
                    self.let_go()
                else:
                    self.call(self._loop.stop)

    def end(self) -> None:
        """The process ends: say goodbye to the servers, if it can be done soon."""
        self.call(self._loop.stop)
        if not self._worker.gone:
            self._over.wait(_LAST_WORDS)

    def disown(self) -> None:
        """In a forked child: the sessions and the loop are the parent's."""
        for watch, _ in self._watches.values():
            watch.disown()


_lock = threading.RLock()  # as that of the pools
_monitor: Monitor | None = None
_ending = False  # the process is


def subscribe(where: EndpointSettings, how: MonitorSettings, subscriber: Subscriber) -> Subscription:
    """Have an endpoint probed from now on. May be called from any thread."""
    global _monitor
    with _lock:
        if _ending:
            raise RuntimeError("no monitor at interpreter shutdown")
        if _monitor is not None and _monitor.gone:
            _monitor.let_go()
            _monitor = None
        if _monitor is None:
            _monitor = Monitor()
        monitor = _monitor
        monitor.subscriptions += 1
    subscription = Subscription(monitor, where, how, subscriber)
    monitor.call(monitor.add, subscription)
    return subscription


def _at_exit() -> None:
    global _ending
    with _lock:
        _ending = True
        monitor = _monitor
    if monitor is not None:
        monitor.end()


def _after_fork() -> None:
    global _lock, _monitor
    _lock = threading.RLock()
    monitor, _monitor = _monitor, None
    if monitor is not None:
        _inherited.append(monitor)  # its destructor would complain of a loop that runs
        monitor.disown()


_inherited: list[Monitor] = []

atexit.register(_at_exit)
forks.in_child(_after_fork)
