"""Pool: the threaded and the non-threaded shell around core.

A `Lease` is what `connection()` returns: entering it takes a slot, leaving it gives the slot back. Both ways have a
fast path of a few lines, in which no lock is taken and nothing is asked of the server: `Group.take` and `Group.give`,
written out, since the calls would be a fifth of a checkout. Everything out of the ordinary goes to `Pool._obtain`,
`Group.give` and `Sessions.settle`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any
from weakref import finalize

import psycopg

from . import forks, lifecycle
from .base import Base
from .clock import monotonic
from .config import ConfigDict, GroupSettings, MonitorSettings, Settings, judged
from .core.group import Group
from .core.lane import Slot
from .core.times import PER_SECOND
from .drivers import blocking
from .drivers.blocking import run
from .errors import Error, PoolClosed, UnconfiguredGroupError
from .forgotten import Forgotten
from .frames import caller
from .habitat import Door, is_to_fork, look_for_threads, refuse_greenlets
from .holders import Holder, Leased, find, holders
from .keeper import Inline, Keeper, Threaded
from .leaks import Leaks, note
from .limits import not_entered, seconds_of
from .lost import Lost
from .probe import death_of
from .reasons import Reasons, closed_words

Connection = psycopg.Connection[Any]

_new = object.__new__  # what has no __init__ is made in half the time


class Lease(Leased):
    """One checkout, as a context manager; made by `Pool.connection`. Not to be shared between threads."""

    __slots__ = ("_group", "_pool", "_timeout")
    _pool: Pool
    _group: Group
    _timeout: float | None

    def __enter__(self) -> Connection:
        if self._slot is not None:
            raise Error(f"this lease of group {self._group.name!r} is in use: ask the pool for another")
        group = self._group
        now = monotonic()
        try:
            slot = None if group.waiters else group.pop()
        except IndexError:
            slot = None
        if slot is None or now >= slot.fresh_until or now >= slot.expires or slot.generation != slot.lane.generation:
            slot = self._pool._obtain(group, slot, now, self._timeout)
            now = monotonic()
        slot.taken = now
        self._slot = slot
        return slot.given  # type: ignore[no-any-return]

    def __exit__(
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
        group = self._group
        if error is None and slot.clean(now):
            lane = slot.lane
            if group.waiters or slot.generation != lane.generation or now >= slot.expires:
                group.give(slot, now)
            else:
                slot.rested = now
                slot.fresh_until = now + lane.poll_after
                lane.idle.append(slot)  # from here on it is somebody else's
                if group.waiters or slot.generation != lane.generation:
                    group.given(slot, lane)
        else:
            run(self._pool._sessions.settle(slot, error, commit=True))
        if now >= group.tend_at:
            self._pool._keeper.tend(now)


class NotingLease(Lease):
    """The same in a pool that reports leases held for too long: it notes where it was taken."""

    __slots__ = ()

    def __enter__(self) -> Connection:
        conn = Lease.__enter__(self)
        slot: Slot = self._slot  # type: ignore[assignment]
        if slot.taken >= self._group.note_at:
            note(slot, sys._getframe(1), threading.get_ident())
        return conn


class Pool(Base):
    """Named groups of connections to one or several PostgreSQL endpoints.

    ::

        pool = Pool(
            {
                "db": [{"host": "db1", "name": "app", "user": "app"}, {"host": "db2", "name": "app", "user": "app"}],
                "groups": {
                    "read": {"target_session_attrs": "prefer-standby", "connection_count": 10},
                    "write": {"target_session_attrs": "primary", "autocommit": False},
                },
            }
        )
        with pool.connection("write") as conn:  # a psycopg.Connection; leaving the block commits
            conn.execute("insert into visits (path) values (%s)", ("/",))

    ``connection_count`` is per endpoint and process: with 2 endpoints and 4 processes 10 are up to 80 connections.

    `config` is such a dictionary, or `Settings`; it is checked whole before any connection is opened. The pool opens by
    default; connections are made in the background (``"type": "threaded"``) or when they are first needed
    (``"non-threaded"``). `name` is what it is called in the log, in metrics, and in the names of its threads.

    A threaded pool may be used from any thread; a non-threaded one by one thread only.

    Keys on top: ``type``, ``monitor``, ``status``, ``db``, ``groups``.

    Keys of an endpoint, which is one dictionary of ``db``: ``host``, ``port``, ``name``, ``user``, ``pass``,
    ``pass_env``, ``ssl``, ``connect_timeout``, ``query_timeout``, ``session_tmp_buffer``, ``pooler``, ``keepalives``,
    ``keepalives_idle``, ``keepalives_interval``, ``keepalives_count``, ``tcp_user_timeout``, ``priority``, ``weight``,
    ``tags``, ``params``.

    Keys of a group, all optional: ``connection_count``, ``total_count``, ``min_count``, ``autocommit``,
    ``target_session_attrs``, ``balance``, ``acquire_timeout``, ``max_waiting``, ``max_lifetime``, ``max_idle``,
    ``check``, ``configure``, ``reset``, ``reconnect_failed``, ``reconnect_timeout``, ``leak_threshold``,
    ``query_timeout``, ``session_tmp_buffer``, ``tags``, ``spill``, ``sqlprepare``, ``connection_class``,
    ``cursor_factory``, ``row_factory``, ``context``, ``prepare_threshold``, ``close_returns``.

    Keys of ``monitor``: ``interval``, ``timeout``, ``fall``, ``max_lifetime``, ``slow_start``. Keys of ``status``:
    ``name``, ``directory``, ``interval``. The configuration reference says what each of them means.

    Raises:
        ConfigError: something is wrong in the configuration; it names every mistake, with its place and the fix.
        WrongModelError: under gevent or eventlet.
    """

    def __init__(
        self, config: Mapping[str, Any] | ConfigDict | Settings, *, name: str | None = None, open: bool = True
    ) -> None:
        found = judged(config)
        del config  # it may have a password in it, which no traceback is to have
        settings = found.settings()
        self._threaded = settings.type == "threaded"
        self._kind = settings.type
        super().__init__(settings, blocking, self._new_lock, name)
        self._lease = NotingLease if self._notes else Lease
        self._line: Callable[[Group, float, float, bool], Slot] | None = None
        self._keeper: Keeper = self._make_keeper()
        self._finalizer: Any = None
        if open:
            self.open()

    def _new_lock(self) -> AbstractContextManager[Any]:
        # Reentrant: a signal handler may close the pool, the garbage collector end a generator that has a lease, in the
        # middle of what their thread does with the lock held.
        return threading.RLock() if self._threaded else nullcontext()

    def _make_keeper(self) -> Keeper:
        timed_out = Reasons(self._topology, partial(holders, driver=self._driver))
        keeper: Keeper
        if self._threaded:
            monitor = self._settings.monitor
            keeper = threaded = Threaded(self._name, self._topology, self._sessions, timed_out, self._herald, monitor)
            self._line = threaded.stand_in_line
            self._sessions.password = blocking.password_by_thread
        else:
            words, door = timed_out.look_for_holders, Door(self._name)
            keeper = Inline(self._topology, self._sessions, timed_out, words, self._herald, door)
        how, password = self._settings.monitor or MonitorSettings(), self._sessions.password or blocking.password
        self._sessions.check = partial(death_of, self._topology, how=how, password=password)
        for group in self._topology.groups:
            group.wish = partial(keeper.wish, group)
        keeper.reclaim = lost = Lost(self._out, keeper.references, self._driver)
        keeper.look_for_leaks = Leaks(self._topology, partial(find, driver=self._driver), lost).look
        keeper.look_for_forgotten = Forgotten(self._topology.groups, lost).look
        self._topology.born = keeper.opened
        self._sessions.closing, self._sessions.end_first = keeper.closing, keeper.end
        return keeper

    # -- life -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the pool, or open it again after `close`. Does nothing if it is open. Does not wait.

        Raises:
            WrongModelError: under gevent or eventlet.
        """
        with self._life:
            if not self._closed:
                return
            refuse_greenlets()
            if self._threaded:
                look_for_threads(self._name)
            try:
                self._employ_keeper()
                self._topology.open()
                self._closed = False
            except BaseException:  # interrupted: closed, as before
                self._closed = True
                self._topology.close()
                raise
            if self._threaded and is_to_fork():
                return  # its threads are started in the workers, as in any child: with the first use
            keeper = self._keeper
            if lifecycle.ending():
                self._seen = True
                keeper.at_exit()
                return
            self._appear()  # first, or the first events would be missing
            keeper.start()
            for group in self._topology.groups:
                keeper.wish(group)

    def _employ_keeper(self) -> None:
        self._keeper = self._make_keeper()
        if self._finalizer is not None:
            self._finalizer.detach()
        # A pool nobody knows any more stops its thread and closes its connections.
        self._finalizer = finalize(self, self._keeper.abandon)
        self._finalizer.atexit = False

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until each group can hand out `min_count` connections, at least one, at the same time.

        In the non-threaded model this opens them. `timeout` in seconds.

        Raises:
            PoolTimeout: not within `timeout` seconds.
            DBOfflineError: no retry would help.
            PoolClosed: the pool is closed, or was closed meanwhile.
        """
        run(self._warm(seconds_of(timeout)))

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool: waiters get PoolClosed, idle connections are closed at once, leased ones on return.

        Waits up to `timeout` seconds for leased connections to come back; in the non-threaded model it does not wait.
        Safe to call twice, and while other threads open, close or use the pool: each call is carried out whole, one
        after the other. A pool that another thread opens again is not waited for any longer.
        """
        timeout = seconds_of(timeout)
        keeper = self._shut()
        if keeper is None:
            return
        deadline = monotonic() + timeout
        pause = threading.Event()
        try:  # it may be interrupted: Ctrl-C, since it takes long
            while (
                self._threaded
                and self._closed
                and monotonic() < deadline
                and any(group.total for group in self._topology.groups)
            ):
                for group in self._topology.groups:
                    keeper.reclaim(group)
                    self._sessions.bury(group)
                pause.wait(0.002)
            for group in self._topology.groups:
                self._sessions.bury(group)
        finally:
            self._disappear()

    def _shut(self) -> Keeper | None:
        """Close it, all but for what is leased. Returns the keeper that it had; None: it was closed already."""
        with self._life:
            if self._closed:
                return None
            self._closed = True
            try:
                if self._finalizer is not None:
                    self._finalizer.detach()
                self._topology.close()
                for group in self._topology.groups:
                    group.fail_waiters(partial(PoolClosed, closed_words(group.name)))
                    group.wish = partial(self._sessions.bury, group)  # nobody else closes what comes back later
                self._keeper.stop()
            except BaseException:  # interrupted: the next call does it again
                self._closed = False
                raise
            return self._keeper

    def __enter__(self) -> Pool:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _after_fork(self) -> None:
        """In the child: let go of what is the parent's, and start empty."""
        self._forget_all(self._new_lock)
        if self._closed:  # another thread of the parent may have been about to close or to open it
            self._topology.close()
        else:
            self._employ_keeper()
            self._topology.open()

    def _at_exit(self) -> None:
        with self._life:
            if not self._closed:
                self._seen = True  # nothing is published any more
                self._keeper.at_exit()

    # -- checkout -----------------------------------------------------------------------------------------------

    def connection(self, group: str = "default", timeout: float | None = None) -> Lease:
        """A connection of a group, for the length of a ``with`` block.

        Leaving the block normally commits an open transaction of an ``autocommit: false`` group, leaving it by an
        exception rolls back; then the connection goes back to the pool. `timeout` in seconds, default the group's
        `acquire_timeout`; 0 does not wait. The connection must not be used after the block.

        Raises:
            UnconfiguredGroupError: there is no such group.
            TypeError, ValueError: `timeout` is no number of seconds.
            PoolTimeout: on entering: no connection in time; TooManyWaiting if `max_waiting` others wait; PoolExhausted
                in the non-threaded model, which cannot wait.
            PoolClosed: on entering: the pool is closed, or was closed meanwhile.
            DBOfflineError: on entering: no server lets us in, or `configure` raises, and waiting would not help.
            WrongModelError: on entering: a second thread uses a non-threaded pool.
            OutcomeUnknown: on leaving normally: the connection died during COMMIT, the block's own included.
            DBConnectionError: on leaving normally: nothing was committed, since the connection was lost, closed, or
                left in the middle of a statement, though the block has caught that.
            psycopg.Error: on leaving normally: the server refuses to commit, or a statement has failed before.
        """
        lease: Lease = _new(self._lease)
        lease._slot = None
        try:
            lease._group = self._groups[group]
        except KeyError:
            raise UnconfiguredGroupError(group, self._groups) from None
        lease._pool = self
        lease._timeout = None if timeout is None else seconds_of(timeout)
        return lease

    def getconn(self, group: str = "default", timeout: float | None = None) -> Connection:
        """A connection of a group, to be returned with `putconn`, and not used any more after that.

        Raises:
            Exception: as entering a block of `connection` does.
        """
        found = self._group(group)
        timeout = seconds_of(timeout)
        now = monotonic()
        slot = found.take(now)
        if slot is None or now >= slot.fresh_until:
            slot = self._obtain(found, slot, now, timeout)
            now = monotonic()
        frame = caller(sys._getframe(1))
        slot.holder = (frame.f_code, frame.f_lasti, threading.get_ident())
        slot.taken = now
        if now >= found.note_at:
            note(slot, frame, threading.get_ident())
        self._out[id(slot.given)] = slot
        return slot.given  # type: ignore[no-any-return]

    def putconn(self, conn: Connection, error: BaseException | None = None, *, discard: bool = False) -> None:
        """Return what `getconn` gave. A transaction left open is rolled back.

        `error` is what ended the work: evidence of how the server is, as the exception that ends a block. With
        `discard` the connection is closed, and not used again. One that its user has closed is back already.

        Raises:
            ValueError: this pool has not handed it out by `getconn`, or it was returned before.
        """
        slot = self._back(conn)
        if slot is not None:
            self._take_back(slot, error, commit=False, discard=discard)

    def _take_back(self, slot: Slot, error: BaseException | None, *, commit: bool, discard: bool = False) -> None:
        now = monotonic()
        seconds = now - slot.taken
        slot.use_time += seconds
        slot.use_times[(seconds * PER_SECOND).__trunc__().bit_length()] += 1
        if discard:
            run(self._sessions.discard(slot, error))
        elif error is None and slot.clean(now):
            slot.lane.group.give(slot, now)
        else:
            run(self._sessions.settle(slot, error, commit=commit))
        if now >= slot.lane.group.tend_at:
            self._keeper.tend(now)

    async def _release(self, slot: Slot) -> None:
        self._take_back(slot, None, commit=False)

    def _obtain(self, group: Group, slot: Slot | None, began: float, timeout: float | None) -> Slot:
        """The slow path.

        The usual one, that somebody else gives a connection back, is written out: the next one in line cannot go on
        before the giver waits for its next connection, so whatever is saved here is saved twice.
        """
        waited = False
        line = self._line
        if slot is None and line is not None and self._seen and not forks.unnoticed():
            settings: GroupSettings = group.settings  # type: ignore[assignment]
            slot = line(group, began, began + (settings.acquire_timeout if timeout is None else timeout), False)
            waited = True
            now = monotonic()
            if slot.fresh(now):
                slot.waited(now - began)
                return slot
        return run(self._find(group, slot, began, timeout, waited=waited))

    def check(self) -> None:
        """Ask every idle connection for an answer, now, and close those that do not give one."""
        run(self._ask_idle())

    def holders(self, group: str | None = None) -> list[Holder]:
        """Who holds connections, the longest first.

        Raises:
            UnconfiguredGroupError: there is no such group.
        """
        return [holder for each in self._chosen(group) for holder in holders(each, self._driver)]
