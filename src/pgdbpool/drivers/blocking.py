"""psycopg 3, synchronous: whoever calls waits.

Its coroutines never suspend, so `run` can carry them out without an event loop: what the pools do with a connection is
written once, for threads and for asyncio. See `pgdbpool.session`.
"""

from __future__ import annotations

import inspect
import random
import select
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from time import sleep
from typing import Any, TypeVar

import psycopg
from psycopg import waiting

from ..clock import monotonic, stands_still
from ..config.secret import Secret
from ..core.evidence import Report, Sighting
from . import (
    Choice,
    Conduct,
    Doubt,
    DriverTimeout,
    LastWords,
    Lessor,
    NotWanted,
    Patience,
    Style,
    names,
    passwords,
    patched,
    steps,
)
from .adopted import HALF_DONE, PROPERTIES, Adopted, Noting, adopt_as_it_is, adopt_as_opened, restore_style
from .cancel import IN_PLACE, PAUSE, at_work, ending, in_pipeline, leaving_pipeline, left_unfinished
from .doubt import Commands, called_off, in_doubt, left_pipeline
from .private import beginning, deallocating
from .psycopg3 import (
    INTERVAL,
    TAKES_TIMEOUT,
    WaitTimeout,
    abort,
    address,
    closed_in_peace,
    describe,
    descriptor,
    disown,
    farewell,
    fault,
    first_patience,
    given_up,
    guarded,
    heard_in,
    heard_within,
    in_failed_transaction,
    last_words,
    leave,
    listen,
    listen_to_the_end,
    nothing_committed,
    quiet,
    seconds_of,
    sqlstate,
    status,
    watch,
    words,
    write_refused,
)
from .race import R, Race, Rank
from .sealed import Params, Sealed
from .state import keep, keep_prepared, keeping_prepared, resetting, worn
from .style import combined, made, wanted_class
from .style import misfits as misfits_of

__all__ = [
    "Error",
    "abort",
    "address",
    "adopt",
    "at_work",
    "cancel",
    "cancel_now",
    "close",
    "closed_in_peace",
    "commit",
    "connect",
    "describe",
    "descriptor",
    "disown",
    "ended",
    "farewell",
    "fault",
    "given_up",
    "heard_within",
    "in_doubt",
    "keep",
    "keep_prepared",
    "keep_to",
    "last_words",
    "leave",
    "listen_to_the_end",
    "misfits",
    "note_prepared",
    "password",
    "password_by_thread",
    "ping",
    "quiet",
    "reach",
    "report",
    "reset",
    "resolved",
    "restore",
    "rollback",
    "run",
    "says_read_only_itself",
    "shown",
    "sight",
    "sqlstate",
    "statement",
    "status",
    "through_pooler",
    "watch",
    "within",
    "words",
    "worn",
    "write_refused",
]

T = TypeVar("T")

# The longest wait without a look at signals and at whether it is still wanted, in seconds.
_INTERVAL = 0.25


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Carry out what never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a coroutine where the synchronous pool needs a plain function: asyncio needs an AsyncPool")


def drive(
    conversation: steps.Steps[T],
    deadline: float,
    wanted: Callable[[], bool] | None = None,
    each: float | None = None,
) -> T:
    """Carry out a conversation. Raises DriverTimeout at the deadline, NotWanted when `wanted` says so.

    With `each` the server has so many seconds for each word. One that has something to say at the deadline is listened
    to once more, and not for as long as it goes on.
    """
    late = False
    try:
        waits_for = next(conversation)
        while True:
            limit = deadline if each is None else min(deadline, monotonic() + each)
            if _wait(*waits_for, limit, wanted) and not late:
                late = monotonic() >= deadline
                waits_for = conversation.send(None)
            else:
                waits_for = conversation.throw(DriverTimeout("the server did not answer in time"))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        conversation.close()


def reach(
    places: Sequence[Sealed],
    attempt: Callable[[Sealed], steps.Steps[R]],
    deadline: float,
    wanted: Callable[[], bool] | None = None,
    each: float | None = None,
    rank: Rank[R] | None = None,
) -> R:
    """Carry out the attempt at the place that answers first, of those that `resolved` has found. Raises as `drive`.

    With `each` a server has so many seconds for each word, and they share them before the first.
    """
    if len(places) == 1:
        return drive(attempt(places[0]), deadline, wanted, each)
    heard = now = monotonic()
    contest = Race(map(attempt, places), now, deadline - now if each is None else min(deadline - now, each), rank)
    with closing(contest):
        result = contest.go_on((), now)
        while result is None:
            limit = deadline if each is None else min(deadline, heard + each)
            ready = _wait_for(contest.events, min(limit, contest.until), wanted)
            now = monotonic()
            heard = now if ready else heard
            result = contest.go_on(ready, now) if ready or now < limit else contest.best()
            if result is None and now >= deadline:  # also while somebody goes on talking
                result = contest.best()
        return result


def _wait(descriptor: int, events: int, deadline: float, wanted: Callable[[], bool] | None) -> bool:
    """Wait for the socket; False at the deadline."""
    return bool(_wait_for({descriptor: events}, deadline, wanted))


def _wait_for(events: Mapping[int, int], deadline: float, wanted: Callable[[], bool] | None) -> Collection[int]:
    """Wait for any of the sockets; those that are ready, none at the deadline."""
    # A new poller each time: libpq may go on with another socket.
    poller = select.poll()
    for each, awaited in events.items():
        poller.register(each, awaited)
    while True:
        rest = deadline - monotonic()
        if ready := poller.poll(max(0.0, min(rest, _INTERVAL)) * 1000):
            return [each for each, _ in ready]
        if rest <= 0:
            return ()
        if wanted is not None and not wanted():
            raise NotWanted


def _interrupted(conn: Pooled, gen: Generator[Any, Any, Any], error: BaseException) -> None:
    """Whatever interrupts a call, its statement does not go on on the server."""
    if isinstance(error, WaitTimeout):  # raised beside the conversation, which goes on where it was
        return
    heard_in(conn, error)
    if left_unfinished(conn, gen, error, commits=called_off(conn, gen, error) is Doubt.COMMIT):
        deadline = monotonic() + IN_PLACE
        pipeline = in_pipeline(conn)
        try:
            with suppress(Exception):  # if it takes longer, whoever closes the connection does it
                if pipeline:
                    for request in leaving_pipeline(conn):
                        drive(request, deadline)
                        sleep(PAUSE)
                else:
                    _end(conn, deadline, mine=True)
        finally:
            if pipeline:
                close(conn)
    gen.close()


def _end(conn: Pooled, deadline: float, *, mine: bool) -> None:
    commits = not mine and in_doubt(conn) is Doubt.COMMIT
    work = ending(conn, deadline, mine=mine, commits=commits)
    try:
        conversation, limit = next(work)
        while True:
            try:
                drive(conversation, limit)
            except DriverTimeout:
                conversation, limit = work.send(False)
            else:
                conversation, limit = work.send(True)
    except StopIteration:
        pass


Error = psycopg.Error


class Pooled(Noting, psycopg.Connection[Any]):  # type: ignore[misc]
    """A connection that knows what its user has changed or left open, and what became of calls that failed."""

    altered = 0  # why it does not simply go back: see `doubt`
    begin_with: tuple[bytes, ...] = ()  # statements that go with each BEGIN
    pooled = False  # a pooler is in between, see `PooledBehind`
    refused = False
    committing = False  # a COMMIT was interrupted
    unsent = False  # a BEGIN was interrupted; the statement for which it was sent did not follow
    given_up = False
    aborted = ""  # why the pool has ended it; set by any thread
    adopted: Adopted
    style = Style()
    lessor: Lessor | None = None
    closing = False  # by the pool
    address = ""
    heard: list[LastWords]
    answered_by: LastWords | None = None  # with which a call has failed that was the last
    doubt: Doubt | None = None
    conversation: Any = None  # the last that was begun; None: none, or one that `doubt` tells of
    closed_in: int | None = None  # the state of its transaction when its user closed it
    opened: Adopted  # as it was before `configure`
    own_server = True  # for its whole life
    said: tuple[str, ...] = ()  # SETs that have made the session what it is
    keeps = False  # statements that are prepared for its whole life
    kept: frozenset[bytes] = frozenset()  # their names, where they have to be known
    worn = False  # a statement that is not psycopg's own would fail on it for ever

    def wait(self, gen: Any, interval: float = INTERVAL, timeout: float | None = None) -> Any:
        self.conversation = gen
        try:
            if timeout is None:
                return waiting.wait(gen, self.pgconn.socket, interval)
            return waiting.wait(gen, self.pgconn.socket, interval, timeout)
        except BaseException as error:
            _interrupted(self, gen, error)
            raise

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        if self._pipeline is not None:
            with super().pipeline() as pipeline:
                yield pipeline
            return
        commands = Commands()
        self.altered |= HALF_DONE
        try:
            with super().pipeline() as pipeline:
                pipeline.command_queue = commands
                yield pipeline
        except BaseException as error:
            left_pipeline(self, commands, error)
            raise
        self.altered &= ~HALF_DONE

    def tpc_begin(self, xid: psycopg.Xid | str) -> None:
        self.altered |= HALF_DONE
        super().tpc_begin(xid)

    def _deallocate(self, name: bytes | None) -> Any:
        return deallocating(self, name, super()._deallocate)

    def notifies(self, **more: Any) -> Any:
        self.altered |= HALF_DONE
        return super().notifies(**more)

    # As of a connection of psycopg's own pool: a ``with`` block of its own ends the transaction, and no more.
    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            with suppress(Exception):  # what is wrong with the connection is seen when it comes back
                self.rollback()
        elif not self.closed or self.broken:
            run(commit(self))

    def close(self) -> None:
        if self.lessor is None or self.closing:
            self._really_close()
        else:
            run(self.lessor.close(self, self._really_close))

    def _really_close(self) -> None:
        if not self.closed:
            self.closed_in = self.pgconn.transaction_status
        super().close()

    def set_autocommit(self, value: bool) -> None:
        self.altered |= PROPERTIES
        super().set_autocommit(value)

    def set_isolation_level(self, value: psycopg.IsolationLevel | None) -> None:
        self.altered |= PROPERTIES
        super().set_isolation_level(value)

    def set_read_only(self, value: bool | None) -> None:
        self.altered |= PROPERTIES
        super().set_read_only(value)

    def set_deferrable(self, value: bool | None) -> None:
        self.altered |= PROPERTIES
        super().set_deferrable(value)


_wait_on = Pooled.wait  # without the price of `super()`, in every call


class Guarded(Pooled):
    """A connection whose calls end when the server has died, as its `conduct` says."""

    conduct: Conduct
    first: float | None  # s, of its patience: where that is all that there is to do, else None

    def wait(self, gen: Any, interval: float = INTERVAL, timeout: float | None = None) -> Any:
        first = self.first
        if first is None or timeout is not None or stands_still():
            return self._observed(gen, interval, timeout)
        try:
            return _wait_on(self, gen, interval, first)
        except WaitTimeout:  # raised beside the conversation, which goes on where it was
            patience: Patience = self.conduct.patience  # type: ignore[assignment]
            rest = guarded(gen, self.pgconn, patience, monotonic() - first, started=True)
            return _wait_on(self, rest, interval)

    def _observed(self, gen: Any, interval: float, timeout: float | None) -> Any:
        conduct = self.conduct
        if conduct.observe is None:
            return self._wait(gen, interval, timeout)
        began = monotonic()
        result = self._wait(gen, interval, timeout)
        conduct.observe(monotonic() - began)
        return result

    def _wait(self, gen: Generator[Any, Any, Any], interval: float, timeout: float | None) -> Any:
        patience = self.conduct.patience
        if timeout is not None:
            return _wait_on(self, gen, interval, timeout)
        if patience is None:
            return _wait_on(self, gen, interval)
        began = monotonic()
        if not TAKES_TIMEOUT or stands_still():
            return _wait_on(self, guarded(gen, self.pgconn, patience, began, started=False), interval)
        try:
            return _wait_on(self, gen, interval, seconds_of(patience))
        except WaitTimeout:  # raised beside the conversation, which goes on where it was
            return _wait_on(self, guarded(gen, self.pgconn, patience, began, started=True), interval)


class PooledBehind(Pooled):
    """A connection through a pooler: what it reports may be another server's."""

    pooled = True

    def _exec_command(self, command: Any, *args: Any, **more: Any) -> Any:
        execute = super()._exec_command
        if self.begin_with and isinstance(command, bytes) and command.startswith(b"BEGIN"):
            return beginning(self, command, self.begin_with, execute)
        return execute(command, *args, **more)


class GuardedBehind(Guarded):
    """The same of a guarded one."""

    pooled = True

    def _exec_command(self, command: Any, *args: Any, **more: Any) -> Any:
        execute = super()._exec_command
        if self.begin_with and isinstance(command, bytes) and command.startswith(b"BEGIN"):
            return beginning(self, command, self.begin_with, execute)
        return execute(command, *args, **more)


for _own in (Pooled, Guarded, PooledBehind, GuardedBehind):
    _own.__module__ = "psycopg"  # as psycopg's own: tools name spans by it


def through_pooler(conn: Pooled, begin_with: Sequence[bytes], *, own_server: bool) -> None:
    if not conn.pooled:
        behind = GuardedBehind if isinstance(conn, Guarded) else PooledBehind
        conn.__class__ = combined(behind, wanted_class(conn.style))
    conn.begin_with = tuple(begin_with)
    conn.own_server = own_server
    if not own_server and conn.style.prepare_threshold == "auto":
        conn.prepare_threshold = None  # what is prepared in one session is not there in the next
        adopt_as_opened(conn)


def resolved(params: Params) -> list[Sealed]:
    """What libpq is told for each address of the host; waits for the resolver. Raises ConnectFailed."""
    name = names.name_in(params)
    return names.places(params, name and names.addresses_of(name))


async def connect(
    params: Params,
    autocommit: bool,
    deadline: float,
    wanted: Callable[[], bool] | None = None,
    conduct: Conduct | None = None,
    choice: Choice | None = None,
    style: Style = Style(),  # noqa: B008  # it cannot be changed
    lessor: Lessor | None = None,
) -> Pooled:
    places = resolved(params)
    if choice is None or len(places) == 1:
        pgconn = reach(places, steps.meeting, deadline, wanted).session
    else:
        places = random.sample(places, len(places)) if choice.spread else places
        pgconn = reach(places, steps.introducing, deadline, wanted, rank=lambda met: choice.rank(met.sighting)).session
    address = pgconn.hostaddr.decode() if len(places) > 1 else ""
    conn: Pooled
    if conduct is None or conduct == Conduct():
        conn = made(Pooled, style, pgconn)
    else:
        conn = guarded = made(Guarded, style, pgconn)
        guarded.conduct = conduct.at(address)
        guarded.first = first_patience(conduct)
    listen(conn)
    conn.address = address
    conn.lessor = lessor
    try:
        await adopt(conn, autocommit)
    except BaseException:
        close(conn)
        raise
    adopt_as_opened(conn)
    return conn


def misfits(style: Style) -> Iterator[tuple[str, str]]:
    return misfits_of(Pooled, style)


async def shown(conn: Pooled) -> Any:
    return patched.shown(conn)


async def password(ask: Callable[[], Any], deadline: float) -> Secret | None:
    """In the caller's own thread: it cannot be ended at the deadline."""
    try:
        given = await _awaited(passwords.Given([ask()]), deadline)
    except Exception:
        raise passwords.failed() from None
    return passwords.checked(given)


async def _awaited(given: passwords.Given, deadline: float) -> passwords.Given:
    return passwords.Given([await within(given.value, deadline)]) if inspect.isawaitable(given.value) else given


async def password_by_thread(ask: Callable[[], Any], deadline: float) -> Secret | None:
    """The same where there may be threads: it ends at the deadline."""
    try:
        call = passwords.call(ask)
    except RuntimeError:  # no more threads to be had
        return await password(ask, deadline)
    try:
        wait([call], None if deadline == float("inf") else max(0.0, deadline - monotonic()))
        given = await _awaited(passwords.outcome(call), deadline)
    except (Exception, SystemExit):
        raise passwords.failed() from None
    finally:
        call.cancel()
    return passwords.checked(given)


async def within(awaitable: Awaitable[T], deadline: float) -> T:
    async def awaited() -> T:
        return await awaitable

    return run(awaited())  # which says that it cannot be awaited here; from the coroutine around it, it would end that


def keep_to(conn: Pooled, door: AbstractContextManager[None]) -> None:
    """Have every conversation with the server go through this door; it replaces the connection's own lock."""
    conn.lock = door  # type: ignore[assignment]


def close(conn: Pooled) -> None:
    conn.closing = True
    try:
        conn.close()
    except Exception:  # what is wrong with it does not matter any more
        pass
    finally:
        conn.closing = False


async def ended(conn: Pooled) -> None: ...


async def cancel(conn: Pooled, deadline: float) -> None:
    _end(conn, deadline, mine=False)


def cancel_now(conn: Any, deadline: float) -> None:
    with suppress(Exception):
        _end(conn, deadline, mine=False)


async def ping(conn: Pooled, deadline: float) -> None:
    drive(steps.asking(conn.pgconn, b""), deadline)


async def statement(conn: Pooled, text: str, deadline: float) -> None:
    drive(steps.asking(conn.pgconn, text.encode()), deadline)


async def report(conn: Pooled, deadline: float, *, ask: bool = False) -> Report:
    return drive(steps.reporting(conn.pgconn, ask=ask or conn.pooled), deadline)


async def sight(conn: Pooled, deadline: float, *, pooled: bool = False) -> Sighting:
    return drive(steps.sighting(conn.pgconn, pooled=pooled or conn.pooled), deadline)


async def says_read_only_itself(conn: Pooled, deadline: float) -> bool:
    return drive(steps.asking_who_is_read_only(conn.pgconn), deadline)


async def adopt(conn: Pooled, autocommit: bool) -> None:
    if conn.autocommit is not autocommit:
        conn.set_autocommit(autocommit)
    adopt_as_it_is(conn)


async def restore(conn: Pooled) -> None:
    if conn.altered:
        meant = conn.adopted
        if conn.autocommit is not meant.autocommit:
            conn.set_autocommit(meant.autocommit)
        if conn.isolation_level is not meant.isolation_level:
            conn.set_isolation_level(meant.isolation_level)
        if conn.read_only is not meant.read_only:
            conn.set_read_only(meant.read_only)
        if conn.deferrable is not meant.deferrable:
            conn.set_deferrable(meant.deferrable)
        restore_style(conn)
        conn.doubt = None
        conn.altered = 0


async def reset(conn: Pooled, deadline: float) -> bool:
    if not conn.own_server:
        return False
    drive(resetting(conn), deadline)
    conn.adopted = conn.opened
    conn.altered |= PROPERTIES
    await restore(conn)
    return True


async def note_prepared(conn: Pooled, deadline: float) -> None:
    drive(keeping_prepared(conn), deadline)


async def commit(conn: Pooled) -> None:
    if in_failed_transaction(conn):
        conn.rollback()
        raise nothing_committed()
    conn.commit()


async def rollback(conn: Pooled) -> None:
    conn.rollback()
