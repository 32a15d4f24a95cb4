"""Opening and closing a pool from many threads or tasks at once: one call is carried out after the other."""

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from aio_support import OpenPool, Stage, one, run_plain
from conftest import LIMIT, backends, config, wait_for
from support import start

from pgdbpool import Pool, PoolClosed, PoolTimeout
from pgdbpool.core.topology import Topology
from pgdbpool.testing import Node

__all__ = ["run_plain"]

THREADS = 6


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    """Threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.00005)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def alone(pg_node: Node) -> None:
    """Sessions that another test has left on the server are ended: here those of the pool are counted."""
    pg_node.terminate_backends("application_name like 'pgdbpool:%'")
    wait_for(lambda: not backends(pg_node))


def threads_of(pool: Pool, kind: str = "") -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith(f"{pool.name} {kind}")]


def query(pool: Pool) -> None:
    with pool.connection(timeout=LIMIT) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def at_once(*functions: Callable[[], Any]) -> None:
    """Each in a thread of its own, all at the same moment."""
    barrier = threading.Barrier(len(functions))

    def go(function: Callable[[], Any]) -> None:
        barrier.wait(LIMIT)
        function()

    for each in [start(go, function) for function in functions]:
        each.result(LIMIT)


@pytest.mark.parametrize("monitor", [True, False])
def test_a_pool_that_many_threads_open_has_one_keeper_and_none_after_it_was_closed(
    pg_node: Node, open_pool: Callable[..., Pool], monitor: bool
) -> None:
    pool = open_pool(config(pg_node, monitor=monitor, min_count=1), open=False)
    for _ in range(15):
        at_once(*[pool.open] * THREADS)
        query(pool)
        assert len(threads_of(pool, "keeper")) == 1
        at_once(*[pool.close] * THREADS)
        assert pool.closed
        wait_for(lambda: not threads_of(pool))


def test_whatever_threads_do_at_once_the_pool_is_open_or_closed_and_works_or_is_gone(
    pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    pool = open_pool(config(pg_node, connection_count=3, min_count=1), open=False)

    def use() -> None:
        with suppress(PoolClosed, PoolTimeout), pool.connection(timeout=0.05) as conn:
            conn.execute("select 1")

    def wait() -> None:
        with suppress(PoolClosed, PoolTimeout):
            pool.wait(0.05)

    def resize() -> None:
        pool.resize("default", random.randint(1, 3))

    def close() -> None:
        pool.close(0.05)

    acts = [pool.open, close, pool.drain, pool.pause, pool.resume, resize, use, use, wait, pool.stats]

    def act() -> None:
        for _ in range(60):
            random.choice(acts)()

    for _ in range(3):
        at_once(*[act] * THREADS)
        pool.open()
        pool.resume()
        pool.resize("default", 3)
        query(pool)
        assert len(threads_of(pool, "keeper")) == 1
        pool.close()
        wait_for(lambda: not threads_of(pool))
        wait_for(lambda: not backends(pg_node))
        assert not any(group.total or group.waiters for group in pool._topology.groups)


def test_a_pool_that_is_opened_while_another_thread_still_waits_for_its_leases_is_open_and_seen(
    pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    pool = open_pool(config(pg_node))
    conn = pool.getconn(timeout=LIMIT)
    closing = start(pool.close, 600.0)
    wait_for(lambda: pool.closed)
    pool.open()
    closing.result(LIMIT)
    assert pool._seen
    query(pool)
    pool.putconn(conn)


def test_an_open_that_is_interrupted_leaves_the_pool_closed_and_the_next_one_opens_it(
    pg_node: Node, open_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(config(pg_node), open=False)
    begin = Topology.open

    def interrupted(topology: Topology) -> None:
        begin(topology)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Topology, "open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.open()
    assert pool.closed
    with pytest.raises(PoolClosed):
        query(pool)
    pool.open()
    query(pool)


def test_a_close_that_is_interrupted_is_done_by_the_next_one(
    pg_node: Node, open_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(config(pg_node, min_count=1))
    query(pool)

    def interrupted(topology: Topology) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Topology, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.close()
    pool.close()
    wait_for(lambda: not threads_of(pool))
    wait_for(lambda: not backends(pg_node))


def test_a_caller_that_waits_with_the_keeper_of_a_pool_that_was_opened_again_meanwhile_is_served(
    pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    pool = open_pool(config(pg_node, min_count=0))
    pool.wait()
    stale = pool._line
    assert stale is not None
    pool.close()
    pool.open()
    wait_for(lambda: len(threads_of(pool, "keeper")) == 1)
    group = pool._groups["default"]
    pool.drain()
    slot = start(stale, group, 0.0, float("inf"), False).result(LIMIT)
    group.give(slot, 0.0)


def test_whatever_tasks_do_at_once_an_asyncio_pool_is_open_or_closed_and_works_or_is_gone(
    pg_node: Node, run_plain: Stage
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=3, min_count=1), open=False)

        async def use() -> None:
            with suppress(PoolClosed, PoolTimeout):
                async with pool.connection(timeout=0.05) as conn:
                    await conn.execute("select 1")

        async def wait() -> None:
            with suppress(PoolClosed, PoolTimeout):
                await pool.wait(0.05)

        async def do(function: Callable[..., object], *args: Any) -> None:
            function(*args)

        async def elsewhere(function: Callable[..., object], *args: Any) -> None:
            await asyncio.to_thread(function, *args)

        acts: list[Callable[[], Any]] = [
            pool.open,
            lambda: pool.close(0.05),
            lambda: do(pool.drain),
            lambda: do(pool.pause),
            lambda: elsewhere(pool.resume),
            lambda: elsewhere(pool.resize, "default", random.randint(1, 3)),
            use,
            use,
            wait,
        ]

        async def act() -> None:
            for _ in range(60):
                await random.choice(acts)()

        for _ in range(3):
            await asyncio.gather(*[act() for _ in range(THREADS)])
            await pool.open()
            pool.resume()
            pool.resize("default", 3)
            async with pool.connection(timeout=LIMIT) as conn:
                assert await one(conn, "select 1") == 1
            assert pool._seen
            await pool.close()
            await asyncio.to_thread(wait_for, lambda: not backends(pg_node))
            assert not any(group.total or group.waiters for group in pool._topology.groups)

    run_plain(story)
