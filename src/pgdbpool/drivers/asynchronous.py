"""psycopg 3 for asyncio: nothing here blocks the event loop, the lookup of names included.

A loop that was kept busy by its application wakes up late, and finds the end of the time it gave; the server may have
answered long ago, or may wait for us. So after a wait from which the loop woke up late the whole time is given anew,
once for each step of a conversation: see `Allowance`.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import waiting

from .. import background
from ..background import nobodys
from ..clock import monotonic, stands_still
from ..config.secret import Secret
from ..core.evidence import Fault, Report, Sighting
from . import (
    Choice,
    Conduct,
    ConnectFailed,
    Doubt,
    DriverTimeout,
    LastWords,
    Lessor,
    Patience,
    Style,
    names,
    passwords,
    patched,
    steps,
)
from .adopted import HALF_DONE, PROPERTIES, Adopted, Noting, adopt_as_it_is, adopt_as_opened, restore_style
from .blocking import cancel_now
from .cancel import IN_PLACE, LIMIT, PAUSE, at_work, ending, in_pipeline, leaving_pipeline, left_unfinished
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
    "Allowance",
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
    "drive",
    "ended",
    "farewell",
    "fault",
    "given_up",
    "heard_within",
    "in_doubt",
    "keep",
    "keep_prepared",
    "last_words",
    "leave",
    "listen_to_the_end",
    "misfits",
    "note_prepared",
    "password",
    "ping",
    "quiet",
    "reach",
    "report",
    "reset",
    "resolved",
    "restore",
    "rollback",
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
Error = psycopg.Error

_LATE = 0.1  # s beyond its time after which a loop has been kept busy
_ANEW = 20  # times at most that a busy loop gives the time anew: a login has some eight steps


class Allowance:
    """The time that a server has to answer, on the clock of `monotonic`. A loop that was late gives it anew.

    With `until` it is the time for each word of the server's, and up to then each one gives it anew.
    """

    def __init__(self, deadline: float, until: float | None = None) -> None:
        self.deadline = deadline
        self._granted = max(0.0, deadline - monotonic())
        self._until = until
        self._again = True
        self._anew = _ANEW
        self._over = False

    def due(self) -> float:
        """When a wait that begins now ends: one for which no time is left still gets one look."""
        return max(self.deadline, monotonic())

    def waited(self, due: float, *, ready: bool) -> bool:
        """After a wait that was to end at `due`. Returns whether there is time for another.

        A server that has something to say when its time is over is listened to once more, and not for as long as it
        goes on.
        """
        now = monotonic()
        late = now - due > _LATE and self._anew > 0
        anew = late and (ready or self._again)
        if self._over and not anew:
            return False
        if anew:
            self._anew -= 1
            self.deadline = now + self._granted
        elif ready and self._until is not None:
            self.deadline = min(now + self._granted, self._until)
        more = ready or (late and self._again)
        self._again = ready  # so a loop that is always late comes to an end
        self._over = now >= self.deadline
        return more


async def drive(conversation: steps.Steps[T], deadline: float | Allowance) -> T:
    """Carry out a conversation. Raises DriverTimeout at the deadline."""
    allowance = deadline if isinstance(deadline, Allowance) else Allowance(deadline)
    try:
        waits_for = next(conversation)
        while True:
            due = allowance.due()
            ready = await _wait(*waits_for, due)
            if not allowance.waited(due, ready=ready):
                waits_for = conversation.throw(DriverTimeout("the server did not answer in time"))
            elif ready:
                waits_for = conversation.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        conversation.close()


async def reach(
    places: Sequence[Sealed],
    attempt: Callable[[Sealed], steps.Steps[R]],
    deadline: float | Allowance,
    rank: Rank[R] | None = None,
) -> R:
    """Carry out the attempt at the place that answers first, of those that `resolved` has found. Raises as `drive`.

    An `Allowance` for each word is shared by all of them before the first.
    """
    if len(places) == 1:
        return await drive(attempt(places[0]), deadline)
    allowance = deadline if isinstance(deadline, Allowance) else Allowance(deadline)
    now = monotonic()
    contest = Race(map(attempt, places), now, allowance.due() - now, rank)
    with closing(contest):
        result = contest.go_on((), now)
        while result is None:
            due = allowance.due()
            until = min(due, contest.until)
            ready = await _wait_for(contest.events, until)
            now = monotonic()
            # A loop that was late has kept nobody waiting but itself.
            over = until == due or now - until > _LATE
            more = allowance.waited(until, ready=bool(ready)) if ready or over else True
            result = contest.go_on(ready, now) if more else contest.best()
            if result is None and now >= allowance.deadline:  # also while somebody goes on talking
                result = contest.best()
        return result


async def _wait(descriptor: int, events: int, due: float) -> bool:
    """Wait for the socket. Returns whether it is ready; False when the time has come."""
    return bool(await _wait_for({descriptor: events}, due))


async def _wait_for(events: Mapping[int, int], due: float) -> Collection[int]:
    """Wait for any of the sockets. Returns those that are ready; none when the time has come."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    ready: set[int] = set()

    def end(each: int | None = None) -> None:
        if each is not None:
            ready.add(each)
        if not done.done():
            done.set_result(None)

    for each, awaited in events.items():
        if awaited & select.POLLIN:
            loop.add_reader(each, end, each)
        if awaited & select.POLLOUT:
            loop.add_writer(each, end, each)
    # One that is due already gets one look at the sockets.
    timer = loop.call_later(max(0.0, due - monotonic()), end, context=nobodys()) if due != float("inf") else None
    try:
        await done
        return ready
    finally:
        if timer is not None:
            timer.cancel()
        for each in events:
            _stop_waiting(loop, each)


def _stop_waiting(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    if not loop.is_closed():
        loop.remove_reader(descriptor)
        loop.remove_writer(descriptor)


async def password(ask: Callable[[], Any], deadline: float) -> Secret | None:
    try:
        given = passwords.Given([ask()]) if inspect.iscoroutinefunction(ask) else await _elsewhere(ask, deadline)
        if inspect.isawaitable(given.value):
            given = passwords.Given([await within(given.value, deadline)])
    except (Exception, SystemExit):
        raise passwords.failed() from None
    return passwords.checked(given)


async def _elsewhere(ask: Callable[[], Any], deadline: float) -> passwords.Given:
    """What a function returns that may block. Raises DriverTimeout at the deadline.

    Not by the loop's executor: that may be busy with the application's work, and a program does not end before it has.
    """
    loop = asyncio.get_running_loop()
    # Not told what was found: a loop in debug mode logs futures with what they hold, and this may be a password, or an
    # error that has one in its words.
    done: asyncio.Future[None] = loop.create_future()
    timer: asyncio.TimerHandle | None = None

    def end() -> None:
        if not done.done():
            done.set_result(None)

    def ended(call: passwords.Call) -> None:
        try:
            loop.call_soon_threadsafe(end)
        except RuntimeError:  # the loop was closed: nobody waits
            pass

    def over(limit: float) -> None:
        nonlocal timer
        late = monotonic() - limit
        if late > _LATE:  # as in `_wait`
            timer = loop.call_later(late, over, monotonic() + late, context=nobodys())
        else:
            end()

    if deadline != float("inf"):
        timer = loop.call_later(max(deadline - monotonic(), 0.0), over, deadline, context=nobodys())
    try:
        call = passwords.call(ask)
        call.add_done_callback(ended)
        try:
            await done
        finally:
            call.cancel()
    finally:
        if timer is not None:
            timer.cancel()
    return passwords.outcome(call)


async def _interrupted(conn: Pooled, gen: Generator[Any, Any, Any], error: BaseException) -> None:
    """Whatever interrupts a call, its statement does not go on on the server.

    That is ended by a task of its own, which is not cancelled again and again with whoever was. And the conversation is
    ended at once; else the garbage collector would do it some time, and psycopg_binary's generators have been seen to
    crash the interpreter then (psycopg 3.3.9, Python 3.11).
    """
    if isinstance(error, WaitTimeout):  # raised beside the conversation, which goes on where it was
        return
    heard_in(conn, error)
    commits = called_off(conn, gen, error) is Doubt.COMMIT
    # GeneratorExit: nothing can be awaited; whoever closes the connection ends it.
    if isinstance(error, GeneratorExit) or not left_unfinished(conn, gen, error, commits=commits):
        gen.close()
        return
    gen.close()
    pipeline = in_pipeline(conn)
    work = _end_pipeline(conn, leaving_pipeline(conn)) if pipeline else _end_for(conn, mine=True)
    conn.ending = background.task(work)
    try:
        await asyncio.wait({conn.ending}, timeout=IN_PLACE)
    finally:
        if pipeline:
            close(conn)


async def _end_for(conn: Pooled, *, mine: bool) -> None:
    try:
        await _end(conn, monotonic() + LIMIT, mine=mine)
    except Exception:  # it will be closed
        pass
    finally:
        conn.ending = None


async def _end_pipeline(conn: Pooled, requests: Collection[steps.Steps[None]]) -> None:
    try:
        for request in requests:
            await drive(request, monotonic() + LIMIT)
            await asyncio.sleep(PAUSE)
    except Exception:
        pass
    finally:
        conn.ending = None


async def _end(conn: Pooled, deadline: float, *, mine: bool) -> None:
    commits = not mine and in_doubt(conn) is Doubt.COMMIT
    work = ending(conn, deadline, mine=mine, commits=commits)
    try:
        conversation, limit = next(work)
        while True:
            try:
                await drive(conversation, limit)
            except DriverTimeout:
                conversation, limit = work.send(False)
            else:
                conversation, limit = work.send(True)
    except StopIteration:
        pass


class Pooled(Noting, psycopg.AsyncConnection[Any]):  # type: ignore[misc]
    """A connection that knows what its user has changed or left open, and what became of calls that failed."""

    altered = 0  # why it does not simply go back: see `doubt`
    begin_with: tuple[bytes, ...] = ()  # statements that go with each BEGIN
    pooled = False  # a pooler is in between, see `PooledBehind`
    refused = False
    committing = False  # a COMMIT was interrupted
    unsent = False  # a BEGIN was interrupted; the statement for which it was sent did not follow
    given_up = False
    aborted = ""  # why the pool has ended it; set by any thread
    ending: asyncio.Task[None] | None = None  # what was interrupted
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

    async def wait(self, gen: Any, interval: float = INTERVAL, timeout: float | None = None) -> Any:
        if self.ending is not None:
            await asyncio.wait({self.ending})
        self.conversation = gen
        try:
            if timeout is None:
                return await waiting.wait_async(gen, self.pgconn.socket, interval)
            return await waiting.wait_async(gen, self.pgconn.socket, interval, timeout)
        except BaseException as error:
            await _interrupted(self, gen, error)
            raise

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        if self._pipeline is not None:
            async with super().pipeline() as pipeline:
                yield pipeline
            return
        commands = Commands()
        self.altered |= HALF_DONE
        try:
            async with super().pipeline() as pipeline:
                pipeline.command_queue = commands
                yield pipeline
        except BaseException as error:
            left_pipeline(self, commands, error)
            raise
        self.altered &= ~HALF_DONE

    async def tpc_begin(self, xid: psycopg.Xid | str) -> None:
        self.altered |= HALF_DONE
        await super().tpc_begin(xid)

    def _deallocate(self, name: bytes | None) -> Any:
        return deallocating(self, name, super()._deallocate)

    def notifies(self, **more: Any) -> Any:
        self.altered |= HALF_DONE
        return super().notifies(**more)

    # See `blocking.Pooled.__exit__`.
    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            with suppress(Exception):
                await self.rollback()
        elif not self.closed or self.broken:
            await commit(self)

    async def close(self) -> None:
        if self.lessor is None or self.closing:
            await self._really_close()
        else:
            await self.lessor.close(self, self._really_close)

    async def _really_close(self) -> None:
        if not self.closed:
            self.closed_in = self.pgconn.transaction_status
        await super().close()

    async def set_autocommit(self, value: bool) -> None:
        self.altered |= PROPERTIES
        await super().set_autocommit(value)

    async def set_isolation_level(self, value: psycopg.IsolationLevel | None) -> None:
        self.altered |= PROPERTIES
        await super().set_isolation_level(value)

    async def set_read_only(self, value: bool | None) -> None:
        self.altered |= PROPERTIES
        await super().set_read_only(value)

    async def set_deferrable(self, value: bool | None) -> None:
        self.altered |= PROPERTIES
        await super().set_deferrable(value)


_wait_on = Pooled.wait  # without the price of `super()`, in every call


class Guarded(Pooled):
    """A connection whose calls end when the server has died, as its `conduct` says."""

    conduct: Conduct
    first: float | None  # s, of its patience: where that is all that there is to do, else None

    async def wait(self, gen: Any, interval: float = INTERVAL, timeout: float | None = None) -> Any:
        first = self.first
        if first is None or timeout is not None or stands_still():
            return await self._observed(gen, interval, timeout)
        try:
            return await _wait_on(self, gen, interval, first)
        except WaitTimeout:
            patience: Patience = self.conduct.patience  # type: ignore[assignment]
            rest = guarded(gen, self.pgconn, patience, monotonic() - first, started=True)
            return await _wait_on(self, rest, interval)

    async def _observed(self, gen: Any, interval: float, timeout: float | None) -> Any:
        conduct = self.conduct
        if conduct.observe is None:
            return await self._wait(gen, interval, timeout)
        began = monotonic()
        result = await self._wait(gen, interval, timeout)
        conduct.observe(monotonic() - began)
        return result

    async def _wait(self, gen: Generator[Any, Any, Any], interval: float, timeout: float | None) -> Any:
        patience = self.conduct.patience
        if timeout is not None:
            return await _wait_on(self, gen, interval, timeout)
        if patience is None:
            return await _wait_on(self, gen, interval)
        began = monotonic()
        if not TAKES_TIMEOUT or stands_still():
            return await _wait_on(self, guarded(gen, self.pgconn, patience, began, started=False), interval)
        try:
            return await _wait_on(self, gen, interval, seconds_of(patience))
        except WaitTimeout:
            return await _wait_on(self, guarded(gen, self.pgconn, patience, began, started=True), interval)


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


async def resolved(params: Params, deadline: float | Allowance) -> list[Sealed]:
    """What libpq is told for each address of the host. Raises ConnectFailed."""
    name = names.name_in(params)
    if name is None:
        return names.places(params, None)
    allowance = deadline if isinstance(deadline, Allowance) else Allowance(deadline)
    lookup = names.look_up_here(name)
    try:
        ready = False
        while not ready:
            due = allowance.due()
            await asyncio.wait({lookup}, timeout=None if due == float("inf") else due - monotonic())
            ready = lookup.done()
            if not allowance.waited(due, ready=ready):
                raise ConnectFailed(f"the lookup of host name {name!r} timed out", Fault.UNRESOLVED)
        return names.places(params, lookup.result())
    except (OSError, UnicodeError) as error:
        raise names.unresolved(name, error) from None
    finally:
        lookup.cancel()


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
    # `wanted` is of no use here: what is not wanted any more is cancelled.
    allowance = Allowance(deadline)
    places = await resolved(params, allowance)
    if choice is None or len(places) == 1:
        pgconn = (await reach(places, steps.meeting, allowance)).session
    else:
        places = random.sample(places, len(places)) if choice.spread else places
        pgconn = (await reach(places, steps.introducing, allowance, lambda met: choice.rank(met.sighting))).session
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
    return await patched.shown_later(conn)


async def within(awaitable: Awaitable[T], deadline: float) -> T:
    if deadline == float("inf"):
        return await awaitable
    try:
        async with asyncio.timeout(max(0.0, deadline - monotonic())) as limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise TimeoutError("it did not end in time") from None
        raise


def close(conn: Pooled) -> None:
    # Somebody may still wait for its socket, the number of which is another's in a moment.
    loop = asyncio._get_running_loop()
    waits_for = descriptor(conn)
    if loop is not None and waits_for >= 0:
        _stop_waiting(loop, waits_for)
    conn.closing = True
    closing = conn.close()
    try:
        closing.send(None)  # it is a coroutine for symmetry only
    except Exception:  # done, or what is wrong with it does not matter any more
        pass
    finally:
        closing.close()
        conn.closing = False
    if not conn.closed:  # a `connection_class` with a `close` that waits
        conn.pgconn.finish()


async def ended(conn: Pooled) -> None:
    if conn.ending is not None:
        await asyncio.wait({conn.ending})
    elif at_work(conn) and not in_pipeline(conn):
        await _end_for(conn, mine=False)


async def cancel(conn: Pooled, deadline: float) -> None:
    await _end(conn, deadline, mine=False)


async def ping(conn: Pooled, deadline: float) -> None:
    await drive(steps.asking(conn.pgconn, b""), deadline)


async def statement(conn: Pooled, text: str, deadline: float) -> None:
    await drive(steps.asking(conn.pgconn, text.encode()), deadline)


async def report(conn: Pooled, deadline: float, *, ask: bool = False) -> Report:
    return await drive(steps.reporting(conn.pgconn, ask=ask or conn.pooled), deadline)


async def sight(conn: Pooled, deadline: float, *, pooled: bool = False) -> Sighting:
    return await drive(steps.sighting(conn.pgconn, pooled=pooled or conn.pooled), deadline)


async def says_read_only_itself(conn: Pooled, deadline: float) -> bool:
    return await drive(steps.asking_who_is_read_only(conn.pgconn), deadline)


async def adopt(conn: Pooled, autocommit: bool) -> None:
    if conn.autocommit is not autocommit:
        await conn.set_autocommit(autocommit)
    adopt_as_it_is(conn)


async def restore(conn: Pooled) -> None:
    if conn.altered:
        meant = conn.adopted
        if conn.autocommit is not meant.autocommit:
            await conn.set_autocommit(meant.autocommit)
        if conn.isolation_level is not meant.isolation_level:
            await conn.set_isolation_level(meant.isolation_level)
        if conn.read_only is not meant.read_only:
            await conn.set_read_only(meant.read_only)
        if conn.deferrable is not meant.deferrable:
            await conn.set_deferrable(meant.deferrable)
        restore_style(conn)
        conn.doubt = None
        conn.altered = 0


async def reset(conn: Pooled, deadline: float) -> bool:
    if not conn.own_server:
        return False
    await drive(resetting(conn), deadline)
    conn.adopted = conn.opened
    conn.altered |= PROPERTIES
    await restore(conn)
    return True


async def note_prepared(conn: Pooled, deadline: float) -> None:
    await drive(keeping_prepared(conn), deadline)


async def commit(conn: Pooled) -> None:
    if in_failed_transaction(conn):
        await conn.rollback()
        raise nothing_committed()
    await conn.commit()


async def rollback(conn: Pooled) -> None:
    await conn.rollback()
