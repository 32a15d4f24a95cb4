"""Connections that users of AsyncPool threw away: the pool finds them, and never one that is held.

How it finds out is tested in test_lost, where the same code works for threads.
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from aio_support import OpenPool, Stage, one, pid, run, start, until
from conftest import LIMIT, config

from pgdbpool import AsyncPool, PoolTimeout, lost
from pgdbpool.interpreter import gil

__all__ = ["run"]

pytestmark = pytest.mark.skipif(
    not (lost.RELIABLE and gil()), reason="this interpreter does not count references as CPython does"
)


def test_a_connection_of_getconn_that_was_thrown_away_is_replaced_and_the_log_says_which_task_took_it(
    pg_node: Any, run: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))

        async def forgets_it() -> int:
            return pid(await pool.getconn(timeout=LIMIT))

        old = await start(forgets_it(), name="forgetful")
        line = forgets_it.__code__.co_firstlineno + 1
        with caplog.at_level(logging.WARNING, "pgdbpool"):
            conn = await pool.getconn(timeout=LIMIT)
        assert pid(conn) != old
        [words] = caplog.messages
        assert f"group 'default': backend {old} on " in words
        assert f"taken by getconn at {__file__}:{line} (" in words
        assert "forgets_it) in task forgetful, and thrown away" in words
        assert len(pool._out) == 1
        await pool.putconn(conn)
        assert pool.stats().groups["default"].counters.closed == {"lost": 1}

    run(story)


def test_a_lease_that_was_thrown_away_is_found(pg_node: Any, run: Stage, caplog: pytest.LogCaptureFixture) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        await pool.connection(timeout=LIMIT).__aenter__()
        with caplog.at_level(logging.WARNING, "pgdbpool"):
            async with pool.connection(timeout=LIMIT) as conn:
                assert await one(conn, "select 1") == 1
        [words] = caplog.messages
        assert "its lease was thrown away" in words

    run(story)


@pytest.mark.parametrize("writes", ["any", "read-write"])
def test_it_is_found_in_every_kind_of_group(pg_node: Any, run: Stage, writes: str) -> None:
    group = {"connection_count": 1, "target_session_attrs": writes, "query_timeout": 5000}
    groups = {
        "plain": group,
        "reset": {**group, "reset": lambda conn: None},
        "transactions": {**group, "autocommit": False},
    }

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, groups=groups))
        for name in groups:
            old = pid(await pool.getconn(name, timeout=LIMIT))
            conn = await pool.getconn(name, timeout=LIMIT)
            assert pid(conn) != old, name
            await pool.putconn(conn)

    run(story)


def test_a_caller_in_a_hurry_has_it_found_for_the_next_one(pg_node: Any, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        await pool.getconn(timeout=LIMIT)
        with pytest.raises(PoolTimeout):
            await pool.getconn(timeout=0.0)
        await until(lambda: pool.stats().groups["default"].counters.closed.get("lost") == 1)

    run(story)


def test_a_look_that_comes_too_soon_after_the_last_is_made_up_for(pg_node: Any, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        await pool.getconn(timeout=LIMIT)
        pool._keeper._look_at[pool._groups["default"]] = monotonic() + 0.2
        with pytest.raises(PoolTimeout):
            await pool.getconn(timeout=0.0)
        await until(lambda: pool.stats().groups["default"].counters.closed.get("lost") == 1)

    run(story)


def test_close_does_not_wait_for_what_nobody_can_return(pg_node: Any, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=2))
        await pool.getconn(timeout=LIMIT)
        await pool.connection(timeout=LIMIT).__aenter__()
        await pool.close(timeout=LIMIT)
        group = pool.stats().groups["default"]
        assert group.open == 0
        assert group.counters.closed["lost"] == 2

    run(story)


# -- held -------------------------------------------------------------------------------------------------------------


async def in_a_block(pool: AsyncPool, held: asyncio.Event, enough: asyncio.Event) -> None:
    async with pool.connection(timeout=LIMIT):
        held.set()
        await enough.wait()


async def in_a_cursor(pool: AsyncPool, held: asyncio.Event, enough: asyncio.Event) -> None:
    cursor = (await pool.getconn(timeout=LIMIT)).cursor()
    held.set()
    await enough.wait()
    await pool.putconn(cursor.connection)


async def in_a_result(pool: AsyncPool, held: asyncio.Event, enough: asyncio.Event) -> None:
    taken = start(pool.getconn(timeout=LIMIT))
    await asyncio.wait([taken])
    held.set()
    await enough.wait()
    await pool.putconn(taken.result())


async def in_a_statement(pool: AsyncPool, held: asyncio.Event, enough: asyncio.Event) -> None:
    async def statements() -> None:
        async with pool.connection(timeout=LIMIT) as conn:
            held.set()
            while not enough.is_set():
                await conn.execute("select pg_sleep(0.01)")

    await statements()


async def in_an_asynchronous_generator(pool: AsyncPool, held: asyncio.Event, enough: asyncio.Event) -> None:
    async def rows() -> Any:
        async with pool.connection(timeout=LIMIT) as conn:
            async for row in conn.cursor().stream("select generate_series(1, 2)"):
                yield row

    async for _ in rows():
        held.set()
        await enough.wait()


@pytest.mark.parametrize("holder", [in_a_block, in_a_cursor, in_a_result, in_a_statement, in_an_asynchronous_generator])
def test_what_somebody_holds_is_not_taken_away(pg_node: Any, run: Stage, holder: Callable[..., Any]) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        held, enough = asyncio.Event(), asyncio.Event()
        task = start(holder(pool, held, enough))
        await held.wait()
        looks = 0

        def reclaim(group: Any, look: Callable[[Any], bool] = pool._keeper.reclaim) -> bool:
            nonlocal looks
            looks += 1
            return look(group)

        pool._keeper.reclaim = reclaim
        waiting = start(pool.getconn(timeout=LIMIT))
        await until(lambda: looks >= 3)
        assert not waiting.done()
        enough.set()
        await task
        await pool.putconn(await waiting)
        assert "lost" not in pool.stats().groups["default"].counters.closed

    run(story)


def test_what_was_forgotten_in_a_transaction_lets_go_of_its_locks_though_no_caller_waits(
    pg_node: Any, run: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def locks() -> int:
        [(count,)] = pg_node.execute("select count(*) from pg_locks where locktype = 'advisory' and granted")
        return int(count)

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=5))

        async def forgets_it() -> None:
            conn = await pool.getconn(timeout=LIMIT)
            await conn.execute("begin")
            await conn.execute("select pg_advisory_xact_lock(4711)")

        with caplog.at_level(logging.WARNING, "pgdbpool"):
            await start(forgets_it(), name="forgetful")
            assert locks() == 1
            await until(lambda: locks() == 0)
        assert "forgets_it) in task forgetful, and thrown away" in caplog.text
        assert pool.stats().groups["default"].counters.closed == {"lost": 1}

    run(story)
