"""After DDL a prepared statement gives "cached plan must not change result type" once on a connection, not for ever."""

import psycopg
import pytest
from conftest import LIMIT, config
from support import tidy as tidy
from test_handler import PREPARE
from ways import way as way


async def ask(conn, sql):
    """The first column of the first row."""
    return (await (await conn.execute(sql)).fetchone())[0]


@pytest.fixture
def ddl(pg_node):
    """Changes what ``select *`` gives."""
    pg_node.execute("drop table if exists plans_t; create table plans_t (i int)")
    pg_node.execute("insert into plans_t values (1); grant all on plans_t to app")
    numbers = iter(range(100))
    return lambda: pg_node.execute(f"alter table plans_t add column c{next(numbers)} int")


async def run_often(pool, times, group="default", **more):
    """How many runs of one statement failed for its plan."""
    failed = 0
    for _ in range(times):
        try:
            async with pool.block(group) as conn:
                await conn.execute("select * from plans_t where i = %s", [1], **more)
        except psycopg.errors.FeatureNotSupported:
            failed += 1
    return failed


@pytest.mark.parametrize("reset", ["none", "state"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_after_ddl_a_prepared_statement_fails_at_most_once(autocommit, reset, ddl, pg_node, way):
    async def story(pool):
        for _ in range(3):
            assert await run_often(pool, 10) == 0
            ddl()
            assert await run_often(pool, 30) == 1

    way(story, config(pg_node, autocommit=autocommit, connection_count=1, acquire_timeout=LIMIT, reset=reset))


def test_all_statements_that_were_prepared_for_the_old_table_fail_once_together(ddl, pg_node, way):
    async def story(pool):
        failed = 0
        statements = ["select * from plans_t where i = %s", "select *, 1 from plans_t where i = %s"]
        async with pool.block() as conn:
            for each in statements:
                await conn.execute(each, [1], prepare=True)
            ddl()
            for each in statements * 5:
                try:
                    await conn.execute(each, [1])
                except psycopg.errors.FeatureNotSupported:
                    failed += 1
            left = await ask(conn, "select count(*) from pg_prepared_statements where statement like '%plans_t%'")
        assert (failed, left) == (1, 0)

    way(story, config(pg_node, connection_count=1))


def test_a_caller_that_catches_it_can_run_the_statement_again_at_once(ddl, pg_node, way):
    async def story(pool):
        async with pool.block() as conn:
            await conn.execute("select * from plans_t", prepare=True)
            ddl()
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan"):
                await conn.execute("select * from plans_t")
            cursor = await conn.execute("select * from plans_t")
            assert await cursor.fetchall() == [(1, None)]

    way(story, config(pg_node, connection_count=1))


def test_in_a_pipeline_it_is_over_after_one_failure_too(ddl, pg_node, way):
    async def story(pool):
        async with pool.block() as conn:
            await conn.execute("select * from plans_t", prepare=True)
        ddl()
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            async with pool.block() as conn, conn.pipeline():
                await conn.execute("select * from plans_t")
        for _ in range(3):
            async with pool.block() as conn, conn.pipeline():
                cursor = await conn.execute("select * from plans_t")
                assert await cursor.fetchall() == [(1, None)]

    way(story, config(pg_node, connection_count=1, acquire_timeout=LIMIT))


def test_another_feature_that_is_not_supported_takes_nothing_away(ddl, pg_node, way):
    async def story(pool):
        async with pool.block() as conn:
            await conn.execute("select * from plans_t", prepare=True)
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                await conn.execute("select count(*) from plans_t for update")
            assert await ask(conn, "select count(*) from pg_prepared_statements") == 1

    way(story, config(pg_node, connection_count=1))


# -- what was prepared by SQL -----------------------------------------------------------------------------------------


async def fails(pool, sql, times):
    """How many runs failed, and in how many sessions."""
    failed, sessions = 0, set()
    for _ in range(times):
        try:
            async with pool.block() as conn:
                sessions.add(getattr(conn, "inner", conn).info.backend_pid)
                await conn.execute(sql)
        except psycopg.errors.FeatureNotSupported:
            failed += 1
    return failed, len(sessions)


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("by", ["execute star", "select execute_star()"])
def test_what_sqlprepare_has_prepared_costs_its_connection_one_failure(by, autocommit, ddl, pg_node, way):
    pg_node.execute(PREPARE)
    pg_node.execute(
        'create or replace function "SQLPrepare"."PrepareQueries"() returns int language plpgsql as '
        "$$begin prepare star as select * from plans_t; return 1; end$$"
    )
    pg_node.execute(
        "create or replace function execute_star() returns int language plpgsql as "
        "$$begin execute 'execute star'; return 1; end$$"
    )

    async def story(pool):
        assert await fails(pool, by, 10) == (0, 1)
        ddl()
        assert await fails(pool, by, 10) == (1, 2)

    how = {"connection_count": 1, "acquire_timeout": LIMIT, "sqlprepare": True}
    way(story, config(pg_node, autocommit=autocommit, **how))


def test_what_sqlprepare_has_prepared_outlives_a_rollback(pg_node, way):
    """psycopg takes away all prepared statements at a rollback, if it has prepared one itself."""
    pg_node.execute(PREPARE)

    async def story(pool):
        for _ in range(3):
            async with pool.block() as conn:
                assert await ask(conn, 'select "SQLPrepare"."ExecuteQuery"(\'add_up\', 1, 2)') == 3
                for _ in range(7):
                    await conn.execute("select 1 as often")
                assert await ask(conn, "select count(*) from pg_prepared_statements where not from_sql") >= 1
                await conn.rollback()
                assert await ask(conn, "select count(*) from pg_prepared_statements where not from_sql") == 0
                with pytest.raises(psycopg.errors.DivisionByZero):
                    async with conn.transaction():
                        await conn.execute("select 1 / 0")

    way(story, config(pg_node, connection_count=1, autocommit=False, sqlprepare=True))
