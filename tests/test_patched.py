"""Tools that replace psycopg's `connect` have their say at each connection of a pool.

Those of OpenTelemetry and Sentry are in `integrations/test_tracing.py`.
"""

import asyncio
from typing import Any

import psycopg
import pytest
from conftest import LIMIT, config
from support import tidy
from ways import Face, way

from pgdbpool.drivers import patched

__all__ = ["tidy", "way"]


def bare(conn: Any) -> Any:
    return getattr(conn, "inner", conn)


# -- tools that put an object around the connection, as Datadog's and New Relic's -------------------------------------


class Around:
    """Passes everything on to the connection, and takes note of what is executed."""

    def __init__(self, conn: Any, noted: list[str]) -> None:
        self.__dict__.update(_around=conn, _noted=noted)

    def execute(self, query: str, *args: Any, **more: Any) -> Any:
        self._noted.append(query)
        return self._around.execute(query, *args, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._around, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._around, name, value)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was executed by connections with something around them."""
    noted: list[str] = []
    connect, connect_later = psycopg.Connection.connect.__func__, psycopg.AsyncConnection.connect.__func__

    def around(cls: Any, *args: Any, **more: Any) -> Any:
        return Around(connect(cls, *args, **more), noted)

    async def around_later(cls: Any, *args: Any, **more: Any) -> Any:
        return Around(await connect_later(cls, *args, **more), noted)

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(around))
    monkeypatch.setattr(psycopg.AsyncConnection, "connect", classmethod(around_later))
    return noted


def test_what_a_tool_puts_around_a_connection_is_what_users_get(pg_node, way, noted):
    configured: list[Any] = []

    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            given = bare(conn)
            assert isinstance(given, Around)
            assert configured == [given]
            await conn.execute("select 1")
            [holder] = pool.pool.holders()
            assert "(test_what_a_tool_puts_around_a_connection_is_what_users_get.<locals>.story)" in holder.where
            del given
        conn = await pool.getconn()
        await conn.execute("select 2")
        await pool.putconn(conn)
        conn = await pool.getconn()
        await conn.close()
        await pool.putconn(conn)
        assert pool.stats().leased == 0
        assert noted == ["select 1", "select 2"]

    way(story, config(pg_node, connection_count=1, configure=configured.append))


def test_close_returns_works_through_it(pg_node, way, noted):
    async def story(pool: Face) -> None:
        conn = await pool.getconn()
        backend = bare(conn).info.backend_pid
        await conn.close()
        async with pool.block() as conn:
            assert bare(conn).info.backend_pid == backend

    way(story, config(pg_node, connection_count=1, close_returns=True))


def test_one_that_was_thrown_away_is_missed(pg_node, open_pool, noted):
    pool = open_pool(config(pg_node, connection_count=1))
    pool.getconn(timeout=LIMIT).execute("select 1")
    with pool.connection(timeout=LIMIT) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("what", ["cursor", "connection"])
def test_one_of_which_something_is_kept_is_not(what, pg_node, open_pool, noted):
    pool = open_pool(config(pg_node, connection_count=1))
    kept = pool.getconn(timeout=LIMIT)
    kept = kept.cursor() if what == "cursor" else kept
    assert not pool._keeper.reclaim(pool._groups["default"])
    kept.execute("select 1")


# -- tools that fail, or are not there ---------------------------------------------------------------------------------


def test_a_tool_that_fails_costs_no_connection_and_the_log_says_so(pg_node, way, monkeypatch, caplog):
    def broken(cls: Any, *args: Any, **more: Any) -> Any:
        raise LookupError("no such")

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(broken))
    monkeypatch.setattr(psycopg.AsyncConnection, "connect", classmethod(broken))
    monkeypatch.setattr("pgdbpool.habitat._said", {})

    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            await conn.execute("select 1")
        pool.pool.drain()
        async with pool.block() as conn:
            await conn.execute("select 1")

    way(story, config(pg_node, connection_count=1))
    assert ["sees nothing" in line for line in caplog.messages if "psycopg's connect" in line] == [True]
    assert "LookupError" in caplog.text
    assert "no such" not in caplog.text


def test_psycopg_is_led_nowhere_should_it_not_ask_our_class_for_the_connection(pg_node, monkeypatch):
    monkeypatch.delattr(patched._Front, "_connect_gen")
    monkeypatch.setenv("PGHOST", pg_node.host)
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
    with pytest.raises(psycopg.OperationalError):
        patched._front_of.__wrapped__(psycopg.Connection).connect("")
    later = patched._front_of.__wrapped__(psycopg.AsyncConnection).connect("")
    with asyncio.Runner() as runner, pytest.raises(psycopg.OperationalError):
        runner.run(later)


def test_a_tool_that_connects_by_itself_does_not_get_its_connection_in(pg_node, way, monkeypatch):
    connect, connect_later, made = psycopg.Connection.connect, psycopg.AsyncConnection.connect, []

    def elsewhere(cls: Any, *args: Any, **more: Any) -> Any:
        made.append(connect(pg_node.dsn))
        return made[-1]

    async def elsewhere_later(cls: Any, *args: Any, **more: Any) -> Any:
        made.append(await connect_later(pg_node.dsn))
        return made[-1]

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(elsewhere))
    monkeypatch.setattr(psycopg.AsyncConnection, "connect", classmethod(elsewhere_later))

    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            assert bare(conn) not in made
            assert [each.closed for each in made] == [True]

    way(story, config(pg_node, connection_count=1))


def test_what_a_tool_leaves_behind_is_no_tool(monkeypatch):
    """Some put a bound method back in the place of psycopg's class method."""
    monkeypatch.setattr(psycopg.Connection, "connect", psycopg.Connection.connect)
    monkeypatch.setattr(psycopg.AsyncConnection, "connect", psycopg.AsyncConnection.connect)
    assert not patched.is_patched(psycopg.Connection)
    assert not patched.is_patched(psycopg.AsyncConnection)


def test_without_a_tool_connect_is_psycopgs_own():
    assert not patched.is_patched(psycopg.Connection)
    assert not patched.is_patched(psycopg.AsyncConnection)


def test_a_connection_class_with_a_connect_of_its_own_has_it_called(pg_node, open_pool):
    seen: list[Any] = []

    class Own(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **more: Any) -> Any:
            seen.append(args)
            return super().connect(*args, **more)

    pool = open_pool(config(pg_node, connection_class=Own, connection_count=1))
    with pool.connection(timeout=LIMIT) as conn:
        assert isinstance(conn, Own)
        assert conn.execute("select 1").fetchone() == (1,)
    assert seen
    assert "password" not in str(seen)
