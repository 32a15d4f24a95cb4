"""A user closes a connection, or says on return what is the matter with it."""

import gc
from typing import Any

import psycopg
import pytest
from conftest import LIMIT, config
from support import stats, tidy
from ways import Face, way

from pgdbpool import integrations
from pgdbpool.testing import Node

__all__ = ["tidy", "way"]


@pytest.fixture
def rows(pg_node: Node) -> Any:
    """The empty table `close_t`; call it for the number of its rows."""
    pg_node.execute("drop table if exists close_t")
    pg_node.execute("create table close_t (n int)")
    pg_node.execute("grant all on close_t to app")
    return lambda: pg_node.execute("select count(*) from close_t")[0][0]


def pid(conn: Any) -> int:
    return int(conn.info.backend_pid)


async def works(pool: Face) -> int:
    async with pool.block() as conn:
        await conn.execute("select 1")
        return pid(conn)


# -- closed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["", "put"])
def test_a_connection_of_getconn_that_its_user_closes_gives_its_place_back_at_once(then, pg_node, way):
    async def story(pool: Face) -> None:
        conn = await pool.getconn()
        await conn.close()
        assert stats(pool.pool).leased == 0
        if then:
            await pool.putconn(conn)  # as many do
            await pool.putconn(conn)
        assert await works(pool) > 0
        assert stats(pool.pool).counters.closed == {"closed": 1}
        await conn.close()
        assert stats(pool.pool).leased == 0

    way(story, config(pg_node, connection_count=1, monitor=False))


def test_so_does_one_that_was_lost_before(pg_node, way):
    async def story(pool: Face) -> None:
        conn = await pool.getconn()
        pg_node.terminate_backends("pid = %s", (pid(conn),))
        with pytest.raises(psycopg.OperationalError):
            await conn.execute("select 1")
        await conn.close()
        assert stats(pool.pool).leased == 0
        assert await works(pool) > 0

    way(story, config(pg_node, connection_count=1, monitor=False))


def test_another_pools_connection_is_not_taken_back_because_it_is_closed(pg_node, open_pool):
    one, other = open_pool(config(pg_node)), open_pool(config(pg_node))
    conn = one.getconn(timeout=LIMIT)
    conn.close()
    with pytest.raises(ValueError, match="was not handed out by getconn of this pool"):
        other.putconn(conn)
    one.putconn(conn)


def test_a_connection_closed_after_its_return_stays_open_for_the_next_borrower(pg_node, way):
    async def story(pool: Face) -> None:
        conn = await pool.getconn()
        backend = pid(conn)
        await pool.putconn(conn)
        await conn.close()
        assert await works(pool) == backend

    way(story, config(pg_node, connection_count=1))


# -- close_returns ----------------------------------------------------------------------------------------------------


def test_with_close_returns_a_connection_of_getconn_goes_back_and_its_transaction_is_rolled_back(pg_node, way, rows):
    async def story(pool: Face) -> None:
        conn = await pool.getconn()
        backend = pid(conn)
        await conn.execute("insert into close_t values (1)")
        await conn.close()
        assert (rows(), stats(pool.pool).leased) == (0, 0)
        assert await works(pool) == backend
        await conn.close()  # twice does no harm
        assert await works(pool) == backend
        with pytest.raises(ValueError, match="or was returned before"):
            await pool.putconn(conn)

    way(story, config(pg_node, connection_count=1, autocommit=False, close_returns=True))


def test_in_a_block_close_returns_rolls_back_and_the_connection_goes_back_at_the_end(pg_node, way, rows):
    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            backend = pid(conn)
            await conn.execute("insert into close_t values (1)")
            await conn.close()
            assert stats(pool.pool).leased == 1
            await conn.execute("insert into close_t values (2)")
        assert rows() == 1
        assert await works(pool) == backend

    way(story, config(pg_node, connection_count=1, autocommit=False, close_returns=True))


def test_what_the_pool_closes_is_closed_for_all_that(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, close_returns=True))
    with pool.connection(timeout=LIMIT) as conn:
        pass
    pool.close(timeout=0.0)
    assert conn.closed


def test_a_connection_keeps_no_pool_alive(pg_node):
    from pgdbpool import Pool

    pool = Pool(config(pg_node, connection_count=1))
    conn = pool.getconn(timeout=LIMIT)
    lessor = conn.lessor
    assert lessor.gave(pool)
    pool.putconn(conn)
    del pool
    gc.collect()
    assert lessor._pool() is None


# -- putconn ----------------------------------------------------------------------------------------------------------


def test_what_is_discarded_is_closed_and_not_used_again(pg_node, way, rows):
    async def story(pool: Face) -> None:
        conn = await pool.getconn()
        backend = pid(conn)
        await conn.execute("insert into close_t values (1)")
        await pool.putconn(conn, discard=True)
        assert await works(pool) != backend
        assert rows() == 0
        assert stats(pool.pool).counters.closed == {"closed": 1}

    way(story, config(pg_node, connection_count=1, autocommit=False, monitor=False))


def test_an_error_given_on_return_is_evidence(pg_node, way):
    """The application has caught the loss, and the connection itself does not show it: as the end of a block would."""

    async def story(pool: Face) -> None:
        conn = await pool.getconn()
        pg_node.terminate_backends("pid = %s", (pid(conn),))
        try:
            await conn.execute("select 1")
        except psycopg.OperationalError as error:
            await pool.putconn(conn, error)
        assert stats(pool.pool).leased == 0
        assert "terminating connection" in (pool.pool.endpoints()[0].last_error or "")
        assert await works(pool) > 0

    way(story, config(pg_node, connection_count=1, monitor=False))


# -- whom to blame ----------------------------------------------------------------------------------------------------


def test_holders_name_the_caller_of_what_stands_between_it_and_the_pool(pg_node, open_pool, monkeypatch):
    from pgdbpool import frames

    monkeypatch.setattr(frames, "_skipped", ())
    between: dict[str, Any] = {"__name__": "between.layer"}
    exec("def take(pool):\n    return pool.getconn(timeout=30)", between)
    pool = open_pool(config(pg_node))

    def application() -> None:
        between["take"](pool)

    application()
    assert [holder.where.partition(" ")[2] for holder in pool.holders()] == ["(take)"]
    integrations.skip_frames_of("between")
    application()
    wheres = {holder.where.partition(" ")[2] for holder in pool.holders()}
    assert wheres == {"(take)", f"({application.__qualname__})"}
