"""The few things the pool asks of a driver, and the drivers that answer.

A driver is a module with the functions of `Driver`; the pool calls nothing else of it. Each of them is bounded:
whatever may wait for the server takes a deadline on the clock of `time.monotonic` and raises `DriverTimeout` at its
end. A connection whose answer did not come in time is of no further use, and the caller closes it.

What may wait is a coroutine. Those of `blocking` never suspend, and `blocking.run` carries them out; those of
`asynchronous` need an event loop. So the pools' dealings with a connection are written once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from enum import Enum, IntEnum
from functools import partial
from typing import Any, NamedTuple, Protocol

from ..config.secret import Secret
from ..core.evidence import Fault, Report, Sighting

Params = Mapping[str, str | int | Secret]
"""libpq's connection parameters."""


class LastWords(NamedTuple):
    """With which a server ends a connection."""

    sqlstate: str
    words: str


class Status(Enum):
    """What a session is doing, as the driver knows without asking the server."""

    IDLE = "idle"
    IN_TRANSACTION = "in transaction"
    BUSY = "busy"  # in the middle of a statement or a COPY
    PREPARED = "prepared"  # half-way through a two-phase commit: the transaction itself is the server's now
    CLOSED = "closed"  # by its user
    BROKEN = "broken"  # by the server or the network


class Doubt(IntEnum):
    """What was sent whose answer nobody has: the connection was lost or closed before, or a call interrupted."""

    NOTHING = 0  # that could have committed anything
    STATEMENT = 1  # one that stands for itself, unless a transaction was open of which only the server knew
    COMMIT = 2  # or something else that ends a transaction for good, by whatever way


COMMIT_NOTE = "pgdbpool: COMMIT was sent and its answer is lost: the transaction may or may not have been committed"


class ConnectFailed(Exception):
    """A connection could not be opened; `fault` says of what kind the reason is."""

    def __init__(self, message: str, fault: Fault, *, sqlstate: str = "", options_refused: bool = False) -> None:
        super().__init__(message)
        self.fault = fault
        self.sqlstate = sqlstate  # as far as the server's words tell
        self.options_refused = options_refused  # a pooler in between takes no startup options


class DriverTimeout(Exception):
    """The server did not answer in time."""


class NoServer(DriverTimeout):
    """A pooler had no server for it in time."""


class Unanswered(Exception):
    """The server is there and answers, and did not tell its role; the connection is as good as before."""


class NotWanted(Exception):
    """The attempt was given up because nobody wants its result any more."""


class Misfit(Exception):
    """The connection is there, and cannot be as its group wants it; nothing against the server."""


class Patience(NamedTuple):
    """How long a user's call may go without a word from the server, in seconds."""

    limit: float | None = None
    """Then the call is ended. None: never."""
    check_after: float = 1.0
    check: Callable[..., str | None] | None = None
    """Asked after so long, and each time the silence has doubled; words that say the server is dead end the call.

    It is told when the call ends anyway, and does not take longer; and as `address` the one that the connection has
    reached, where its name has several."""
    limited_by: str = ""
    """Which setting has set the limit: words for the caller."""
    checked_by: str = ""
    """When the check says that a server is dead: words for the caller."""


class Conduct(NamedTuple):
    """What the pool wants of the calls that users make on a connection."""

    patience: Patience | None = None
    observe: Callable[[float], None] | None = None
    """Told how many seconds each call took that succeeded."""

    def at(self, address: str) -> Conduct:
        """For a connection that has reached this one of several addresses."""
        patience = self.patience
        if not address or patience is None or patience.check is None:
            return self
        return self._replace(patience=patience._replace(check=partial(patience.check, address=address)))


class Style(NamedTuple):
    """What a group wants of the driver's objects. None: as the driver has it."""

    connection_class: Any = None
    cursor_factory: Callable[..., Any] | None = None
    row_factory: Callable[..., Any] | None = None
    context: Any = None
    prepare_threshold: int | str | None = "auto"
    """After how many executions a statement is prepared by itself. None: never. "auto": the driver's choice, and not
    through a pooler that may give each transaction another session."""


class Lessor(Protocol):
    """A pool, as its connections know it."""

    async def close(self, conn: Any, really: Callable[[], Any]) -> None:
        """A user has called `close`; `really` closes it, and may have to be awaited."""


class Choice(NamedTuple):
    """Which server will do, where the name of a host has several addresses."""

    rank: Callable[[Sighting], int | None]
    """How well one suits: 0 as wanted, more is second choice, None: not at all."""
    spread: bool = False
    """In any order, so that all of them get connections. Else in the resolver's order."""


class Driver(Protocol):
    """What a driver module must offer. `conn` is the driver's own connection object."""

    @property
    def Error(self) -> type[Exception]:
        """The base of the driver's own exceptions."""

    async def connect(
        self,
        params: Params,
        autocommit: bool,
        deadline: float,
        wanted: Callable[[], bool] | None = None,
        conduct: Conduct | None = None,
        choice: Choice | None = None,
        style: Style = Style(),  # noqa: B008  # it cannot be changed
        lessor: Lessor | None = None,
    ) -> Any:
        """Open a connection. Raises ConnectFailed, Misfit, or NotWanted soon after `wanted` has become false.

        Of several addresses one that suits by `choice` is taken, else the best, which may not suit at all. None: any.
        """

    def misfits(self, style: Style) -> Iterator[tuple[str, str]]:
        """What of a style does not fit to this driver: the key, and what is wrong with it."""

    async def shown(self, conn: Any) -> Any:
        """What users are handed: the connection, or what a tool has put around it."""

    async def password(self, ask: Callable[[], Any], deadline: float) -> Secret | None:
        """What a user's `pass` gives, which may block, a coroutine's result included; does not block an event loop.

        Raises ConnectFailed, also for what can be no password; where it can be helped not after the deadline.
        """

    async def within(self, awaitable: Awaitable[Any], deadline: float) -> Any:
        """What a user's coroutine gives. Raises TimeoutError at the deadline, if it can be ended there."""

    def close(self, conn: Any) -> None:
        """Close it, saying goodbye to the server; never waits, never raises."""

    def disown(self, conn: Any) -> None:
        """In a forked child: let go of the parent's connection without a word to its server."""

    def leave(self, conn: Any) -> None:
        """Its process ends, and its holder may keep it until then: that is no mistake to complain of."""

    def abort(self, conn: Any, words: str = "") -> None:
        """From another thread: shut its socket down, so that whoever waits on it gets an error at once."""

    def address(self, conn: Any) -> str:
        """The address that it has reached, where the name of its host has several; else empty."""

    def descriptor(self, conn: Any) -> int:
        """The descriptor of its socket; -1 if it has none any more."""

    def quiet(self, conn: Any) -> bool:
        """Whether its socket is silent, as that of an idle session is. False: a goodbye, or a message. No wait."""

    def heard_within(self, conn: Any, seconds: float) -> bool:
        """Whether its server has sent anything in the last so many seconds, as the kernel knows; from any thread.

        False also where that cannot be told.
        """

    async def ping(self, conn: Any, deadline: float) -> None:
        """One round trip. Raises the driver's own error if the session is gone."""

    async def statement(self, conn: Any, text: str, deadline: float) -> None:
        """Run one statement without parameters outside any transaction of the user's."""

    def status(self, conn: Any) -> Status:
        """What the session is doing."""

    def at_work(self, conn: Any) -> bool:
        """Whether its server may be busy with a statement, whatever else is the matter."""

    def given_up(self, conn: Any) -> bool:
        """Whether a call on it has lasted for too long: it is as good as broken, but its statement may be going on."""

    async def ended(self, conn: Any) -> None:
        """Where its user was cancelled: wait until that has ended on the server, for a limited time.

        Does not wait where that would hold up the user. Never raises an Exception.
        """

    async def cancel(self, conn: Any, deadline: float) -> None:
        """End on the server what the session is doing, whoever began it, and read what is left of it.

        A COMMIT is only waited for. Raises DriverTimeout, or the driver's own error; then it is to be closed.
        """

    def cancel_now(self, conn: Any, deadline: float) -> None:
        """The same where nothing can be awaited. Never raises an Exception."""

    async def report(self, conn: Any, deadline: float, *, ask: bool = False) -> Report:
        """The role of its server: as reported by the session, else asked for. Raises Unanswered.

        With `ask`, and through a pooler, always asked for.
        """

    async def sight(self, conn: Any, deadline: float, *, pooled: bool = False) -> Sighting:
        """The role of its server, whose data it has and how far it is, in one round trip. Raises Unanswered.

        Where a pooler is known to be in between (`pooled`), what the session reports is not believed.
        """

    def through_pooler(self, conn: Any, begin_with: Sequence[bytes], *, own_server: bool) -> None:
        """A pooler is in between: from now on believe of the server only what it answers.

        Each BEGIN is followed by the statements `begin_with`, in the same message. Unless it has its `own_server` for
        its whole life, nothing is prepared by itself.
        """

    def write_refused(self, conn: Any) -> bool:
        """Whether a write was refused (25006) on a connection since the last time this was asked."""

    def watch(self, conn: Any, writes: bool) -> Callable[[float], bool]:
        """A cheap look, given the time: is it idle, as `adopt` left it, and says of its server what it says now?

        With `writes` this includes whether the server takes writes, else only whether it is a standby, which may be
        what it was a hundredth of a second ago.
        """

    async def says_read_only_itself(self, conn: Any, deadline: float) -> bool:
        """Whether ``default_transaction_read_only`` was SET in this session, and so tells nothing of the server."""

    async def adopt(self, conn: Any, autocommit: bool) -> None:
        """It is from now on meant to be as it is set up now, and `autocommit` as given."""

    async def restore(self, conn: Any) -> None:
        """Put back what was adopted: autocommit, the properties of its transactions, factories, handlers, adapters."""

    async def reset(self, conn: Any, deadline: float) -> bool:
        """Put back what a user may have left in an idle session: all that docs/state.rst says ``reset = "state"`` does.

        It is as it was opened then, and what `configure` did is undone. False: nothing was done, since a pooler gives
        it other sessions than its own. Raises DriverTimeout, or the driver's own error; then it is to be closed.
        """

    def keep(self, conn: Any, statements: Sequence[str]) -> None:
        """These SETs have made the session what it is: they are part of each `reset`."""

    def keep_prepared(self, conn: Any) -> None:
        """What has been prepared by now, by SQL, is for its whole life: the driver may not take it away."""

    async def note_prepared(self, conn: Any, deadline: float) -> None:
        """The same for each `reset`, which has to know what it is."""

    def worn(self, conn: Any) -> bool:
        """Whether something that was prepared by SQL would fail on it for ever."""

    async def commit(self, conn: Any) -> None:
        """Commit what is open. A transaction that has failed is rolled back, and that is an error of the driver's."""

    async def rollback(self, conn: Any) -> None: ...

    def farewell(self, conn: Any) -> Exception | None:
        """The server's goodbye, as the driver's exception, if the socket of a session between two calls has one by now.

        Takes in whatever has come; never waits.
        """

    def in_doubt(self, conn: Any) -> Doubt:
        """What was sent whose answer nobody has."""

    def closed_in_peace(self, conn: Any) -> bool:
        """Whether its user has closed it when neither a transaction nor a call was open."""

    def last_words(self, conn: Any) -> LastWords | None:
        """What the server said, outside any error, of why it ended this connection, or would.

        PostgreSQL says so to a session that rests, and by a warning when another of its processes has crashed (57P02).
        """

    def listen_to_the_end(self, conn: Any) -> None:
        """Read what a server has sent that has closed the connection, for `last_words`. Never waits, never raises."""

    def sqlstate(self, error: BaseException) -> str | None:
        """The SQLSTATE of one of the driver's exceptions, if it has one."""

    def words(self, error: BaseException, *, lost: bool) -> str | None:
        """The server's or the driver's own words, if this is an exception of the driver's; no values are in them.

        With `lost` only words about a connection that was lost.
        """

    def fault(self, error: BaseException) -> Fault | None:
        """What an exception says of the server. None: nothing, since it is an error of this side's own."""

    def describe(self, conn: Any) -> str:
        """Which backend this is, for messages."""
