"""A block ends while another task or thread of its user's is still inside a call of its connection: a COMMIT, maybe."""

# ruff: noqa: PT012  what raises is the end of a whole block

import asyncio
import threading
from contextlib import contextmanager, suppress

import psycopg
import pytest
from aio_support import run_plain as run_plain
from aio_support import start, until_seen
from conftest import config, wait_for
from support import tidy as tidy
from ways import Way
from ways import way as way

from pgdbpool import DBConnectionError, OutcomeUnknown
from pgdbpool.testing import Cluster

UNKNOWN = "may or may not have been committed"
NOT_COMMITTED = "is not committed"


@pytest.fixture(scope="module")
def node():
    """A server that admits two-phase commits."""
    with Cluster(standbys=0, settings={"max_prepared_transactions": 20}) as cluster:
        cluster.primary.execute("create table others_t (i int primary key); grant all on others_t to app")
        yield cluster.primary


@pytest.fixture
def rows(node):
    """How many rows the table has when asked by another session; none at first."""
    node.execute("truncate others_t")
    return lambda: node.execute("select count(*) from others_t")[0][0]


@contextmanager
def commits_wait(node):
    """Every COMMIT waits for a standby that does not exist."""
    node.configure(synchronous_standby_names="nowhere")
    try:
        node.execute("select pg_reload_conf()")
        wait_for(lambda: node.execute("show synchronous_standby_names") == [("nowhere",)])
        yield
    finally:
        node.restore_settings()


def one(node):
    return config(node, monitor=False, connection_count=1, autocommit=False)


def in_commit(node):
    return [row for row in node.backends() if row["wait_event"] == "SyncRep"]


def ordered(error):
    """What was raised says that the outcome is unknown, and nothing else."""
    assert isinstance(error, OutcomeUnknown)
    assert UNKNOWN in str(error)
    assert NOT_COMMITTED not in str(error)


def by_commit(conn):
    conn.commit()


def by_sql(conn):
    conn.execute("COMMIT")


def by_a_transaction_block(conn):
    conn.rollback()
    with conn.transaction():
        conn.execute("insert into others_t values (1)")


def by_two_phases(conn):
    conn.rollback()
    conn.tpc_begin("others")
    conn.execute("insert into others_t values (1)")
    conn.tpc_commit()


@pytest.mark.parametrize("query_timeout", [0, 60_000], ids=["no limit", "with a limit"])
@pytest.mark.parametrize("commit", [by_commit, by_sql, by_a_transaction_block, by_two_phases])
def test_a_block_left_while_another_thread_commits_has_an_unknown_outcome(commit, query_timeout, node, rows, open_pool):
    def work(conn):
        with suppress(psycopg.Error):  # the connection is closed below it
            commit(conn)

    pool = open_pool(
        {**one(node), "groups": {"default": {**one(node)["groups"]["default"], "query_timeout": query_timeout}}}
    )
    with commits_wait(node):
        with pytest.raises(DBConnectionError) as caught, pool.connection() as conn:
            conn.execute("insert into others_t values (1)")
            thread = threading.Thread(target=work, args=(conn,))
            thread.start()
            wait_for(lambda: in_commit(node))
        ordered(caught.value)
        wait_for(lambda: not pool.stats().groups["default"].open)
        assert in_commit(node)  # that COMMIT was not cancelled
        assert rows() == 0
    wait_for(lambda: rows() == 1)
    thread.join()


async def shielded(conn):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(start(quietly(conn.commit()))), 0.2)


async def in_a_task(conn):
    start(quietly(conn.commit()))
    await asyncio.sleep(0)


async def by_sql_in_a_task(conn):
    start(quietly(conn.execute("COMMIT")))
    await asyncio.sleep(0)


async def after_an_interrupted_statement(conn):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(conn.execute("select pg_sleep(60)"), 0.1)
    await conn.rollback()
    await conn.execute("insert into others_t values (1)")
    start(quietly(conn.commit()))
    await asyncio.sleep(0)


async def quietly(work):
    with suppress(psycopg.Error):
        await work


@pytest.mark.parametrize("commit", [shielded, in_a_task, by_sql_in_a_task, after_an_interrupted_statement])
def test_a_block_left_while_another_task_commits_has_an_unknown_outcome(commit, node, rows, run_plain):
    async def story(open_pool):
        pool = open_pool(one(node))
        with pytest.raises(DBConnectionError) as caught:
            async with pool.connection() as conn:
                await conn.execute("insert into others_t values (1)")
                await commit(conn)
                await until_seen(lambda: in_commit(node))
        ordered(caught.value)
        await until_seen(lambda: not pool.stats().groups["default"].open)
        assert await asyncio.to_thread(in_commit, node)
        assert await asyncio.to_thread(rows) == 0
        await asyncio.to_thread(node.restore_settings)

    with commits_wait(node):
        run_plain(story)
    wait_for(lambda: rows() == 1)


def test_a_block_left_while_a_thread_runs_another_statement_is_not_committed_and_that_ends(node, rows, open_pool):
    def work(conn):
        with suppress(psycopg.Error):
            conn.execute("select pg_sleep(600)")

    pool = open_pool(one(node))
    with pytest.raises(DBConnectionError, match=NOT_COMMITTED) as caught, pool.connection() as conn:
        conn.execute("insert into others_t values (1)")
        thread = threading.Thread(target=work, args=(conn,))
        thread.start()
        wait_for(lambda: [row for row in node.backends() if row["wait_event"] == "PgSleep"])
    assert not isinstance(caught.value, OutcomeUnknown)
    wait_for(lambda: not [row for row in node.backends() if row["wait_event"] == "PgSleep"])
    thread.join()
    assert rows() == 0


def test_a_statement_sent_past_the_driver_may_be_a_commit(node, way: Way, rows):
    async def story(pool):
        with pytest.raises(DBConnectionError) as caught:
            async with pool.block() as conn:
                await conn.execute("insert into others_t values (1)")
                conn.pgconn.send_query(b"commit")
        ordered(caught.value)

    way(story, one(node))
    wait_for(lambda: rows() == 1)


def test_an_exception_that_ends_a_block_says_so_where_another_thread_commits(node, rows, open_pool):
    def work(conn):
        with suppress(psycopg.Error):
            conn.commit()

    pool = open_pool(one(node))
    with commits_wait(node):
        with pytest.raises(KeyError) as caught, pool.connection() as conn:
            conn.execute("insert into others_t values (1)")
            thread = threading.Thread(target=work, args=(conn,))
            thread.start()
            wait_for(lambda: in_commit(node))
            raise KeyError
        assert UNKNOWN in caught.value.__notes__[0]
    wait_for(lambda: rows() == 1)
    thread.join()
