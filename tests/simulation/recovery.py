"""Liveness: once the servers are well, every group that has a suitable one serves again, within this bound.

::

    bound = 2 * backoff + detection + resend + endpoints * (search + connect + turn) + breath

    backoff    the longest wait between two tries that is in force: 1 s; 30 s if a server or `configure` refused us for
               a reason that no retry mends; 10 s in the non-threaded model, where a try that nobody asked for may take
               half a second, and then is not repeated for 20 times as long. Twice, since a connect that was under way
               when the servers got well may still end badly.
    detection  1.1 s from one probe to the next, where there is a monitor: it searches, and not the pool
    resend     1 s: TCP's wait before it sends again on a line that healed
    search     0.1 s between two looks at one endpoint while the role is sought
    connect    3 round trips
    turn       3 round trips: a connection that is drawn on a false belief is used once, and believed then
    breath     0.5 s: all the moments in which a thread loses the processor

It counts from the moment when all is well and the other callers have gone home. "Serves" means a connection to a server
that really has the role which the group wants.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.evidence import Health, Role
from pgdbpool.core.group import Group
from pgdbpool.core.lane import Lane
from pgdbpool.core.plan import LOOK_EVERY
from pgdbpool.errors import DBOfflineError, PoolTimeout

from .book import name
from .callers import Pool
from .clock import FOREVER, Task, sleep
from .driver import RESEND, Lost
from .monitor import DETECTION
from .scenario import Scenario, rank
from .servers import Server
from .shared import Violation

BACKOFF = 1.0
BACKOFF_INLINE = 10.0
BACKOFF_MISCONFIGURED = 30.0
SEARCH = 0.1
BREATH = 0.5
REST = 0.2  # s between them, in which a connection can be opened
TURNS = 24  # checkouts in which each endpoint of a tier gets one: weights differ by 3 at most
RETRY = 0.02  # s after which a caller that was turned away at once comes again


class Recovery:
    """One caller for each group, that wants to be served in time."""

    def __init__(self, pool: Pool, servers: dict[Endpoint, Server], scenario: Scenario) -> None:
        self.pool = pool
        self.servers = servers
        self.threaded = threaded = scenario.threaded
        self.monitored = scenario.monitored
        self.detection = DETECTION if scenario.monitored else 0.0
        counts = pool.book.counts
        self.backoff = BACKOFF if threaded else BACKOFF_INLINE
        if counts["connect: misconfigured"] or counts["probe: misconfigured"] or counts["connect: not made ready"]:
            self.backoff = BACKOFF_MISCONFIGURED
        # s until all that nobody uses has been looked at once more, too
        self.settling = 2 * self.backoff + self.detection + (1.0 if scenario.monitored else 2 * LOOK_EVERY + 2.0)
        self.waiting: dict[Group, float] = {}  # -> since when
        self.took = 0.0

    def bound(self, group: Group) -> float:
        latency = 1.2 * max(self.servers[lane.endpoint].latency for lane in group.lanes)
        turns = len(group.lanes) * (SEARCH + 3 * latency + 3 * latency)
        return 2 * self.backoff + self.detection + RESEND + turns + BREATH

    def suits(self, group: Group, server: Server) -> bool:
        return rank(group.settings.target_session_attrs, server.report) is not None

    def groups(self) -> list[Group]:
        return [
            group
            for group in self.pool.groups
            if any(self.suits(group, self.servers[lane.endpoint]) for lane in group.lanes)
        ]

    def begin(self, spawn: Callable[[str, Coroutine[Any, Any, None]], Task]) -> None:
        if self.threaded:
            for group in self.groups():
                self.waiting[group] = self.pool.clock.now
                spawn(f"last of {group.name}", self._serve(group))
        else:
            self.waiting = dict.fromkeys(self.groups(), self.pool.clock.now)
            spawn("the last", self._in_turn())

    async def _in_turn(self) -> None:
        for group in self.groups():
            self.waiting = {group: self.pool.clock.now}
            await self._serve(group)

    async def _serve(self, group: Group) -> None:
        clock, pool = self.pool.clock, self.pool
        since = self.waiting[group]
        while True:
            patience = since + self.bound(group) - clock.now
            try:
                slot = await pool.checkout(group, patience)
            except (PoolTimeout, DBOfflineError) as error:
                if clock.now - since >= self.bound(group) - RETRY:
                    why = pool.topology.unreachable(group)
                    raise Violation(
                        f"{group.name}, {group.settings.target_session_attrs}: not served within "
                        f"{self.bound(group):.3f} s after the servers got well: {type(error).__name__}, {why}"
                    ) from None
                await sleep(RETRY)
                continue
            lost: Lost | None = None
            try:
                await pool.driver.ask(slot.conn, FOREVER)
            except Lost as error:
                lost = error
                await sleep(RETRY)
            served = lost is None and self.suits(group, slot.conn.server)
            await pool.give_back(slot, lost)
            if served:
                break
        self.took = max(self.took, (clock.now - since) / self.bound(group))
        del self.waiting[group]

    def overdue(self) -> None:
        """Somebody still waits after its bound, whatever it waits for."""
        for group, since in self.waiting.items():
            if self.pool.clock.now > since + self.bound(group) + BREATH:
                raise Violation(f"{group.name}: nobody was served for {self.pool.clock.now - since:.3f} s")

    def beliefs(self) -> None:
        """In the end every server that some group may want is believed to be well."""
        for endpoint, server in self.servers.items():
            lanes = [
                lane
                for lane in self.pool.topology.lanes(endpoint)
                if lane.room and rank(lane.group.settings.target_session_attrs, endpoint.report) is not None
            ]
            wrong = endpoint.health is not Health.UP and endpoint.last_error is not None
            long_ago = self.pool.clock.now - self.settling
            if (endpoint.last_error_at or 0.0) > long_ago:  # what the kernel found out late
                continue
            if lanes and (wrong or endpoint.fault is not None):
                raise Violation(
                    f"{server.label} is well, and believed to be {endpoint.health.value}, {endpoint.fault}: "
                    f"{endpoint.last_error}"
                )
            if self.monitored and endpoint.report != server.report and server.report.role is not Role.UNKNOWN:
                raise Violation(f"{server.label} is {server.report}, and believed to be {endpoint.report}")

            for lane in lanes:
                warm = lane.group.settings.min_count
                ended = self.pool.book.ended[endpoint]
                just_now = bool(ended) and ended[-1] > self.pool.clock.now - BREATH  # and is being replaced
                most = lane.group.total_limit
                scarce = most is not None and most < warm * len(self.servers)
                if lane.open < warm and not (endpoint.connecting or just_now or scarce):
                    raise Violation(f"{name(lane)}: {lane.open} open, and min_count is {warm}")

    # -- each gets its share ------------------------------------------------------------------------------------

    def begin_to_share(self, spawn: Callable[[str, Coroutine[Any, Any, None]], Task]) -> None:
        """All endpoints of a tier get some of the load, also those that had lost all their connections."""
        for group in self.pool.groups:
            lanes = group.route[0].lanes if group.route else ()
            others = group.limit * (len(group.lanes) - 1)  # which may have used up `total_count` before
            enough = group.total_limit is None or group.total_limit > others
            if len(lanes) > 1 and enough and str(group.settings.balance) in ("least-busy", "round-robin"):
                spawn(f"share of {group.name}", self._share(group))

    async def _share(self, group: Group) -> None:
        pool, route = self.pool, group.route
        served: dict[Lane, int] = dict.fromkeys(route[0].lanes, 0)
        for _ in range(TURNS):
            slot = await pool.checkout(group, BREATH)
            served[slot.lane] = served.get(slot.lane, 0) + 1
            await pool.give_back(slot, None)
            await sleep(REST)
            if group.route is not route:
                return
        left_out = [lane.endpoint.label for lane, times in served.items() if not times]
        if left_out:
            raise Violation(f"{group.name}: {', '.join(left_out)} got none of {TURNS} checkouts")
