"""What users get wrong, or bring along from elsewhere: a clear error, or it works; no work is lost in silence."""

import asyncio
import re
from decimal import Decimal

import psycopg
import pytest
from conftest import config
from support import LIMIT
from support import tidy as tidy
from ways import Face
from ways import way as way

from pgdbpool import AsyncPool, DBOfflineError, Error, Handler, WrongModelError, seldom

NOWHERE = {"db": {"host": "h"}, "groups": {"default": {}}}


@pytest.fixture(autouse=True)
def said_anew():
    """What is said seldom is said in each test."""
    seldom._rate._allowance.clear()


# -- time limits --


async def checkouts(pool: Face, timeout):
    """All that takes a time limit, each as something that raises what the call raises."""
    if pool.way == "asyncio":
        yield "connection", lambda: _entered(pool.pool.connection(timeout=timeout))
        yield "getconn", lambda: _gotten(pool.pool, timeout)
        yield "wait", lambda: pool.pool.wait(timeout)
        yield "close", lambda: pool.pool.close(timeout)
    elif pool.way == "handler":
        yield "Handler", lambda: _used(Handler(timeout=timeout))
    else:
        yield "connection", lambda: _used(pool.pool.connection(timeout=timeout))
        yield "getconn", lambda: _put(pool.pool, timeout)
        yield "wait", lambda: _called(pool.pool.wait, timeout)
        yield "close", lambda: _called(pool.pool.close, timeout)


async def _entered(lease):
    async with lease as conn:
        await conn.execute("select 1")


async def _gotten(pool, timeout):
    await pool.putconn(await pool.getconn(timeout=timeout))


async def _used(lease):
    with lease:
        pass


async def _put(pool, timeout):
    pool.putconn(pool.getconn(timeout=timeout))


async def _called(method, timeout):
    method(timeout)


@pytest.mark.parametrize(
    ("timeout", "kind", "words"),
    [
        ("5", TypeError, "timeout: expected a number of seconds, got a string"),
        ([5], TypeError, "timeout: expected a number of seconds, got a list"),
        (float("nan"), ValueError, "timeout: expected a number of seconds, got nan"),
        (Decimal("nan"), ValueError, "timeout: expected a number of seconds, got nan"),
    ],
)
def test_a_time_limit_that_is_none_is_a_clear_error_also_while_connections_are_free(way, pg_node, timeout, kind, words):
    async def story(pool):
        async with pool.block() as conn:
            await conn.execute("select 1")
        async for name, call in checkouts(pool, timeout):
            with pytest.raises(kind) as caught:
                await call()
            assert str(caught.value) == words, name
        async with pool.block() as conn:  # nothing was closed, and nothing kept
            await conn.execute("select 1")
        assert pool.stats().leased == 0

    way(story, config(pg_node, connection_count=1))


@pytest.mark.parametrize("timeout", [5, 5.5, Decimal("5.5"), float("inf")])
def test_a_time_limit_may_be_any_number(way, pg_node, timeout):
    async def story(pool):
        async for name, call in checkouts(pool, timeout):
            await call()
            assert pool.stats().leased == 0, name

    way(story, config(pg_node, connection_count=1))


# -- blocks --


def test_a_lease_that_is_left_twice_says_so(way, pg_node):
    async def story(pool):
        if pool.way == "handler":  # which takes it for what it is: nothing left to do
            db = Handler()
            with db:
                pass
            db.__exit__(None, None, None)
            assert (pool.stats().leased, pool.stats().idle) == (0, 1)
            return
        words = "this lease of group 'default' is not in use: it was left before, or never entered"
        lease = pool.pool.connection()
        for _ in range(2):
            with pytest.raises(Error, match=re.escape(words)):
                await _leave(lease)
            await _enter(lease)
            await _leave(lease)
        assert (pool.stats().leased, pool.stats().idle) == (0, 1)

    way(story, config(pg_node, connection_count=1))


async def _enter(lease):
    await lease.__aenter__() if hasattr(lease, "__aenter__") else lease.__enter__()


async def _leave(lease):
    if hasattr(lease, "__aexit__"):
        await lease.__aexit__(None, None, None)
    else:
        lease.__exit__(None, None, None)


@pytest.fixture
def table(pg_node):
    pg_node.execute("create table if not exists misuse (n int)")
    pg_node.execute("truncate misuse")
    pg_node.execute("grant all on misuse to public")
    return lambda: [n for (n,) in pg_node.execute("select n from misuse order by n")]


class Both:
    """``with conn``, or ``async with conn``."""

    def __init__(self, conn):
        self.conn = getattr(conn, "inner", conn)

    async def __aenter__(self):
        if isinstance(self.conn, psycopg.AsyncConnection):
            await self.conn.__aenter__()
        else:
            self.conn.__enter__()

    async def __aexit__(self, *exc):
        if isinstance(self.conn, psycopg.AsyncConnection):
            return await self.conn.__aexit__(*exc)
        return self.conn.__exit__(*exc)


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_connections_own_block_ends_its_transaction_and_leaves_it_open(way, pg_node, table, autocommit):
    async def story(pool):
        async with pool.block() as conn:
            pid = conn.info.backend_pid
            async with Both(conn):
                await conn.execute("insert into misuse values (1)")
            assert table() == [1]  # committed
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with Both(conn):
                    await conn.execute("begin" if autocommit else "select 1")
                    await conn.execute("insert into misuse values (2)")
                    raise ZeroDivisionError
            await conn.execute("insert into misuse values (3)")
        assert table() == [1, 3]
        async with pool.block() as conn:
            assert conn.info.backend_pid == pid
        assert pool.stats().counters.closed == {}

    way(story, config(pg_node, connection_count=1, autocommit=autocommit))


def test_a_connections_own_block_whose_transaction_has_failed_does_not_end_as_if_it_had_committed(way, pg_node, table):
    async def story(pool):
        async with pool.block() as conn:
            failed = pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing was committed")
            with failed:
                async with Both(conn):
                    await conn.execute("insert into misuse values (1)")
                    with pytest.raises(psycopg.errors.UndefinedTable):
                        await conn.execute("select * from no_such_table")
            await conn.execute("insert into misuse values (2)")
        assert table() == [2]

    way(story, config(pg_node, connection_count=1, autocommit=False))


def test_a_connections_own_block_whose_connection_was_lost_says_so(way, pg_node, table):
    async def story(pool):
        async with pool.block() as conn, Both(conn):
            await conn.execute("insert into misuse values (1)")
            pg_node.terminate_backends("pid = %s", (conn.info.backend_pid,))
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("select 1")

    with pytest.raises(psycopg.OperationalError):
        way(story, config(pg_node, connection_count=1, autocommit=False))
    assert table() == []


# -- a connection that is used after it was returned --


def test_a_connection_that_was_used_after_its_return_is_not_handed_out_once_the_pool_has_looked(way, pg_node, caplog):
    async def story(pool):
        async with pool.block() as kept:
            pid = kept.info.backend_pid
        await kept.execute("begin")
        for slot in list(pool.pool._groups["default"].lanes[0].idle):
            slot.fresh_until = float("-inf")  # as after half a second of rest
        async with pool.block() as conn:
            assert conn.info.backend_pid != pid
            assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert [line for line in caplog.messages if "was used after it had been returned" in line] != []
        assert pool.stats().counters.closed == {"busy": 1}
        assert {each.health for each in pool.pool.endpoints()} == {"up"}

    way(story, config(pg_node, connection_count=1))


# -- elsewhere than in asyncio --


@pytest.mark.parametrize("name", ["open", "wait", "getconn", "check"])
def test_an_async_pool_without_an_event_loop_of_asyncios_says_so(name):
    pool = AsyncPool(NOWHERE)
    with pytest.raises(WrongModelError, match=r"needs an event loop of asyncio's .* Trio has none"):
        getattr(pool, name)().send(None)


def test_nor_does_a_block_of_an_async_pool(pg_node):
    pool = AsyncPool(config(pg_node))
    with pytest.raises(WrongModelError, match="Trio has none"):
        pool.connection().__aenter__().send(None)
    with pytest.raises(WrongModelError, match="Trio has none"):
        pool.__aenter__().send(None)

    async def story():
        async with pool, pool.connection(timeout=LIMIT) as conn:
            await conn.execute("select 1")

    asyncio.run(story())  # it is as good as before


# -- callables that raise --


@pytest.mark.parametrize("several", [False, True])
def test_a_configure_that_raises_is_told_as_what_it_is(way, pg_node, pg_cluster, several):
    def configure():
        raise AssertionError("is never called")

    async def story(pool):
        with pytest.raises(DBOfflineError) as caught:
            async with pool.block():
                pass
        places = ", ".join(f"127.0.0.1:{node.port}" for node in nodes)
        assert str(caught.value) == (
            f"group 'default': no connection can be made ready: {places}: configure raised TypeError: "
            "test_a_configure_that_raises_is_told_as_what_it_is.<locals>.configure() takes 0 positional arguments but "
            "1 was given"
        )

    nodes = pg_cluster.nodes if several else [pg_node]
    way(story, config(*nodes, configure=configure))


def test_the_log_says_where_a_configure_has_raised(way, pg_node, caplog):
    words = "no such tenant"

    def looked_up():
        raise LookupError(words)

    def configure(conn):
        looked_up()

    async def story(pool):
        with pytest.raises(DBOfflineError, match=f"configure raised LookupError: {words}"):
            async with pool.block():
                pass
        lines = [line for line in caplog.messages if line.startswith("group 'default': configure raised LookupError")]
        assert len(lines) == 1
        assert "in looked_up" in lines[0]
        assert words not in lines[0]

    way(story, config(pg_node, configure=configure))


def test_a_check_that_raises_is_told_as_what_it_is(way, pg_node):
    def check(conn):
        if raising:
            raising.pop()
            raise LookupError("no such tenant")

    raising = []

    async def story(pool):
        async with pool.block():
            pass
        raising.append(True)
        async with pool.block():
            pass
        assert pool.pool.endpoints()[0].last_error == "check raised LookupError: no such tenant"

    way(story, config(pg_node, check=check, connection_count=1, monitor=False))


def test_a_failure_of_sqlprepare_is_told_as_what_it_is(way, pg_node):
    pg_node.execute('drop schema if exists "SQLPrepare" cascade')

    async def story(pool):
        with pytest.raises(
            DBOfflineError, match='sqlprepare raised InvalidSchemaName: schema "SQLPrepare" does not exist'
        ):
            async with pool.block():
                pass

    way(story, config(pg_node, sqlprepare=True))
