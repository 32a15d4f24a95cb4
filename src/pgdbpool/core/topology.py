"""The endpoints, what is believed of them, and what follows from it.

Topology owns the set of endpoints; nothing else keeps a list of its own. Evidence comes in (`opened`, `open_failed`,
`reported`, `session_lost`, `probed`, `probe_failed`, ...), belief changes, and when a belief that matters has changed
every group gets a new route (see `routes`), connections that must not be used again are retired, and calls in flight
on a dead server are listed in `aborts` for the shell to end. `plan` says which connections should be opened now.

The effect of each kind of evidence::

    refused, reset before any word  down; its connections are not used again
    closed after a word             suspect; no new connections for a moment; existing ones stay
    session lost (08*, 57P01)       suspect: look at every socket before it is handed out; probe at once
    crashed (57P02)                 suspect; its connections are not used again
    starting (57P03), full (53300)  no new connections for a moment; existing ones stay
    28*, 3D000, 42*; libpq's words; no port left on this machine
                                    existing ones stay; callers for whom nothing is open get the words at once
    an exception of our own         nothing; tried again
    role reported differently       the groups that must leave do
    write refused (25006)           demoted, if the server itself says that it is read only
    a probe not answered            suspect; `fall` times in a row: down, and calls in flight are aborted
    a probe answered                up; the share of the load grows over `slow_start`
    a promotion seen elsewhere      a primary on a lower timeline is fenced, and calls in flight there are aborted
    a new connection, elsewhere     the name leads to another server now: sessions stay or go, see `server`

All private methods are called with the lock held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ..errors import DBOfflineError
from . import routes, times
from .belief import SECOND_CHOICE, Belief
from .endpoint import BACKOFF, BACKOFF_ELSE, URGENT, URGENT_LONGEST, Endpoint, backoff
from .events import Event, EventKind
from .evidence import (
    MISSES,
    SILENT,
    WAITS_DEAD,
    WAITS_DOWN,
    WAITS_LEAST,
    Fault,
    Health,
    Identity,
    Report,
    Role,
    Sighting,
    session_fault,
)
from .group import DESERTED, LEFT, Group, Lock, Tier
from .lane import Lane, Owner, Slot
from .news import News
from .outage import Outages
from .plan import Order, Planner, free, reached
from .server import fit, suits
from .snapshot import snapshot

FALL = 2  # probes that fail in a row before an endpoint is taken for dead, unless the configuration says otherwise
SETUP_LOSSES = 3  # so many connections in a row may be lost while they are made ready
_SEARCH_PATIENCE = 60.0  # s: after so long without anybody waiting, a missing role is looked for at the usual pace


class Topology:
    """The set of endpoints of one pool, and the groups that use them."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        groups: Sequence[Group],
        lock: Lock,
        random: Callable[[], float],
        fall: int = FALL,
    ) -> None:
        self.endpoints = list(endpoints)
        self.groups = list(groups)
        self.fall = fall
        self._lock = lock
        self._random = random
        self._planner = Planner(self.groups, random)
        # Set by the shell. `born`: a slot is about to be put to use. `alarm`: something may be wrong, probe now. They
        # are called without the lock.
        self.born: Callable[[Slot], None] = lambda slot: None
        self.alarm: Callable[[], None] = lambda: None
        self.aborts: deque[Slot] = deque()  # leased on a dead server: the shell ends their calls
        self._news = News()
        self._lanes: dict[Endpoint, list[Lane]] = {endpoint: [] for endpoint in self.endpoints}
        self._belief = Belief(self.endpoints, self._lanes, self._news, self._list_aborts)
        self._outages = Outages(self._news)
        self.events = self._news.events
        self.noted = self._news.noted
        self.outages: deque[tuple[Owner, str, str]] = deque()  # whose `reconnect_failed` it calls, and the arguments
        self._called = False  # somebody waits for a role that no endpoint is known to have
        self._missing_since: float | None = None  # a group has had no route since
        self._refused_until = float("-inf")  # until then a second choice has refused a write not long ago
        self._routed: dict[Endpoint, object] = {}  # what the routes were computed from; empty: that must be done again
        self.closed = True
        for group in self.groups:
            group.on_empty = self._reroute

    def attach(self, group: Group, endpoint: Endpoint) -> None:
        """Let a group use an endpoint. Before `open`."""
        lane = Lane(group, endpoint)
        lane.rank = suits(group.settings.target_session_attrs, endpoint.server)
        group.lanes.append(lane)
        self._lanes[endpoint].append(lane)

    def lanes(self, endpoint: Endpoint) -> Sequence[Lane]:
        """All that lead to this endpoint."""
        return self._lanes[endpoint]

    @property
    def lock(self) -> Lock:
        """That of the pool."""
        return self._lock

    @property
    def monitored(self) -> bool:
        """Whether a monitor probes the endpoints, so that nobody else need find out who is back."""
        return self._planner.monitored

    @monitored.setter
    def monitored(self, on: bool) -> None:
        self._planner.monitored = on

    def open(self) -> None:
        """Compute the first routes. Nothing is known yet: every endpoint may be tried."""
        with self._lock:
            self.closed = False
            for group in self.groups:
                group.closed = False
            self._reroute()

    def close(self) -> None:
        """No more checkouts; idle connections go now, leased ones when they come back."""
        with self._lock:
            self.closed = True
            for group in self.groups:
                group.closed = True
            self._reroute()
            for group in self.groups:
                for lane in group.lanes:
                    group.retire_lane(lane, "closed")

    def reset(self, lock: Lock, random: Callable[[], float]) -> None:
        """Start empty, as in a new process: belief about the servers stays, connections do not."""
        self._lock = lock
        self._random = random
        self._planner.random = random
        self._planner.monitored = False
        self.alarm = lambda: None  # the monitor that it rings is not of this process
        self.aborts.clear()
        self.outages.clear()
        self._news.clear()
        self._outages.clear()
        for group in self.groups:
            group.reset(lock, random)
            for lane in group.lanes:
                lane.reset()
        for endpoint in self.endpoints:
            endpoint.reset(random)
        if not self.closed:
            self._reroute()

    def unwatched(self) -> None:
        """No monitor any more: open connections are replaced, since they would rely on it to end unanswered calls."""
        with self._lock:
            for group in self.groups:
                for lane in group.lanes:
                    group.retire_lane(lane, "retired")
            self.alarm = lambda: None
            self.monitored = False

    def rank(self, lane: Lane, sighting: Sighting) -> int | None:
        """How well a server would suit a lane that a new connection has just reached; no evidence yet. As `suits`."""
        with self._lock:
            return self._belief.rank(lane, sighting)

    # -- evidence from opening ------------------------------------------------------------------------------------

    def opened(
        self,
        order: Order,
        conn: Any,
        clean: Callable[[float], bool],
        report: Report,
        now: float,
        identity: Identity | None = None,
        since: float | None = None,
        pooled: bool = False,
        address: str = "",
        given: Any = None,
    ) -> str | None:
        """A connection, made at `since`, was opened: put it to use. `address`: which one, if the name has several.

        `given`: what users are handed, if it is not the connection itself.

        Returns None, or why it was put among those to close instead.
        """
        group, lane = order.group, order.lane
        endpoint, target = lane.endpoint, group.settings.target_session_attrs
        with self._lock:
            free(order)
            lane.connect_time += now - order.since
            times.count(lane.connect_times, now - order.since)
            changed = endpoint.health is not Health.UP or endpoint.fault is not None or lane.setup_error is not None
            if report.role is not Role.UNKNOWN:
                endpoint.pooled = pooled
            self._update(endpoint, now, partial(endpoint.connected, now))
            changed |= endpoint.spread is not bool(address)
            endpoint.spread = bool(address)
            server, news = self._belief.met(endpoint, report, identity, now if since is None else since, now)
            changed |= news
            changed |= endpoint.spread and self._belief.chosen(lane, server, now)
            if self.closed:
                reason = "closed"
            elif suits(target, server) is None or fit(target, report) is None:  # a newer session may say otherwise
                reason = "role" if server.fenced_by is None else "fenced"
            elif order.generation != lane.generation:
                reason = "retired"
            elif lane.total >= group.limit:  # made smaller meanwhile
                reason = "resized"
            else:
                reason = None
            slot = Slot(lane, conn, clean, lane.generation, now, group.lifetime())
            slot.server, slot.read_only, slot.address = server, report.read_only, address
            slot.given = conn if given is None else given
            lane.slots.add(slot)
            lane.ledger = lane.ledger.with_(slot)
            lane.open += 1
            endpoint.open += 1
            if lane.setup_error is not None:
                self._outages.over(endpoint, now, group=group.name)
            lane.setup_error = None
            lane.setup_failures = lane.setup_losses = lane.hindrances = 0
            doubted = endpoint.doubted or self._belief.unsettled(endpoint)
            if reason is not None:
                group._retire(slot, reason)
            if reason in ("role", "fenced") and not order.search:  # the name may lead elsewhere next time: not at once
                lane.next_try = max(lane.next_try, now + backoff(URGENT, URGENT_LONGEST, lane.misled, self._random))
                lane.misled += 1
            else:
                lane.misled = 0
            if changed or lane.open == 1:
                self._reroute(now)
        if doubted:
            self.alarm()
        if reason is None:
            try:
                self.born(slot)
            except BaseException:  # no memory, say: nobody has it yet
                group.retire(slot, "broken")
                raise
            group.give(slot, now)
        return reason

    def open_failed(self, order: Order, fault: Fault, error: str, now: float) -> None:
        """A connection could not be opened."""
        lane, endpoint = order.lane, order.lane.endpoint
        with self._lock:
            free(order)
            lane.failures += 1
            self._connect_failed(endpoint, fault, error, now)
        self._stir()

    def _connect_failed(self, endpoint: Endpoint, fault: Fault, error: str, now: float) -> bool:
        """Returns whether there is anything new. While a server is gone most attempts only say so once more."""
        crowd = 1 + sum(each.failing_since is not None for each in self.endpoints if each is not endpoint)
        self._update(endpoint, now, partial(endpoint.connect_failed, fault, error, now, crowd))
        if fault is Fault.REFUSED:
            self._raise_generation(endpoint, "broken")
        changed = self._reroute_if_changed(endpoint, now)
        return self._note_outage(endpoint, error, now) or changed

    def _note_outage(self, endpoint: Endpoint, error: str, now: float) -> bool:
        """Find the groups for which the endpoint has failed for longer than they bear, each once in an outage.

        Returns whether there was any.
        """
        failing = now - (now if endpoint.failing_since is None else endpoint.failing_since)
        told = len(endpoint.told)
        for lane in self.lanes(endpoint):
            name, patience = lane.group.name, lane.group.settings.reconnect_timeout
            if failing >= patience and name not in endpoint.told:
                endpoint.told.add(name)
                self.outages.append((lane.group, endpoint.label, error))
        return len(endpoint.told) > told

    def _stir(self) -> None:
        """There may be connections to close or to open, and something to find out."""
        for group in self.groups:
            group.wish()
        self.alarm()

    def setup_failed(self, order: Order, error: str, now: float) -> None:
        """The server let us in, but the connection could not be made ready for its group."""
        lane = order.lane
        with self._lock:
            free(order)
            lane.failures += 1
            self._update(lane.endpoint, now, partial(lane.endpoint.connected, now))
            lane.setup_error = error
            first, longest = BACKOFF[Fault.MISCONFIGURED]
            lane.next_try = now + backoff(first, longest, lane.setup_failures, self._random)
            lane.setup_failures += 1
            self._outages.lasts(lane.endpoint, "setup", error, now, group=lane.group.name)
            self._reroute(now)

    def lost_in_setup(self, order: Order, error: str, now: float) -> None:
        """The connection was lost while it was made ready. Once or twice that is bad luck: a server may go at any time.

        The next connect tells what is the matter. If it is always so, the setup is at fault.
        """
        lane = order.lane
        if lane.setup_losses >= SETUP_LOSSES:
            self.setup_failed(order, error, now)
            return
        self.given_up(order, now)
        with self._lock:
            lane.setup_losses += 1

    def reached(self, order: Order) -> None:
        """The server has let us in; the connection is not made ready yet."""
        with self._lock:
            reached(order)
        for lane in self.lanes(order.lane.endpoint):
            if lane.group.waiters:  # type: ignore[attr-defined]
                lane.group.wish()

    def cancelled(self, order: Order) -> bool:
        """The attempt was given up by us: no evidence. False: it has been answered already, and nothing is done."""
        with self._lock:
            return free(order)

    def given_up(self, order: Order, now: float) -> None:
        """Its caller was in a hurry: no evidence, but the next one in a hurry shall not dial again at once."""
        self.cancelled(order)
        self.put_off(order.lane, now)

    def hindered(self, order: Order, error: str, now: float) -> None:
        """An error of our own got in the way: no evidence, but words for those who wait in vain. Tried again."""
        self.cancelled(order)
        lane, endpoint = order.lane, order.lane.endpoint
        first, longest = BACKOFF_ELSE
        with self._lock:
            lane.next_try = max(lane.next_try, now + backoff(first, longest, lane.hindrances, self._random))
            lane.hindrances += 1
            if endpoint.fault is None:
                endpoint.last_error, endpoint.last_error_at = error, now

    def put_off(self, lane: Lane, now: float) -> None:
        """Open the next connection there a little later, as after one that a user's `check` did not like."""
        with self._lock:
            lane.next_try = max(lane.next_try, now + backoff(URGENT, URGENT, 0, self._random))

    # -- evidence from sessions -----------------------------------------------------------------------------------

    def reported(
        self, slot: Slot, report: Report, now: float, identity: Identity | None = None, *, refused: bool = False
    ) -> None:
        """A session that said one thing of its server now says another; or it `refused` a write with 25006."""
        belief = self._belief
        with self._lock:
            if belief.by_itself(slot, report):  # only this one is read only, and a new one is not
                slot.expires = min(slot.expires, LEFT)
                self._reroute(now)
                return
            doubted, look = slot.lane.endpoint.doubted, False
            endpoint, target = slot.lane.endpoint, slot.lane.group.settings.target_session_attrs
            changed = belief.told(slot, report, identity, now)
            if not endpoint.pooled and fit(target, report) is None:  # whatever others say, who may have met another
                slot.expires = min(slot.expires, LEFT)
            if refused:
                news, look = belief.refused(slot, report, now, monitored=self.monitored)
                changed |= news
                if look and target != "any":  # it was the second choice; the first may be at any endpoint
                    self._refused_until = now + SECOND_CHOICE
            if changed:
                self._reroute(now)
        if changed or look or (slot.lane.endpoint.doubted and not doubted):
            self._stir()

    def session_lost(self, slot: Slot, sqlstate: str | None, error: str, now: float) -> bool:
        """A session broke. Returns whether the idle sessions of the endpoint should be looked at."""
        fault = session_fault(sqlstate)
        if fault is None or slot.generation != slot.lane.generation:
            return False
        endpoint = slot.lane.endpoint
        with self._lock:
            slot.server.lost = True
            self._update(endpoint, now, partial(endpoint.suspected, error, now, explains=sqlstate is not None))
            if fault is Fault.CRASHED:
                self._raise_generation(endpoint, "broken")
                self._reroute(now)
        self._stir()
        return fault is not Fault.CRASHED

    def silent(self, endpoint: Endpoint, error: str, now: float) -> None:
        """A session got no answer in time to a question of ours: nothing there will."""
        with self._lock:
            # With a monitor it is for the probes to say whether it was the server, or only the way of this session.
            tell = endpoint.suspected if self.monitored else endpoint.silent
            self._update(endpoint, now, partial(tell, error, now))
            self._raise_generation(endpoint, "broken")
            self._reroute(now)
        self._stir()

    def waits(self, endpoint: Endpoint, error: str, now: float, *, speaks: bool = False) -> bool:
        """A pooler lets us in, and what was asked was not answered. Returns whether what is behind it is dead.

        That is how a server is seen that is gone, but also one whose connections are all in use, and a PAUSE.
        """
        with self._lock:
            if self.closed:
                return False
            if speaks or endpoint.waits_since is None:
                endpoint.waits_since = None if speaks else now
            # It may be the pooler itself that hangs: one connect that is not answered either is enough then.
            endpoint.misses = 0 if speaks else min(endpoint.misses + 1, self.fall - 1)
            lasted = 0.0 if endpoint.waits_since is None else now - endpoint.waits_since
            endpoint.mute = lasted >= WAITS_LEAST
            down, dead = lasted >= WAITS_DOWN, lasted >= WAITS_DEAD
            tell = (
                partial(endpoint.silent, error, now, Fault.WAITING) if down else partial(endpoint.suspected, error, now)
            )
            self._update(endpoint, now, tell)
            if dead:
                self._raise_generation(endpoint, "broken")
                self._abort(endpoint)
            self._reroute(now)
            if down:
                self._note_outage(endpoint, error, now)
        self._stir()
        return dead

    # -- evidence from probes -------------------------------------------------------------------------------------

    def probed(
        self, endpoint: Endpoint, sighting: Sighting, seconds: float, now: float, since: float | None = None
    ) -> bool:
        """A probe was answered, after so many seconds. Returns whether it changed anything.

        `since` is when the connection was made on which it was asked: for this probe, unless it is given.
        """
        with self._lock:
            if self.closed:
                return False
            changed = endpoint.health is not Health.UP or endpoint.fault is not None
            if sighting.report.role is not Role.UNKNOWN:
                endpoint.pooled = sighting.pooled
            self._update(endpoint, now, partial(endpoint.answered, seconds, now))
            if sighting.position is not None:
                endpoint.position = sighting.position
            for lane in self.lanes(endpoint):
                lane.latency.observe_probe(seconds, now)
            if sighting.spread is not None and sighting.spread is not endpoint.spread:
                endpoint.spread, changed = sighting.spread, True
                self._belief.leave(endpoint)
            report, identity, *_ = sighting
            doubted = endpoint.doubted
            changed |= self._belief.met(endpoint, report, identity, now if since is None else since, now)[1]
            if changed:
                self._reroute(now)
        if endpoint.doubted and not doubted:
            self.alarm()
        return changed

    def probe_failed(self, endpoint: Endpoint, fault: Fault, error: str, now: float, *, speaks: bool = False) -> bool:
        """A probe failed: with `TIMEOUT` it was not answered, else a connection for it could not be had.

        If the endpoint `speaks`, its sessions have been answered meanwhile: then something is wrong, but it is alive.
        Returns whether there is anything new, or anything to do because of it.
        """
        if fault is Fault.WAITING:
            self.waits(endpoint, error, now, speaks=speaks)
            return True
        with self._lock:
            if self.closed:
                return False
            events = len(self.events)
            if speaks:
                endpoint.misses = 0
            elif fault in MISSES:
                endpoint.misses += 1
            dead = endpoint.misses >= self.fall
            if fault is not Fault.TIMEOUT and not (dead and fault in SILENT):
                changed = self._connect_failed(endpoint, fault, error, now)
            elif dead:
                self._update(endpoint, now, partial(endpoint.silent, error, now, fault))
                self._raise_generation(endpoint, "broken")
                changed = self._reroute_if_changed(endpoint, now)
                changed |= self._note_outage(endpoint, error, now)
            else:
                before = endpoint.health
                self._update(endpoint, now, partial(endpoint.suspected, error, now))
                changed = endpoint.health is not before
            if dead:
                self._abort(endpoint)
            return changed or bool(self.aborts) or len(self.events) != events

    def _abort(self, endpoint: Endpoint) -> None:
        for lane in self.lanes(endpoint):
            if lane.slots:
                idle = set(snapshot(lane.idle))
                self._list_aborts(slot for slot in tuple(lane.slots) if slot not in idle)

    def _list_aborts(self, slots: Iterable[Slot]) -> None:
        self.aborts.extend(slot for slot in slots if slot not in self.aborts)

    def deserted(self, endpoint: Endpoint, address: str, error: str, now: float) -> None:
        """One of the addresses of its name gives no answer: sessions there are given up, the endpoint is not."""
        with self._lock:
            if self.closed:
                return
            self._update(endpoint, now, partial(endpoint.suspected, f"{address}: {error}", now))
            for lane in self.lanes(endpoint):
                idle = set(snapshot(lane.idle))
                there = [slot for slot in tuple(lane.slots) if slot.address == address]
                for slot in there:
                    slot.expires = min(slot.expires, DESERTED)
                self._list_aborts(slot for slot in there if slot not in idle)
                lane.group.drop_idle(lane, lambda slot: slot.expires == DESERTED, "broken")
            self._reroute(now)
        self._stir()

    def doubts(self, endpoint: Endpoint) -> bool:
        """Whether only a new connection can tell what the endpoint's name leads to.

        An older one contradicts the newest, or a session has refused a write; the name has led to another system, and
        may come back; or what is known of the endpoint leaves a group without what it wants, and its name may lead
        elsewhere now.
        """
        if endpoint.doubted or self._belief.unsettled(endpoint):
            return True
        return any(_missing(lane.group) for lane in self.lanes(endpoint) if lane.rank in (None, 2))

    def urgent(self, endpoint: Endpoint, now: float) -> bool:
        """Whether such a doubt should be resolved soon: a caller has to wait, or to do without, until then."""
        return now < endpoint.refused_until or endpoint.systems.urgent or self.searching(now)

    def searching(self, now: float) -> bool:
        """Whether some group finds no endpoint, or only one that refuses what it is asked: probes should hurry."""
        since = self._missing_since  # read once: it may be None the next moment
        lost = [group for group in self.groups if not (group.route or group.paused or group.closed)]
        wanted = now < self._refused_until or any(group.waiters for group in lost)
        return wanted or (since is not None and now < since + _SEARCH_PATIENCE)

    # -- belief -----------------------------------------------------------------------------------------------------

    def _update(self, endpoint: Endpoint, now: float, change: Callable[[], None]) -> None:
        """Let the endpoint's health change; note the event, and look more closely where something broke."""
        before, down_since = endpoint.health, endpoint.down_since
        change()
        if endpoint.health is not before:
            lasted = now - down_since if down_since is not None and endpoint.health is Health.UP else None
            words = f"{endpoint.label} is {endpoint.health.value}"
            if endpoint.health is not Health.UP:
                words += f": {' '.join((endpoint.last_error or '').split())}"
            elif lasted is not None:
                words += f" again after {lasted:.1f} s"
            # That all begin as suspect is no news.
            self._news.note(EventKind(f"endpoint-{endpoint.health.value}"), endpoint, words, lasted)
        said = endpoint.health is not before
        if endpoint.fault is None:
            self._outages.over(endpoint, now, said=said and before is Health.DOWN)
        else:
            self._outages.lasts(endpoint, endpoint.fault.value, endpoint.last_error, now, said=said)
        self._set_poll_after(endpoint)

    def _raise_generation(self, endpoint: Endpoint, reason: str) -> None:
        """No connection there may be used again, nor one that is on its way."""
        for lane in self.lanes(endpoint):
            if lane.open or lane.slots or lane.places:
                lane.group.retire_lane(lane, reason)

    def _set_poll_after(self, endpoint: Endpoint) -> None:
        """Where something broke, look at every socket before it is handed out, however short its rest.

        So where a pooler is in between and no monitor asks: a caller's turn comes to ask, now and then.
        """
        sound = endpoint.health is Health.UP and (self.monitored or not endpoint.pooled)
        for lane in self.lanes(endpoint):
            after = lane.group.poll_after
            look = not sound and after != float("inf")  # a group that never looks does not here either
            lane.poll_after = 0.0 if look else after
            if look:
                for slot in snapshot(lane.idle):
                    slot.fresh_until = 0.0

    def note(self, event: Event) -> None:
        """Something happened that is no evidence."""
        with self._lock:
            self._news.record(event)

    # -- routes -------------------------------------------------------------------------------------------------

    def reroute(self, now: float) -> None:
        """Compute all routes again."""
        with self._lock:
            self._reroute(now)

    def drain(self, group: Group, now: float) -> None:
        """Replace all connections of a group: idle ones now, leased ones when they come back."""
        with self._lock:
            for lane in group.lanes:
                group.retire_lane(lane, "drained")
            self._reroute(now)  # where only the sessions suited the group it has to go elsewhere

    def tend(self, now: float) -> float:
        """Let the share of those that came back grow, and old latencies fade. Returns when to look again."""
        with self._lock:
            if not self.monitored:
                for group in self.groups:
                    for lane in group.lanes:
                        lane.latency.fade(now)
            for endpoint in self.endpoints:
                if any(lane.share != endpoint.share(now) for lane in self.lanes(endpoint)):
                    self._reroute(now)
                    break
            return min(endpoint.next_step(now) for endpoint in self.endpoints)

    def _reroute_if_changed(self, endpoint: Endpoint, now: float) -> bool:
        """Compute the routes unless those that we have come from the same. Returns whether that was necessary.

        What is gone says so again with each attempt, and a pool may have hundreds of lanes.
        """
        if self._routed.get(endpoint) == self._standing(endpoint):
            return False
        self._reroute(now)
        return True

    def _standing(self, endpoint: Endpoint) -> object:
        """All in which a failed attempt may change what the groups get there."""
        return endpoint.standing, [lane.open > 0 for lane in self.lanes(endpoint)]

    def _reroute(self, now: float | None = None) -> None:
        self._routed = {}
        for group in self.groups:
            tiers = routes.tiers(group)
            if not group.settings.spill:
                tiers = tiers[:1]
            for lane in group.lanes:
                lane.eligible = any(lane in tier for tier in tiers)
            if group.closed or group.paused:
                tiers = []
            weighted = False
            for lane in group.lanes:
                lane.live = any(lane in tier for tier in tiers)
                if now is not None:
                    weighted |= lane.set_share(lane.endpoint.share(now))
            if weighted or tiers != [list(tier.lanes) for tier in group.route]:
                group.lead(tuple(Tier(tier, group.policy) for tier in tiers))
            if tiers:
                for lane in group.lanes:
                    if lane.searches:
                        lane.searches = 0
                        lane.next_try = 0.0
            group.refusal = routes.refusal(group)
            if group.refusal is not None and not tiers and not group.paused:
                group.fail_waiters(partial(DBOfflineError, group.refusal))
            group.match(locked=True)
        if now is not None:
            self._news.look_for_primaries(self.endpoints, now)
            missing = any(not (group.route or group.paused or group.closed) for group in self.groups)
            if not missing:
                self._missing_since = None
            elif self._missing_since is None:
                self._missing_since = now
            self._routed = {endpoint: self._standing(endpoint) for endpoint in self.endpoints}

    # -- what to open -------------------------------------------------------------------------------------------

    def plan(self, now: float, only: Group | None = None, demand: int | None = None) -> list[Order]:
        """The connections to open now, their places reserved. See `Planner.plan`."""
        with self._lock:
            orders = [] if self.closed else self._planner.plan(now, only, demand)
            lost = [group for group in self.groups if group.waiters and not (group.route or group.paused)]
            called, self._called = self._called, bool(lost) and self.monitored
        if self._called and not called:  # somebody has begun to wait for what only a probe can find
            self.alarm()
        return orders

    def due(self, now: float, only: Group | None = None) -> float:
        """When `plan` could have something new to say though nothing happens."""
        with self._lock:
            return self._planner.due(now, only)

    def order(self, group: Group, lane: Lane, now: float) -> Order:
        """An order that the plan did not give."""
        with self._lock:
            return self._planner.order(group, lane, now)

    def unreachable(self, group: Group) -> str:
        """Why a group can use no endpoint: a few words for each."""
        return routes.unreachable(group)


def _missing(group: Owner) -> bool:
    """Whether a group does not get what it wants: nothing at all, or its second choice."""
    if group.paused or group.closed:
        return False
    return not group.route or all(lane.rank == 2 for lane in group.route[0].lanes)
