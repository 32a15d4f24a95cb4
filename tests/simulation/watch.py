"""The invariants: what must be true after every step, whatever has happened.

The shell keeps book of what is in whose hands; core must agree with it. Each check names what it found.
"""

from __future__ import annotations

from itertools import groupby

from pgdbpool.config import EndpointSettings
from pgdbpool.core.endpoint import MAX_CONNECTING, URGENT, Endpoint
from pgdbpool.core.evidence import Fault, Health, Role
from pgdbpool.core.group import ABORTED, LEFT, OVERTAKEN, Group
from pgdbpool.core.lane import Lane, Slot
from pgdbpool.core.topology import FALL
from pgdbpool.renewal import CALM

from .book import Book, BookedTopology, name
from .driver import RESEND
from .keepers import LONGEST_SLEEP, Threaded
from .monitor import DETECTION, TIMEOUT
from .names import Names
from .scenario import place_of, rank
from .servers import PRIMARY, Server, Session
from .shared import Violation
from .weather import LAGS

HANGS = DETECTION + TIMEOUT * (FALL + 1) / 2 + 1.0  # s, as `pgdbpool.monitor` says, and a breath
WITH_THE_PAST = 0.05  # s, at most, of a call in flight on a primary after the pool has met a newer one
OVERLOOKED = 0.1  # s that a wish may take to be looked at: a breath or two of the keeper
HOPE = 0.1  # s that a waiter may be left to what is being opened elsewhere
ROUND_TRIPS = 5.0  # of a connect, and of what is asked after it
LOSSES = 3.0  # s that these may take more where packets are lost
STALE = 0.5 + 0.1  # s after which a goodbye that has arrived must have been seen: POLL_AFTER, and a breath

# In any second and for one endpoint. A connect that fails is followed by a wait of 5 ms at least and 27 ms on average
# while somebody waits for it (`URGENT`); a search by one of 10 ms at least and 55 ms on average for each group
# (`SEARCH_EVERY`). The sums of so many random waits are below one second with a probability of less than one in 10**8.
MOST_FAILURES = 60
MOST_SEARCHES = 35


class Watch:
    """Looks at everything, again and again."""

    def __init__(
        self,
        book: Book,
        topology: BookedTopology,
        keeper: object,
        servers: list[Server],
        names: Names,
        *,
        monitored: bool,
    ) -> None:
        self.book = book
        self.clock = book.clock
        self.topology = topology
        self.monitored = monitored
        self.servers = servers
        self.names = names
        self.keeper = keeper if isinstance(keeper, Threaded) else None
        self.listens = self.keeper is not None and self.keeper.listens
        self.lanes: list[Lane] = [lane for group in self.topology.groups for lane in group.lanes]
        self.most: dict[Lane, int] = {}  # more than the limit, from before the group was made smaller
        self.overlooked: dict[Group, float] = {}
        self.settled: dict[Server, float] = dict.fromkeys(servers, 0.0)  # when all of it is over that is under way
        self.free: dict[Lane, tuple[object, int, float]] = {}  # while whom, of which generation, since when
        self._touched = self._taken = -1

    def look(self) -> None:
        """After each step. Where nobody came near what core holds, it is as it was."""
        self.book.watched = True
        try:
            self._look(self.book)
        finally:
            self.book.watched = False

    def _look(self, book: Book) -> None:
        if book.touched != self._touched:
            self._touched = book.touched
            self._places()
            self._waiters()
            if book.lock.taken != self._taken:
                self._taken = book.lock.taken
                self._limits()
                self._routes()
        if self.keeper is not None:
            self._nothing_overlooked()
            self._nobody_starves(self.keeper)
        if self.monitored:
            self._nobody_hangs()
        self._nobody_is_with_the_past()

    # -- a slot is in exactly one place, and the numbers agree ----------------------------------------------------

    def _places(self) -> None:
        book = self.book
        held = dict.fromkeys(self.lanes, 0)
        opening, closing = dict(held), dict(held)
        for slot in book.hands:
            held[slot.lane] += 1
        for order in book.orders:
            opening[order.lane] += 1
        for group in self.topology.groups:
            for slot, _ in group.closing:
                closing[slot.lane] += 1
                if slot in book.hands or slot in slot.lane.slots:
                    raise Violation(f"{slot.conn} is to be closed, and in use")
        for lane in self.lanes:
            idle = lane.idle
            if lane.open != len(lane.slots):
                raise Violation(f"{name(lane)}: open says {lane.open}, there are {len(lane.slots)}")
            if lane.open != len(idle) + held[lane]:
                raise Violation(
                    f"{name(lane)}: {lane.open} open, {len(idle)} idle and {held[lane]} in somebody's hands: "
                    f"{self._nowhere(lane)}"
                )
            for slot in idle:
                if slot not in lane.slots or slot in book.hands:
                    raise Violation(f"{slot.conn} is idle, and {book.hands.get(slot, 'not in the pool')}")
                if slot.generation != lane.generation:
                    raise Violation(f"{slot.conn} is idle, and of an old generation")
            if len(idle) > 1 and len(set(idle)) != len(idle):
                raise Violation(f"{name(lane)}: a slot is idle twice")
            if lane.opening != opening[lane]:
                raise Violation(f"{name(lane)}: opening says {lane.opening}, there are {opening[lane]}")
            if lane.closing != closing[lane]:
                raise Violation(f"{name(lane)}: closing says {lane.closing}, there are {closing[lane]}")

    def _nowhere(self, lane: Lane) -> str:
        lost = [str(slot.conn) for slot in lane.slots if slot not in lane.idle and slot not in self.book.hands]
        return f"nowhere: {', '.join(lost) or 'none'}"

    # -- never too many -----------------------------------------------------------------------------------------

    def _limits(self) -> None:
        for lane in self.lanes:
            total, limit = lane.open + lane.opening + lane.closing, lane.group.limit
            if total > limit:
                # What was open before a group was made smaller may stay until it comes back, but never grows.
                if total > self.most.get(lane, 0):
                    raise Violation(f"{name(lane)}: {total} connections, and the limit is {limit}")
                self.most[lane] = total
            elif self.most:
                self.most.pop(lane, None)
        for group in self.topology.groups:
            if group.total_limit is not None and group.total > group.total_limit:
                raise Violation(f"{group.name}: {group.total} connections, and total_count is {group.total_limit}")
        for endpoint in self.topology.endpoints:
            lanes = self.topology.lanes(endpoint)
            connecting = sum(place.connecting for lane in lanes for place in lane.places)
            if endpoint.connecting != connecting:
                raise Violation(f"{endpoint.label}: connecting says {endpoint.connecting}, there are {connecting}")
            if endpoint.open != sum(lane.open for lane in self.topology.lanes(endpoint)):
                raise Violation(f"{endpoint.label}: open says {endpoint.open}")
            if connecting > MAX_CONNECTING:
                raise Violation(f"{endpoint.label}: {connecting} connects at a time")
            for lane in lanes:
                if lane.opening > MAX_CONNECTING:
                    raise Violation(f"{name(lane)}: {lane.opening} connections are opened at a time")

    def about_to_shrink(self, group: Group) -> None:
        for lane in group.lanes:
            self.most[lane] = max(self.most.get(lane, 0), group.limit)

    def connects(self, endpoint: Endpoint) -> None:
        """When one begins: no storm."""
        now = self.clock.now
        attempts = self.book.attempts[endpoint]
        while attempts and attempts[0] < now - 1.0:
            attempts.popleft()
        replaced = self.book.ended[endpoint]
        while replaced and replaced[0] < now - 1.0:
            replaced.popleft()
        room = sum(lane.group.limit for lane in self.topology.lanes(endpoint))
        most = MOST_FAILURES + MOST_SEARCHES * len(self.topology.lanes(endpoint)) + room + len(replaced)
        if len(attempts) > most:
            raise Violation(f"{endpoint.label}: {len(attempts)} connects within a second")

    # -- nobody is forgotten ------------------------------------------------------------------------------------

    def _waiters(self) -> None:
        for group in self.topology.groups:
            if len(group.waiters) and any(not waiter.claimed for waiter in group.waiters):  # type: ignore[attr-defined]
                if not group.route and not group.paused:
                    self._in_vain(group)
                for tier in group.route:
                    for lane in tier.lanes:
                        if len(lane.idle):
                            raise Violation(f"{group.name}: somebody waits beside an idle {lane.idle[-1].conn}")
        if self.keeper is not None:
            for waiter in self.keeper.parked:
                if waiter.claimed:
                    if waiter.slot is None and waiter.error is None:
                        raise Violation(f"{waiter.who} was claimed, and got nothing")
                elif waiter.enqueued and waiter not in waiter.group.waiters:
                    raise Violation(f"{waiter.who} waits for {waiter.group.name}, and is not in its queue")

    def _nobody_starves(self, keeper: Threaded) -> None:
        """The promise: a waiter is not kept waiting while a place is free on an endpoint that is up.

        Looked at from outside: who waits in front, which servers are in fact well, and how long both have been so.
        Whatever else is being opened, and how much of it, does not matter.
        """
        now = self.clock.now
        for server in self.servers:
            if not server.well or server.lying:
                self.settled[server] = max(self.settled[server], now + RESEND)
            if server.latency >= LAGS[0] or server.loss:
                self.settled[server] = max(self.settled[server], now + self._connect(server))
        for group in self.topology.groups:
            first = next((each for each in keeper.parked if each.group is group and not each.claimed), None)
            for lane in group.lanes:
                if first is None or not self._free(lane):
                    self.free.pop(lane, None)
                    continue
                whom, generation, since = self.free.setdefault(lane, (first, lane.generation, now))
                if whom is not first or generation != lane.generation:
                    self.free[lane] = first, lane.generation, now
                elif now > since + self._patience(lane):
                    others = ", ".join(f"{each.opening} opening on {each.endpoint.label}" for each in group.lanes)
                    raise Violation(
                        f"{first.who} has waited for {group.name} since {since:.3f}, and {lane.endpoint.label} is up "
                        f"and has room: {others}"
                    )

    def _free(self, lane: Lane) -> bool:
        """Whether a new connection could be had there."""
        group, endpoint, now = lane.group, lane.endpoint, self.clock.now
        return (
            lane.live
            and now >= self._moved_by(lane)
            and all(self._takes_in(group, server) for server in self._servers(lane))
            and endpoint.health is Health.UP
            and endpoint.fault is None
            and lane.setup_error is None
            and now >= max(endpoint.next_try, lane.next_try)
            and lane.open + lane.opening + lane.closing < group.limit
            and (group.total_limit is None or group.total - self._uncertain(group) < group.total_limit)
        )

    def _uncertain(self, group: Group) -> int:
        """Connections that are being opened where it may be in vain: they are not worth more than a waiter."""
        return sum(lane.opening for lane in group.lanes if lane.endpoint.health is not Health.UP)

    def _takes_in(self, group: Group, server: Server) -> bool:
        """Whether a connection that reaches this server is one that the group can use."""
        suits = rank(group.settings.target_session_attrs, server.report) is not None
        return self.clock.now >= self.settled[server] and suits and not self.book.promotions.overtaken(server)

    def _servers(self, lane: Lane) -> list[Server]:
        """All to which its name leads now."""
        return self.names.leads(lane.endpoint.settings.host)  # type: ignore[attr-defined]

    def _moved_by(self, lane: Lane) -> float:
        """When all is over that was under way to other servers before its name led where it does."""
        where: EndpointSettings = lane.endpoint.settings  # type: ignore[assignment]
        moved, left = self.names.moved_at[where.host], self.names.left(where.host)
        hung = any(self.settled[server] >= moved for server in left)
        return moved + (where.connect_timeout + RESEND if hung else max(map(self._connect, left), default=0.0))

    def _patience(self, lane: Lane) -> float:
        """How long a connection may take: as long as what may be under way before it."""
        longest = max(map(self._connect, self._servers(lane)))
        return HOPE + len(self.topology.groups) * (OVERLOOKED + longest)

    def _connect(self, server: Server) -> float:
        return ROUND_TRIPS * 1.2 * server.latency + (LOSSES if server.loss else 0.0)

    def _in_vain(self, group: Group) -> None:
        """Somebody waits for a group without a route."""
        if group.refusal is not None:
            raise Violation(f"{group.name}: somebody waits, and {group.refusal}")
        if self.monitored and not self.topology.searching(self.clock.now):
            raise Violation(f"{group.name}: somebody waits for a role, and nobody searches")

    def _routes(self) -> None:
        """Each route is what belief says, computed anew and in another way."""
        for group in self.topology.groups:
            tiers = [] if group.closed or group.paused else self._tiers(group)
            route = [list(tier.lanes) for tier in group.route]
            if route != (tiers if group.settings.spill else tiers[:1]):
                words = [[lane.endpoint.label for lane in tier] for tier in route]
                raise Violation(f"{group.name}: the route is {words}, and belief says otherwise")
            for lane in group.lanes:
                if lane.live != any(lane in tier for tier in route):
                    raise Violation(f"{name(lane)}: live is {lane.live}")

        self._fences()

    def _fences(self) -> None:
        """Of the primaries of one system only those on its highest timeline count."""
        newest: dict[str, int] = {}
        for endpoint in self.topology.endpoints:
            for server in endpoint.servers:
                if server.identity is not None:
                    system, timeline, _ = server.identity
                    newest[system] = max(timeline, newest.get(system, timeline))
        for endpoint in self.topology.endpoints:
            for server in endpoint.servers:
                if server.report.role is Role.PRIMARY and server.identity is not None:
                    system, timeline, _ = server.identity
                    latest = max(newest[system], endpoint.newest.get(system, 0))
                    left = endpoint.systems.has_left(server.identity)  # then it may be fenced as well
                    if (timeline < latest) != (server.fenced_by is not None) and not (left and server.fenced_by):
                        raise Violation(f"{endpoint.label}, {server.identity}: {server.fenced_by or 'not fenced'}")

    def _tiers(self, group: Group) -> list[list[Lane]]:
        ranked = []
        for number, lane in enumerate(group.lanes):
            endpoint = lane.endpoint
            target, parted = group.settings.target_session_attrs, (LEFT, OVERTAKEN, ABORTED)
            servers = endpoint.servers if endpoint.several else [endpoint.server]
            places = [place_of(target, server) for server in servers]
            if not any(place is not None for place in places):  # then those count that are open with another server
                staying = [s for s in lane.slots if s.generation == lane.generation and s.expires not in parted]
                places = [place_of(target, slot.server) for slot in staying]
            place = min((each for each in places if each is not None), default=None)
            way_in = endpoint.fault is None and lane.setup_error is None
            if place is not None and endpoint.health is not Health.DOWN and (lane.open or way_in):
                ranked.append(((place, endpoint.priority), number, lane))
        return [[lane for *_, lane in tier] for _, tier in groupby(sorted(ranked), key=lambda each: each[0])]

    def _nothing_overlooked(self) -> None:
        """Where there is something to do, somebody is about to do it."""
        now, keeper = self.clock.now, self.keeper
        if keeper.busy or keeper.next_look <= now:  # type: ignore[union-attr]
            self.overlooked.clear()
            return
        for group in self.topology.groups:
            if not len(group.closing) and not self._to_be_opened(group):
                self.overlooked.pop(group, None)
            elif now > self.overlooked.setdefault(group, now) + OVERLOOKED:
                what = "connections to close" if len(group.closing) else f"{len(group.waiters)} waiters and room"
                raise Violation(f"{group.name}: {what}, and nobody looks before {keeper.next_look:.3f}")
            for lane in group.lanes:
                for slot in lane.idle:
                    # Harmless until then: nobody gets it. Not those that were marked to go when they come back.
                    if 0.0 < slot.expires < now - LONGEST_SLEEP - OVERLOOKED:
                        raise Violation(f"{slot.conn} rests after its life")

    def _to_be_opened(self, group: Group) -> bool:
        if len(group.waiters) and not (group.route or group.paused or self.monitored):
            return any(self._to_be_asked(lane) for lane in group.lanes)
        if not len(group.waiters) or group.paused or not group.route or len(group.waiters) <= group.opening:
            return False
        if any(lane.may_open(self.clock.now) for tier in group.route for lane in tier.lanes):
            return True
        return self._can_make_room(group)

    def _to_be_asked(self, lane: Lane) -> bool:
        """A caller waits for a role, and a search would look here: soon again where it was turned away at once.

        But no more often than one part in 20 of the time for which it has failed, up to 1.2 s; and ten times a second,
        all that fail together.
        """
        endpoint, now = lane.endpoint, self.clock.now
        if endpoint.fault in (Fault.REFUSED, Fault.STARTING, Fault.FULL):
            failed_at = endpoint.last_error_at or 0.0
            failing_for = failed_at - (endpoint.failing_since or failed_at)
            others = sum(each.failing_since is not None for each in self.topology.endpoints) - 1
            at = min(endpoint.next_try, failed_at + max(URGENT, min(failing_for / 20, 1.2), others / 10))
        else:
            at = endpoint.next_try
        return lane.room and not (endpoint.connecting or lane.opening) and now >= max(at, lane.next_try)

    def _can_make_room(self, group: Group) -> bool:
        """Whether what rests off the route is in the way of those who wait."""
        if (
            group.total_limit is None
            or group.total < group.total_limit
            or not any(len(lane.idle) for lane in group.lanes if not lane.live)
        ):
            return False
        now = self.clock.now
        return any(
            lane.total < group.limit and now >= lane.next_try and lane.endpoint.may_connect(now)
            for tier in group.route
            for lane in tier.lanes
        )

    def _nobody_is_with_the_past(self) -> None:
        """Calls in flight on a primary are ended soon after the pool has opened a session with a newer one."""
        for server in self.servers:
            if server.report == PRIMARY:
                for session in server.sessions:
                    if session.in_use and not session.aborted:
                        late = self.book.promotions.overtaken_for(session)
                        if late > WITH_THE_PAST:
                            raise Violation(f"a call on {session}, the old primary, goes on for {late:.4f} s")

    def _nobody_hangs(self) -> None:
        """Where endpoints are probed, calls on a server that is frozen or cut off are ended."""
        now = self.clock.now
        for server in self.servers:
            if server.silent_since is not None and now > server.silent_since + HANGS:
                for session in server.sessions:
                    if session.in_use and not session.aborted and self._probed(session, server.silent_since):
                        raise Violation(f"a call on {session} hangs, {now - server.silent_since:.3f} s")

    def _probed(self, session: Session, silent_since: float) -> bool:
        """Whether the monitor looked at its server, and not at another one, when that fell silent.

        Where the name leads elsewhere now nobody probes this one: keepalives end it. And what a name leads to since
        not long ago is found out by a new connection of the monitor's, when there is a session that contradicts.
        """
        moved = self.names.moved_at[session.name]
        found_out = max(moved, session.born) + CALM + 2 * TIMEOUT
        return self.names.leads(session.name) == [session.server] and (moved < 0 or found_out <= silent_since)

    # -- what a caller gets --------------------------------------------------------------------------------------

    def lent(self, slot: Slot, group: Group) -> None:
        """A caller is about to use it."""
        lane, session = slot.lane, slot.conn
        target = group.settings.target_session_attrs
        if lane.group is not group or lane not in group.lanes:
            raise Violation(f"{session} of {lane.group.name} was lent by {group.name}")
        if rank(target, session.heard) is None:
            raise Violation(f"{session} says it is a {session.heard}, and was lent for {target}")
        if session.closed:
            raise Violation(f"{session} was lent after it was closed")
        if session.told and group.settings.check != "off":  # type: ignore[attr-defined]
            # Without a listener one that came back a moment ago is not looked at, and may have died in use.
            since = session.told_at if self.listens else max(session.told_at, slot.rested)
            if self.clock.now > since + STALE:
                raise Violation(f"{session} had said goodbye at {session.told_at:.3f}, and was lent")

    def looked_at(self, slot: Slot) -> None:
        """It is about to be lent without a look at its socket."""
        endpoint = slot.lane.endpoint
        if endpoint.health is not Health.UP and slot.lane.group.settings.check != "off":  # type: ignore[attr-defined]
            raise Violation(f"{slot.conn} was lent without a look, and {endpoint.label} is {endpoint.health}")
