"""Out of memory, out of threads: what dies is replaced, what was reserved is given back, and callers are served."""

import asyncio
import json
import selectors
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aio_support import OpenPool, Stage, run_plain, until, until_seen
from conftest import LIMIT, config, output, python, wait_for
from support import one, stats, tidy

from pgdbpool import Pool, background, monitor, session
from pgdbpool.core.plan import Planner
from pgdbpool.drivers import names
from pgdbpool.listener import EpollListener
from pgdbpool.publish import merged, read
from pgdbpool.publish.writer import Publisher
from pgdbpool.session import Sessions
from pgdbpool.testing import Node

__all__ = ["run_plain", "tidy"]

OpenSyncPool = Callable[..., Pool]


def once(where: Any, name: str, thread: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a function raise MemoryError, the first time that a thread so called calls it. Returns who was hit."""
    function, hit = getattr(where, name), []

    def fails_once(*args: Any, **more: Any) -> Any:
        me = args[0].name if isinstance(args[:1], tuple) and args and isinstance(args[0], threading.Thread) else None
        who = me or threading.current_thread().name
        if who.endswith(thread) and not hit:
            hit.append(who)
            raise MemoryError
        return function(*args, **more)

    monkeypatch.setattr(where, name, fails_once)
    return hit


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "BIRTH", 0.2)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)


def serves(pool: Pool) -> None:
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1
    wait_for(lambda: stats(pool).opening == 0 and stats(pool).leased == 0)


PLACES = [
    (threading.Thread, "_set_ident", "opener"),
    (threading.Thread, "_set_ident", "keeper"),
    (threading.Thread, "run", "opener"),
    (threading.Thread, "run", "keeper"),
    (session, "monotonic", "opener"),
    (Sessions, "open", "opener"),
    (Planner, "plan", "opener"),
    (Planner, "order", "keeper"),
    (Planner, "due", "keeper"),
    (EpollListener, "sleep", "keeper"),
    (EpollListener, "add", "opener"),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("where", "name", "thread"), PLACES, ids=lambda each: getattr(each, "__name__", each))
def test_a_thread_that_dies_is_replaced_and_leaves_nothing_reserved(
    where: Any, name: str, thread: str, pg_node: Node, open_pool: OpenSyncPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(config(pg_node, connection_count=2, min_count=0), open=False)
    hit = once(where, name, thread, monkeypatch)
    pool.open()
    serves(pool)
    pool.drain()
    serves(pool)
    assert hit


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("where", "name"),
    [(threading.Thread, "_set_ident"), (threading.Thread, "run"), (selectors.EpollSelector, "select")],
    ids=["birth", "first line", "loop"],
)
def test_a_monitor_that_dies_is_replaced(
    where: Any, name: str, pg_node: Node, open_pool: OpenSyncPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = once(where, name, "monitor", monkeypatch)
    pool = open_pool(config(pg_node, min_count=1))
    serves(pool)
    wait_for(lambda: hit)
    pg_node.stop()  # which the monitor finds out, and tells
    wait_for(lambda: pool.endpoints()[0].health == "down")
    pg_node.start()
    wait_for(lambda: pool.endpoints()[0].health == "up")
    assert pool._topology.monitored


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("where", "name"),
    [(threading.Thread, "_set_ident"), (threading.Thread, "run"), (selectors.EpollSelector, "select")],
    ids=["birth", "first line", "loop"],
)
def test_a_monitor_that_dies_is_replaced_for_an_asyncio_pool_too(
    where: Any, name: str, pg_node: Node, run_plain: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(open_pool: OpenPool) -> None:
        hit = once(where, name, "monitor", monkeypatch)
        pool = open_pool(config(pg_node, min_count=1))
        async with pool.connection(timeout=LIMIT) as conn:
            await conn.execute("select 1")
        first = monitor._monitor
        assert first is not None
        await until(lambda: hit)
        if name != "select":  # that one goes on by itself
            await until(lambda: monitor._monitor is not first)
            assert (first.subscriptions, first._loop.is_closed()) == (0, True)
        await asyncio.to_thread(pg_node.stop)
        await until(lambda: pool.endpoints()[0].health == "down")
        await asyncio.to_thread(pg_node.start)
        await until(lambda: pool.endpoints()[0].health == "up")
        assert pool._topology.monitored
        await until_seen(lambda: len(pg_node.backends("pgdbpool:monitor")) == 1)

    run_plain(story)


# -- who publishes ----------------------------------------------------------------------------------------------------

PUBLISHING = [
    (threading.Thread, "start"),
    (threading.Thread, "_set_ident"),
    (threading.Thread, "run"),
    (Publisher, "_write"),
]


def published(node: Node, folder: Path) -> dict[str, Any]:
    folder.chmod(0o700)
    return config(node) | {"status": {"name": "dying", "directory": str(folder), "interval": 0.1}}


def requests(folder: Path) -> int:
    """How many the file of this process tells of."""
    groups = merged(read("dying", folder)).groups
    return groups["default"].counters.requests if groups else 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("where", "name"), PUBLISHING, ids=lambda each: getattr(each, "__name__", each))
def test_a_thread_that_publishes_and_dies_is_replaced(
    where: Any, name: str, pg_node: Node, tmp_path: Path, open_pool: OpenSyncPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = once(where, name, "publisher", monkeypatch)
    pool = open_pool(published(pg_node, tmp_path))
    serves(pool)
    wait_for(lambda: requests(tmp_path) == 1)
    serves(pool)
    wait_for(lambda: requests(tmp_path) == 2)
    assert hit
    pool.close()
    wait_for(lambda: list(tmp_path.iterdir()) == [])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("where", "name"), PUBLISHING, ids=lambda each: getattr(each, "__name__", each))
def test_so_it_is_for_an_asyncio_pool(
    where: Any, name: str, pg_node: Node, tmp_path: Path, run_plain: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(open_pool: OpenPool) -> None:
        hit = once(where, name, "publisher", monkeypatch)
        pool = open_pool(published(pg_node, tmp_path))
        for number in (1, 2):
            async with pool.connection(timeout=LIMIT) as conn:
                await conn.execute("select 1")
            await until(lambda number=number: requests(tmp_path) == number)
        assert hit
        await pool.close()
        await until(lambda: list(tmp_path.iterdir()) == [])

    run_plain(story)


def test_where_no_thread_can_be_had_for_a_while_it_is_published_later(
    pg_node: Node, tmp_path: Path, open_pool: OpenSyncPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = threading.Thread.start

    def none_to_be_had(thread: threading.Thread) -> None:
        if thread.name.endswith("publisher"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_to_be_had)
        pool = open_pool(published(pg_node, tmp_path))
        serves(pool)
        assert requests(tmp_path) == 0
    wait_for(lambda: requests(tmp_path) == 1)


# -- others -----------------------------------------------------------------------------------------------------------


def test_a_watch_of_the_monitor_that_dies_is_replaced(
    pg_node: Node, open_pool: OpenSyncPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, died = monitor.Watch.run, []

    async def dies_once(watch: monitor.Watch) -> None:
        if not died:
            died.append(watch)
            raise MemoryError
        await run(watch)

    monkeypatch.setattr(monitor.Watch, "run", dies_once)
    pool = open_pool(config(pg_node))
    wait_for(lambda: pool.endpoints()[0].health == "up")
    assert died


def test_a_look_up_whose_thread_dies_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hit = once(threading.Thread, "run", "lookup", monkeypatch)
    first = names.look_up("localhost")
    wait_for(lambda: hit)
    wait_for(lambda: names.look_up("localhost") is not first)
    assert isinstance(first.exception(LIMIT), OSError)
    assert names.look_up("localhost").result(LIMIT)


def test_where_no_keeper_can_be_started_a_caller_opens_what_it_waits_for(
    pg_node: Node, open_pool: OpenSyncPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = open_pool(config(pg_node, monitor=False), open=False)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool.open()
        serves(pool)
    pool.drain()
    serves(pool)


@pytest.mark.parametrize(
    ("where", "name"),
    [(session, "monotonic"), (background, "task"), (Planner, "plan"), (Planner, "due"), (EpollListener, "add")],
    ids=["open", "task", "plan", "due", "add"],
)
def test_in_an_asyncio_pool_what_fails_once_leaves_nothing_reserved(
    where: Any, name: str, pg_node: Node, run_plain: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(open_pool: OpenPool) -> None:
        hit = once(where, name, "MainThread", monkeypatch)
        pool = open_pool(config(pg_node, monitor=False, connection_count=2, min_count=0))
        for _ in range(2):
            async with pool.connection(timeout=LIMIT) as conn:
                await conn.execute("select 1")
            pool.drain()
        assert hit
        async with asyncio.timeout(LIMIT):
            while stats(pool).opening or stats(pool).leased:  # type: ignore[arg-type]
                await asyncio.sleep(0.01)

    run_plain(story)


HUNGRY = """
import json, logging, resource, sys, threading, time
from pgdbpool import Error, Pool

logging.disable()
threading.excepthook = sys.unraisablehook = id  # says nothing, and needs no memory
pool = Pool(json.loads(sys.argv[1]))
pool.wait(30)

def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

for turn in range(6):
    resource.setrlimit(resource.RLIMIT_AS, (used() + 2**20 * turn, resource.RLIM_INFINITY))
    hoard = []
    try:
        while True:
            hoard.append(bytearray(2**14))
    except MemoryError:
        pass
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        try:
            pool.drain()
            with pool.connection(timeout=0.1) as conn:
                conn.execute("select 1")
        except (MemoryError, RuntimeError, OSError, Error):
            pass
        except Exception as error:
            if "memory" not in str(error).lower():
                raise
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    del hoard
    with pool.connection(timeout=30) as conn:
        conn.execute("select 1")
    end = time.monotonic() + 30
    while pool.stats().groups["default"].opening or pool.stats().groups["default"].leased:
        assert time.monotonic() < end, pool.stats()
        time.sleep(0.01)
print("fine", flush=True)
"""


def test_a_process_that_was_out_of_memory_is_served_again(pg_node: Node) -> None:
    program = python(HUNGRY, json.dumps(config(pg_node, connection_count=2, min_count=1)))
    assert output(program, limit=120.0) == "fine\n"
