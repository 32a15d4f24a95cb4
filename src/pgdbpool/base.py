"""What all pools have in common, whatever they wait with.

What may wait is written here once, as coroutines: `AsyncPool` awaits them, and `Pool` carries them out with
`blocking.run`, since those of its driver and of its keepers never suspend. The two add how one gets a connection and
gives it back; the names and arguments of their methods are the same.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from os import PathLike
from time import time
from typing import Any, Protocol, Self

from . import forks, lifecycle
from .clock import monotonic
from .config import GroupSettings, MonitorSettings, Settings, judged_toml, judged_url
from .core import stats
from .core.balance import POLICIES, Policy
from .core.endpoint import Endpoint
from .core.events import Event
from .core.group import Group
from .core.lane import Slot
from .core.snapshot import snapshot
from .core.stats import Books, EndpointStats, PoolStats
from .core.topology import Topology
from .drivers import Driver
from .errors import ConfigError, UnconfiguredGroupError
from .habitat import forks_in_silence
from .herald import Herald
from .holders import Holder
from .lessor import GroupLessor
from .naming import name_of_pool
from .printable import make_log_printable
from .publish import writer as publisher
from .session import Sessions, style_of

POLL_AFTER = 0.5  # s of rest after which the socket is looked at before a checkout
_POLL_AFTER: Mapping[Any, float] = {"auto": POLL_AFTER, "off": float("inf")}

make_log_printable()  # here, since pools are what logs


def _refuse_misfits(settings: Settings, driver: Driver) -> None:
    """Raises ConfigError where a group wants classes of the other kind of pool, say."""
    problems = [
        f"groups.{name}.{key}: {problem}"
        for name, how in settings.groups.items()
        for key, problem in driver.misfits(style_of(how))
    ]
    if problems:
        raise ConfigError(*problems)


class Waits(Protocol):
    """A keeper, as far as this module knows it."""

    async def wait(self, group: Group, began: float, deadline: float, first: bool) -> Slot:
        """A slot, by whatever means, before the deadline. Raises PoolTimeout and relatives."""


class Base(ABC):
    """One pool: its groups and endpoints, its settings, and what can be seen of it."""

    _keeper: Waits
    _kind: str  # "threaded", "non-threaded" or "asyncio"

    def __init__(
        self,
        settings: Settings,
        driver: Driver,
        lock: Callable[[], AbstractContextManager[Any]],
        name: str | None = None,
    ) -> None:
        _refuse_misfits(settings, driver)
        self._settings = settings
        self._name = name_of_pool(name)
        self._lock = lock()
        # One open or close at a time. Never taken with `_lock` held; nothing waits for a server while it is held.
        self._life = lock()
        self._random = random.Random().random
        self._driver = driver
        self._topology = self._make_topology(self._lock)
        self._groups = {group.name: group for group in self._topology.groups}
        self._notes = any(settings.leak_threshold for settings in self._settings.groups.values())
        self._sessions = Sessions(driver, self._topology, settings.monitor)
        for group in self._topology.groups:
            close_returns = settings.groups[group.name].close_returns
            self._sessions.lessors[group.name] = GroupLessor(self, group, close_returns)
        self._herald = Herald(self._name)
        self._books = Books(self._name, self._topology, lock())
        self._out: dict[int, Slot] = {}  # what getconn has handed out, by id of the connection
        self._seen = False  # by others on this host, in this process
        self._closed = True
        lifecycle.register(self)

    @classmethod
    def from_toml(
        cls,
        path: str | PathLike[str],
        *,
        overrides: Mapping[str, Any] | None = None,
        name: str | None = None,
        open: bool = True,
    ) -> Self:
        """A pool configured by a TOML file.

        `overrides` is what counts instead of what the file says, in the form of the dictionary, which is merged with
        the file key by key: callables for its groups, say, or a password. A dictionary for ``db`` is for each endpoint
        of the file, a list takes the place of all of them. `name` and `open` as for the class.

        Raises:
            ConfigError: the file cannot be read, or is no configuration; it names every mistake.
        """
        found = judged_toml(path, overrides)
        del path, overrides
        return cls._made_of(found.settings(), open, name)

    @classmethod
    def from_url(
        cls, url: str, *, groups: Mapping[str, Any] | None = None, name: str | None = None, open: bool = True
    ) -> Self:
        """A pool on the hosts of a ``postgresql://`` URL, also one with a driver in it (``postgresql+psycopg://``).

        With `groups`, as in the dictionary form, these are its groups, and what the URL says of a group is the default
        of each. Else it has the one group ``default``. `name` and `open` as for the class.

        Raises:
            ConfigError: it is no such URL, or something is wrong in it or in `groups`; every mistake is named.
        """
        found = judged_url(url, groups=groups)
        del url, groups
        return cls._made_of(found.settings(), open, name)

    @classmethod
    def _made_of(cls, settings: Settings, open: bool, name: str | None) -> Self:
        return cls(settings, name=name, open=open)  # type: ignore[call-arg]  # both have them

    def _make_topology(self, lock: AbstractContextManager[Any]) -> Topology:
        monitor = self._settings.monitor or MonitorSettings()
        endpoints = [Endpoint(settings, self._random, monitor.slow_start) for settings in self._settings.db]
        groups = []
        wary = forks_in_silence()
        for settings in self._settings.groups.values():
            policy: Policy = settings.balance if callable(settings.balance) else POLICIES[settings.balance]
            group = Group(settings, policy, lock, self._random, 0.0 if wary else _POLL_AFTER.get(settings.check, 0.0))
            group.closed = True  # until `open`
            if settings.leak_threshold:
                group.note_at = 0.0
            groups.append(group)
        topology = Topology(endpoints, groups, lock, self._random, monitor.fall)
        for group in groups:
            for endpoint in endpoints:
                if not group.settings.tags or group.settings.tags & endpoint.settings.tags:
                    topology.attach(group, endpoint)
        return topology

    # -- life -------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the pool is closed."""
        return self._closed

    def __repr__(self) -> str:
        where = ", ".join(endpoint.label for endpoint in self._topology.endpoints)
        state = "closed" if self._closed else "open"
        return f"<{self._title()}, groups {', '.join(self._groups)} on {where}, {state}>"

    def _title(self) -> str:
        return f"{type(self).__name__} {self._settings.type}"

    def _forget_all(self, lock: Callable[[], AbstractContextManager[Any]]) -> None:
        """In a forked child: let go of what is the parent's, and start empty."""
        orphans = [slot for group in self._topology.groups for slot in group.every_slot()]
        for slot in orphans:
            slot.generation = -1  # if somebody in the child still returns it, it goes nowhere
            self._driver.disown(slot.conn)
        self._out.clear()
        self._seen = False
        # A thread of the parent may have held the locks when it forked.
        self._lock = lock()
        self._life = lock()
        self._books.reset(lock())
        self._random = random.Random().random
        self._topology.reset(self._lock, self._random)

    def _appear(self) -> None:
        """It is used in this process."""
        with self._life:
            if not self._seen and not self._closed:
                self._seen = True
                publisher.appear(self, self._kind, self._settings.status)

    def _disappear(self) -> None:
        """It was closed, unless another thread or task has opened it again."""
        with self._life:
            if self._closed:
                self._seen = False
                publisher.disappear(self)

    @abstractmethod
    def _after_fork(self) -> None: ...

    @abstractmethod
    def _at_exit(self) -> None: ...

    def _group(self, name: str) -> Group:
        try:
            return self._groups[name]
        except KeyError:
            raise UnconfiguredGroupError(name, self._groups) from None

    def _back(self, conn: Any) -> Slot | None:
        """What `putconn` is about. None: its user has closed it, and so given it back. Raises ValueError."""
        slot = self._out.pop(id(conn), None)
        if slot is not None:
            return slot
        lessor = getattr(conn, "lessor", None)
        if isinstance(lessor, GroupLessor) and lessor.gave(self) and conn.closed:
            return None
        raise ValueError("putconn: this connection was not handed out by getconn of this pool, or was returned before")

    async def _closed_by_user(self, slot: Slot) -> bool:
        """Take back what a user of `getconn` closes. False: it is a block's."""
        if self._out.pop(id(slot.given), None) is not slot:
            return False
        await self._release(slot)
        return True

    @abstractmethod
    async def _release(self, slot: Slot) -> None:
        """Take back what `getconn` gave."""

    def _chosen(self, name: str | None) -> list[Group]:
        return self._topology.groups if name is None else [self._group(name)]

    # -- what may wait ------------------------------------------------------------------------------------------

    async def _find(
        self,
        group: Group,
        slot: Slot | None,
        began: float,
        timeout: float | None,
        *,
        lease: bool = True,
        waited: bool = False,
    ) -> Slot:
        """The slow path of a checkout: wait for a slot, look at it, and begin again if it is of no use.

        `waited`: somebody has for the `slot` that is given, since `began`.
        """
        if forks.unnoticed():
            slot = None  # the parent's
        if not self._seen:
            self._appear()
        settings: GroupSettings = group.settings  # type: ignore[assignment]
        deadline = began + (settings.acquire_timeout if timeout is None else timeout)
        first = False
        while True:
            if slot is None:
                waited = True
                slot = await self._keeper.wait(group, began, deadline, first)
            now = monotonic()
            if slot.fresh(now):
                break
            if await self._sessions.verify(slot, deadline):
                now = monotonic()
                break
            slot, first = None, True
            if not group.waiters:
                slot = group.take(monotonic())
        if waited and lease:
            slot.waited(now - began)
        return slot

    async def _warm(self, timeout: float) -> None:
        """Hold `min_count` connections of each group at the same time."""
        began = monotonic()
        for group in self._topology.groups:
            leases: list[Slot] = []
            try:
                for _ in range(max(1, min(group.min_count, group.limit))):
                    slot = await self._find(group, group.take(monotonic()), began, timeout, lease=False)
                    leases.append(slot)  # one by one, so that an error leaves none behind
                    slot.rested = float("-inf")  # no caller has it, so none is named as its holder
            finally:
                for slot in leases:
                    group.give(slot, monotonic())

    async def _ask_idle(self) -> None:
        """Ask every idle connection for an answer, and close those that do not give one."""
        for group in self._topology.groups:
            for lane in group.lanes:
                for slot in snapshot(lane.idle):
                    try:
                        lane.idle.remove(slot)
                    except ValueError:  # taken meanwhile
                        continue
                    slot.fresh_until = slot.rested = float("-inf")  # as if it had rested for ever
                    if await self._sessions.verify(slot, float("inf")):
                        group.give(slot, monotonic())

    # -- while it runs ------------------------------------------------------------------------------------------

    def resize(self, group: str, connection_count: int, min_count: int | None = None) -> None:
        """Change a group's `connection_count`, which is per endpoint and in this process, and its `min_count`.

        Surplus idle connections are closed at once, surplus leased ones when they come back.

        Raises:
            UnconfiguredGroupError: there is no such group.
            ValueError: a configuration would not accept these numbers.
        """
        found = self._group(group)
        with self._lock:  # another thread may do the same
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
        """Replace all connections of a group, or of all: idle ones now, leased ones when they come back.

        Raises:
            UnconfiguredGroupError: there is no such group.
        """
        for each in self._chosen(group):
            self._topology.drain(each, monotonic())
            each.wish()

    def pause(self, group: str | None = None) -> None:
        """Hand out nothing until `resume`; leases go on.

        Callers wait, within their deadlines. In the non-threaded model they get PoolTimeout at once, since nobody could
        resume while they wait.

        Raises:
            UnconfiguredGroupError: there is no such group.
        """
        for each in self._chosen(group):
            each.paused = True
        self._topology.reroute(monotonic())

    def resume(self, group: str | None = None) -> None:
        """End `pause`.

        Raises:
            UnconfiguredGroupError: there is no such group.
        """
        for each in self._chosen(group):
            each.paused = False
        self._topology.reroute(monotonic())
        for each in self._chosen(group):
            each.wish()

    def stats(self, *, all_time: bool = False) -> PoolStats:
        """What the pool is doing and has counted: frozen, exact, and nobody waits for it.

        Counted since the pool was made, or since the last `pop_stats`; with `all_time` whatever has been popped.
        """
        return self._books.read(monotonic(), time(), all_time=all_time)

    def pop_stats(self) -> PoolStats:
        """The same, and counting starts anew."""
        return self._books.pop(monotonic(), time())

    def endpoints(self) -> tuple[EndpointStats, ...]:
        """What is believed of each endpoint now."""
        return stats.endpoints(self._topology, monotonic())

    @property
    def name(self) -> str:
        """What it is called in the log, in metrics, and in the names of its threads, in this process.

        As given; ``shop-2`` for the second one that was to be ``shop``, also if it takes the place of the first, so
        that no two are added up. ``pgdbpool-1`` is the first that was given none.
        """
        return self._name

    def on_event(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Have `listener` called with every `Event` from now on. Returns a callable that ends this.

        It is called by a thread of the pool, by the event loop of an `AsyncPool`, in the non-threaded model by whoever
        uses the pool next, and should not take long. What it raises is logged.
        """
        return self._herald.tell(listener)

    @abstractmethod
    def holders(self, group: str | None = None) -> list[Holder]:
        """Who holds connections, the longest first."""
