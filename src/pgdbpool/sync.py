"""Pool: the threaded and the non-threaded shell around core.

A `Lease` is what `connection()` returns: entering it takes a slot, leaving it gives the slot back. Both ways have a
fast path of a few lines, in which no lock is taken and nothing is asked of the server; everything out of the
ordinary goes to `Pool._obtain` and `Sessions.settle`.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import count
from os import PathLike
from time import monotonic
from types import TracebackType
from typing import Any
from weakref import finalize

import psycopg

from . import lifecycle
from .config import GroupSettings, MonitorSettings, Settings, load, load_toml, load_url
from .core import stats
from .core.balance import POLICIES, Policy
from .core.endpoint import Endpoint
from .core.events import Event
from .core.group import Group
from .core.lane import Slot
from .core.stats import EndpointStats, PoolStats
from .core.topology import Topology
from .drivers import Driver, Status, blocking
from .drivers.blocking import run
from .errors import Error, PoolClosed, PoolTimeout, UnconfiguredGroupError
from .herald import Herald
from .holders import Holder, Leased, holders
from .keeper import Inline, Keeper, Threaded
from .probe import death_of
from .session import Sessions

Connection = psycopg.Connection[Any]

POLL_AFTER = 0.5  # s of rest after which the socket is looked at before a checkout
_POLL_AFTER: Mapping[Any, float] = {"auto": POLL_AFTER, "off": float("inf")}
_SHOWN_HOLDERS = 10
_SAY_AGAIN = 0.25  # s for which the same words will do
_numbers = count(1)


class Lease(Leased):
    """One checkout, as a context manager; made by `Pool.connection`. Not to be shared between threads."""

    __slots__ = ("_group", "_pool", "_timeout")

    def __init__(self, pool: Pool, group: Group, timeout: float | None) -> None:
        self._pool = pool
        self._group = group
        self._timeout = timeout
        self._slot = None

    def __enter__(self) -> Connection:
        if self._slot is not None:
            raise Error(f"this lease of group {self._group.name!r} is in use: ask the pool for another")
        now = monotonic()
        slot = self._group.take(now)
        if slot is None or now >= slot.fresh_until:
            slot = self._pool._obtain(self._group, slot, now, self._timeout)
            now = monotonic()
        slot.taken = now
        self._slot = slot
        return slot.conn  # type: ignore[no-any-return]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slot: Slot = self._slot  # type: ignore[assignment]
        self._slot = None
        now = monotonic()
        slot.uses += 1
        slot.use_time += now - slot.taken
        if error is None and slot.clean():
            self._group.give(slot, now)
        else:
            run(self._pool._sessions.settle(slot, error, commit=True))
        if now >= self._group.tend_at:
            self._pool._keeper.tend(now)


class Pool:
    """Named groups of connections to one or several PostgreSQL endpoints.

    `config` is the dictionary described in the configuration reference, or `Settings`; it is checked whole before any
    connection is opened, and ConfigError names every mistake. The pool opens by default; connections are made in the
    background (`type: "threaded"`) or when they are first needed (`"non-threaded"`).

    A threaded pool may be used from any thread; a non-threaded one by one thread only.
    """

    def __init__(self, config: Mapping[str, Any] | Settings, *, open: bool = True) -> None:
        self._settings = config if isinstance(config, Settings) else load(config)
        self._name = f"pgdbpool-{next(_numbers)}"
        self._threaded = self._settings.type == "threaded"
        self._lock: AbstractContextManager[Any] = threading.Lock() if self._threaded else nullcontext()
        self._random = random.Random().random
        self._driver: Driver = blocking
        self._topology = self._make_topology(self._lock)
        self._groups = {group.name: group for group in self._topology.groups}
        self._sessions = Sessions(self._driver, self._topology)
        self._herald = Herald(self._name)
        self._keeper = self._make_keeper()
        self._marks: stats.Marks = {}
        self._out: dict[int, Slot] = {}  # what getconn has handed out, by id of the connection
        self._closed = True
        self._finalizer: Any = None
        lifecycle.register(self)
        if open:
            self.open()

    @classmethod
    def from_toml(cls, path: str | PathLike[str], *, open: bool = True) -> Pool:
        """A pool configured by a TOML file. Raises ConfigError, or OSError if the file cannot be read."""
        return cls(load_toml(path), open=open)

    @classmethod
    def from_url(cls, url: str, *, open: bool = True) -> Pool:
        """A pool with the one group ``default``, on the hosts of a ``postgresql://`` URL. Raises ConfigError."""
        return cls(load_url(url), open=open)

    def _make_topology(self, lock: AbstractContextManager[Any]) -> Topology:
        monitor = self._settings.monitor or MonitorSettings()
        endpoints = [Endpoint(settings, self._random, monitor.slow_start) for settings in self._settings.db]
        groups = []
        for settings in self._settings.groups.values():
            policy: Policy = settings.balance if callable(settings.balance) else POLICIES[settings.balance]
            group = Group(settings, policy, lock, self._random, _POLL_AFTER.get(settings.check, 0.0))
            group.closed = True  # until `open`
            groups.append(group)
        topology = Topology(endpoints, groups, lock, self._random, monitor.fall)
        for group in groups:
            for endpoint in endpoints:
                if not group.settings.tags or group.settings.tags & endpoint.settings.tags:
                    topology.attach(group, endpoint)
        return topology

    def _make_keeper(self) -> Keeper:
        timed_out = _Reasons(self._topology, self._driver)
        keeper: Keeper
        if self._threaded:
            keeper = Threaded(
                self._name, self._topology, self._sessions, timed_out, self._herald, self._settings.monitor
            )
        else:
            keeper = Inline(self._topology, self._sessions, timed_out, timed_out.look_for_holders, self._herald)
        if self._settings.monitor is None or not self._threaded:
            how = self._settings.monitor or MonitorSettings()
            self._sessions.check = partial(death_of, self._topology, how=how)
        for group in self._topology.groups:
            group.wish = partial(keeper.wish, group)
        self._topology.born = keeper.opened
        self._sessions.closing = keeper.closing
        return keeper

    # -- life -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the pool, or open it again after `close`. Does nothing if it is open. Does not wait."""
        if not self._closed:
            return
        self._closed = False
        self._employ_keeper()
        self._topology.open()
        self._keeper.start()
        for group in self._topology.groups:
            self._keeper.wish(group)

    def _employ_keeper(self) -> None:
        self._keeper = self._make_keeper()
        if self._finalizer is not None:
            self._finalizer.detach()
        # A pool nobody knows any more stops its thread and closes its connections.
        self._finalizer = finalize(self, self._keeper.abandon)
        self._finalizer.atexit = False

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until each group has its `min_count` connections on at least one endpoint it may use.

        In the non-threaded model this opens them. Raises PoolTimeout after `timeout` seconds, DBOfflineError where no
        retry would help.
        """
        deadline = monotonic() + timeout
        for group in self._topology.groups:
            began = monotonic()
            leases: list[Slot] = []
            try:
                for _ in range(max(1, min(group.min_count, group.limit))):
                    slot = self._obtain(group, group.take(monotonic()), began, deadline - monotonic())
                    leases.append(slot)  # one by one, so that an error leaves none behind
            finally:
                for slot in leases:
                    group.give(slot, monotonic())

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool: waiters get PoolClosed, idle connections are closed at once, leased ones on return.

        Waits up to `timeout` seconds for leased connections to come back; in the non-threaded model it does not wait.
        Safe to call twice.
        """
        if self._closed:
            return
        self._closed = True
        if self._finalizer is not None:
            self._finalizer.detach()
        self._topology.close()
        for group in self._topology.groups:
            group.fail_waiters(partial(PoolClosed, _closed_words(group.name)))
        self._keeper.stop()
        deadline = monotonic() + timeout
        pause = threading.Event()
        while self._threaded and monotonic() < deadline and any(group.total for group in self._topology.groups):
            for group in self._topology.groups:
                self._sessions.bury(group)
            pause.wait(0.002)
        for group in self._topology.groups:
            group.wish = partial(self._sessions.bury, group)  # nobody else closes what comes back later
            self._sessions.bury(group)

    @property
    def closed(self) -> bool:
        """Whether the pool is closed."""
        return self._closed

    def __enter__(self) -> Pool:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = ", ".join(endpoint.label for endpoint in self._topology.endpoints)
        state = "closed" if self._closed else "open"
        return f"<Pool {self._settings.type}, groups {', '.join(self._groups)} on {where}, {state}>"

    def _after_fork(self) -> None:
        """In the child: let go of what is the parent's, and start empty."""
        orphans = [slot for group in self._topology.groups for slot in group.every_slot()]
        for slot in orphans:
            slot.generation = -1  # if somebody in the child still returns it, it goes nowhere
            self._driver.disown(slot.conn)
        self._out.clear()
        self._marks.clear()
        # A thread of the parent may have held the lock when it forked.
        self._lock = threading.Lock() if self._threaded else nullcontext()
        self._random = random.Random().random
        self._topology.reset(self._lock, self._random)
        if not self._closed:
            self._employ_keeper()

    def _at_exit(self) -> None:
        if not self._closed:
            self.close(timeout=0.0)
        for slot in [slot for group in self._topology.groups for slot in group.every_slot()]:
            if self._driver.status(slot.conn) is not Status.BUSY:  # else a daemon thread is still in it
                self._driver.close(slot.conn)

    # -- checkout -----------------------------------------------------------------------------------------------

    def connection(self, group: str = "default", timeout: float | None = None) -> Lease:
        """A connection of a group, for the length of a ``with`` block.

        Leaving the block normally commits an open transaction of an ``autocommit: false`` group, leaving it by an
        exception rolls back; then the connection goes back to the pool. `timeout` in seconds, default the group's
        `acquire_timeout`. Entering raises PoolTimeout, TooManyWaiting, PoolClosed or DBOfflineError; leaving raises
        OutcomeUnknown if the connection dies during COMMIT, and the driver's exception if the server refuses it or an
        error inside the block, though caught there, has made the transaction fail.
        """
        try:
            return Lease(self, self._groups[group], timeout)
        except KeyError:
            raise UnconfiguredGroupError(group, self._groups) from None

    def getconn(self, group: str = "default", timeout: float | None = None) -> Connection:
        """A connection of a group, to be returned with `putconn`. Raises as `connection` does."""
        found = self._group(group)
        now = monotonic()
        slot = found.take(now)
        if slot is None or now >= slot.fresh_until:
            slot = self._obtain(found, slot, now, timeout)
            now = monotonic()
        frame = sys._getframe(1)
        slot.holder = (frame.f_code, frame.f_lasti, threading.get_ident())
        slot.taken = now
        self._out[id(slot.conn)] = slot
        return slot.conn  # type: ignore[no-any-return]

    def putconn(self, conn: Connection) -> None:
        """Return what `getconn` gave. A transaction left open is rolled back.

        Raises ValueError for a connection that this pool has not handed out by `getconn`, or that was returned before.
        """
        slot = self._out.pop(id(conn), None)
        if slot is None:
            raise ValueError(
                "putconn: this connection was not handed out by getconn of this pool, or was returned before"
            )
        self._take_back(slot, None, commit=False)

    def _take_back(self, slot: Slot, error: BaseException | None, *, commit: bool) -> None:
        now = monotonic()
        slot.uses += 1
        slot.use_time += now - slot.taken
        if error is None and slot.clean():
            slot.lane.group.give(slot, now)
        else:
            run(self._sessions.settle(slot, error, commit=commit))
        if now >= slot.lane.group.tend_at:
            self._keeper.tend(now)

    def _obtain(self, group: Group, slot: Slot | None, began: float, timeout: float | None) -> Slot:
        """The slow path of a checkout: wait for a slot, look at it, and begin again if it is of no use."""
        settings: GroupSettings = group.settings  # type: ignore[assignment]
        deadline = began + (settings.acquire_timeout if timeout is None else timeout)
        waited = first = False
        while True:
            if slot is None:
                waited = True
                slot = self._keeper.wait(group, began, deadline, first)
            if run(self._sessions.verify(slot, deadline)):
                break
            slot, first = None, True
            if not group.waiters:
                slot = group.take(monotonic())
        if waited:
            slot.waits += 1
            slot.wait_time += monotonic() - began
        return slot

    def _group(self, name: str) -> Group:
        try:
            return self._groups[name]
        except KeyError:
            raise UnconfiguredGroupError(name, self._groups) from None

    def _chosen(self, name: str | None) -> list[Group]:
        return self._topology.groups if name is None else [self._group(name)]

    # -- while it runs ------------------------------------------------------------------------------------------

    def resize(self, group: str, connection_count: int, min_count: int | None = None) -> None:
        """Change a group's `connection_count` (per endpoint), and its `min_count`.

        Surplus idle connections are closed at once, surplus leased ones when they come back. Raises ValueError for
        numbers that a configuration would not accept.
        """
        found = self._group(group)
        least = min(found.min_count, connection_count) if min_count is None else min_count
        if connection_count < 1:
            raise ValueError(f"connection_count: expected 1 or more, got {connection_count}")
        if not 0 <= least <= connection_count:
            raise ValueError(f"min_count: expected 0 to connection_count ({connection_count}), got {least}")
        if found.total_limit is not None and least > found.total_limit:
            raise ValueError(f"min_count: expected 0 to total_count ({found.total_limit}), got {least}")
        found.resize(connection_count, least)
        self._topology.reroute(monotonic())

    def drain(self, group: str | None = None) -> None:
        """Replace all connections of a group, or of all: idle ones now, leased ones when they come back."""
        with self._lock:
            for each in self._chosen(group):
                for lane in each.lanes:
                    each.retire_lane(lane, "drained")
        for each in self._chosen(group):
            each.wish()

    def pause(self, group: str | None = None) -> None:
        """Hand out nothing until `resume`; leases go on.

        Callers wait, within their deadlines. In the non-threaded model they get PoolTimeout at once, since nobody could
        resume while they wait.
        """
        for each in self._chosen(group):
            each.paused = True
        self._topology.reroute(monotonic())

    def resume(self, group: str | None = None) -> None:
        """End `pause`."""
        for each in self._chosen(group):
            each.paused = False
        self._topology.reroute(monotonic())
        for each in self._chosen(group):
            each.wish()

    def check(self) -> None:
        """Ask every idle connection for an answer, now, and close those that do not give one."""
        for group in self._topology.groups:
            for lane in group.lanes:
                for slot in tuple(lane.idle):
                    try:
                        lane.idle.remove(slot)
                    except ValueError:  # taken meanwhile
                        continue
                    slot.fresh_until = slot.rested = float("-inf")  # as if it had rested for ever
                    if run(self._sessions.verify(slot, float("inf"))):
                        group.give(slot, monotonic())

    def stats(self) -> PoolStats:
        """What the pool is doing and has counted: frozen, exact."""
        with self._lock:
            return stats.read(self._topology, monotonic(), self._marks)

    def pop_stats(self) -> PoolStats:
        """The same, and counting starts anew."""
        with self._lock:
            return stats.read(self._topology, monotonic(), self._marks, reset=True)

    def endpoints(self) -> tuple[EndpointStats, ...]:
        """What is believed of each endpoint now."""
        with self._lock:
            return stats.endpoints(self._topology)

    def on_event(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Have `listener` called with every `Event` from now on. Returns a callable that ends this.

        It is called by a thread of the pool, in the non-threaded model by whoever uses the pool next, and should not
        take long. What it raises is logged.
        """
        return self._herald.tell(listener)

    def holders(self, group: str | None = None) -> list[Holder]:
        """Who holds connections, the longest first."""
        return [holder for each in self._chosen(group) for holder in holders(each, self._driver)]


class _Reasons:
    """Words for a caller that got nothing. Knows no pool, so that the keeper thread does not keep one alive."""

    def __init__(self, topology: Topology, driver: Driver) -> None:
        self._topology = topology
        self._driver = driver
        self._said: dict[str, tuple[float, str]] = {}

    def __call__(self, group: Group, began: float) -> PoolTimeout:
        waited = monotonic() - began
        head = f"group {group.name!r}: no connection after {waited:.1f} s: "
        if group.paused:
            return PoolTimeout(head + "the pool is paused", group=group.name, waited=waited, reason="paused")
        if not group.route or not any(lane.open for lane in group.lanes):
            words = "no endpoint can be used: " + self._topology.unreachable(group)
            return PoolTimeout(head + words, group=group.name, waited=waited, reason="unreachable")
        used = sum(lane.leased for lane in group.lanes)
        words = f"{used} connections in use, {len(group.waiters)} others waiting; held by {self.holders(group)}"
        return PoolTimeout(head + words, group=group.name, waited=waited, reason="exhausted")

    def holders(self, group: Group) -> str:
        """In words. An overloaded pool has better things to do than to look at every stack for every caller."""
        now = monotonic()
        said_at, words = self._said.get(group.name, (float("-inf"), ""))
        if now - said_at >= _SAY_AGAIN:
            words = self.look_for_holders(group)
            self._said[group.name] = monotonic(), words
        return words

    def look_for_holders(self, group: Group) -> str:
        found = holders(group, self._driver)
        shown = "; ".join(str(holder) for holder in found[:_SHOWN_HOLDERS])
        more = len(found) - _SHOWN_HOLDERS
        return (shown or "nobody any more") + (f"; and {more} more" if more > 0 else "")


def _closed_words(group: str) -> str:
    return f"the pool was closed while the caller waited for group {group!r}"
