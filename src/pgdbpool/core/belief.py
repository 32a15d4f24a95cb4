"""Belief: what looks at servers say, and which connections have to go because of it.

A look is what a new session, a probe, or a session that has changed its mind says of its server. A new connection tells
most: it shows what the endpoint's name leads to now. One that was made earlier tells only of the server that it has
reached; where that contradicts the belief, the endpoint is *doubted*, and the monitor makes a new connection at once.
Which sessions may stay where servers have changed is written in `server`.

All methods are called with the pool's lock held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from . import routes
from .endpoint import Endpoint
from .events import EventKind
from .evidence import Identity, Report, Role, Sighting
from .group import LEFT, OVERTAKEN, Group
from .lane import Lane, Slot
from .news import News
from .server import Server, leaves, suits
from .snapshot import snapshot
from .systems import SEVERAL

# s after which a session that refuses a write is replaced, at the earliest; and at least so long between two looks at
# an endpoint because of that.
SECOND_CHOICE = 1.0
KEEP = 150.0  # s for which a server is remembered that new connections do not reach any more, and that has no sessions


class Belief:
    """What is believed of the servers behind the endpoints of one pool."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        lanes: Mapping[Endpoint, Sequence[Lane]],
        news: News,
        abort: Callable[[Iterable[Slot]], None],
    ) -> None:
        self._endpoints = endpoints
        self._lanes = lanes  # all that lead to an endpoint
        self._news = news
        self._abort = abort  # called with leased slots whose calls are to be ended

    # -- looks ------------------------------------------------------------------------------------------------------

    def met(
        self, endpoint: Endpoint, report: Report, identity: Identity | None, since: float, now: float
    ) -> tuple[Server, bool]:
        """A connection that was made at `since` says where it leads. Returns the server, and whether that is news."""
        current = endpoint.server
        if report.role is Role.UNKNOWN:
            return current, False
        forgot = self._forget(endpoint, now)
        if endpoint.pooled:  # who answers this session now need not have been there when it was made
            since = now
        newest = since >= endpoint.since
        fresh = since > endpoint.since
        if fresh:
            endpoint.doubted = False
        # Who answers one session through a pooler may answer any other next: all go by the newest answer.
        merged = endpoint.pooled and not self._overtakes(endpoint, report, identity)
        server = current if merged else endpoint.server_of(identity)
        if identity is not None and report.role is Role.PRIMARY:
            highest = max(identity.timeline, endpoint.newest.get(identity.system, 0))
            endpoint.newest[identity.system] = highest
        if server is current:
            if not newest and not self._counts(current, report, identity):
                endpoint.doubted = True
                return current, forgot
            changed = self._learned(endpoint, report, identity)
            if fresh and self._met_system(endpoint, identity, since):
                self._follow(endpoint)
                changed = True
            if fresh and endpoint.several:
                endpoint.repeats += 1
                if endpoint.repeats >= SEVERAL:
                    endpoint.several, changed = False, True
                    self.leave(endpoint)
        else:
            endpoint.repeats = 0
            changed = self._met_another(endpoint, server or Server(), report, identity, since, now, newest=newest)
            server = server or endpoint.server_of(identity)
        assert server is not None
        server.seen = now
        server.lost = False
        if newest and server is endpoint.server:
            endpoint.since = since
        return server, changed or forgot

    def rank(self, lane: Lane, sighting: Sighting) -> int | None:
        """How well a server of which nothing else is known yet would suit a lane; as `suits`."""
        report, identity, *_ = sighting
        seen = Server()
        seen.learn(report, identity)
        if identity is not None and (known := lane.endpoint.server_of(identity)) is not None:
            seen.demoted = known.demoted and report == known.report
            if report.role is known.report.role and not lane.endpoint.systems.has_left(identity):
                seen.fenced_by = known.fenced_by
        if routes.is_past(seen, self._endpoints):
            return None
        return suits(lane.group.settings.target_session_attrs, seen)

    def chosen(self, lane: Lane, server: Server, now: float) -> bool:
        """Of a name's addresses this is the best that a connect has found. Returns whether that is news."""
        target = lane.group.settings.target_session_attrs
        expected, rank = suits(target, lane.found), suits(target, server)
        if rank is None or (expected is not None and expected < rank):
            lane.missed = now
        elif lane.missed > float("-inf"):
            lane.missed = float("-inf")
        else:
            return False
        self._leave(lane)
        return True

    def _counts(self, server: Server, report: Report, identity: Identity | None) -> bool:
        """Whether the word of an older connection counts against that of a newer one.

        What a server is, all its sessions say; whether it takes writes may be a setting that each has found when it was
        opened. Where the servers do not say who they are, these may be two.
        """
        known = server.identity
        sure = known is not None and identity is not None and known.started is not None is not identity.started
        if report.role is not server.report.role:
            return sure
        return report == server.report

    def _overtakes(self, endpoint: Endpoint, report: Report, identity: Identity | None) -> bool:
        """Whether, of the server that is believed to be there and the one just met, one is a primary of the past."""
        current, known = endpoint.server, endpoint.server.identity
        if identity is None or known is None or known.system != identity.system:
            return False
        if current.report.role is Role.PRIMARY and identity.timeline > known.timeline:
            return True
        return report.role is Role.PRIMARY and identity.timeline < endpoint.newest.get(identity.system, 0)

    def _learned(self, endpoint: Endpoint, report: Report, identity: Identity | None) -> bool:
        """The server that the endpoint leads to says this of itself."""
        before = endpoint.role
        if not endpoint.server.learn(report, identity):
            return False
        self._note_role(endpoint, before)
        self._follow(endpoint)
        return True

    def _met_another(
        self,
        endpoint: Endpoint,
        server: Server,
        report: Report,
        identity: Identity | None,
        since: float,
        now: float,
        *,
        newest: bool,
    ) -> bool:
        """A connection leads to another server than the one that was believed to be there."""
        current = endpoint.server
        known_before = server in endpoint.others
        known = known_before and server.report.role is report.role
        returned = endpoint.systems.has_left(server.identity)  # to a system that it had left
        changed = server.learn(report, identity)
        if not known_before:
            endpoint.others.append(server)
            changed = True
        if not newest or (self._is_past(endpoint, server) and self._holds(endpoint, now)):
            endpoint.doubted = True
            if changed:
                self._follow(endpoint)
            return changed
        fenced = current.fenced_by is not None
        self._met_system(endpoint, identity, since)
        endpoint.several = (known_before and not returned) or (endpoint.several and len(endpoint.others) > 1)
        endpoint.others.remove(server)
        if not (current.lost or current.report.role is Role.UNKNOWN) or self._in_use(endpoint, current):
            endpoint.others.append(current)  # else it is gone: it has been replaced at this place
        endpoint.server = server
        if not known:  # else its name leads to several
            self._note_role(endpoint, current.report.role)
        self._follow(endpoint)
        if fenced and endpoint.fenced_by is None:
            self._news.note(EventKind.RECOVERED, endpoint, f"{endpoint.label} is no longer fenced")
        return True

    def _is_past(self, endpoint: Endpoint, server: Server) -> bool:
        if server in routes.overtaken(self._endpoints):
            return True
        return server.fenced_by is not None and not endpoint.systems.has_left(server.identity)

    def _met_system(self, endpoint: Endpoint, identity: Identity | None, since: float) -> bool:
        """A new connection has reached a server whose data it is. Returns whether that may change who stays."""
        return identity is not None and not endpoint.pooled and endpoint.systems.met(identity.system, since)

    def _holds(self, endpoint: Endpoint, now: float) -> bool:
        """Whether the server that the endpoint was last seen to lead to is not of the past, and still there."""
        server = endpoint.server
        if server.fenced_by is not None or server.report.role is Role.UNKNOWN:
            return False
        return now < server.seen + KEEP or self._in_use(endpoint, server)

    def told(self, slot: Slot, report: Report, identity: Identity | None, now: float) -> bool:
        """A session that said one thing of its server now says another. Returns whether that changes anything."""
        endpoint = slot.lane.endpoint
        if report.role is Role.UNKNOWN:
            return False
        if identity is not None and not slot.server.is_(identity):  # a pooler in between has gone elsewhere
            slot.server, changed = self.met(endpoint, report, identity, now, now)
        elif slot.server is endpoint.server:
            changed = self._learned(endpoint, report, identity)
        else:
            endpoint.doubted = True
            changed = slot.server.learn(report, identity)
            if changed:
                self._follow(endpoint)
        slot.read_only = report.read_only
        return changed

    def refused(self, slot: Slot, report: Report, now: float, *, monitored: bool) -> tuple[bool, bool]:
        """A session has refused a write, and says this of its server. A new connection may reach one that takes it.

        Returns whether that changes anything, and whether to see what a new connection would reach.
        """
        lane, endpoint = slot.lane, slot.lane.endpoint
        if report.role is not Role.STANDBY and not report.read_only:
            return False, False
        changed = False
        if report.role is Role.PRIMARY and not slot.server.demoted:
            slot.server.demoted = changed = True
            self.leave(endpoint)
        if now > slot.born + SECOND_CHOICE:
            slot.refused_write = True
            if monitored:
                self._leave(lane)  # it may be known already
            else:  # else nobody makes a new connection
                slot.expires = min(slot.expires, LEFT)
            changed |= slot.expires <= LEFT
        look = now >= endpoint.refused_until
        if look:
            endpoint.doubted = True
            endpoint.refused_until = now + SECOND_CHOICE
        return changed, look

    def by_itself(self, slot: Slot, report: Report) -> bool:
        """Whether a session is read only by a setting that it found, and that a newer one has not."""
        endpoint = slot.lane.endpoint
        return (
            report.read_only
            and slot.read_only
            and slot.server is endpoint.server
            and endpoint.report == Report(Role.PRIMARY)
        )

    def unsettled(self, endpoint: Endpoint) -> bool:
        """Whether new connections would tell if its name has left a system with which there are sessions."""
        systems = endpoint.systems
        return systems.unsettled and any(
            systems.is_another(slot.server.identity) for lane in self._lanes[endpoint] for slot in tuple(lane.slots)
        )

    # -- what follows -----------------------------------------------------------------------------------------------

    def _follow(self, endpoint: Endpoint) -> None:
        self._fence()
        self.leave(endpoint)

    def _note_role(self, endpoint: Endpoint, before: Role) -> None:
        role = endpoint.role
        if role is not before and Role.UNKNOWN not in (role, before):
            words = f"{endpoint.label} is a {role.value} now, and was a {before.value}"
            self._news.note(EventKind.ROLE_CHANGED, endpoint, words)

    def _fence(self) -> None:
        """Find the primaries of the past: a promotion has overtaken them, or their name has left their system."""
        overtaken = routes.overtaken(self._endpoints)
        for endpoint in self._endpoints:
            for server in endpoint.servers:
                why = _why_past(endpoint, server, overtaken.get(server))
                if why is not None and server.fenced_by is None:
                    self._fence_off(endpoint, server, why)
                elif why is None and server.fenced_by is not None:
                    server.fenced_by = None
                    if server is endpoint.server:
                        self._news.note(EventKind.RECOVERED, endpoint, f"{endpoint.label} is no longer fenced")
                    self.leave(endpoint)

    def _fence_off(self, endpoint: Endpoint, server: Server, why: str) -> None:
        server.fenced_by = why
        if server is endpoint.server:
            endpoint.looks, endpoint.next_look = 0, 0.0
            self._news.note(EventKind.FENCED, endpoint, f"{endpoint.label} is fenced, {server.fenced_by}")
        elif self._in_use(endpoint, server):
            words = f"connections of {endpoint.label} have {server.fenced_by}; they are ended"
            self._news.note(EventKind.FENCED, endpoint, words)
        self.leave(endpoint)
        # A COMMIT there may wait for ever for a standby that follows another now.
        for lane in self._lanes[endpoint]:
            idle = set(snapshot(lane.idle))
            self._abort(slot for slot in tuple(lane.slots) if slot not in idle and slot.server is server)

    def leave(self, endpoint: Endpoint) -> None:
        """Retire the connections of those groups that their servers no longer suit."""
        for lane in self._lanes[endpoint]:
            self._leave(lane)

    def _leave(self, lane: Lane) -> None:
        group: Group = lane.group  # type: ignore[assignment]
        target, found = group.settings.target_session_attrs, lane.found
        lane.rank = suits(target, found)
        if not lane.open + lane.opening:
            return
        slots = tuple(lane.slots)
        if lane.rank is None and all(slot.server is found for slot in slots):
            group.retire_lane(lane, "role" if found.fenced_by is None else "fenced")
            return
        for slot in slots:
            reason = leaves(
                target,
                slot.server,
                found,
                read_only=slot.read_only,
                refused=slot.refused_write,
                moved=lane.endpoint.systems.leads_away(slot.server.identity),
            )
            if reason is not None:
                slot.expires = min(slot.expires, LEFT if reason == "role" else OVERTAKEN)
        group.drop_idle(lane, lambda slot: slot.expires == LEFT, "role")
        group.drop_idle(lane, lambda slot: slot.expires == OVERTAKEN, "fenced")

    def _forget(self, endpoint: Endpoint, now: float) -> bool:
        """Servers that nothing leads to any more are nothing to go by. Returns whether there were any."""
        if not endpoint.others:
            return False
        kept = [
            server
            for server in endpoint.others
            # Of one that was there before an outage nothing is known but its timeline, until the name leads somewhere.
            if (now < server.seen + KEEP and not server.lost and server.report.role is not Role.UNKNOWN)
            or self._in_use(endpoint, server)
        ]
        if len(kept) == len(endpoint.others):
            return False
        endpoint.others[:] = kept
        endpoint.several = endpoint.several and bool(kept)
        self._follow(endpoint)
        return True

    def _in_use(self, endpoint: Endpoint, server: Server) -> bool:
        return any(slot.server is server for lane in self._lanes[endpoint] for slot in lane.slots)


def _why_past(endpoint: Endpoint, server: Server, by: Endpoint | None) -> str | None:
    """Why a primary is of the past; None: it is not. `by`: the endpoint that shows that it was overtaken."""
    if by is not None:
        newer = f"{by.label} was promoted after it" if by is not endpoint else "its name has led to a newer one"
        return f"a primary of an old timeline: {newer}"
    if server.report.role is not Role.PRIMARY or not endpoint.systems.has_left(server.identity):
        return None
    # Else there may be no place to go yet.
    new = (other for other in endpoint.servers if not endpoint.systems.is_another(other.identity))
    if any(other.takes_writes and not other.report.read_only for other in new):
        return "a primary of another system: its name leads to a new one"
    return None
