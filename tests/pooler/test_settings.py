"""What a session asks for behind a pooler that may give each transaction another one: it reaches nobody else."""

import logging
import time

import psycopg
import pytest
from conftest import LIMIT, config
from support import Wire, one

from pgdbpool import Pool
from pgdbpool.testing import PgBouncer
from tests.pooler.conftest import door_to
from tests.testing.helpers import needs_pgbouncer

pytestmark = needs_pgbouncer
WANTED = {"query_timeout": 6000, "session_tmp_buffer": 32}


def seen_by_others(pooler, setting):
    """What another application sees of a setting, on all connections that the pooler has to the server."""
    seen = set()
    others = [psycopg.connect(pooler.dsn, prepare_threshold=None) for _ in range(5)]
    try:
        for other in others:  # in a transaction: each has one of its own
            seen.add(one(other, f"show {setting}"))
    finally:
        for other in others:
            other.close()
    return seen


def place(address, **more):
    return address.endpoint(ssl="disable", **{**WANTED, **more})


@pytest.mark.parametrize("ignored", [True, False])
def test_in_transaction_mode_settings_hold_for_transactions_and_reach_nobody_else(pg_node, front, ignored):
    # `ignored`: the pooler accepts startup options, and does nothing about them.
    more = {"ignore_startup_parameters": "extra_float_digits,options"} if ignored else {}
    with door_to(pg_node, **more) as door:
        pool = front(config(place(door.pooler), autocommit=False))
        for _ in range(3):
            assert pool.ask("show statement_timeout") == "6s"
            assert pool.ask("create temporary table t (n int) on commit drop", "show temp_buffers") == "32MB"
        assert seen_by_others(door.pooler, "statement_timeout") == {"0"}
        assert seen_by_others(door.pooler, "temp_buffers") == {"8MB"}
        with pytest.raises(psycopg.errors.QueryCanceled):
            pool.ask("set local statement_timeout = 50", "select pg_sleep(30)")
        assert pool.ask("show statement_timeout") == "6s"


def test_in_an_autocommit_group_nothing_is_set_and_a_call_ends_all_the_same(pg_node, front, caplog):
    with door_to(pg_node) as door:
        pool = front(config(place(door.pooler, query_timeout=300), connection_count=1))
        for _ in range(2):
            assert pool.ask("show statement_timeout") == "0"
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError):
            pool.ask("select pg_sleep(120)")
        assert time.monotonic() - began < LIMIT
        assert pool.ask("select 1", timeout=LIMIT) == 1
        assert seen_by_others(door.pooler, "statement_timeout") == {"0"}
        assert seen_by_others(door.pooler, "temp_buffers") == {"8MB"}
        said = [each.getMessage() for each in caplog.records if "a pooler is in between" in each.getMessage()]
        assert len(said) == 1
        assert "query_timeout and session_tmp_buffer cannot be set in an autocommit group" in said[0]
        assert caplog.records[0].levelno == logging.WARNING


def test_in_session_mode_that_is_declared_settings_are_set(pg_node, front, caplog):
    with door_to(pg_node, "session") as door:
        pool = front(config(place(door.pooler, pooler="session"), connection_count=1))
        for _ in range(2):
            assert pool.ask("show statement_timeout") == "6s"
            assert pool.ask("show temp_buffers") == "32MB"
        assert seen_by_others(door.pooler, "statement_timeout") == {"0"}
        assert "a pooler is in between" not in caplog.text


def test_a_direct_session_keeps_its_settings_where_there_was_a_pooler(pg_node, open_pool):
    """The name of a pooler leads to the server itself now."""
    with PgBouncer(pg_node) as pooler, pg_node.proxy() as way:
        way.target = pooler
        pool = open_pool(config(way.endpoint(ssl="disable", **WANTED), connection_count=1, monitor=False))
        with pool.connection() as conn:
            assert one(conn, "show statement_timeout") == "0"
        way.target = pg_node
        way.reset()
        with pool.connection() as conn:
            assert one(conn, "show statement_timeout") == "6s"
            assert one(conn, "show temp_buffers") == "32MB"


def test_they_cost_no_round_trip(pg_node, open_pool):
    with PgBouncer(pg_node) as pooler, Wire(pooler) as wire:
        pool = open_pool(config(place(wire, session_tmp_buffer=None), autocommit=False, monitor=False))
        for _ in range(2):
            with pool.connection() as conn:
                conn.execute("select 1")
        begun = "BEGIN; SET LOCAL statement_timeout = '6000'"
        assert wire.statements[1:] == [begun, "select 1", "COMMIT"] * 2


def test_blocks_of_the_drivers_own_pipelines_and_properties_have_them_too(pg_node, open_pool):
    with PgBouncer(pg_node) as pooler:
        pool = open_pool(config(place(pooler), groups={"a": {}, "t": {"autocommit": False}}))
        with pool.connection("a") as conn:
            with conn.transaction():
                assert one(conn, "show statement_timeout") == "6s"
                with conn.transaction():
                    assert one(conn, "show temp_buffers") == "32MB"
            assert one(conn, "show statement_timeout") == "0"
        with pool.connection("t") as conn:
            conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            assert one(conn, "show transaction_isolation") == "serializable"
            assert one(conn, "show statement_timeout") == "6s"
            conn.commit()
            with conn.pipeline():
                timeout = conn.execute("show statement_timeout")
                buffers = conn.execute("show temp_buffers")
                assert (timeout.fetchone(), buffers.fetchone()) == (("6s",), ("32MB",))


@pytest.mark.parametrize("autocommit", [True, False])
def test_named_cursors_and_two_phase_commits_go_on_as_ever(pg_node, open_pool, autocommit):
    with PgBouncer(pg_node) as pooler:
        pool = open_pool(config(place(pooler), autocommit=autocommit))
        with pool.connection() as conn, conn.transaction(), conn.cursor("named") as cursor:
            cursor.execute("select generate_series(1, 5)")
            assert cursor.fetchall() == [(number,) for number in range(1, 6)]
            assert one(conn, "show statement_timeout") == "6s"
        if not autocommit:
            with pool.connection() as conn:
                conn.tpc_begin(conn.xid(1, "g", "b"))
                assert one(conn, "show statement_timeout") == "6s"
                conn.tpc_rollback()


def test_temporary_tables_of_other_applications_do_not_stand_in_the_way(pg_node, front):
    with door_to(pg_node, default_pool_size=1) as door:
        with psycopg.connect(door.pooler.dsn, prepare_threshold=None) as other:
            other.execute("create temporary table theirs (n int)")
            other.execute("insert into theirs values (1)")
        pool = front(config(place(door.pooler), autocommit=False))
        assert pool.ask("select 1") == 1
        assert pool.ask("show statement_timeout") == "6s"


@pytest.mark.parametrize("declared", [None, "transaction"])
def test_out_of_the_box_no_statement_fails_for_being_prepared(pg_node, front, declared):
    with door_to(pg_node, default_pool_size=3) as door:
        for autocommit in (True, False):
            where = door.pooler.endpoint(ssl="disable", pooler=declared)
            pool = front(config(where, connection_count=4, autocommit=autocommit))
            for number in range(60):
                assert pool.ask(f"select {number % 2}") == number % 2
            assert pg_node.execute("select count(*) from pg_prepared_statements")[0][0] == 0


def test_where_sessions_have_their_own_server_statements_are_prepared_as_ever(pg_node, open_pool):
    with PgBouncer(pg_node, "session") as pooler:
        pool = open_pool(config(pooler.endpoint(ssl="disable", pooler="session"), connection_count=1))
        with pool.connection() as conn:
            for _ in range(10):
                conn.execute("select 1 as prepared")
            assert one(conn, "select count(*) from pg_prepared_statements where statement like '%as prepared'") == 1


def test_behind_transaction_pooling_a_reset_of_the_state_meets_no_other_application(pg_node, front, caplog):
    with door_to(pg_node, default_pool_size=1) as door:
        with psycopg.connect(door.pooler.dsn, prepare_threshold=None, autocommit=True) as other:
            other.execute("set work_mem = '7MB'")
            other.execute("select pg_advisory_lock(42)")
            pool = front(config(door.pooler.endpoint(ssl="disable"), reset="state"))
            for _ in range(3):
                assert pool.ask("select 1") == 1
            assert one(other, "show work_mem") == "7MB"
            assert one(other, "select pg_advisory_unlock(42)")
        said = [each.getMessage() for each in caplog.records if "a pooler is in between" in each.getMessage()]
        assert len(said) == 1
        assert 'reset = "state" does nothing' in said[0]


def test_in_session_mode_that_is_declared_the_state_is_reset(pg_node, front, caplog):
    with door_to(pg_node, "session") as door:
        pool = front(config(place(door.pooler, pooler="session"), connection_count=1, reset="state"))
        for _ in range(3):
            assert pool.ask("show work_mem") == "4MB"
            assert pool.ask("show statement_timeout") == "6s"
            pool.ask("set work_mem = '7MB'", "set statement_timeout = 0", "select 1")
        assert pool.opened() == 1
        assert "reset" not in caplog.text


def test_the_warning_is_said_once_though_there_are_many_sessions(pg_node, caplog):
    with PgBouncer(pg_node) as pooler:
        for _ in range(2):
            with Pool(config(place(pooler), autocommit=False, min_count=3)) as pool:
                pool.wait(LIMIT)
        assert caplog.text.count("a pooler is in between") == 1
        assert "will be SET LOCAL in each transaction" in caplog.text
