"""What can be asked of a server over the network, and how long it may take.

These are the driver's blocking calls, as steps of a task. Each has a deadline; an answer comes when the server is
reachable, runs, and is not frozen, for as long as that takes. What was sent into a cut line is sent again by TCP after
it healed, unless the kernel gave up before.
"""

from __future__ import annotations

from pgdbpool.core.evidence import Fault

from .clock import FOREVER, Bell, Clock, Steps
from .servers import Server, Session

USER_TIMEOUT = 10.0  # s that sent data may stay unacknowledged
RESEND = 1.0  # s, at most, until TCP tries again on a line that healed


class ConnectFailed(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Lost(Exception):
    """The session is gone."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(f"the connection was lost ({sqlstate})")
        self.sqlstate = sqlstate


class NoAnswer(Exception):
    """Not in time."""

    sqlstate = None


def connect(clock: Clock, server: Server, deadline: float, random: float) -> Steps:
    """A Session. Raises ConnectFailed. `random` decides how soon TCP tries again."""
    bell = Bell()
    server.visitors[bell] = None
    arrives = clock.now + server.delay(3)
    refused = clock.now + server.delay(0.5)
    delayed = False
    try:
        while True:
            now = clock.now
            if not server.reachable:
                delayed = True
            elif delayed:
                delayed = False
                arrives = refused = max(arrives, now + RESEND * random)
            if server.reachable:
                if not server.running and now >= refused:
                    raise ConnectFailed(Fault.REFUSED)
                if server.running and not server.frozen and now >= arrives:
                    return _greet(server)
            if now >= deadline:
                raise ConnectFailed(Fault.TIMEOUT)
            yield bell, min([at for at in (refused, arrives) if at > now] + [deadline])
    finally:
        del server.visitors[bell]


def _greet(server: Server) -> Session:
    if server.starting:
        raise ConnectFailed(Fault.STARTING)
    if server.locked:
        raise ConnectFailed(Fault.MISCONFIGURED)
    if server.full:
        raise ConnectFailed(Fault.FULL)
    return server.accept()


def ask(clock: Clock, session: Session, deadline: float, random: float, work: float = 0.0) -> Steps:
    """One round trip, of which the server works for so long. Raises Lost or NoAnswer: of no further use, then."""
    try:
        yield from _answer(clock, session, deadline, random, work)
    except BaseException:
        session.broken = True
        raise


def _answer(clock: Clock, session: Session, deadline: float, random: float, work: float) -> Steps:
    server = session.server
    arrives = clock.now + server.delay() + work
    unacknowledged: float | None = None
    while True:
        now = clock.now
        if session.aborted or session.closed:
            raise Lost(None)
        if not server.reachable:
            if unacknowledged is None:
                unacknowledged = now
            elif now >= unacknowledged + USER_TIMEOUT:
                raise Lost(None)
        else:
            if unacknowledged is not None:
                unacknowledged = None
                arrives = max(arrives, now + RESEND * random)
            if session.told:
                raise Lost(session.words)
            if now >= arrives and not session.alive:
                raise Lost(session.words)
            if now >= arrives and not server.frozen:
                session.answer()
                return
        if now >= deadline:
            raise NoAnswer
        limit = FOREVER if unacknowledged is None else unacknowledged + USER_TIMEOUT
        yield session.bell, min([at for at in (arrives, limit, deadline) if at > now])
