"""AsyncPool: the asyncio shell around core.

It has the methods of `Pool`; those that may wait are coroutines. A pool belongs to the event loop that first waits for
it: waiters are futures, opening is a task for each connection, and the monitor's findings are handed over to the loop.
So nothing blocks, and the lock guards only against other threads that look at the pool or change its settings.

A caller can be cancelled at every `await`::

    while waiting            it leaves the queue; a slot handed over in the same moment goes to the next
    while a slot is checked  the connection is closed: nobody knows what is still to come on it
    inside the block         the statement ends on the server, by a task that nobody cancels; the block is left
    on the way out           a task of the pool's own, which nobody cancels, commits or rolls back and gives back

When its loop ends, a pool that was not closed closes its connections and warns; then it may be used in another loop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any, Self
from weakref import WeakMethod, finalize

import psycopg

from . import lifecycle
from .background import nobodys
from .base import Base
from .clock import monotonic
from .config import ConfigDict, Settings, judged
from .core.group import Group
from .core.lane import Slot
from .core.times import PER_SECOND
from .drivers import asynchronous
from .errors import Error, PoolClosed, UnconfiguredGroupError, WrongModelError
from .forgotten import Forgotten
from .frames import caller
from .holders import Holder, Leased, find, holders, task_name, task_places
from .leaks import Leaks, note
from .limits import not_entered, seconds_of
from .lost import Lost
from .reasons import Reasons, closed_words
from .tasks import Tasks
from .wording import words_of

logger = logging.getLogger("pgdbpool")

AsyncConnection = psycopg.AsyncConnection[Any]

_MOST_LOOKED_AT = 1000  # tasks, to tell a caller who has the connections: a look holds up the loop, by 0.04 ms for each

_NO_LOOP = (
    "an AsyncPool needs an event loop of asyncio's (or uvloop's), and none is running here. Trio has none: run AnyIO "
    "on its asyncio backend, or use a Pool by trio.to_thread.run_sync"
)

_new = object.__new__  # what has no __init__ is made in half the time


class AsyncLease(Leased):
    """One checkout, as an asynchronous context manager; made by `AsyncPool.connection`. For one task."""

    __slots__ = ("_group", "_pool", "_timeout")
    _pool: AsyncPool
    _group: Group
    _timeout: float | None

    async def __aenter__(self) -> AsyncConnection:
        if self._slot is not None:
            raise Error(f"this lease of group {self._group.name!r} is in use: ask the pool for another")
        now = monotonic()
        slot = self._group.take(now)
        if slot is None or now >= slot.fresh_until or get_ident() != self._pool._home._thread_id:
            slot = await self._pool._obtain(self._group, slot, now, self._timeout)
            now = monotonic()
        slot.taken = now
        self._slot = slot
        return slot.given  # type: ignore[no-any-return]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slot: Slot = self._slot  # type: ignore[assignment]
        self._slot = None
        now = monotonic()
        try:  # which costs nothing
            seconds = now - slot.taken
        except AttributeError:  # there is none
            raise not_entered(self._group.name) from None
        slot.use_time += seconds
        slot.use_times[(seconds * PER_SECOND).__trunc__().bit_length()] += 1
        if error is None and slot.clean(now):
            self._group.give(slot, now)
        elif kind is GeneratorExit:
            self._pool._let_go(slot)
        else:
            await self._pool._settle(slot, error, commit=True)


class NotingLease(AsyncLease):
    """The same in a pool that reports leases held for too long: it notes where it was taken."""

    __slots__ = ()

    async def __aenter__(self) -> AsyncConnection:
        conn = await AsyncLease.__aenter__(self)
        slot: Slot = self._slot  # type: ignore[assignment]
        if slot.taken >= self._group.note_at:
            note(slot, sys._getframe(1), task_name(asyncio.current_task()))
        return conn


class AsyncPool(Base):
    """Named groups of connections to one or several PostgreSQL endpoints, for asyncio.

    ::

        async with AsyncPool({"db": {"host": "db1"}, "groups": {"write": {"autocommit": False}}}) as pool:
            async with pool.connection("write") as conn:  # a psycopg.AsyncConnection; leaving the block commits
                await conn.execute("insert into visits (path) values (%s)", ("/",))

    It has the methods of `Pool`; those that may wait are coroutines. `config` and its keys are those of `Pool`, whose
    `type` is of no concern here; ``connection_count`` is per endpoint and process. `name` as for `Pool`.

    May be made before there is an event loop: it opens in the background when a loop first uses it (by ``async with``,
    `open`, `wait`, or a checkout), and is for that loop only. Close it before the loop ends.

    What only looks at it or changes its settings may be called from any thread: `stats`, `pop_stats`, `endpoints`,
    `holders`, `on_event`, `resize`, `drain`, `pause`, `resume`.

    Raises:
        ConfigError: something is wrong in the configuration; it names every mistake, with its place and the fix.
    """

    _keeper: Tasks
    _kind = "asyncio"

    def __init__(
        self, config: Mapping[str, Any] | ConfigDict | Settings, *, name: str | None = None, open: bool = True
    ) -> None:
        found = judged(config)
        del config  # it may have a password in it, which no traceback is to have
        super().__init__(found.settings(), asynchronous, threading.RLock, name)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lease = NotingLease if self._notes else AsyncLease
        self._home: Any = _NoLoop  # says in which thread the loop runs: cheaper to compare than the loop itself
        self._keeper = self._make_keeper()
        self._settling: set[asyncio.Task[None]] = set()
        self._finalizer: Any = None
        if open:
            self._unlock()

    def _make_keeper(self) -> Tasks:
        driver = self._driver
        at_loop_end = WeakMethod(self._loop_ended)

        def look(group: Group) -> list[Holder]:  # knows no pool, so that the keeper does not keep one alive
            return holders(group, driver, task_places(keeper.loop), most=_MOST_LOOKED_AT)

        def find_now(slots: Sequence[Slot]) -> list[Holder]:
            return find(slots, driver, task_places(keeper.loop))

        def end() -> None:
            loop_ended = at_loop_end()
            if loop_ended is not None:
                loop_ended()

        reasons = Reasons(self._topology, look)
        keeper = Tasks(self._name, self._topology, self._sessions, reasons, self._herald, self._settings.monitor, end)
        for group in self._topology.groups:
            group.wish = partial(keeper.wish, group)
        keeper.reclaim = lost = Lost(self._out, keeper.references, driver)
        keeper.look_for_leaks = Leaks(self._topology, find_now, lost).look
        keeper.look_for_forgotten = Forgotten(self._topology.groups, lost).look
        self._topology.born = keeper.opened
        self._sessions.closing, self._sessions.end_first = keeper.closing, keeper.end
        return keeper

    def _title(self) -> str:
        return type(self).__name__

    # -- life -------------------------------------------------------------------------------------------------

    def _unlock(self) -> None:
        """Open, as far as that can be done without a loop."""
        with self._life:
            if not self._closed:
                return
            self._closed = False
            self._loop, self._home = None, _NoLoop
            self._keeper = self._make_keeper()
            if self._finalizer is not None:
                self._finalizer.detach()
            # A pool nobody knows any more closes its connections.
            self._finalizer = finalize(self, self._keeper.abandon)
            self._finalizer.atexit = False
            self._topology.open()

    def _begin(self) -> None:
        """To be called by whatever may wait: binds the pool to its loop, once."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongModelError(_NO_LOOP) from None
        if self._loop is loop:
            self._home = _home(loop)  # a loop may go on in another thread
            return
        if self._closed:
            return
        if self._loop is not None and self._loop.is_closed():
            self._loop_ended()  # it was closed without telling anybody
        with self._lock:  # two loops may begin at the same moment
            begins = self._loop is None
            if begins:
                self._loop = loop
                self._home = _home(loop)
        if begins:
            self._keeper.start(loop)
            if not lifecycle.ending():
                self._appear()
        elif self._loop is not loop:
            raise Error(
                "this AsyncPool belongs to another event loop: make one for each loop, or close it there before it is "
                "used here"
            )

    async def open(self) -> None:
        """Open the pool, or open it again after `close`. Does nothing if it is open. Does not wait.

        Raises:
            WrongModelError: there is no event loop of asyncio's here, but one of trio's, say.
            Error: the pool belongs to another event loop.
        """
        self._unlock()
        self._begin()

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until each group can hand out `min_count` connections, at least one, at the same time.

        `timeout` in seconds.

        Raises:
            PoolTimeout: not within `timeout` seconds.
            DBOfflineError: no retry would help.
            PoolClosed: the pool is closed, or was closed meanwhile.
            WrongModelError, Error: as `open` does.
        """
        timeout = seconds_of(timeout)
        self._begin()
        await self._warm(timeout)

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool: waiters get PoolClosed, idle connections are closed at once, leased ones on return.

        Waits up to `timeout` seconds for leased connections to come back. Safe to call twice.
        """
        timeout = seconds_of(timeout)
        if self._closed:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._begin()  # not in another loop
        with self._life:
            if self._closed:  # by another thread, since a moment ago
                return
            self._closed = True
            keeper = self._keeper
            if self._finalizer is not None:
                self._finalizer.detach()
            deadline = monotonic() + timeout
            self._topology.close()
            for group in self._topology.groups:
                group.fail_waiters(partial(PoolClosed, closed_words(group.name)))
                group.wish = partial(self._sessions.bury, group)  # nobody else closes what comes back later
        try:  # it may be cancelled
            await keeper.stop(timeout)
            while monotonic() < deadline and self._closed and any(group.total for group in self._topology.groups):
                for group in self._topology.groups:
                    keeper.reclaim(group)
                await asyncio.sleep(0.002)
            if self._settling:
                await asyncio.wait(self._settling, timeout=max(0.0, deadline - monotonic()))
        finally:
            self._disappear()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _loop_ended(self) -> None:
        """The loop has ended, or is about to, and nobody has closed the pool. Another loop may use it."""
        with self._life:
            if self._closed:
                return
            words = f"{self!r} was not closed before the end of its event loop"
            self._closed = True
            self._finalizer.detach()
            self._keeper.end_now()
            self._out.clear()
            self._unlock()
        warnings.warn(words, ResourceWarning, stacklevel=1, source=self)

    def _after_fork(self) -> None:
        self._forget_all(threading.RLock)
        self._keeper.disown()
        self._settling = set()
        if not self._closed:
            self._closed = True
            self._unlock()

    def _at_exit(self) -> None:
        """Another loop may still use it: see `pgdbpool.ending`."""
        if self._closed or self._loop is None or self._loop.is_running():  # in a daemon thread, at this moment
            return
        self._loop_ended()

    # -- checkout -----------------------------------------------------------------------------------------------

    def connection(self, group: str = "default", timeout: float | None = None) -> AsyncLease:
        """A connection of a group, for the length of an ``async with`` block.

        Leaving the block normally commits an open transaction of an ``autocommit: false`` group, leaving it by an
        exception, cancellation included, rolls back; then the connection goes back to the pool. `timeout` in seconds,
        default the group's `acquire_timeout`; 0 does not wait. The connection must not be used after the block.

        Raises:
            Exception: as `Pool.connection` does; entering also raises WrongModelError where no event loop of asyncio's
                is running, and Error in another loop than the pool's.
        """
        lease: AsyncLease = _new(self._lease)
        lease._slot = None
        try:
            lease._group = self._groups[group]
        except KeyError:
            raise UnconfiguredGroupError(group, self._groups) from None
        lease._pool = self
        lease._timeout = None if timeout is None else seconds_of(timeout)
        return lease

    async def getconn(self, group: str = "default", timeout: float | None = None) -> AsyncConnection:
        """A connection of a group, to be returned with `putconn`, and not used any more after that.

        Raises:
            Exception: as entering a block of `connection` does.
        """
        found = self._group(group)
        timeout = seconds_of(timeout)
        now = monotonic()
        slot = found.take(now)
        if slot is None or now >= slot.fresh_until or get_ident() != self._home._thread_id:
            slot = await self._obtain(found, slot, now, timeout)
            now = monotonic()
        frame = caller(sys._getframe(1))
        task = asyncio.current_task()
        slot.holder = (frame.f_code, frame.f_lasti, task_name(task))
        slot.taken = now
        if now >= found.note_at:
            note(slot, frame, task_name(task))
        self._out[id(slot.given)] = slot
        return slot.given  # type: ignore[no-any-return]

    async def putconn(
        self, conn: AsyncConnection, error: BaseException | None = None, *, discard: bool = False
    ) -> None:
        """Return what `getconn` gave. A transaction left open is rolled back.

        `error` is what ended the work: evidence of how the server is, as the exception that ends a block. With
        `discard` the connection is closed, and not used again. One that its user has closed is back already.

        Raises:
            ValueError: this pool has not handed it out by `getconn`, or it was returned before.
        """
        slot = self._back(conn)
        if slot is not None:
            await self._release(slot, error, discard=discard)

    async def _release(self, slot: Slot, error: BaseException | None = None, *, discard: bool = False) -> None:
        now = monotonic()
        slot.used(now)
        if discard:
            await self._settled(slot, self._sessions.discard(slot, error))
        elif error is None and slot.clean(now):
            slot.lane.group.give(slot, now)
        else:
            await self._settle(slot, error, commit=False)

    async def _obtain(self, group: Group, slot: Slot | None, began: float, timeout: float | None) -> Slot:
        """The slow path of a checkout."""
        try:
            self._begin()
        except BaseException:
            if slot is not None:
                group.give(slot, monotonic())
            raise
        return await self._find(group, slot, began, timeout)

    async def _settle(self, slot: Slot, error: BaseException | None, *, commit: bool) -> None:
        """Commit or roll back and give back, in a task that nobody cancels."""
        await self._settled(slot, self._sessions.settle(slot, error, commit=commit))

    async def _settled(self, slot: Slot, work: Coroutine[Any, Any, None]) -> None:
        """Have this done by a task that nobody cancels, and wait for it."""
        task = self._start_settling(work)
        # As `asyncio.shield` does, for half of its price.
        over: asyncio.Future[None] = task.get_loop().create_future()
        task.add_done_callback(partial(_set, over))
        try:
            await over
        except BaseException:
            task.add_done_callback(partial(_tell_nobody, slot.lane.group.name))
            raise
        task.result()

    def _start_settling(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    def _let_go(self, slot: Slot) -> None:
        """Of a coroutine or generator that was closed before its end, by its owner or by the garbage collector.

        The former may not wait any more; the latter may have interrupted one that holds our lock.
        """
        if slot not in slot.lane.slots:  # its loop has ended, and all its connections were closed then
            return
        try:
            if self._loop is None:
                raise RuntimeError
            self._loop.call_soon_threadsafe(self._settle_later, slot, context=nobodys())
        except RuntimeError:  # the loop is closed
            slot.lane.group.retire(slot, "closed")
            for group in self._topology.groups:
                self._sessions.bury(group)

    def _settle_later(self, slot: Slot) -> None:
        self._start_settling(self._sessions.settle(slot, GeneratorExit(), commit=False))

    async def check(self) -> None:
        """Ask every idle connection for an answer, now, and close those that do not give one.

        Raises:
            WrongModelError, Error: as `open` does.
        """
        self._begin()
        await self._ask_idle()

    def holders(self, group: str | None = None) -> list[Holder]:
        """Who holds connections, the longest first.

        Raises:
            UnconfiguredGroupError: there is no such group.
        """
        places = task_places(self._loop)
        return [holder for each in self._chosen(group) for holder in holders(each, self._driver, places)]


class _NoLoop:
    _thread_id = None


class _Elsewhere:
    """For a loop that does not say in which thread it runs, as uvloop's."""

    __slots__ = ("_loop", "_thread")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = get_ident()

    @property
    def _thread_id(self) -> int | None:
        return self._thread if self._loop.is_running() else None


def _home(loop: asyncio.AbstractEventLoop) -> Any:
    """What says by its `_thread_id` in which thread this loop is running, which runs here now. Asyncio's own do."""
    return loop if getattr(loop, "_thread_id", None) == get_ident() else _Elsewhere(loop)


def _set(future: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    if not future.done():
        future.set_result(None)


def _tell_nobody(group: str, task: asyncio.Task[None]) -> None:
    """Its caller was cancelled, and does not hear how it went on."""
    if not task.cancelled() and (error := task.exception()) is not None:
        words = words_of(error, asynchronous, lost=False)
        logger.warning("group %r: after its caller was cancelled: %s", group, words)
