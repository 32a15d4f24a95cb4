"""Whatever interrupts the pool's dealings with a connection, at whichever `await`: the books are right afterwards.

Each story is told with a driver of no server, which suspends in each of its calls and in nothing else. It is
interrupted at its first suspension, at its second, and so on until it has no more: by a cancellation, which goes
through, and by an error, which means what an error there means. Then every connection that was ever opened is idle or
closed, and no number of any lane counts something that is not there.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine, Generator
from time import monotonic
from types import coroutine
from typing import Any

import pytest

from pgdbpool.config import EndpointSettings, GroupSettings
from pgdbpool.core.balance import POLICIES
from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.evidence import Identity, Report, Role, Sighting
from pgdbpool.core.group import Group
from pgdbpool.core.lane import Lane, Slot
from pgdbpool.core.topology import Topology
from pgdbpool.drivers import ConnectFailed, DriverTimeout, Fault, Status
from pgdbpool.session import Sessions

STANDBY, PRIMARY = Report(Role.STANDBY), Report(Role.PRIMARY)
FOREVER = float("inf")
Work = Coroutine[Any, Any, Any]


class Lost(Exception):
    """The driver's own error."""

    sqlstate = "57P01"


class Conn:
    def __init__(self) -> None:
        self.status = Status.IDLE
        self.clean = True
        self.closed = False


class Driver:
    """Suspends once in each call. `raises`: what a call raises, by its name, after that."""

    Error = Lost

    def __init__(self) -> None:
        self.conns: list[Conn] = []
        self.cancelled: list[Conn] = []
        self.raises: dict[str, BaseException] = {}
        self.says = STANDBY
        self.sees = STANDBY
        self.silent = True

    async def _step(self, name: str) -> None:
        await suspension()
        if name in self.raises:
            raise self.raises[name]

    def address(self, conn: Conn) -> str:
        return ""

    async def connect(self, *args: Any, **more: Any) -> Conn:
        await self._step("connect")
        self.conns.append(Conn())
        return self.conns[-1]

    async def shown(self, conn: Conn) -> Conn:
        return conn

    async def password(self, ask: Callable[[], Any], deadline: float) -> Any:
        await self._step("password")
        return ask()

    async def within(self, awaitable: Any, deadline: float) -> Any:
        return await awaitable

    async def ping(self, conn: Conn, deadline: float) -> None:
        await self._step("ping")

    async def statement(self, conn: Conn, text: str, deadline: float) -> None:
        await self._step("statement")

    async def report(self, conn: Conn, deadline: float, *, ask: bool = False) -> Report:
        await self._step("report")
        return self.says

    async def sight(self, conn: Conn, deadline: float, *, pooled: bool = False) -> Sighting:
        await self._step("sight")
        return Sighting(self.sees, Identity("1", 1))

    async def says_read_only_itself(self, conn: Conn, deadline: float) -> bool:
        await self._step("says_read_only_itself")
        return False

    async def adopt(self, conn: Conn, autocommit: bool) -> None:
        await self._step("adopt")

    async def restore(self, conn: Conn) -> None:
        await self._step("restore")

    async def reset(self, conn: Conn, deadline: float) -> bool:
        await self._step("reset")
        return True

    async def note_prepared(self, conn: Conn, deadline: float) -> None:
        await self._step("note_prepared")

    async def commit(self, conn: Conn) -> None:
        await self._step("commit")
        conn.status = Status.IDLE

    async def rollback(self, conn: Conn) -> None:
        await self._step("rollback")
        conn.status = Status.IDLE

    def watch(self, conn: Conn, writes: bool) -> Callable[[float], bool]:
        conn.clean = True
        return lambda now: conn.clean

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **more: None  # what else is asked, which waits for nothing

    def close(self, conn: Conn) -> None:
        conn.closed = True

    def status(self, conn: Conn) -> Status:
        return conn.status

    def quiet(self, conn: Conn) -> bool:
        return self.silent

    def last_words(self, conn: Conn) -> str | None:
        return None

    def sqlstate(self, error: BaseException) -> str | None:
        return getattr(error, "sqlstate", None)

    def words(self, error: BaseException, *, lost: bool) -> str | None:
        return "gone" if isinstance(error, Lost) else None

    def fault(self, error: BaseException) -> Fault | None:
        return Fault.REFUSED if isinstance(error, Lost) else None

    def at_work(self, conn: Conn) -> bool:
        return conn.status is Status.BUSY

    def given_up(self, conn: Conn) -> bool:
        return False

    async def ended(self, conn: Conn) -> None:
        await self._step("ended")

    def cancel_now(self, conn: Conn, deadline: float) -> None:
        self.cancelled.append(conn)

    def listen_to_the_end(self, conn: Conn) -> None: ...


@coroutine
def suspension() -> Generator[None, None, None]:
    yield


class Scene:
    """A group that reads and one that writes, on so many endpoints; `read` has idle connections on the first."""

    def __init__(self, endpoints: int = 1, idle: int = 2, where: dict[str, Any] | None = None, **read: Any) -> None:
        lock = threading.RLock()
        self.driver = Driver()
        self.endpoints = [
            Endpoint(EndpointSettings(host=f"db{number}", **(where or {})), random.random)
            for number in range(endpoints)
        ]
        rules = GroupSettings(name="read", **read), GroupSettings(name="write", target_session_attrs="primary")
        self.read, self.write = (Group(each, POLICIES["least-busy"], lock, random.random) for each in rules)
        self.topology = Topology(self.endpoints, [self.read, self.write], lock, random.random)
        for group in self.topology.groups:
            for endpoint in self.endpoints:
                self.topology.attach(group, endpoint)
        self.topology.open()
        self.sessions = Sessions(self.driver, self.topology)  # type: ignore[arg-type]
        for _ in range(idle):
            conn = Conn()
            self.driver.conns.append(conn)
            order = self.topology.order(self.read, self.read.lanes[0], monotonic())
            self.topology.opened(order, conn, self.driver.watch(conn, False), STANDBY, monotonic(), Identity("1", 1))

    def open(self, group: Group | None = None, *, search: bool = False) -> Work:
        group = group or self.read
        group.lanes[0].searches = 2  # every other search asks a neighbour
        order = self.topology.order(group, group.lanes[0], monotonic())._replace(search=search)
        return self.sessions.open(order)

    def lease(self) -> Slot:
        slot = self.read.take(monotonic())
        assert slot is not None
        slot.fresh_until = slot.rested = float("-inf")
        return slot

    async def verify(self) -> None:
        slot = self.lease()
        if await self.sessions.verify(slot, FOREVER):
            self.read.give(slot, monotonic())

    def settle(self, status: Status, error: BaseException | None = None, *, commit: bool = True) -> Work:
        slot = self.lease()
        slot.conn.status = status
        return self.sessions.settle(slot, error, commit=commit)

    def lanes(self) -> list[Lane]:
        return [lane for group in self.topology.groups for lane in group.lanes]

    def check(self) -> None:
        """Every connection is idle or closed, and all numbers are those of what there is."""
        for group in self.topology.groups:
            self.sessions.bury(group)
        idle = [slot.conn for lane in self.lanes() for slot in lane.idle]
        assert {id(conn) for conn in idle} == {id(conn) for conn in self.driver.conns if not conn.closed}
        assert all(conn.status is Status.IDLE and not conn.closed for conn in idle)
        for lane in self.lanes():
            assert (lane.opening, lane.closing, lane.leased) == (0, 0, 0)
            assert lane.open == len(lane.idle) == len(lane.slots)
        for endpoint in self.endpoints:
            lanes = self.topology.lanes(endpoint)
            assert endpoint.connecting == 0
            assert endpoint.open == sum(len(lane.idle) for lane in lanes)


# -- the stories ------------------------------------------------------------------------------------------------------


async def prepared(conn: Conn) -> None:
    await suspension()
    conn.status = Status.IN_TRANSACTION


def plain_open() -> tuple[Scene, Work]:
    scene = Scene(idle=0)
    return scene, scene.open()


def open_of_several() -> tuple[Scene, Work]:
    scene = Scene(endpoints=2, idle=0)
    return scene, scene.open()


def open_with_everything() -> tuple[Scene, Work]:
    scene = Scene(idle=0, where={"password": lambda: "secret"}, configure=prepared, sqlprepare=True, reset="state")
    return scene, scene.open()


def open_by_a_pooler() -> tuple[Scene, Work]:
    scene = Scene(idle=0, where={"query_timeout": 5000})
    attempts = iter([ConnectFailed("no options", Fault.REFUSED, options_refused=True)])
    connect = scene.driver.connect

    async def refuses_options(*args: Any, **more: Any) -> Conn:
        for error in attempts:
            await suspension()
            raise error
        return await connect()

    scene.driver.connect = refuses_options  # type: ignore[method-assign]
    return scene, scene.open()


def search_at_a_neighbour() -> tuple[Scene, Work]:
    scene = Scene()
    return scene, scene.open(scene.write, search=True)


def search_at_a_neighbour_with_news() -> tuple[Scene, Work]:
    scene = Scene()
    for slot in scene.read.lanes[0].idle:
        slot.conn.clean = False
    scene.driver.sees = PRIMARY
    scene.driver.says = Report(Role.PRIMARY, read_only=True)
    return scene, scene.open(scene.write, search=True)


def search_at_a_neighbour_that_is_gone() -> tuple[Scene, Work]:
    scene = Scene(idle=3)
    scene.driver.raises = {"sight": Lost()}
    scene.driver.silent = False  # so those that rest beside it are looked at
    return scene, scene.open(scene.write, search=True)


def search_at_a_neighbour_that_is_frozen() -> tuple[Scene, Work]:
    scene = Scene(idle=3)
    scene.driver.raises = {"sight": DriverTimeout()}
    return scene, scene.open(scene.write, search=True)


def look_at_a_rested_one() -> tuple[Scene, Work]:
    scene = Scene()
    return scene, scene.verify()


def look_by_a_callable() -> tuple[Scene, Work]:
    scene = Scene(check=prepared)
    return scene, scene.verify()


def look_at_one_with_news() -> tuple[Scene, Work]:
    scene = Scene()
    for slot in scene.read.lanes[0].idle:
        slot.conn.clean = False
    scene.driver.says = Report(Role.STANDBY, read_only=True)
    return scene, scene.verify()


def look_at_one_that_is_gone() -> tuple[Scene, Work]:
    scene = Scene(idle=3)
    scene.driver.raises = {"ping": Lost()}
    scene.driver.silent = False
    return scene, scene.verify()


def commit() -> tuple[Scene, Work]:
    scene = Scene(autocommit=False)
    return scene, scene.settle(Status.IN_TRANSACTION)


def roll_back() -> tuple[Scene, Work]:
    scene = Scene(autocommit=False)
    return scene, scene.settle(Status.IN_TRANSACTION, ZeroDivisionError())


def commit_and_reset() -> tuple[Scene, Work]:
    scene = Scene(autocommit=False, reset=prepared)
    return scene, scene.settle(Status.IN_TRANSACTION)


def commit_and_put_back() -> tuple[Scene, Work]:
    scene = Scene(autocommit=False, reset="state", configure=prepared)
    return scene, scene.settle(Status.IN_TRANSACTION)


def give_back_in_the_middle_of_a_statement() -> tuple[Scene, Work]:
    scene = Scene()
    return scene, scene.settle(Status.BUSY, ZeroDivisionError())


def give_back_one_with_news() -> tuple[Scene, Work]:
    scene = Scene()
    scene.driver.says = Report(Role.STANDBY, read_only=True)
    work = scene.settle(Status.IDLE)
    scene.driver.conns[-1].clean = False
    return scene, work


def give_back_one_that_is_gone() -> tuple[Scene, Work]:
    scene = Scene(idle=3)
    scene.driver.silent = False
    return scene, scene.settle(Status.BROKEN, Lost())


def look_at_all() -> tuple[Scene, Work]:
    scene = Scene(idle=3)
    scene.driver.silent = False
    return scene, scene.sessions.look_at(scene.lanes())


STORIES = [
    plain_open,
    open_of_several,
    open_with_everything,
    open_by_a_pooler,
    search_at_a_neighbour,
    search_at_a_neighbour_with_news,
    search_at_a_neighbour_that_is_gone,
    search_at_a_neighbour_that_is_frozen,
    look_at_a_rested_one,
    look_by_a_callable,
    look_at_one_with_news,
    look_at_one_that_is_gone,
    commit,
    roll_back,
    commit_and_reset,
    commit_and_put_back,
    give_back_in_the_middle_of_a_statement,
    give_back_one_with_news,
    give_back_one_that_is_gone,
    look_at_all,
]


def carry_out(work: Work, point: int, error: BaseException) -> tuple[bool, BaseException | None]:
    """Interrupted at its n-th suspension. Whether there was such a point, and what it raised."""
    hit = False
    try:
        work.send(None)
        while True:
            if point == 0:
                hit = True
                work.throw(error)
            else:
                work.send(None)
            point -= 1
    except StopIteration:
        return hit, None
    except BaseException as raised:
        return hit, raised


@pytest.mark.parametrize("error", [asyncio.CancelledError, Lost, DriverTimeout], ids=lambda error: error.__name__)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_an_interruption_leaves_the_books_right(
    story: Callable[[], tuple[Scene, Work]], error: type[BaseException]
) -> None:
    point, hit = 0, True
    while hit:
        scene, work = story()
        hit, raised = carry_out(work, point, error())
        if hit and error is asyncio.CancelledError:
            assert isinstance(raised, asyncio.CancelledError), f"swallowed at point {point}"
        scene.check()
        point += 1
    assert point > 1, "the story has no point to interrupt"
