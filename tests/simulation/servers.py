"""Servers, and their ends of the connections.

A server is what decides how it answers: does its host have power, do packets get through, does its process run, is it
frozen, starting, full, has it another password; what is its role, and does it tell the truth about it. Whoever changes
one of these calls `Server.changed`, and all that wait for an answer look again.

A session that ends is heard of at the other side only if the goodbye gets through: not from a host without power, and
not over a cut line. What the kernel finds out later (keepalives, a reset by a host that came back) is here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from pgdbpool.core.evidence import Report, Role
from pgdbpool.drivers import Conduct

from .clock import Bell, Clock

PRIMARY = Report(Role.PRIMARY)
STANDBY = Report(Role.STANDBY)
READ_ONLY = Report(Role.PRIMARY, read_only=True)
UNKNOWN = Report(Role.UNKNOWN)

KEEPALIVE = 19.0  # s after which the kernel gives up an idle connection on a dead line: 10 + 3 * 3
RESET = 10.0  # s within which a keepalive finds that the other side has forgotten the connection


class Session:
    """One connection, both ends of it."""

    __slots__ = (
        "aborted",
        "alive",
        "altered",
        "began_as",
        "bell",
        "born",
        "broken",
        "busy",
        "closed",
        "conduct",
        "heard",
        "in_transaction",
        "in_use",
        "mask",
        "masked",
        "name",
        "number",
        "on_goodbye",
        "refused",
        "server",
        "told",
        "told_at",
        "words",
    )

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.name = ""  # by which it was reached
        self.alive = True  # as the server sees it
        self.words: str | None = None  # SQLSTATE of the goodbye
        self.told = False  # the goodbye has arrived: the socket is readable
        self.told_at = 0.0
        self.broken = False  # and we know it, because we asked
        self.closed = False  # by us
        self.aborted = False  # its socket was shut down by us, from another thread
        self.busy = False  # in the middle of a statement
        self.in_use = False  # in a statement of a user's
        self.in_transaction = False
        self.refused = False  # a write
        self.altered = False  # its user has changed how its transactions are
        self.conduct: Conduct | None = None
        self.born = 0.0
        self.began_as = UNKNOWN  # what its server was when it was opened
        self.masked = False  # ever
        self.mask: Report | None = None  # it leads to another server, which says this
        self.heard = UNKNOWN  # what the session has last said of its server
        self.bell = Bell()
        self.on_goodbye: Callable[[], None] | None = None

    def answer(self) -> None:
        """With each answer comes what the server says of itself."""
        self.heard = self.server.report if self.mask is None else self.mask

    def takes_writes(self) -> bool:
        return (self.server.report if self.mask is None else self.mask) == PRIMARY

    def stir(self) -> None:
        """Whoever waits for an answer looks again."""
        if self.bell.task is not None:
            self.bell.ring()

    def abort(self) -> None:
        self.aborted = True
        self.stir()

    def close(self) -> None:
        self.closed = True
        self.alive = False
        self.on_goodbye = None
        self.server.sessions.pop(self, None)

    def __str__(self) -> str:
        return f"{self.server.label}#{self.number}"


@dataclass(frozen=True)
class Truth:
    """What a server is, when it is well."""

    report: Report
    system: int
    timeline: int


class Server:
    """One PostgreSQL server, its host, and the line to it."""

    def __init__(self, label: str, clock: Clock, random: Random, latency: float, truth: Truth) -> None:
        self.label = label
        self.latency = latency
        self._report = truth.report
        self.system = truth.system
        self.timeline = truth.timeline
        self.position = 0
        self.standby_since = 0.0 if truth.report == STANDBY else float("inf")
        self.started = 1_000_000 * int(label.removeprefix("db"))  # of each start another, as of each server
        self.power = True
        self.cut = False
        self.running = True
        self.starting = False
        self.frozen = False
        self.full = False
        self.locked = False  # another password
        self.deaf = False  # connects are not answered; those it has let in are
        self.lying = False
        self.loss = 0.0  # share of messages that have to be sent again
        self.sessions: dict[Session, None] = {}  # in the order they were opened; those not closed by us
        self.visitors: dict[Bell, None] = {}  # connects under way
        self.outages = 0
        self.silent_since: float | None = None  # it has given no answer since, and will not
        self._clock = clock
        self._random = random
        self._opened = 0

    @property
    def report(self) -> Report:
        return self._report

    @report.setter
    def report(self, report: Report) -> None:
        if report != self._report:
            self.standby_since = self._clock.now if report == STANDBY else float("inf")
        self._report = report

    @property
    def reachable(self) -> bool:
        return self.power and not self.cut

    @property
    def well(self) -> bool:
        answers = self.reachable and self.running and not (self.frozen or self.deaf)
        return answers and not (self.starting or self.full or self.locked)

    def delay(self, round_trips: float = 1.0) -> float:
        """Seconds for so many round trips, with luck or without."""
        seconds = self.latency * round_trips * (0.8 + 0.4 * self._random.random())
        if self.loss and self._random.random() < self.loss:
            seconds += 0.2 + 0.8 * self._random.random()
        return seconds

    def accept(self) -> Session:
        self._opened += 1
        session = Session(self, self._opened)
        session.born, session.began_as = self._clock.now, self.report
        if self.lying:
            session.mask = self._random.choice([PRIMARY, STANDBY, STANDBY, READ_ONLY, UNKNOWN])
            session.masked = True
        session.answer()
        self.sessions[session] = None
        return session

    # -- what happens to it -------------------------------------------------------------------------------------

    def changed(self) -> None:
        silent = self.frozen or not self.reachable
        self.silent_since = (self.silent_since or self._clock.now) if silent else None
        for session in self.sessions:
            session.stir()
        for bell in self.visitors:
            if bell.task is not None:
                bell.ring()

    def end(self, session: Session, words: str | None) -> None:
        """One session ends, and says so if it can."""
        if session.alive:
            session.alive = False
            session.words = words
            if self.reachable:
                self._clock.after(self.delay(0.5), lambda: self._goodbye(session))
            session.stir()

    def _goodbye(self, session: Session) -> None:
        if not session.told and not session.closed and not session.alive:
            session.told = True
            session.told_at = self._clock.now
            if session.on_goodbye is not None:
                session.on_goodbye()

    def stop(self, words: str | None) -> None:
        """The process ends, and with it its sessions."""
        self.running = self.starting = self.frozen = False
        for session in tuple(self.sessions):
            self.end(session, words)
        self.changed()

    def start(self, recovery: float) -> None:
        """The process begins, and recovers for a while."""
        if self.running:
            return
        self.running = self.power = True
        self.started += 1
        self.starting = recovery > 0
        if self.starting:
            self._clock.after(recovery, self.recovered)
        self.changed()

    def recovered(self) -> None:
        self.starting = False
        self.changed()

    def power_off(self) -> None:
        self.power = False
        self.stop(None)
        self._silence()

    def power_on(self) -> None:
        if self.power:
            return
        self.power = True
        for session in self.sessions:  # it knows nothing of them
            if not session.told:
                self._later(session, RESET)
        self.changed()

    def cut_off(self) -> None:
        self.cut = True
        self.changed()
        self._silence()

    def reconnect(self) -> None:
        self.cut = False
        for session in self.sessions:
            if not session.alive and not session.told:
                self._later(session, RESET)
        self.changed()

    def _later(self, session: Session, most: float) -> None:
        self._clock.after(most * self._random.random(), lambda: self._goodbye(session))

    def _silence(self) -> None:
        """Nothing gets through. After a while the kernel gives up what rests."""
        self.outages += 1
        outage = self.outages

        def give_up() -> None:
            if self.outages == outage and not self.reachable:
                for session in tuple(self.sessions):
                    session.alive = False
                    self._goodbye(session)

        self._clock.after(KEEPALIVE, give_up)

    def freeze(self) -> None:
        if self.running:
            self.frozen = True
            self.changed()

    def thaw(self) -> None:
        self.frozen = False
        self.changed()
