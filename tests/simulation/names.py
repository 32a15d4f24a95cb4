"""Names, and the servers that they lead to; and what is promised where a name moves.

The promise is written from what really is so: whoever is the primary, which timeline it is on, and which session has
reached whom. Nothing of core's own beliefs is asked.
"""

from __future__ import annotations

from random import Random

from pgdbpool.core.evidence import Role

from .clock import Clock
from .servers import PRIMARY, STANDBY, Server, Session
from .shared import Violation

# s after the pool has opened a session with the new primary, after which no statement goes to the old one: the promise
# is 10 ms; and a thread may lose the processor a few times on its way, for up to 2 ms each time.
ALLOWED = 0.010 + 0.010
TAKES_STANDBYS = frozenset({"any", "standby", "read-only", "prefer-standby"})


class Names:
    """Where each name leads: to one server, or to several in turn."""

    def __init__(self, servers: dict[str, Server], clock: Clock, random: Random) -> None:
        self._leads = {name: [server] for name, server in servers.items()}
        self._left: dict[str, set[Server]] = {name: set() for name in servers}
        self._clock = clock
        self._random = random
        self.moved = False  # any of them, ever
        self.moved_at = dict.fromkeys(servers, float("-inf"))

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._leads)

    def reached(self, name: str) -> Server:
        """Whom a new connection reaches."""
        return self._random.choice(self._leads[name])

    def leads(self, name: str) -> list[Server]:
        """All whom a new connection may reach."""
        return self._leads[name]

    def left(self, name: str) -> set[Server]:
        """Those to whom it has led, and does not any more."""
        return self._left[name]

    def move(self, name: str, *servers: Server) -> None:
        self._left[name] = {*self._left[name], *self._leads[name]} - set(servers)
        self._leads[name] = list(servers)
        self.moved = True
        self.moved_at[name] = self._clock.now

    def leading_to(self, server: Server) -> list[str]:
        return [name for name, servers in self._leads.items() if server in servers]

    def settle(self) -> None:
        """Each leads to one server from now on."""
        for name, servers in self._leads.items():
            one = self._random.choice(servers)
            if servers != [one]:
                self.move(name, one)


class Promotions:
    """Which promotions the pool has met, by sessions that it has opened; and what must not be from then on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._met: dict[int, list[tuple[int, float]]] = {}  # system -> timelines of primaries, and when first met
        self.lied = False  # some session was told something else than what is so

    def opened(self, session: Session) -> None:
        server = session.server
        if session.mask is None and server.report.role is Role.PRIMARY:
            met = self._met.setdefault(server.system, [])
            if server.timeline not in [timeline for timeline, _ in met]:
                met.append((server.timeline, self._clock.now))

    def overtaken(self, server: Server) -> bool:
        """Whether the pool has opened a session with a newer primary of the same cluster."""
        newest = max((timeline for timeline, _ in self._met.get(server.system, ())), default=0)
        return server.report.role is Role.PRIMARY and newest > server.timeline

    def overtaken_for(self, session: Session) -> float:
        """Seconds since the pool has opened a session with a newer primary than that of this one."""
        server = session.server
        if session.masked or server.report != PRIMARY or session.began_as != PRIMARY:
            return 0.0  # of a promotion since then the pool may not have heard
        newer = [at for timeline, at in self._met.get(server.system, ()) if timeline > server.timeline]
        return self._clock.now - min(newer) if newer else 0.0

    def sends(self, session: Session) -> None:
        """A statement of a user's goes out."""
        late = self.overtaken_for(session)
        if late > ALLOWED and not session.aborted:
            raise Violation(f"{session}: a statement goes to the old primary {late:.4f} s after the new one was met")

    def driven_out(self, session: Session, target: str, reason: str) -> None:
        """A session is closed because of its server."""
        server = session.server
        if reason not in ("role", "fenced") or target not in TAKES_STANDBYS or self.lied or session.masked:
            return
        if target == "any" and session.refused:  # it was asked for what only another server would do
            return
        if server.report == STANDBY and server.standby_since <= session.born and server.running and session.alive:
            raise Violation(f"{session} is with a standby, and was driven out of a group for {target}: {reason}")
