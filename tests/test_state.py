"""No borrower meets another's state: each row of the table in docs/state.rst, on a real server, in all models.

A first borrower leaves something behind; the second, on the same session, sees it or does not.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import psycopg
import pytest
from conftest import LIMIT, config
from psycopg import IsolationLevel, pq
from support import Wire
from support import tidy as tidy
from test_handler import PREPARE
from ways import way as way

from pgdbpool.drivers.blocking import run

SUPERUSER = "postgres"


class Row(NamedTuple):
    """One row of the table: what the first borrower does, and whether the second sees it."""

    does: Callable[[Any], Awaitable[Any]]
    sees: Callable[[Any], Awaitable[Any]]


def raw(conn):
    """The psycopg connection itself."""
    return getattr(conn, "inner", conn)


async def done(result):
    return await result if inspect.isawaitable(result) else result


async def ask(conn, sql, params=None, **more):
    """The first column of the first row."""
    cursor = await conn.execute(sql, params, **more)
    return (await cursor.fetchone())[0]


async def pid(conn):
    return raw(conn).info.backend_pid


def sql(does, sees):
    """A row in two statements, the second of which gives a boolean."""

    async def change(conn):
        await conn.execute(does)

    async def look(conn):
        return await ask(conn, sees)

    return Row(change, look)


async def next_value(conn):
    await conn.execute("select nextval('state_s')")


async def has_a_last_value(conn):
    try:
        await conn.execute("select lastval()")
    except psycopg.errors.ObjectNotInPrerequisiteState:
        await conn.rollback()
        return False
    return True


async def prepares_by_libpq(conn):
    raw(conn).pgconn.prepare(b'mi"ne', b"select 1")


async def listens_and_is_told(conn):
    await conn.execute("listen state_c")
    await conn.execute("notify state_c")
    await conn.commit()
    await conn.execute("select 1")


async def has_notifications(conn):
    notes = raw(conn).notifies(timeout=0)
    return bool([note async for note in notes] if hasattr(notes, "__aiter__") else list(notes))


# What is not put back by itself.
LEFT = {
    "SET": sql("set work_mem = '7MB'", "select current_setting('work_mem') = '7MB'"),
    "set_config": sql("select set_config('work_mem', '7MB', false)", "select current_setting('work_mem') = '7MB'"),
    "a setting of the application's": sql(
        "set state.tenant = 'acme'", "select coalesce(current_setting('state.tenant', true), '') = 'acme'"
    ),
    "SET SESSION CHARACTERISTICS": sql(
        "set session characteristics as transaction isolation level serializable",
        "select current_setting('default_transaction_isolation') = 'serializable'",
    ),
    "search_path": sql("set search_path = state_x", "select current_setting('search_path') = 'state_x'"),
    "the time zone": sql("set time zone 'Asia/Tokyo'", "select current_setting('TimeZone') = 'Asia/Tokyo'"),
    "SET ROLE": sql("set role state_role", "select current_user = 'state_role'"),
    "a temporary table": sql("create temp table state_t (i int)", "select to_regclass('pg_temp.state_t') is not null"),
    "an advisory lock": sql(
        "select pg_advisory_lock(pg_backend_pid())",
        "select exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())",
    ),
    "LISTEN": sql("listen state_c", "select exists (select from pg_listening_channels())"),
    "notifications that were not fetched": Row(listens_and_is_told, has_notifications),
    "PREPARE": sql("prepare state_p as select 1", "select exists (select from pg_prepared_statements where from_sql)"),
    "a statement prepared by libpq": Row(
        prepares_by_libpq, sql("", "select exists (select from pg_prepared_statements where name = 'mi\"ne')").sees
    ),
    "a cursor WITH HOLD": sql(
        "declare state_c cursor with hold for select 1", "select exists (select from pg_cursors where is_holdable)"
    ),
    "what currval and lastval remember": Row(next_value, has_a_last_value),
}


@pytest.fixture
def node(pg_node):
    """A server with what the rows need."""
    for statement in (
        "do $$begin create role state_role; exception when duplicate_object then null; end$$",
        "grant state_role to app",
        "drop schema if exists state_x cascade",
        "create schema state_x",
        "drop sequence if exists state_s",
        "create sequence state_s",
        "grant all on sequence state_s to app",
        "drop table if exists state_rows",
        "create table state_rows (i int)",
        "grant all on state_rows to app",
    ):
        pg_node.execute(statement)
    return pg_node


def groups(**group):
    """The same group four times: with and without autocommit, and with `reset` none and state."""
    return {
        f"{reset}-{'auto' if autocommit else 'tx'}": {
            "connection_count": 1,
            "acquire_timeout": LIMIT,
            "autocommit": autocommit,
            "reset": reset,
            **group,
        }
        for reset in ("none", "state")
        for autocommit in (True, False)
    }


async def two_borrowers(pool, group, row):
    """What the second borrower of a session sees of the first."""
    async with pool.block(group) as conn:
        assert not await row.sees(conn)
        await row.does(conn)
        await conn.commit()
        assert await row.sees(conn)
        if row.does is listens_and_is_told:
            await row.does(conn)
        first = await pid(conn)
    async with pool.block(group) as conn:
        assert await pid(conn) == first
        return await row.sees(conn)


@pytest.mark.parametrize("what", LEFT)
def test_what_a_borrower_leaves_in_a_session_is_there_unless_the_group_resets_it(what, node, way):
    async def story(pool):
        for group in groups():
            assert await two_borrowers(pool, group, LEFT[what]) is group.startswith("none"), group

    way(story, config(node, groups=groups()))


@pytest.mark.parametrize("reset", ["none", "state"])
def test_set_session_authorization_likewise(reset, node, way):
    row = sql("set session authorization app", "select session_user = 'app'")

    async def story(pool):
        assert await two_borrowers(pool, "default", row) is (reset == "none")

    place = node.endpoint(host=node.socket_dir, user=SUPERUSER, ssl="disable")
    way(story, config(place, connection_count=1, reset=reset))


# -- what is put back in every group ----------------------------------------------------------------------------------


async def a_transaction(conn):
    await conn.execute("begin")
    await conn.execute("insert into state_rows values (1)")


async def is_in_a_transaction(conn):
    in_one = raw(conn).pgconn.transaction_status != pq.TransactionStatus.IDLE
    return in_one or await ask(conn, "select exists (select from state_rows)")


async def a_failed_transaction(conn):
    await conn.execute("begin")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await conn.execute("select 1 / 0")


async def a_local_setting(conn):
    await conn.execute("begin")
    await conn.execute("set local work_mem = '7MB'")


def told(add, conn_says):
    """A row of a handler: whether it hears of the next borrower."""
    heard = []

    async def change(conn):
        await done(getattr(conn, add)(heard.append))

    async def look(conn):
        heard.clear()
        await conn.execute(conn_says)
        await conn.rollback()
        return bool(heard)

    return Row(change, look)


def properties(setter, value, name):
    async def change(conn):
        await done(getattr(conn, setter)(value))

    async def look(conn):
        return getattr(raw(conn), name) == value

    return Row(change, look)


def put_back(autocommit):
    return {
        "autocommit": properties("set_autocommit", not autocommit, "autocommit"),
        "the isolation level": properties("set_isolation_level", IsolationLevel.SERIALIZABLE, "isolation_level"),
        "read only": properties("set_read_only", True, "read_only"),
        "deferrable": properties("set_deferrable", True, "deferrable"),
        "a notice handler": told("add_notice_handler", "do $$begin raise notice 'x'; end$$"),
        "a notify handler": told("add_notify_handler", "select 1"),
    }


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("what", put_back(True))
def test_what_is_put_back_in_every_group(what, autocommit, node, way):
    row = put_back(autocommit)[what]

    async def story(pool):
        async with pool.block() as conn:
            await row.does(conn)
            first = await pid(conn)
            if what != "a notify handler":
                assert await row.sees(conn)
                await conn.rollback()
        async with pool.block() as conn:
            assert await pid(conn) == first
            assert not await row.sees(conn)

    way(story, config(node, connection_count=1, autocommit=autocommit))


def test_a_notify_handler_hears_nothing_of_the_next_borrower(node, way):
    async def story(pool):
        heard = []
        async with pool.block() as conn:
            await done(conn.add_notify_handler(heard.append))
            await conn.execute("listen state_c")
            await conn.execute("notify state_c, 'mine'")
            assert [each.payload for each in heard] == ["mine"]
        async with pool.block() as conn:
            await conn.execute("notify state_c, 'theirs'")
            await conn.execute("select 1")
        assert len(heard) == 1

    way(story, config(node, connection_count=1))


def test_a_notice_handler_that_configure_added_stays_and_one_that_a_borrower_removes_comes_back(node, way):
    heard = []

    def configure(conn):
        conn.add_notice_handler(heard.append)

    async def story(pool):
        async with pool.block() as conn:
            await done(conn.remove_notice_handler(heard.append))
        async with pool.block() as conn:
            await conn.execute("do $$begin raise notice 'x'; end$$")
        assert len(heard) == 1

    # A bound method is another object each time, and equal.
    way(story, config(node, connection_count=1, configure=configure))


@pytest.mark.parametrize("does", [a_transaction, a_failed_transaction, a_local_setting])
def test_a_transaction_that_was_left_open_is_rolled_back_with_what_was_set_for_it(does, node, way):
    async def story(pool):
        async with pool.block() as conn:
            await does(conn)
            first = await pid(conn)
        async with pool.block() as conn:
            assert await pid(conn) == first
            assert not await is_in_a_transaction(conn)
            assert await ask(conn, "show work_mem") != "7MB"

    way(story, config(node, connection_count=1))


@pytest.mark.parametrize("what", ["stream", "pipeline", "notifies"])
def test_what_is_half_done_costs_the_session(what, node, way):
    node.execute("drop table if exists work_t; create table work_t (i int); grant all on work_t to app")

    async def story(pool):
        async with pool.block() as conn:
            first = await pid(conn)
            await pool.leave_open(conn, what)
        async with pool.block() as conn:
            assert await pid(conn) != first
            assert await ask(conn, "select 1") == 1

    way(story, config(node, connection_count=1, acquire_timeout=LIMIT))


# -- reset: "state" ---------------------------------------------------------------------------------------------------


STATE = {"connection_count": 1, "acquire_timeout": LIMIT, "reset": "state"}


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_reset_is_one_round_trip_and_two_where_the_borrower_has_prepared_statements(autocommit, node, way):
    async def story(pool):
        async with pool.block() as conn:
            await conn.execute("select 1")
        async with pool.block() as conn:
            await conn.execute("prepare state_p as select 1")

    with Wire(node) as wire:
        way(story, config(wire, monitor=False, autocommit=autocommit, **STATE))
        said = [sql for sql in wire.of_users if sql not in ("BEGIN", "COMMIT")]
        assert said[0] == "select 1"
        assert said[1].startswith("CLOSE ALL; ")
        assert said[2:] == ["prepare state_p as select 1", said[1], 'DEALLOCATE "state_p"']


def test_what_psycopg_has_prepared_goes_on_being_used(node, way):
    async def story(pool):
        for number in range(20):
            async with pool.block() as conn:
                assert await ask(conn, "select %s::int as mine", [number]) == number
        async with pool.block() as conn:
            cursor = await conn.execute(
                "select generic_plans + custom_plans from pg_prepared_statements where statement like '%as mine'"
            )
            # It is prepared when it has been executed five times.
            assert await cursor.fetchall() == [(15,)]

    way(story, config(node, **STATE))


def test_a_reset_goes_back_to_what_the_session_was_opened_with(node, way):
    opened = {
        "statement_timeout": "5s",
        "temp_buffers": "16MB",
        "application_name": "state's own",
        "client_encoding": "LATIN1",
        "TimeZone": "Asia/Tokyo",
        "search_path": "state_x",
        "role": "state_role",
    }

    other = {
        "statement_timeout": "3000",
        "temp_buffers": "'3MB'",
        "client_encoding": "UTF8",
        "TimeZone": "UTC",
        "role": "app",
    }

    async def settings(conn):
        return {name: await ask(conn, f"show {name}") for name in opened}

    async def story(pool):
        async with pool.block() as conn:
            assert await settings(conn) == opened
            for name in opened:
                await conn.execute(f"set {name} = {other.get(name, 'other')}")
            changed = await settings(conn)
            assert not changed.items() & opened.items()
            first = await pid(conn)
        async with pool.block() as conn:
            assert await pid(conn) == first
            assert await settings(conn) == opened
            assert await ask(conn, "select 'é'") == "é"

    options = "-c TimeZone=Asia/Tokyo -c search_path=state_x -c role=state_role"
    params = {"application_name": "state's own", "client_encoding": "LATIN1", "options": options}
    place = node.endpoint(ssl="disable", params=params, query_timeout=5000, session_tmp_buffer=16)
    way(story, config(place, **STATE))


def test_what_the_pool_had_to_set_after_the_connect_holds_after_a_reset(node, way):
    """Where something in between refuses startup options."""

    async def story(pool):
        for _ in range(3):
            async with pool.block() as conn:
                assert await ask(conn, "show statement_timeout") == "5s"
                assert await ask(conn, "show temp_buffers") == "16MB"
                await conn.execute("set statement_timeout = 0")
                await conn.execute("create temp table state_t as select 1")
                seen.add(await pid(conn))

    seen = set()
    with Wire(node, refuse_options=True) as wire:
        place = wire.endpoint(ssl="disable", query_timeout=5000, session_tmp_buffer=16, pooler="session")
        way(story, config(place, monitor=False, **STATE))
    assert len(seen) == 1


def test_a_borrowers_own_statement_timeout_does_not_end_the_reset(node, way):
    async def story(pool):
        async with pool.block() as conn:
            first = await pid(conn)
            await conn.execute("set statement_timeout = '1s'")
            await conn.execute("create temp table state_t as select generate_series(1, 1000)")
        async with pool.block() as conn:
            assert await pid(conn) == first

    way(story, config(node, **STATE))


def test_configure_is_called_again_after_each_reset_and_finds_a_session_like_a_new_one(node, way):
    called, heard = [], []

    def setup(conn):
        called.append((conn.read_only, conn.autocommit))
        conn.add_notice_handler(heard.append)

    async def configure(conn):
        setup(conn)
        await conn.set_read_only(True)
        await conn.execute("set search_path = state_x")
        await conn.execute("listen state_c")
        await conn.execute("prepare state_p as select 1")

    def configure_now(conn):
        setup(conn)
        conn.set_read_only(True)
        conn.execute("set search_path = state_x")
        conn.execute("listen state_c")
        conn.execute("prepare state_p as select 1")

    async def story(pool):
        for number in range(1, 4):
            async with pool.block() as conn:
                assert called == [(None, False)] * number
                assert raw(conn).read_only is True
                assert await ask(conn, "show search_path") == "state_x"
                assert await ask(conn, "select pg_listening_channels()") == "state_c"
                assert await ask(conn, "execute state_p") == 1
                heard.clear()
                await conn.execute("do $$begin raise notice 'x'; end$$")
                assert len(heard) == 1
                await conn.execute("set search_path = pg_catalog")
                await conn.execute("unlisten *")
                seen.add(await pid(conn))
        assert len(seen) == 1

    seen = set()
    function = configure if way.name == "asyncio" else configure_now
    way(story, config(node, autocommit=False, configure=function, **STATE))


def test_what_sqlprepare_has_prepared_stays(node, way):
    node.execute(PREPARE)

    async def story(pool):
        for _ in range(3):
            async with pool.block() as conn:
                assert await ask(conn, "execute add_up(1, 2)") == 3
                await conn.execute("prepare state_p as select 1")

    with Wire(node) as wire:
        way(story, config(wire, sqlprepare=True, monitor=False, **STATE))
        assert sum("PrepareQueries" in sql for sql in wire.statements) == 1


def test_on_a_standby_it_resets_as_well(pg_cluster, way):
    async def story(pool):
        async with pool.block() as conn:
            first = await pid(conn)
            await conn.execute("set work_mem = '7MB'")
            await conn.execute("declare state_c cursor with hold for select 1")
        async with pool.block() as conn:
            assert await pid(conn) == first
            assert await ask(conn, "show work_mem") != "7MB"
            assert await ask(conn, "select count(*) from pg_cursors") == 0

    way(story, config(pg_cluster.standbys[0], target_session_attrs="standby", **STATE))


# -- a reset that fails -----------------------------------------------------------------------------------------------


async def refused_in_a_transaction(conn):
    await conn.execute("discard all", prepare=False)


async def fails_and_says_nothing(conn):
    try:
        await conn.execute("select 1 / 0")
    except psycopg.errors.DivisionByZero:
        pass


async def raises_in_a_transaction(conn):
    await conn.execute("begin")
    raise ValueError("did not like it")


async def raises(conn):
    raise ValueError("did not like it")


async def loses_its_session(conn):
    await conn.execute("select pg_terminate_backend(pg_backend_pid())")


async def loses_its_session_and_says_nothing(conn):
    try:
        await conn.execute("select pg_terminate_backend(pg_backend_pid())")
    except psycopg.OperationalError:
        pass


async def closes_it(conn):
    await conn.close()


async def leaves_a_statement(conn):
    getattr(conn, "conn", conn).pgconn.send_query(b"select pg_sleep(0.01)")


FAILS = {
    refused_in_a_transaction: "DISCARD ALL cannot run inside a transaction block",
    fails_and_says_nothing: "nothing was committed",
    raises_in_a_transaction: "did not like it",
    raises: "did not like it",
    loses_its_session: "terminating connection due to administrator command",
    loses_its_session_and_says_nothing: "the connection was lost",
    closes_it: "reset left the connection closed",
    leaves_a_statement: "reset left the connection busy",
}
_numbers = iter(range(1_000_000))


class Blocking:
    """A connection whose methods can be awaited, for a `reset` that is written once."""

    def __init__(self, conn):
        self.conn = conn

    def __getattr__(self, name):
        async def call(*args, **more):
            return getattr(self.conn, name)(*args, **more)

        return call


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("reset", FAILS, ids=lambda reset: reset.__name__)
def test_a_reset_that_fails_is_logged_in_every_state_of_the_session(reset, failed, node, way, caplog):
    group = f"state {next(_numbers)}"  # a line is said once a minute for each

    async def story(pool):
        seen = set()
        for _ in range(3):
            try:
                async with pool.block(group) as conn:
                    seen.add(await pid(conn))
                    if failed:
                        raise KeyError
            except KeyError:
                pass
        assert len(seen) == 3
        lines = [each for each in caplog.records if repr(group) in each.getMessage() and "reset" in each.getMessage()]
        assert [each.levelno for each in lines] == [logging.WARNING], caplog.text
        assert "reset failed, connection closed" in lines[0].getMessage()
        assert FAILS[reset] in lines[0].getMessage()

    function = reset if way.name == "asyncio" else lambda conn: run(reset(Blocking(conn)))
    how = {"connection_count": 1, "acquire_timeout": LIMIT, "autocommit": reset is raises_in_a_transaction}
    way(story, config(node, groups={group: {"reset": function, **how}}))


def test_a_reset_of_the_pools_own_that_fails_is_logged_as_well(node, way, caplog):
    group = f"state {next(_numbers)}"

    async def story(pool):
        async with pool.block(group) as conn:
            first = await pid(conn)
            node.execute("select pg_terminate_backend(%s, 5000)", [first])
        async with pool.block(group) as conn:
            assert await pid(conn) != first

    way(story, config(node, monitor=False, groups={group: STATE}))
    assert f"group {group!r}: reset failed, connection closed: terminating connection" in caplog.text


def test_a_configure_that_fails_after_a_reset_costs_the_session_and_is_logged(node, way, caplog):
    group = f"state {next(_numbers)}"
    met = []

    def configure(conn):
        if conn.info.backend_pid in met:
            raise ValueError("not twice")
        met.append(conn.info.backend_pid)

    async def story(pool):
        for _ in range(3):
            async with pool.block(group) as conn:
                assert met[-1] == await pid(conn)

    way(story, config(node, groups={group: {"configure": configure, **STATE}}))
    assert len(set(met)) >= 3
    assert f"group {group!r}: reset failed, connection closed: configure raised ValueError: not twice" in caplog.text


def test_a_server_that_freezes_holds_up_a_reset_for_as_long_as_it_takes_to_find_out(node, way, caplog):
    group = f"state {next(_numbers)}"

    async def story(pool):
        async with pool.block(group) as conn:
            first = await pid(conn)
            node.freeze()
        try:
            assert f"group {group!r}: reset failed, connection closed: " in caplog.text
            # Without a monitor it is the limit of the reset that ends it.
            assert ("did not answer in time" in caplog.text) is (way.name == "non-threaded")
        finally:
            node.thaw()
        async with pool.block(group) as conn:
            assert await pid(conn) != first

    way(story, config(node, groups={group: STATE}))
