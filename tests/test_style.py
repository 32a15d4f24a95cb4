"""Classes, factories and adapters that a group wants of its connections: there at the connect, put back on return."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from aio_support import Stage
from conftest import LIMIT, config
from psycopg.adapt import AdaptersMap
from psycopg.rows import args_row, dict_row, namedtuple_row
from psycopg.types.numeric import FloatLoader
from ways import Face, way

from pgdbpool import AsyncPool, Pool
from pgdbpool.errors import ConfigError, DBOfflineError
from pgdbpool.testing import Node

__all__ = ["way"]


class Extra:
    """What an application adds to its connections."""

    marks = 0

    def mark(self) -> str:
        self.marks += 1
        return f"marked {self.marks}"


class Marked(Extra, psycopg.Connection[Any]):
    def execute(self, *args: Any, **more: Any) -> Any:
        self.mark()
        return super().execute(*args, **more)


class MarkedLater(Extra, psycopg.AsyncConnection[Any]):
    async def execute(self, *args: Any, **more: Any) -> Any:
        self.mark()
        return await super().execute(*args, **more)


class Loud(psycopg.Cursor[Any]):
    """A cursor of the application's."""


class LoudLater(psycopg.AsyncCursor[Any]):
    """The same for asyncio."""


def connection_class(face: str) -> Any:
    return MarkedLater if face == "asyncio" else Marked


def cursor_factory(face: str) -> Any:
    return LoudLater if face == "asyncio" else Loud


def bare(conn: Any) -> Any:
    return getattr(conn, "inner", conn)


def numbers_as_floats() -> AdaptersMap:
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_loader("numeric", FloatLoader)
    return adapters


async def value(conn: Any, sql: str) -> Any:
    row = await (await conn.execute(sql)).fetchone()
    return row[0]


# -- given at the connect ---------------------------------------------------------------------------------------------


def test_connections_are_of_the_class_of_the_group_and_of_the_pools_own(pg_node, way):
    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            assert isinstance(bare(conn), connection_class(way.name))
            assert await value(conn, "select 1") == 1
            assert bare(conn).mark() == "marked 2"
            bare(conn).prepare_threshold = 3
        async with pool.block() as conn:
            assert bare(conn).prepare_threshold == 5

    way(story, config(pg_node, connection_count=1, connection_class=connection_class(way.name)))


def test_a_generic_alias_stands_for_its_class(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_class=psycopg.Connection[dict[str, Any]], row_factory=dict_row))
    with pool.connection(timeout=LIMIT) as conn:
        assert conn.execute("select 1 as n").fetchall() == [{"n": 1}]


def test_cursors_rows_adapters_and_the_threshold_are_those_of_the_group(pg_node, way):
    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            cursor = await conn.execute("select 1.5 as n")
            assert isinstance(bare(cursor), cursor_factory(way.name))
            row = await cursor.fetchone()
            assert (type(row).__name__, row.n, type(row.n)) == ("Row", 1.5, float)
            assert bare(conn).prepare_threshold == 0

    style = {"cursor_factory": cursor_factory(way.name), "row_factory": namedtuple_row, "prepare_threshold": 0}
    way(story, config(pg_node, context=numbers_as_floats(), **style))


def test_nothing_is_prepared_where_the_threshold_is_none(pg_node, way):
    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            for _ in range(10):
                await conn.execute("select 1")
            assert await value(conn, "select count(*) from pg_prepared_statements") == 0

    way(story, config(pg_node, prepare_threshold=None))


def test_a_toml_file_gives_them_by_name(pg_node, tmp_path):
    file = tmp_path / "pool.toml"
    endpoint = pg_node.endpoint(ssl="disable")
    lines = ["[db]", *(f"{key} = {value!r}" for key, value in endpoint.items())]
    file.write_text("\n".join([*lines, "[groups.default]", 'row_factory = "psycopg.rows.dict_row"']))
    with Pool.from_toml(file) as pool, pool.connection(timeout=LIMIT) as conn:
        assert conn.execute("select 1 as n").fetchall() == [{"n": 1}]


# -- put back on return -----------------------------------------------------------------------------------------------


def heard(*_: object) -> None:
    """A handler of notices and notifications."""


CHANGES: dict[str, Callable[[Any, str], Any]] = {
    "row_factory": lambda conn, way: setattr(conn, "row_factory", dict_row),
    "cursor_factory": lambda conn, way: setattr(conn, "cursor_factory", cursor_factory(way)),
    "server_cursor_factory": lambda conn, way: setattr(conn, "server_cursor_factory", print),
    "prepare_threshold": lambda conn, way: setattr(conn, "prepare_threshold", 7),
    "prepared_max": lambda conn, way: setattr(conn, "prepared_max", 7),
    "a notice handler": lambda conn, way: conn.add_notice_handler(heard),
    "a notify handler": lambda conn, way: conn.add_notify_handler(heard),
    "a loader": lambda conn, way: conn.adapters.register_loader("numeric", FloatLoader),
    "a dumper": lambda conn, way: conn.adapters.register_dumper(complex, psycopg.types.string.StrDumper),
}


def looks(conn: Any) -> list[Any]:
    """How a connection is, as far as its user can set it on this side."""
    return [
        conn.row_factory,
        conn.cursor_factory,
        conn.server_cursor_factory,
        conn.prepare_threshold,
        conn.prepared_max,
        list(conn._notice_handlers),
        list(conn._notify_handlers),
        conn.adapters.get_loader(1700, psycopg.pq.Format.TEXT),
        complex in conn.adapters._dumpers["s"],
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_user_sets_on_a_connection_does_not_reach_the_next_one(change, pg_node, way):
    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            await conn.execute("select 1")
            pid, before = bare(conn).info.backend_pid, looks(bare(conn))
            CHANGES[change](bare(conn), way.name)
            assert looks(bare(conn)) != before
        async with pool.block() as conn:
            assert bare(conn).info.backend_pid == pid
            assert looks(bare(conn)) == before
            assert await value(conn, "select 1.5") == 1.5

    way(story, config(pg_node, connection_count=1))


@pytest.mark.parametrize("more", [{}, {"autocommit": False}, {"reset": lambda conn: None}], ids=["", "tx", "reset"])
def test_it_is_put_back_also_on_the_long_way(more, pg_node, way):
    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            before = looks(bare(conn))
            await conn.execute("select 1")
            bare(conn).row_factory = dict_row
        with suppress(ZeroDivisionError):
            async with pool.block() as conn:
                assert looks(bare(conn)) == before
                bare(conn).add_notice_handler(heard)
                bare(conn).row_factory = dict_row
                raise ZeroDivisionError
        async with pool.block() as conn:
            assert looks(bare(conn)) == before

    if way.name == "asyncio" and "reset" in more:

        async def reset(conn: Any) -> None: ...

        more = {"reset": reset}
    way(story, config(pg_node, connection_count=1, **more))


def test_what_configure_sets_stays(pg_node, way):
    def configure(conn: Any) -> None:
        conn.row_factory = args_row(lambda *args: list(args))
        conn.adapters.register_loader("numeric", FloatLoader)
        conn.add_notice_handler(heard)

    async def story(pool: Face) -> None:
        for _ in range(2):
            async with pool.block() as conn:
                assert await (await conn.execute("select 1.5")).fetchall() == [[1.5]]
                assert heard in bare(conn)._notice_handlers
                bare(conn).remove_notice_handler(heard)
                bare(conn).row_factory = dict_row
                bare(conn).adapters.register_loader("numeric", psycopg.types.numeric.NumericLoader)

    way(story, config(pg_node, connection_count=1, configure=configure))


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key", "value", "words"),
    [
        (Pool, "connection_class", psycopg.AsyncConnection, "expected a subclass of psycopg.Connection in a Pool"),
        (Pool, "connection_class", dict, "expected a subclass of psycopg.Connection in a Pool, got builtins.dict"),
        (AsyncPool, "connection_class", Marked, "expected a subclass of psycopg.AsyncConnection in an AsyncPool"),
        (Pool, "cursor_factory", LoudLater, "expected a subclass of psycopg.Cursor in a Pool"),
        (AsyncPool, "cursor_factory", Loud, "expected a subclass of psycopg.AsyncCursor in an AsyncPool"),
        (
            Pool,
            "context",
            type("Odd", (), {"adapters": 1})(),
            "expected a psycopg.adapt.AdaptersMap, or an object that",
        ),
    ],
)
def test_what_does_not_fit_to_the_pool_is_told_at_once(kind, key, value, words):
    with pytest.raises(ConfigError, match=f"groups.default.{key}: {words}"):
        kind({"db": {"host": "h"}, "groups": {"default": {key: value}}}, open=False)


class Choosy(psycopg.Connection[Any]):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        raise LookupError("secret words")


def test_callers_hear_of_a_class_that_raises_and_the_server_is_not_blamed(pg_node: Node, open_pool):
    groups = {"odd": {"connection_class": Choosy}, "default": {}}
    pool = open_pool(config(pg_node, groups=groups))
    with pytest.raises(DBOfflineError, match=r"connection_class .*Choosy raised LookupError") as caught:
        pool.connection("odd", timeout=LIMIT).__enter__()
    assert "secret words" not in str(caught.value)
    with pool.connection(timeout=LIMIT) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert pool.endpoints()[0].fault is None


# -- nothing of the pool's is in the way -------------------------------------------------------------------------------


def test_a_with_block_of_the_connection_itself_commits_and_does_not_close(pg_node, way):
    pg_node.execute("drop table if exists style_with")
    pg_node.execute("create table style_with (n int)")
    pg_node.execute("grant all on style_with to app")

    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            pid = bare(conn).info.backend_pid
            if way.name == "asyncio":
                async with conn:
                    await conn.execute("insert into style_with values (1)")
            else:
                with bare(conn):
                    await conn.execute("insert into style_with values (1)")
            assert pg_node.execute("select count(*) from style_with") == [(1,)]
            assert not bare(conn).closed
        async with pool.block() as conn:
            assert bare(conn).info.backend_pid == pid

    way(story, config(pg_node, connection_count=1, autocommit=False))


@pytest.mark.parametrize("kind", ["Pool", "AsyncPool"])
def test_execute_is_psycopgs_own(kind, pg_node, open_pool):
    if kind == "Pool":
        with open_pool(config(pg_node)).connection(timeout=LIMIT) as conn:
            assert type(conn).execute is psycopg.Connection.execute
        return

    async def act(open_pool: Any) -> None:
        async with open_pool(config(pg_node)).connection(timeout=LIMIT) as conn:
            assert type(conn).execute is psycopg.AsyncConnection.execute

    Stage(asyncio.new_event_loop)(act)
