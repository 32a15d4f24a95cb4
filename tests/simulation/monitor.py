"""Who probes the endpoints: `pgdbpool.monitor` in simulated time.

One task for each endpoint, written after the real one: a probe on a connection that is kept, another beside it where
it is not answered soon, `fall` of them at most.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

from pgdbpool.core.endpoint import BACKOFF, Endpoint, backoff
from pgdbpool.core.evidence import MISSES, Fault
from pgdbpool.core.topology import Topology
from pgdbpool.drivers import ConnectFailed, DriverTimeout
from pgdbpool.renewal import LIFE, Renewal
from pgdbpool.search import HURRY, LONGEST, Search

from .book import Book
from .clock import FOREVER, Bell, Clock, Task, hear, sleep
from .driver import Lost, SimulatedDriver
from .servers import Session

INTERVAL = 1.0
TIMEOUT = 1.0
DETECTION = max(1.1 * INTERVAL, LONGEST)  # s, at most, from one probe to the next


class Monitor:
    """The watches of all endpoints."""

    def __init__(self, clock: Clock, book: Book, topology: Topology, driver: SimulatedDriver, random: Random) -> None:
        self._clock = clock
        search = Search(random.random)
        self._watches = [
            Watch(clock, book, topology, driver, random, search, endpoint) for endpoint in topology.endpoints
        ]

    def start(self, wake: Bell) -> None:
        for watch in self._watches:
            watch.wake = wake
            watch.running = True
            self._clock.spawn("monitor", watch.run())

    def stop(self) -> None:
        for watch in self._watches:
            watch.running = False
            watch.bell.ring()

    def alarm(self) -> None:
        for watch in self._watches:
            watch.bell.ring()


class Watch:
    """What probes one endpoint."""

    def __init__(
        self,
        clock: Clock,
        book: Book,
        topology: Topology,
        driver: SimulatedDriver,
        random: Random,
        search: Search,
        endpoint: Endpoint,
    ) -> None:
        self._clock = clock
        self._book = book
        self._topology = topology
        self._driver = driver
        self._random = random
        self._search = search
        self._endpoint = endpoint
        self._host = {"host": endpoint.settings.host}  # type: ignore[attr-defined]
        self._session: Session | None = None
        self._since = 0.0
        self._renewal = Renewal(random.random)
        self._renewing: Task | None = None
        self._successor: tuple[Session, float] | None = None
        self._refusals = 0
        self._misses = 0
        self._turned_away = 0
        self._turned_away_for: Fault | None = None
        self.bell = Bell()
        self.wake = Bell()
        self.running = False

    async def run(self) -> None:
        clock = self._clock
        while self.running:
            began = clock.now
            self.bell.rung = False
            self._take_over()
            await self._round()
            if self.running and self._renewal_due() <= clock.now:
                self._renewal.began(clock.now)
                self._book.counts["renewals"] += 1
                self._renewing = clock.spawn("probe", self._renew())
            if self._turned_away and self.running:
                await self._keep_away()
                continue
            hurry = 0 < self._misses < self._topology.fall or self._topology.searching(clock.now)
            pause = INTERVAL * (0.9 + 0.2 * self._random.random())
            gone = self._search.pause(self, began)
            if hurry:
                pause = HURRY if gone is None else gone
            pause = min(pause, max(self._renewal_due() - began, HURRY / 2))
            least = HURRY / 2
            if gone is not None:
                least, pause = gone, max(pause, gone)
            if self.running:
                await hear(self.bell, began + pause)
            if self.running:
                await sleep(max(0.0, began + least - clock.now))
        self._search.over(self)
        if self._renewing is not None:
            self._renewing.interrupt()
        self._take_over()
        self._drop(self._session)

    # -- a new connection, before it is needed ------------------------------------------------------------------

    def _renewal_due(self) -> float:
        if self._session is None or self._renewing is not None or self._successor is not None:
            return FOREVER
        doubted = self._topology.doubts(self._endpoint)
        urgent = doubted and self._topology.urgent(self._endpoint, self._clock.now)
        return self._renewal.due(self._clock.now, doubted=doubted, urgent=urgent)

    async def _renew(self) -> None:
        results: deque[Any] = deque()
        try:
            await self._try(Bell(), results, None)
        except BaseException:  # the monitor ends
            for session, *_ in results:
                self._drop(session)
            raise
        finally:
            self._renewing = None
        session, outcome, seconds, since = results.popleft()
        now = self._clock.now
        if not self.running:  # it ended in this moment
            self._drop(session)
        elif not isinstance(outcome, ConnectFailed):
            self._refusals = 0
            self._renewal.renewed(now, LIFE)
            self._successor = session, since
            self._tell(outcome, seconds, since)
        elif outcome.fault in (Fault.FULL, Fault.MISCONFIGURED):
            first, longest = BACKOFF[outcome.fault]
            self._renewal.put_off(now, max(first, backoff(first, longest, self._refusals, self._random.random)))
            self._refusals += 1
        elif outcome.fault is not Fault.TIMEOUT:
            self._refusals += 1
            if self._refusals >= self._topology.fall:
                self._refusals = 0
                self._drop(self._session)
                self._failed(outcome.fault, str(outcome))
        self.bell.ring()

    def _take_over(self) -> None:
        if self._successor is not None:
            self._drop(self._session)
            self._session, self._since = self._successor
            self._successor = None

    async def _keep_away(self) -> None:
        """The server spoke, and would not let us in."""
        first, longest = BACKOFF[self._turned_away_for or Fault.MISCONFIGURED]
        pause = max(first, backoff(first, longest, self._turned_away - 1, self._random.random))
        until = self._clock.now + pause
        while self.running and self._clock.now < until:
            await hear(self.bell, until)  # rung for the end, and for alarms, which change nothing

    async def _round(self) -> None:
        clock = self._clock
        bell = Bell()
        results: deque[Any] = deque()
        attempts = [self._attempt(bell, results, fresh=False)]
        ended = 0
        left = 0 if self._misses >= self._topology.fall else self._topology.fall - 1
        answered = False
        while ended < len(attempts) and not answered:
            if not await hear(bell, clock.now + TIMEOUT / 2 if left else FOREVER):
                left -= 1
                attempts.append(self._attempt(bell, results, fresh=True))
            while results and not answered:
                ended += 1
                session, outcome, seconds, since = results.popleft()
                if isinstance(outcome, ConnectFailed):
                    left = 0
                    self._failed(outcome.fault, str(outcome))
                else:
                    answered = True
                    self._answered(session, outcome, seconds, since)
        for attempt in attempts:
            attempt.interrupt()
        for session, *_ in results:  # one that came too late
            self._drop(session)

    def _attempt(self, bell: Bell, results: deque[Any], *, fresh: bool) -> Task:
        return self._clock.spawn("probe", self._try(bell, results, None if fresh else self._session))

    async def _try(self, bell: Bell, results: deque[Any], session: Session | None) -> None:
        clock, driver = self._clock, self._driver
        deadline = clock.now + TIMEOUT
        kept = session
        self._book.counts["probes"] += 1
        try:
            if session is not None:
                try:
                    began, since = clock.now, self._since
                    results.append((session, await driver.sight(session, deadline), clock.now - began, since))
                    return
                except Lost:
                    self._drop(session)
            session = await driver.connect(self._host, True, deadline)
            began = clock.now
            results.append((session, await driver.sight(session, deadline), clock.now - began, began))
        except ConnectFailed as error:
            results.append((None, error, 0.0, 0.0))
        except (DriverTimeout, Lost) as error:
            self._drop(session)
            fault = Fault.TIMEOUT if isinstance(error, DriverTimeout) else Fault.ENDED
            results.append((None, ConnectFailed(str(error), fault), 0.0, 0.0))
        except BaseException:
            if session is not kept:
                self._drop(session)
            raise
        finally:
            bell.ring()

    def _drop(self, session: Session | None) -> None:
        if session is not None:
            session.close()
            if session is self._session:
                self._session = None

    def _answered(self, session: Session, sighting: Any, seconds: float, since: float) -> None:
        if session is not self._session:
            self._drop(self._session)
            self._session, self._since = session, since
            self._renewal.renewed(self._clock.now, LIFE)
        self._tell(sighting, seconds, since)

    def _tell(self, sighting: Any, seconds: float, since: float) -> None:
        self._misses = self._turned_away = 0
        self._search.over(self)
        if self._clock.trace:
            self._book.say(f"probe of {self._endpoint.label}: {sighting.report.role.value}, {sighting.identity}")
        if self._topology.probed(self._endpoint, sighting, seconds, self._clock.now, since):
            self.wake.ring()

    def _failed(self, fault: Fault, error: str) -> None:
        self._misses += fault in MISSES
        turned_away = fault in (Fault.FULL, Fault.MISCONFIGURED, Fault.LOCAL)
        self._turned_away, self._turned_away_for = (self._turned_away + 1, fault) if turned_away else (0, None)
        if turned_away:
            self._search.over(self)
        else:
            self._search.failed(self, fault, self._clock.now)
        self._book.counts[f"probe: {fault.value}"] += 1
        if self._clock.trace:
            self._book.say(f"probe of {self._endpoint.label}: {fault.value}")
        if self._topology.probe_failed(self._endpoint, fault, error, self._clock.now):
            self.wake.ring()
