"""A driver for servers that do not exist: what `pgdbpool.session` asks of a driver, in simulated time.

A call is answered when its server is reachable, runs, and is not frozen, and for as long as that takes. What was sent
into a cut line is sent again by TCP after it healed, unless the kernel gave up before. Where a thread could lose the
processor between two looks at a connection, it may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from pgdbpool.core.evidence import Fault, Identity, Report, Role, Sighting, connect_fault
from pgdbpool.drivers import Choice, Conduct, ConnectFailed, Doubt, DriverTimeout, NotWanted, Status

from .clock import FOREVER, Bell, Clock, hear
from .names import Names, Promotions
from .servers import Server, Session

USER_TIMEOUT = 10.0  # s that sent data may stay unacknowledged
RESEND = 1.0  # s, at most, until TCP tries again on a line that healed
INTERVAL = 0.25  # s between two looks at whether a connect is still wanted


class SimulatedError(Exception):
    """The driver's own errors."""


class Lost(SimulatedError):
    """The driver's own error: the session is gone."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(f"the connection was lost ({sqlstate})")
        self.sqlstate = sqlstate


class Refused(SimulatedError):
    """The driver's own error: the server does not do it, and the session goes on."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"refused ({sqlstate})")
        self.sqlstate = sqlstate


class SimulatedDriver:
    """The functions of `pgdbpool.drivers.Driver`."""

    Error = SimulatedError

    def __init__(
        self, clock: Clock, names: Names, promotions: Promotions, random: Random, others_run: Callable[[], None]
    ) -> None:
        self.clock = clock
        self.names = names
        self.promotions = promotions
        self.random = random
        self.others_run = others_run
        self.on_abort: Callable[[Session], None] = lambda session: None

    def address(self, conn: Session) -> str:
        return ""

    # -- connecting -----------------------------------------------------------------------------------------------

    async def connect(
        self,
        params: Mapping[str, str | int],
        autocommit: bool,
        deadline: float,
        wanted: Callable[[], bool] | None = None,
        conduct: Conduct | None = None,
        choice: Choice | None = None,
        **more: Any,
    ) -> Session:
        name = str(params["host"])
        session = await self._connect(self.names.reached(name), deadline, wanted or _always)
        session.name = name
        session.conduct = conduct
        return session

    async def _connect(self, server: Server, deadline: float, wanted: Callable[[], bool]) -> Session:
        clock = self.clock
        bell = Bell()
        server.visitors[bell] = None
        arrives, refused = clock.now + server.delay(3), clock.now + server.delay(0.5)
        delayed = False
        try:
            while True:
                now = clock.now
                if not server.reachable:
                    delayed = True
                else:
                    if delayed:
                        delayed = False
                        arrives = refused = max(arrives, now + RESEND * self.random.random())
                    if not server.running and now >= refused:
                        raise ConnectFailed("connection refused", Fault.REFUSED)
                    if server.running and not (server.frozen or server.deaf) and now >= arrives:
                        return _greet(server)
                if now >= deadline:
                    raise ConnectFailed("no answer in time", Fault.TIMEOUT)
                if not wanted():
                    raise NotWanted
                await hear(bell, min([at for at in (refused, arrives, now + INTERVAL, deadline) if at > now]))
        finally:
            del server.visitors[bell]

    # -- round trips ----------------------------------------------------------------------------------------------

    async def ask(self, session: Session, deadline: float, work: float = 0.0) -> None:
        """One round trip, of which the server works for so long. Raises Lost or DriverTimeout: it is broken then."""
        session.busy = True
        try:
            await self._answer(session, deadline, work)
        except Exception:
            session.broken = True
            raise
        session.busy = False

    async def _answer(self, session: Session, deadline: float, work: float) -> None:
        clock, server = self.clock, session.server
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
                    arrives = max(arrives, now + RESEND * self.random.random())
                if session.told or (now >= arrives and not session.alive):
                    raise Lost(session.words)
                if now >= arrives and not server.frozen:
                    session.answer()
                    return
            if now >= deadline:
                raise DriverTimeout("no answer in time")
            limit = FOREVER if unacknowledged is None else unacknowledged + USER_TIMEOUT
            await hear(session.bell, min(at for at in (arrives, limit, deadline) if at > now))

    async def execute(self, session: Session, work: float, *, writes: bool) -> None:
        """A statement of a user's, who waits for it as long as the pool's `Patience` lets him."""
        began, patience = self.clock.now, session.conduct and session.conduct.patience
        ended = FOREVER if patience is None or patience.limit is None else began + patience.limit
        session.in_use = True
        self.promotions.sends(session)
        try:
            await self.ask(session, ended, work)
        except DriverTimeout:
            raise Lost(None) from None
        finally:
            session.in_use = False
        if session.conduct is not None and session.conduct.observe is not None:
            session.conduct.observe(self.clock.now - began)
        if writes and not session.takes_writes():
            session.refused = True
            raise Refused("25006")

    async def ping(self, session: Session, deadline: float) -> None:
        await self.ask(session, deadline)

    async def statement(self, session: Session, text: str, deadline: float) -> None:
        await self.ask(session, deadline)

    async def report(self, session: Session, deadline: float, *, ask: bool = False) -> Report:
        if ask:
            await self.ask(session, deadline)
            return look(session).report
        self.others_run()
        return session.heard

    async def sight(self, session: Session, deadline: float, *, pooled: bool = False) -> Sighting:
        await self.ask(session, deadline)
        return look(session)

    async def says_read_only_itself(self, session: Session, deadline: float) -> bool:
        await self.ask(session, deadline)
        return False

    async def commit(self, session: Session) -> None:
        await self._end_transaction(session)

    async def rollback(self, session: Session) -> None:
        await self._end_transaction(session)

    async def _end_transaction(self, session: Session) -> None:
        await self.ask(session, FOREVER)
        session.in_transaction = False

    async def shown(self, session: Session) -> Session:
        return session

    async def adopt(self, session: Session, autocommit: bool) -> None:
        session.altered = False

    async def restore(self, session: Session) -> None:
        session.altered = False

    async def reset(self, session: Session, deadline: float) -> bool:
        await self.ask(session, deadline)
        return True

    def keep(self, session: Session, statements: Sequence[str]) -> None:
        raise AssertionError("nothing is SET after a connect here")

    def keep_prepared(self, session: Session) -> None:
        raise AssertionError("nothing is prepared here")

    async def note_prepared(self, session: Session, deadline: float) -> None:
        raise AssertionError("nothing is prepared here")

    def worn(self, session: Session) -> bool:
        return False

    def through_pooler(self, session: Session, begin_with: Sequence[bytes], *, own_server: bool) -> None:
        raise AssertionError("there are no poolers here")

    def write_refused(self, session: Session) -> bool:
        return False

    # -- a look ---------------------------------------------------------------------------------------------------

    def close(self, session: Session) -> None:
        session.close()

    def abort(self, session: Session, words: str = "") -> None:
        self.on_abort(session)
        session.abort()

    def quiet(self, session: Session) -> bool:
        self.others_run()
        return not session.told

    def status(self, session: Session) -> Status:
        self.others_run()
        if session.broken or session.aborted:
            return Status.BROKEN
        if session.closed:
            return Status.CLOSED
        if session.busy:
            return Status.BUSY
        return Status.IN_TRANSACTION if session.in_transaction else Status.IDLE

    def watch(self, session: Session, writes: bool) -> Callable[[float], bool]:
        said = session.heard

        def clean(now: float) -> bool:
            self.others_run()
            heard = session.heard
            same = heard == said if writes else heard.role is said.role
            return same and not (
                session.altered or session.busy or session.in_transaction or session.broken or session.closed
            )

        return clean

    def farewell(self, session: Session) -> Exception | None:
        self.others_run()
        return Lost(session.words) if session.told else None

    def in_doubt(self, session: Session) -> Doubt:
        return Doubt.NOTHING

    def closed_in_peace(self, session: Session) -> bool:
        return False

    def last_words(self, conn: Session) -> str | None:
        return None

    def sqlstate(self, error: BaseException) -> str | None:
        return error.sqlstate if isinstance(error, Lost | Refused) else None

    def listen_to_the_end(self, conn: Session) -> None: ...

    def words(self, error: BaseException, *, lost: bool) -> str | None:
        return str(error) if isinstance(error, Lost) or (isinstance(error, Refused) and not lost) else None

    def fault(self, error: BaseException) -> Fault | None:
        if isinstance(error, ConnectFailed):
            return error.fault
        if isinstance(error, DriverTimeout):
            return Fault.TIMEOUT
        return connect_fault(error.sqlstate) if isinstance(error, Lost | Refused) else None

    def at_work(self, session: Session) -> bool:
        return False  # a statement of its users ends by itself

    def given_up(self, session: Session) -> bool:
        return False

    async def ended(self, session: Session) -> None: ...

    async def cancel(self, session: Session, deadline: float) -> None: ...

    def cancel_now(self, session: Session, deadline: float) -> None: ...

    def describe(self, session: Session) -> str:
        return str(session)

    def descriptor(self, session: Session) -> int:
        return session.number

    def disown(self, session: Session) -> None:
        session.close()


def _always() -> bool:
    return True


def _greet(server: Server) -> Session:
    if server.starting:
        raise ConnectFailed("starting up", Fault.STARTING)
    if server.locked:
        raise ConnectFailed("password authentication failed", Fault.MISCONFIGURED)
    if server.full:
        raise ConnectFailed("too many clients", Fault.FULL)
    return server.accept()


def look(session: Session) -> Sighting:
    """What the server says of itself when asked."""
    server = session.server
    if session.heard.role is Role.UNKNOWN:
        return Sighting(session.heard)
    if session.mask is not None:  # another one: a standby of the same cluster, say
        return Sighting(session.heard)
    return Sighting(session.heard, Identity(str(server.system), server.timeline, server.started), server.position)
