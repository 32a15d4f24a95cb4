"""A caller of AsyncPool may be cancelled at every `await`: no connection is lost or poisoned, nobody else is disturbed.

Each story is cancelled at its first suspension, at its second, and so on until it has no more, early and late (see
`aio_cancel`), again and again. After each time the books must be right, and in the end the server is asked how many
sessions there are.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aio_cancel import MOMENTS, Moment, cancelled_at
from aio_support import OpenPool, Stage, hold, one, passes, pid, put, run, run_plain, start, until, until_seen
from conftest import LIMIT, backends, config
from support import stats

from pgdbpool import AsyncPool, PoolClosed, PoolTimeout
from pgdbpool.testing import Node, Proxy

__all__ = ["run", "run_plain"]

Use = Callable[[AsyncPool, int], Awaitable[object]]

ROUNDS = 12  # of all points of a story, early and late, on each loop
MANY = 60.0  # s


# -- the stories -----------------------------------------------------------------------------------------------------


async def query(pool: AsyncPool, number: int) -> None:
    async with pool.connection() as conn:
        assert await one(conn, "select %s::int", (number,)) == number


async def long_query(pool: AsyncPool, number: int) -> None:
    async with pool.connection() as conn:
        await conn.execute("select pg_sleep(0.002)")
        assert await one(conn, "select %s::int", (number,)) == number


async def query_by_getconn(pool: AsyncPool, number: int) -> None:
    conn = await pool.getconn()
    try:
        assert await one(conn, "select %s::int", (number,)) == number
    finally:
        await pool.putconn(conn)


async def two_writes(pool: AsyncPool, number: int) -> None:
    async with pool.connection() as conn:
        await conn.execute("insert into cancelled values (%s)", (number,))
        await conn.execute("insert into cancelled values (%s)", (number,))


async def two_writes_undone(pool: AsyncPool, number: int) -> None:
    async def fails() -> None:
        async with pool.connection() as conn:
            await conn.execute("insert into cancelled values (%s)", (number,))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()


async def a_failure(pool: AsyncPool, number: int) -> None:
    with pytest.raises(Exception, match="division by zero"):
        async with pool.connection() as conn:
            await conn.execute("select 1 / 0")


async def a_pipeline(pool: AsyncPool, number: int) -> None:
    async with pool.connection() as conn, conn.pipeline():
        await conn.execute("select 1")
        await conn.execute("select pg_sleep(0.002)")


async def a_stream(pool: AsyncPool, number: int) -> None:
    async with pool.connection() as conn:
        async for (value,) in conn.cursor().stream("select generate_series(1, 3)"):
            assert 1 <= value <= 3


async def a_copy(pool: AsyncPool, number: int) -> None:
    async with pool.connection() as conn, conn.cursor().copy("copy cancelled from stdin") as copy:
        await copy.write(f"{number}\n")
        await copy.write(f"{number}\n")


async def idle(pool: AsyncPool) -> None:
    """There is one, just used."""
    async with pool.connection():
        pass


async def rested(pool: AsyncPool) -> None:
    """There is one that rested for so long that it is asked for an answer."""
    await idle(pool)
    for slot in pool._topology.groups[0].lanes[0].slots:
        slot.rested = slot.fresh_until = float("-inf")


async def nothing(pool: AsyncPool) -> None:
    """All have to be opened."""
    pool.drain()
    await until(lambda: not stats(pool).open)


Prepare = Callable[[AsyncPool], Awaitable[None]]
AUTOCOMMIT = {"connection_count": 2}
TRANSACTIONS = {"connection_count": 2, "autocommit": False}
STORIES = {
    "a query on an idle connection": (AUTOCOMMIT, idle, query),
    "a query on a rested connection": (AUTOCOMMIT, rested, query),
    "a query on a new connection": ({**AUTOCOMMIT, "min_count": 0}, nothing, query),
    "a query that takes time": (AUTOCOMMIT, idle, long_query),
    "a query by getconn": (AUTOCOMMIT, idle, query_by_getconn),
    "a query in a transaction": (TRANSACTIONS, idle, query),
    "a transaction": (TRANSACTIONS, idle, two_writes),
    "a transaction that is rolled back": (TRANSACTIONS, idle, two_writes_undone),
    "a transaction rolled back by putconn": (TRANSACTIONS, idle, query_by_getconn),
    "a statement that fails": (TRANSACTIONS, idle, a_failure),
    "a pipeline": (AUTOCOMMIT, idle, a_pipeline),
    "a stream": (AUTOCOMMIT, idle, a_stream),
    "a copy": (TRANSACTIONS, idle, a_copy),
}


@pytest.fixture(scope="module")
def table(_pg_node_of_the_session) -> None:
    _pg_node_of_the_session.primary.execute("create table if not exists cancelled (number bigint)")
    _pg_node_of_the_session.primary.execute("grant all on cancelled to app")


@pytest.mark.parametrize("name", STORIES)
def test_cancelled_at_any_point(name: str, pg_node: Node, run: Stage, table: None) -> None:
    group, prepare, use = STORIES[name]

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, **group))
        cancelled = number = 0
        for _ in range(ROUNDS):
            for moment in MOMENTS:
                point, hit = 0, True
                while hit:
                    number += 1
                    await prepare(pool)
                    hit, result = await cancelled_at(use(pool, number), point, moment)  # type: ignore[arg-type]
                    if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                        raise result
                    cancelled += hit
                    await sound(pool, number)
                    point += 1
        assert cancelled >= 2 * ROUNDS
        await all_accounted_for(pool, pg_node)

    pg_node.execute("truncate cancelled")
    run(story, limit=MANY)
    halves = "select count(*) from (select from cancelled group by number having count(*) <> 2) half"
    assert pg_node.execute(halves) == [(0,)], "a transaction was committed by half"


async def sound(pool: AsyncPool, number: int) -> None:
    """Nobody holds anything, and every connection there is gives the right answer."""
    await until(lambda: not stats(pool).leased and not pool._settling)
    conns = await hold(pool, stats(pool).open)
    for offset, conn in enumerate(conns):
        assert conn.info.transaction_status.name == "IDLE"
        assert await one(conn, "select %s::int", (-number - offset,)) == -number - offset
        if not conn.autocommit:
            await conn.commit()
    await put(pool, *conns)
    seen = stats(pool)
    assert (seen.leased, seen.waiting) == (0, 0)
    assert seen.open + seen.opening <= seen.limit
    for group in pool._topology.groups:
        assert not group.waiters


async def all_accounted_for(pool: AsyncPool, node: Node, group: str = "default") -> None:
    """The server has just the sessions that the pool knows of, and they do nothing."""

    def seen() -> bool:
        states = [row["state"] for row in node.backends(f"pgdbpool:{group}")]
        now = stats(pool, group)
        return not now.opening and states == ["idle"] * now.open

    await until_seen(seen)


# -- one point each ----------------------------------------------------------------------------------------------------


async def waiting(pool: AsyncPool, count: int = 1) -> None:
    """Until so many wait."""
    await until(lambda: stats(pool).waiting == count)


def test_who_is_cancelled_while_waiting_leaves_the_queue(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection():
            first, second = start(query(pool, 1)), start(query(pool, 2))
            await waiting(pool, 2)
            first.cancel()
            await waiting(pool, 1)
        await second
        assert first.cancelled()

    run(story)


def test_a_connection_handed_to_one_who_was_cancelled_goes_to_the_next(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        for number in range(300):
            conn = await pool.getconn()
            first, second = start(query(pool, number)), start(query(pool, number))
            await waiting(pool, 2)
            await pool.putconn(conn)  # handed to the first, which has not run yet
            first.cancel()
            await second
            assert first.cancelled()
        await sound(pool, 1)
        assert stats(pool).counters.connects == 1

    run(story)


def test_who_is_cancelled_does_not_cancel_a_connect_that_others_wait_for(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool, proxy: Proxy) -> None:
        pool = open_pool(config(proxy, connection_count=1, min_count=0, monitor=False))
        first, second = start(query(pool, 1)), start(query(pool, 2))
        await waiting(pool, 2)
        await until(lambda: proxy.connections == 1)
        first.cancel()
        await passes()
        proxy.resume()
        await second
        assert first.cancelled()
        assert stats(pool).counters.connects == proxy.accepted == 1

    with pg_node.proxy() as proxy:
        proxy.stall()
        run(lambda open_pool: story(open_pool, proxy))


def test_a_connect_that_nobody_waits_for_any_more_is_of_use_to_the_next(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool, proxy: Proxy) -> None:
        pool = open_pool(config(proxy, connection_count=1, min_count=0, monitor=False))
        only = start(query(pool, 1))
        await until(lambda: proxy.connections == 1)
        only.cancel()
        await passes()
        proxy.resume()
        await until(lambda: stats(pool).idle == 1)
        await query(pool, 2)
        assert proxy.accepted == 1

    with pg_node.proxy() as proxy:
        proxy.stall()
        run(lambda open_pool: story(open_pool, proxy))


def test_a_cancelled_statement_is_cancelled_on_the_server_and_its_connection_used_again(
    pg_node: Node, run: Stage
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))

        async def sleep() -> None:
            async with pool.connection() as conn:
                await conn.execute("select pg_sleep(600)")

        task = start(sleep())
        at_work = "select pid from pg_stat_activity where query = 'select pg_sleep(600)' and state = 'active'"
        ((server,),) = await until_seen(lambda: pg_node.execute(at_work))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(pg_node.execute, at_work) == []
        async with pool.connection() as conn:
            assert pid(conn) == server
            assert await one(conn, "select 1") == 1

    run(story)


def test_a_commit_under_way_is_not_undone_by_cancelling_its_caller(pg_node: Node, run: Stage, table: None) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
        for number in range(200):
            left = asyncio.Event()

            async def write(number: int = number, left: asyncio.Event = left) -> None:
                async with pool.connection() as conn:
                    await conn.execute("insert into cancelled values (%s)", (number,))
                    left.set()

            task = start(write())
            await left.wait()
            await passes(number % 4)  # on its way out, at different places
            task.cancel()
            await asyncio.wait([task])
            async with pool.connection() as conn:  # once the connection is back
                assert await one(conn, "select count(*) from cancelled where number = %s", (number,)) == 1

    pg_node.execute("truncate cancelled")
    run(story)


def test_what_became_of_the_commit_of_a_cancelled_caller_is_logged_if_it_failed(
    pg_node: Node, run: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
        left = asyncio.Event()

        async def write() -> None:
            async with pool.connection() as conn:
                await conn.execute("create temp table t (n int unique deferrable initially deferred)")
                await conn.execute("insert into t values (1), (1)")
                left.set()

        task = start(write())
        await left.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: "duplicate key" in caplog.text)
        await sound(pool, 1)

    run(story)


def test_a_cancelled_block_is_rolled_back(pg_node: Node, run: Stage, table: None) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
        inside = asyncio.Event()

        async def write() -> None:
            async with pool.connection() as conn:
                await conn.execute("insert into cancelled values (1)")
                inside.set()
                await asyncio.sleep(LIMIT)

        task = start(write())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with pool.connection() as conn:
            assert await one(conn, "select count(*) from cancelled") == 0
        assert stats(pool).counters.rollbacks == 1

    pg_node.execute("truncate cancelled")
    run(story)


def test_who_is_cancelled_again_and_again_on_the_way_out_loses_no_connection(pg_node: Node, run: Stage) -> None:
    """As by the cancel scopes of anyio, which cancel at each `await` until the scope is left."""

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, autocommit=False))

        async def stubborn() -> None:
            me = asyncio.current_task()
            assert me is not None
            try:
                async with pool.connection() as conn:
                    await conn.execute("select 1")
                    me.cancel()
                    try:
                        await asyncio.sleep(0)
                    finally:
                        me.cancel()
            finally:
                me.cancel()
                await pool.check()

        for _ in range(100):
            await asyncio.gather(start(stubborn()), return_exceptions=True)
            await query(pool, 1)
        await sound(pool, 1)

    run(story)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["wait", "check", "close", "open"])
def test_a_method_cancelled_at_any_point_leaves_a_sound_pool(
    name: str, moment: Moment, pg_node: Node, run: Stage
) -> None:
    async def story(open_pool: OpenPool) -> None:
        point, hit = 0, True
        while hit:
            pool = open_pool(config(pg_node, connection_count=3, min_count=2))
            if name != "wait":
                await pool.wait(LIMIT)
            hit, _ = await cancelled_at(getattr(pool, name)(), point, moment)
            if name == "close":
                with pytest.raises(PoolClosed):
                    await query(pool, 1)
                await until(lambda pool=pool: not stats(pool).open and not stats(pool).opening)
                await pool.open()
            await query(pool, 1)
            await sound(pool, 1)
            await pool.close()
            point += 1
        await until_seen(lambda: not backends(pg_node))

    run(story)


@pytest.mark.parametrize("point", range(8))
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_attempt_to_connect_cancelled_at_any_point_leaves_nothing_behind(
    point: int, moment: Moment, pg_node: Node, run: Stage
) -> None:
    """As by the end of `asyncio.run`: the pool itself cancels only what nobody wants."""

    async def configure(conn: object) -> None:
        await conn.execute("select 1")  # type: ignore[attr-defined]

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, min_count=0, configure=configure, monitor=False))
        lane = pool._topology.groups[0].lanes[0]
        for _ in range(10):
            pool.drain()
            await until(lambda: not lane.total)
            (order,) = pool._topology.plan(0.0, only=pool._topology.groups[0], demand=1)
            pool._begin()
            await cancelled_at(pool._sessions.open(order), point, moment)
            assert (lane.opening, lane.endpoint.connecting) == (0, 0)
            await query(pool, 1)
        await all_accounted_for(pool, pg_node)

    run(story)


# -- under load --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def callers(pool: AsyncPool, count: int, uses: list[Use], chance: random.Random) -> AsyncIterator[set]:  # type: ignore[type-arg]
    """So many tasks at work, each of them replaced when it ends. Gives the set of those at work now."""
    at_work: set[asyncio.Task[object]] = set()
    failures: list[BaseException] = []
    over = False
    number = 0

    def begin() -> None:
        nonlocal number
        number += 1
        task = start(chance.choice(uses)(pool, number))
        at_work.add(task)
        task.add_done_callback(end)

    def end(task: asyncio.Task[object]) -> None:
        at_work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            failures.append(error)
        if not over:
            begin()

    for _ in range(count):
        begin()
    yield at_work
    over = True
    while at_work:
        await asyncio.wait(at_work)
    if failures:
        raise failures[0]


@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "transactions"])
def test_thousands_of_callers_cancelled_at_random(autocommit: bool, pg_node: Node, run: Stage, table: None) -> None:
    uses: list[Use] = [query, long_query, query_by_getconn, a_failure, two_writes_undone]
    uses.append(two_writes if not autocommit else a_stream)
    chance = random.Random(1)
    cancelled = 0

    async def story(open_pool: OpenPool) -> None:
        nonlocal cancelled
        pool = open_pool(config(pg_node, connection_count=5, autocommit=autocommit))
        async with callers(pool, 40, uses, chance) as at_work:
            while cancelled < 2000:
                for task in chance.sample(sorted(at_work, key=id), chance.randrange(6)):
                    cancelled += task.cancel()
                await passes(chance.randrange(4))
        await sound(pool, 1)
        assert stats(pool).open <= 5
        await all_accounted_for(pool, pg_node)

    pg_node.execute("truncate cancelled")
    run(story, limit=MANY)
    if not autocommit:
        halves = "select count(*) from (select from cancelled group by number having count(*) <> 2) half"
        assert pg_node.execute(halves) == [(0,)]


def test_callers_that_time_out_or_are_cancelled_while_others_are_served(pg_node: Node, run: Stage) -> None:
    chance = random.Random(2)

    async def hurried(pool: AsyncPool, number: int) -> None:
        try:
            async with pool.connection(timeout=chance.random() * 0.004) as conn:
                assert await one(conn, "select %s::int", (number,)) == number
        except PoolTimeout:
            pass

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=3))
        await pool.wait(LIMIT)
        cancelled = 0
        async with callers(pool, 30, [query, hurried, hurried], chance) as at_work:
            while cancelled < 1000:
                for task in chance.sample(sorted(at_work, key=id), chance.randrange(3)):
                    cancelled += task.cancel()
                await passes(chance.randrange(4))
        assert stats(pool).counters.timeouts > 0
        await sound(pool, 1)
        await all_accounted_for(pool, pg_node)

    run(story, limit=MANY)
