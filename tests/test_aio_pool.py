"""What AsyncPool does for its callers: growing and waiting, deadlines, transactions, callables, settings.

Most of the code is that of `Pool`, and tested there; here is what goes another way in an event loop.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from aio_support import OpenPool, Stage, hold, one, outcome, passes, pid, put, run, run_plain, start, until, until_seen
from conftest import LIMIT, backends, config
from support import Wire, stats

from pgdbpool import (
    AsyncPool,
    OutcomeUnknown,
    PoolTimeout,
    TooManyWaiting,
    UnconfiguredGroupError,
)
from pgdbpool.clock import monotonic
from pgdbpool.core.lane import Slot
from pgdbpool.tasks import Pending
from pgdbpool.testing import Node

__all__ = ["run", "run_plain"]

NEVER = 600.0  # s


async def query(pool: AsyncPool, timeout: float | None = LIMIT, group: str = "default") -> int:
    """The backend that answered."""
    async with pool.connection(group, timeout=timeout) as conn:
        return int(await one(conn, "select pg_backend_pid()"))


@pytest.fixture
def table(pg_node: Node) -> Callable[[], int]:
    """The empty table `aio_pool`; call it for the number of its rows."""
    pg_node.execute("drop table if exists aio_pool")
    pg_node.execute("create table aio_pool (n int unique deferrable initially deferred)")
    pg_node.execute("grant all on aio_pool to app")
    return lambda: int(pg_node.execute("select count(*) from aio_pool")[0][0])


# -- growing and waiting ----------------------------------------------------------------------------------------------


def test_min_count_connections_are_opened_in_the_background_and_wait_waits_for_them(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, min_count=3))
        assert stats(pool).open == 0, "nothing is opened before a loop uses it"
        await pool.wait(LIMIT)
        assert stats(pool).open >= 3
        await until_seen(lambda: len(backends(pg_node)) == 3)

    run(story)


def test_a_group_grows_up_to_connection_count_and_no_further(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=4))
        conns = await hold(pool, 4)
        assert len({pid(conn) for conn in conns}) == 4
        with pytest.raises(PoolTimeout, match="4 connections in use"):
            await pool.getconn(timeout=0.05)
        await put(pool, *conns)
        assert stats(pool).open == 4

    run(story)


def test_the_connection_returned_last_is_handed_out_first(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=3))
        first, second, third = await hold(pool, 3)
        await put(pool, second, third, first)
        taken = [await pool.getconn() for _ in range(3)]
        assert taken == [first, third, second]
        await put(pool, *taken)

    run(story)


def test_a_thousand_tasks_are_served_in_the_order_in_which_they_came(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=3))
        served: list[int] = []

        async def use(number: int) -> None:
            async with pool.connection(timeout=LIMIT) as conn:
                served.append(number)
                await conn.execute("select 1")

        conns = await hold(pool, 3)
        tasks = [start(use(number)) for number in range(1000)]
        await until(lambda: stats(pool).waiting == 1000)
        await put(pool, *conns)
        await asyncio.gather(*tasks)
        assert served == list(range(1000))

    run(story)


def test_more_than_max_waiting_callers_are_turned_away_at_once(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, max_waiting=2))
        async with pool.connection():
            waiting = [start(query(pool)) for _ in range(2)]
            await until(lambda: stats(pool).waiting == 2)
            with pytest.raises(TooManyWaiting):
                await query(pool)
        await asyncio.gather(*waiting)

    run(story)


def test_a_group_that_does_not_exist_is_an_error_with_a_hint(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, groups={"read": {}}))
        with pytest.raises(UnconfiguredGroupError, match="did you mean 'read'"):
            pool.connection("raed")
        with pytest.raises(UnconfiguredGroupError, match="did you mean 'read'"):
            await pool.getconn("raed")

    run(story)


def test_a_lease_is_for_one_block_at_a_time(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node))
        lease = pool.connection(timeout=LIMIT)
        async with lease:
            with pytest.raises(Exception, match="ask the pool for another"):
                await lease.__aenter__()
        async with lease as conn:
            assert await one(conn, "select 1") == 1

    run(story)


def test_putconn_takes_what_getconn_gave_once_and_nothing_else(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=2))
        conn = await pool.getconn()
        await pool.putconn(conn)
        with pytest.raises(ValueError, match="returned before"):
            await pool.putconn(conn)
        async with pool.connection() as leased:
            with pytest.raises(ValueError, match="not handed out by getconn"):
                await pool.putconn(leased)

    run(story)


def test_a_timeout_and_holders_name_the_task_and_the_line(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        inside, enough = asyncio.Event(), asyncio.Event()

        async def holds_it() -> None:
            async with pool.connection(timeout=LIMIT):
                inside.set()
                await enough.wait()

        task = start(holds_it(), name="importer")
        await inside.wait()
        with pytest.raises(PoolTimeout, match="importer") as caught:
            await pool.getconn(timeout=0.01)
        assert caught.value.reason == "exhausted"
        [holder] = pool.holders()
        assert "importer" in str(holder)
        assert __file__ in str(holder)
        enough.set()
        await task
        assert pool.holders() == []

    run(story)


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_a_timeout_around_a_checkout_ends_it_and_costs_nothing(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection():
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.02):
                    await query(pool, timeout=NEVER)
            assert not isinstance(caught.value, PoolTimeout), "the application's own limit, not the pool's"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(query(pool, timeout=NEVER), 0.02)
            assert stats(pool).waiting == 0
        await query(pool)
        assert stats(pool).counters.connects == 1

    run(story)


def test_the_pools_own_limit_comes_through_a_longer_one_around_it(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection(), asyncio.timeout(NEVER):
            with pytest.raises(PoolTimeout):
                await query(pool, timeout=0.02)

    run(story)


def test_a_timeout_inside_a_block_cancels_the_statement_and_keeps_the_connection(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection() as conn:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await conn.execute("select pg_sleep(600)")
            backend = pid(conn)
            assert await one(conn, "select 1") == 1
        assert await query(pool) == backend

    run(story)


@pytest.mark.parametrize("timeout", [0.0, 0.2])
def test_a_deadline_includes_the_connect(pg_node: Node, run: Stage, timeout: float) -> None:
    async def story(open_pool: OpenPool) -> None:
        with pg_node.proxy() as proxy:
            proxy.stall()
            pool = open_pool(config(proxy, min_count=0, monitor=False))
            with pytest.raises(PoolTimeout):
                await query(pool, timeout=timeout)
            proxy.resume()
            await query(pool)

    run(story)


def test_a_deadline_includes_the_validation_of_a_rested_connection(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        with pg_node.proxy() as proxy:
            pool = open_pool(config(proxy, connection_count=1, check="ping", monitor=False))
            await query(pool)
            proxy.stall()
            with pytest.raises(PoolTimeout):
                await query(pool, timeout=0.2)
            proxy.resume()
            await query(pool)

    run(story)


def test_the_look_up_of_a_name_does_not_block_the_loop(
    pg_node: Node, run: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def slow(host: Any, *more: Any, **names: Any) -> Any:
        if host == "db.example":
            asked.set()
            assert answer.wait(LIMIT)
            host = "127.0.0.1"
        return real(host, *more, **names)

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def story(open_pool: OpenPool) -> None:
        place = {**pg_node.endpoint(ssl="disable"), "host": "db.example"}
        pool = open_pool(config(place, monitor=False))
        task = start(query(pool))
        await until(asked.is_set)
        await passes()
        assert not task.done()
        answer.set()
        await task

    run(story)


# -- transactions -----------------------------------------------------------------------------------------------------


def test_a_block_is_a_transaction_committed_at_its_end_and_rolled_back_by_an_exception(
    pg_node: Node, run: Stage, table: Callable[[], int]
) -> None:
    async def fails(pool: AsyncPool) -> None:
        async with pool.connection() as conn:
            await conn.execute("insert into aio_pool values (3)")
            raise ZeroDivisionError

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, autocommit=False))
        async with pool.connection() as conn:
            await conn.execute("insert into aio_pool values (1)")
            await conn.execute("insert into aio_pool values (2)")
        assert table() == 2
        assert isinstance(await outcome(fails(pool)), ZeroDivisionError)
        assert table() == 2
        conn = await pool.getconn()
        await conn.execute("insert into aio_pool values (4)")
        await pool.putconn(conn)
        assert table() == 2
        assert stats(pool).counters.rollbacks == 2

    run(story)


def test_a_commit_that_the_server_refuses_is_the_drivers_error_and_costs_nothing(
    pg_node: Node, run: Stage, table: Callable[[], int]
) -> None:
    async def twice_the_same(pool: AsyncPool) -> None:
        async with pool.connection() as conn:
            await conn.execute("insert into aio_pool values (1), (1)")

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
        backend = await query(pool)
        assert isinstance(await outcome(twice_the_same(pool)), psycopg.errors.UniqueViolation)
        assert await query(pool) == backend
        assert table() == 0

    run(story)


def test_a_block_whose_transaction_failed_does_not_end_as_if_it_had_been_committed(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, autocommit=False))

        async def passes_over_an_error() -> None:
            async with pool.connection() as conn:
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await conn.execute("select 1 / 0")

        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await passes_over_an_error()
        await query(pool)

    run(story)


@pytest.mark.parametrize(("cut", "rows"), [("after", 1), ("before", 0)])
def test_a_connection_that_dies_during_commit_is_an_unknown_outcome(
    cut: str, rows: int, pg_node: Node, run: Stage, table: Callable[[], int]
) -> None:
    async def story(open_pool: OpenPool) -> None:
        with Wire(pg_node) as wire:
            pool = open_pool(config(wire, connection_count=1, autocommit=False))
            await pool.wait(LIMIT)
            wire.cut = cut
            with pytest.raises(OutcomeUnknown, match="lost during COMMIT"):
                async with pool.connection() as conn:
                    await conn.execute("insert into aio_pool values (1)")
            wire.cut = None
            await until_seen(lambda: table() == rows)
            await query(pool)
            assert wire.statements.count("COMMIT") == 2, "it is not repeated; the second is that of `query`"

    run(story)


# -- what a user gives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [True, False])
def test_callables_may_be_coroutine_functions_or_plain_ones(pg_node: Node, run: Stage, asynchronous: bool) -> None:
    called: list[str] = []

    def callback(name: str, sql: str | None = None) -> Callable[..., Any]:
        async def later(*args: Any) -> None:
            await asyncio.sleep(0)
            called.append(name)
            if sql:
                await args[0].execute(sql)

        def now(*args: Any) -> None:
            called.append(name)

        return later if asynchronous else now

    def password() -> str:
        called.append("pass")
        return "not asked for"

    async def password_later() -> str:
        await asyncio.sleep(0)
        return password()

    how = {
        "configure": callback("configure", "set work_mem = '123kB'"),
        "check": callback("check", "select 1"),
        "reset": callback("reset", "reset all"),
    }

    async def story(open_pool: OpenPool) -> None:
        place = {**pg_node.endpoint(ssl="disable"), "pass": password_later if asynchronous else password}
        pool = open_pool(config(place, connection_count=1, monitor=False, **how))
        async with pool.connection(timeout=LIMIT) as conn:
            if asynchronous:
                assert await one(conn, "show work_mem") == "123kB"
        await query(pool)

    run(story)
    assert called[:2] == ["pass", "configure"]
    assert called.count("configure") == called.count("pass") == 1
    assert called.count("check") >= 1
    assert called.count("reset") == 2


def test_reconnect_failed_may_be_a_coroutine_function(pg_node: Node, run: Stage) -> None:
    told: list[tuple[str, str]] = []

    async def tell(endpoint: str, error: str) -> None:
        await asyncio.sleep(0)
        told.append((endpoint, error))

    async def story(open_pool: OpenPool) -> None:
        with pg_node.proxy() as proxy:
            proxy.refuse()
            pool = open_pool(config(proxy, reconnect_timeout=0, reconnect_failed=tell))
            await pool.open()
            await until(lambda: told)
            assert told[0][0] == f"127.0.0.1:{proxy.port}"

    run(story)


def test_events_are_told_in_the_loop(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        threads: list[int] = []
        with pg_node.proxy() as proxy:
            pool = open_pool(config(proxy))
            end = pool.on_event(lambda event: threads.append(threading.get_ident()))
            await pool.wait(LIMIT)
            proxy.refuse()
            proxy.reset()
            await until(lambda: pool.endpoints()[0].health == "down")
            await until(lambda: threads)
            end()
        assert set(threads) == {threading.get_ident()}

    run(story)


# -- while it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in the loop", "from another thread"])
def test_settings_change_for_those_who_wait(elsewhere: bool, pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        async def change(function: Callable[..., None], *args: Any) -> None:
            if elsewhere:
                await asyncio.to_thread(function, *args)
            else:
                function(*args)

        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection(timeout=LIMIT):
            waiting = start(query(pool))
            await until(lambda: stats(pool).waiting == 1)
            await change(pool.resize, "default", 2)
            await waiting
        await change(pool.pause)
        with pytest.raises(PoolTimeout, match="paused"):
            await query(pool, timeout=0.02)
        waiting = start(query(pool))
        await until(lambda: stats(pool).waiting == 1)
        await change(pool.resume)
        old = await waiting
        await change(pool.drain)
        assert await query(pool) != old

    run(story)


@pytest.mark.parametrize("cancelled", [False, True], ids=["timed out", "cancelled"])
@pytest.mark.parametrize("point", ["receive", "_receive_late"])
def test_a_connection_whose_giver_in_another_thread_was_held_up_goes_to_the_next(
    point: str, cancelled: bool, pg_node: Node, run: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has claimed who waits, and stands still, there or on its way through the loop, until that one has left."""

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        backend = await query(pool)
        group = pool._group("default")
        slot = group.take(monotonic())
        assert slot is not None
        waiting = start(query(pool, timeout=NEVER if cancelled else 0.3))
        await until(lambda: stats(pool).waiting == 1)
        claimed, on = threading.Event(), threading.Event()
        whole = getattr(Pending, point)
        arrived = []

        def late(waiter: Pending, slot: Slot) -> Any:
            monkeypatch.setattr(Pending, point, whole)
            claimed.set()
            if point == "receive":
                assert on.wait(LIMIT)
                return whole(waiter, slot)
            arrived.append(partial(whole, waiter, slot))
            return None

        monkeypatch.setattr(Pending, point, late)
        giving = start(asyncio.to_thread(group.give, slot, monotonic()))
        await until(claimed.is_set)
        del slot
        if cancelled:
            waiting.cancel()
        assert isinstance(await outcome(waiting), asyncio.CancelledError if cancelled else PoolTimeout)
        on.set()
        for arrives in arrived:
            arrives()
        await giving
        await until(lambda: stats(pool).idle == 1)
        assert await query(pool) == backend
        assert stats(pool).counters.closed == {}

    run(story)


def test_check_closes_idle_connections_that_give_no_answer(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        with pg_node.proxy() as proxy:
            pool = open_pool(config(proxy, connection_count=3, monitor=False))
            await put(pool, *await hold(pool, 3))
            proxy.stall()
            checking = start(pool.check())
            await until(lambda: stats(pool).counters.closed.get("broken"))
            proxy.resume()
            await checking
            await query(pool)

    run(story)


def test_statistics_are_exact(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=2))
        await pool.wait(LIMIT)
        for _ in range(10):
            await query(pool)
        conns = await hold(pool, 2)
        waiting = [start(query(pool)) for _ in range(3)]
        await until(lambda: stats(pool).waiting == 3)
        assert stats(pool).leased == 2
        await put(pool, *conns)
        await asyncio.gather(*waiting)
        counters = stats(pool).counters
        assert counters.requests == 15
        assert counters.waits >= 3
        assert counters.connects == 2
        assert sum(counters.use_times) == 15
        assert pool.pop_stats().groups["default"].counters.requests == 15
        assert stats(pool).counters.requests == 0

    run(story)


def test_a_refused_checkout_leaves_nothing_behind(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection():
            results = await asyncio.gather(*(outcome(query(pool, timeout=0.01)) for _ in range(50)))
            assert {type(result) for result in results} == {PoolTimeout}
            assert stats(pool).waiting == 0
        assert stats(pool).counters.timeouts == 50
        await query(pool)

    run(story)
