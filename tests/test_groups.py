"""Groups: their transactions, their sessions, their callbacks, and what they share."""

import asyncio
import logging
from time import monotonic

import psycopg
import pytest
from conftest import LIMIT, backends, config, wait_for
from psycopg.pq import TransactionStatus
from support import Wire, grow, hold, one, pid, put, stats
from support import tidy as tidy

from pgdbpool import DBConnectionError, DBOfflineError, PoolTimeout
from pgdbpool.testing import Impostor

BOTH = pytest.mark.parametrize("autocommit", [True, False])


@pytest.fixture
def table(pg_node):
    """An empty table; how many rows it has when asked by somebody else."""
    pg_node.execute("drop table if exists groups_t")
    pg_node.execute("create table groups_t (i int primary key); grant all on groups_t to app")
    return lambda: pg_node.execute("select count(*) from groups_t")[0][0]


def idle(conn):
    return conn.info.transaction_status == TransactionStatus.IDLE


def use_and_raise(conn, sql, error):
    conn.execute(sql)
    raise error


# -- transactions ---------------------------------------------------------------------------------------------------


def test_an_autocommit_group_never_sends_begin_or_commit(pg_node, open_pool, table):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, connection_count=1, monitor=False))
        with pool.connection() as conn:
            conn.execute("insert into groups_t values (1)")
            assert table() == 1
        with pytest.raises(ZeroDivisionError), pool.connection() as conn:
            use_and_raise(conn, "insert into groups_t values (2)", ZeroDivisionError())
        conn = pool.getconn()
        conn.execute("insert into groups_t values (3)")
        pool.putconn(conn)
        with pool.connection() as conn, pytest.raises(psycopg.errors.UniqueViolation):
            conn.execute("insert into groups_t values (3)")
        assert wire.of_users == [f"insert into groups_t values ({i})" for i in (1, 2, 3, 3)]
    assert table() == 3


def test_a_transaction_group_commits_at_the_end_of_the_block(pg_node, open_pool, table):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, autocommit=False, monitor=False))
        with pool.connection() as conn:
            conn.execute("insert into groups_t values (1)")
            assert table() == 0
        assert table() == 1
        assert wire.of_users == ["BEGIN", "insert into groups_t values (1)", "COMMIT"]


def test_a_block_in_which_nothing_is_done_sends_nothing(pg_node, open_pool):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, autocommit=False, monitor=False))
        for _ in range(3):
            with pool.connection():
                pass
        assert wire.of_users == []


@pytest.mark.parametrize("autocommit", [True, False])
def test_what_a_user_makes_of_transactions_is_not_there_for_the_next(autocommit, pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, autocommit=autocommit))
    with pool.connection() as conn:
        conn.read_only = True
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    with pool.connection() as same:
        assert same is conn
        assert (same.read_only, same.isolation_level, same.deferrable) == (None, None, None)


def test_what_configure_makes_of_transactions_stays(pg_node, open_pool):
    def configure(conn):
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

    pool = open_pool(config(pg_node, connection_count=1, autocommit=False, configure=configure))
    for level in (psycopg.IsolationLevel.SERIALIZABLE, None):
        with pool.connection() as conn:
            assert conn.isolation_level is psycopg.IsolationLevel.REPEATABLE_READ
            conn.isolation_level = level


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit, SystemExit])
def test_a_transaction_group_rolls_back_when_the_block_is_left_by(error, pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
    raised = error("mine")
    with pytest.raises(error) as caught, pool.connection() as conn:
        use_and_raise(conn, "insert into groups_t values (1)", raised)
    assert caught.value is raised
    assert table() == 0
    with pool.connection() as again:
        assert again is conn
        assert idle(again)
    assert stats(pool).counters.rollbacks == 1


def test_an_explicit_transaction_left_open_in_an_autocommit_group_is_rolled_back(pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection() as conn:
        conn.execute("begin")
        conn.execute("insert into groups_t values (1)")
    assert table() == 0
    with pool.connection() as again:
        assert again is conn
        assert idle(again)


def use_and_swallow_an_error(conn):
    conn.execute("insert into groups_t values (1)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("select 1 / 0")


def test_a_failed_transaction_in_an_autocommit_group_is_ended_and_the_connection_used_again(pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection() as conn:
        conn.execute("begin")
        use_and_swallow_an_error(conn)
    assert table() == 0
    with pool.connection() as again:
        assert again is conn
        assert one(again, "select 1") == 1


def test_a_block_whose_transaction_failed_does_not_end_as_if_it_had_been_committed(pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=1, autocommit=False))

    def swallow():
        with pool.connection() as conn:
            use_and_swallow_an_error(conn)

    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing was committed"):
        swallow()
    assert table() == 0
    with pool.connection() as again:
        assert one(again, "select 1") == 1
    assert stats(pool).counters.closed == {}


def test_a_connection_whose_commit_was_refused_is_made_ready_for_the_next_like_any_other(pg_node, open_pool, table):
    seen = []
    pool = open_pool(config(pg_node, connection_count=1, autocommit=False, reset=lambda conn: seen.append(idle(conn))))

    def swallow():
        with pool.connection() as conn:
            conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            conn.read_only = True
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                conn.execute("insert into groups_t values (1)")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        swallow()
    assert seen == [True]
    with pool.connection() as conn:
        assert (conn.read_only, conn.isolation_level) == (None, None)
        conn.execute("insert into groups_t values (1)")
    assert table() == 1
    assert stats(pool).counters.connects == 1


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_a_block_left_inside_a_transaction_block_of_the_drivers_is_not_committed_and_says_so(
    error, pg_node, open_pool, table
):
    pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
    blocks = []

    def leave():
        with pool.connection() as conn:
            blocks.append(conn.transaction())
            blocks[0].__enter__()
            conn.execute("insert into groups_t values (1)")
            if error is not None:
                raise error

    with pytest.raises(error or psycopg.ProgrammingError):
        leave()
    assert table() == 0
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1
    assert stats(pool).counters.closed == {"busy": 1}


@BOTH
def test_the_drivers_own_transaction_blocks_work(autocommit, pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=1, autocommit=autocommit))
    with pool.connection() as conn:
        with conn.transaction():
            conn.execute("insert into groups_t values (1)")
        with pytest.raises(ZeroDivisionError), conn.transaction():
            use_and_raise(conn, "insert into groups_t values (2)", ZeroDivisionError())
    assert table() == 1


@BOTH
def test_autocommit_changed_by_the_user_is_what_it_was_for_the_next(autocommit, pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, autocommit=autocommit))
    with pool.connection() as conn:
        conn.autocommit = not autocommit
        conn.execute("select 1")
    with pool.connection() as again:
        assert again is conn
        assert again.autocommit is autocommit
        assert idle(again)


def test_a_connection_closed_by_its_user_is_replaced_and_is_no_evidence(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3))
    pids = grow(pool, 3)
    with pool.connection() as conn:
        conn.close()
    assert stats(pool).open == 2
    assert stats(pool).counters.closed == {"closed": 1}
    (endpoint,) = pool.endpoints()
    assert (endpoint.health, endpoint.last_error) == ("up", None)
    wait_for(lambda: len(backends(pg_node) & pids) == 2)
    put(pool, *hold(pool, 3))


def test_an_unfinished_copy_costs_the_connection_and_nothing_else(pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=2))
    pids = grow(pool, 2)
    with pool.connection() as conn:
        busy = pid(conn)
        copy = conn.cursor().copy("copy groups_t from stdin")
        copy.__enter__().write("1\n")
    assert stats(pool).counters.closed == {"busy": 1}
    wait_for(lambda: busy not in backends(pg_node))
    assert table() == 0
    assert pool.endpoints()[0].health == "up"
    assert {pid(conn) for conn in hold(pool, 2)} & pids == pids - {busy}


def test_an_answer_left_unread_costs_the_connection_and_nothing_else(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
    with pytest.raises(DBConnectionError, match="in the middle of a statement"), pool.connection() as conn:
        conn.pgconn.send_query(b"select generate_series(1, 10000000)")
    wait_for(lambda: conn.closed)
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1
    assert stats(pool).counters.closed == {"busy": 1}


# -- sessions -------------------------------------------------------------------------------------------------------


def test_several_groups_share_an_endpoint_and_keep_apart(pg_node, open_pool):
    groups = {
        "read": {"connection_count": 3, "autocommit": True},
        "write": {"connection_count": 2, "autocommit": False},
    }
    pool = open_pool(config(pg_node, groups=groups))
    readers, writers = grow(pool, 3, "read"), grow(pool, 2, "write")
    assert not readers & writers
    assert backends(pg_node, "read") == readers
    assert backends(pg_node, "write") == writers
    with pool.connection("read") as reader, pool.connection("write") as writer:
        assert reader.autocommit
        assert not writer.autocommit
    (endpoint,) = pool.endpoints()
    assert endpoint.open == 5


def test_a_group_at_its_limit_does_not_hold_up_another(pg_node, open_pool):
    pool = open_pool(config(pg_node, groups={"a": {"connection_count": 1}, "b": {"connection_count": 1}}))
    with pool.connection("a"), pool.connection("b", timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1


def test_session_settings_are_the_endpoints_or_the_groups_own(pg_node, open_pool):
    groups = {"fast": {}, "batch": {"query_timeout": 0, "session_tmp_buffer": 16}}
    place = pg_node.endpoint(ssl="disable", query_timeout=5000, session_tmp_buffer=64)
    pool = open_pool(config(place, groups=groups))
    with pool.connection("fast") as conn:
        assert one(conn, "show statement_timeout") == "5s"
        assert one(conn, "show temp_buffers") == "64MB"
    with pool.connection("batch") as conn:
        assert one(conn, "show statement_timeout") == "0"
        assert one(conn, "show temp_buffers") == "16MB"


def test_without_session_settings_the_servers_own_hold(pg_node, open_pool):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire))
        with pool.connection() as conn:
            assert one(conn, "show statement_timeout") == "0"
        assert "options" not in wire.startups[0]


def test_a_session_setting_goes_back_to_the_configured_value_by_reset(pg_node, open_pool):
    pool = open_pool(config(pg_node, query_timeout=5000))
    with pool.connection() as conn:
        conn.execute("set statement_timeout = 1")
        conn.execute("reset statement_timeout")
        assert one(conn, "show statement_timeout") == "5s"


def test_the_server_knows_a_group_by_its_name(pg_node, open_pool):
    pool = open_pool(config(pg_node, groups={"read": {}}))
    with pool.connection("read") as conn:
        assert one(conn, "show application_name") == "pgdbpool:read"


def test_an_address_in_the_environment_leads_nowhere_else(pg_node, open_pool, monkeypatch):
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.2")  # where nobody listens
    pool = open_pool(config(pg_node))
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1


def test_params_are_libpqs(pg_node, open_pool):
    place = pg_node.endpoint(ssl="disable", params={"application_name": "mine", "options": "-c work_mem=1MB"})
    pool = open_pool(config(place, query_timeout=7000))
    with pool.connection() as conn:
        settings = [one(conn, f"show {name}") for name in ("application_name", "work_mem", "statement_timeout")]
        assert settings == ["mine", "1MB", "7s"]


def test_a_session_made_read_only_by_its_user_is_no_evidence_and_writable_again(pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=1, target_session_attrs="read-write"))
    with pool.connection() as conn:
        conn.execute("set default_transaction_read_only = on")
    with pool.connection() as again:
        assert again is conn
        again.execute("insert into groups_t values (1)")
    assert not pool.endpoints()[0].read_only


# -- configure ------------------------------------------------------------------------------------------------------


def test_configure_is_called_once_for_each_new_connection(pg_node, open_pool):
    seen = []
    pool = open_pool(config(pg_node, connection_count=3, configure=lambda conn: seen.append(pid(conn))))
    pids = grow(pool, 3)
    grow(pool, 3)
    assert set(seen) == pids
    assert len(seen) == 3


@BOTH
def test_what_configure_sets_is_there_for_everybody(autocommit, pg_node, open_pool):
    def configure(conn):
        conn.execute("set work_mem = '2MB'")

    pool = open_pool(config(pg_node, connection_count=1, autocommit=autocommit, configure=configure))
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        use_and_raise(conn, "select 1", ZeroDivisionError())
    for _ in range(2):
        with pool.connection() as conn:
            assert one(conn, "show work_mem") == "2MB"


def test_a_transaction_that_configure_leaves_open_is_committed(pg_node, open_pool, table):
    def configure(conn):
        conn.execute("insert into groups_t values (1)")

    pool = open_pool(config(pg_node, connection_count=1, autocommit=False, configure=configure))
    with pool.connection() as conn:
        assert idle(conn)
    assert table() == 1


@BOTH
def test_autocommit_changed_by_configure_is_put_right(autocommit, pg_node, open_pool):
    def configure(conn):
        conn.autocommit = not autocommit
        conn.execute("select 1")

    pool = open_pool(config(pg_node, autocommit=autocommit, configure=configure))
    with pool.connection() as conn:
        assert conn.autocommit is autocommit
        assert idle(conn)


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_a_connection_that_is_lost_inside_configure_is_bad_luck_and_the_next_one_serves(type, pg_node, open_pool):
    lost = []

    def configure(conn):
        if len(lost) < 2:
            lost.append(pid(conn))
            conn.execute("select pg_terminate_backend(pg_backend_pid())")

    pool = open_pool(config(pg_node, type=type, configure=configure))
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1
    assert len(lost) == 2


def test_one_that_is_always_lost_there_fails_callers_with_the_servers_words(pg_node, open_pool):
    def configure(conn):
        conn.execute("select pg_terminate_backend(pg_backend_pid())")

    pool = open_pool(config(pg_node, configure=configure))
    with pytest.raises(DBOfflineError, match="terminating connection"):
        pool.getconn(timeout=LIMIT)


def test_a_configure_that_raises_fails_callers_with_its_words_and_no_storm(pg_node, open_pool):
    def configure(conn):
        raise ValueError("no such thing")

    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, configure=configure))
        for _ in range(20):
            with pytest.raises(DBOfflineError, match="configure raised ValueError: no such thing"):
                pool.getconn(timeout=LIMIT)
        assert len(wire.startups) <= 3
        wait_for(lambda: not backends(pg_node))
        assert pool.endpoints()[0].health == "up"


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_a_coroutine_where_a_plain_function_is_needed_fails_callers_with_words_and_no_storm(type, pg_node, open_pool):
    async def configure(conn):
        await asyncio.sleep(0)

    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, type=type, configure=configure))
        for _ in range(20):
            with pytest.raises(DBOfflineError, match="asyncio needs an AsyncPool"):
                pool.getconn(timeout=LIMIT)
        assert len(wire.startups) <= 3


@pytest.mark.parametrize("key", ["configure", "pass"])
def test_a_callable_that_wants_to_end_the_program_fails_callers_and_makes_no_storm(key, pg_node, open_pool):
    called = []

    def leave(*conn):
        called.append(conn)
        raise SystemExit(1)

    place = pg_node.endpoint(ssl="disable") | ({"pass": leave} if key == "pass" else {})
    pool = open_pool(config(place, monitor=False, **({"configure": leave} if key == "configure" else {})))
    for _ in range(20):
        with pytest.raises(DBOfflineError, match="raised SystemExit"):
            pool.getconn(timeout=LIMIT)
    assert len(called) <= 3


def test_a_configure_that_closes_the_connection_fails_callers(pg_node, open_pool):
    pool = open_pool(config(pg_node, configure=lambda conn: conn.close()))
    with pytest.raises(DBOfflineError, match="configure left the connection closed"):
        pool.getconn(timeout=LIMIT)


def test_a_configure_that_raises_concerns_its_own_group_only(pg_node, open_pool):
    def configure(conn):
        raise ValueError("no such thing")

    pool = open_pool(config(pg_node, groups={"bad": {"configure": configure}, "good": {}}))
    with pytest.raises(DBOfflineError):
        pool.getconn("bad", timeout=LIMIT)
    with pool.connection("good") as conn:
        assert one(conn, "select 1") == 1


def test_a_group_works_when_its_configure_does(pg_node, open_pool):
    broken = [True]

    def configure(conn):
        if broken:
            broken.pop()
            raise ValueError("not yet")

    pool = open_pool(config(pg_node, configure=configure))

    def works():
        try:
            with pool.connection() as conn:
                return one(conn, "select 1")
        except DBOfflineError:
            return None

    assert wait_for(works) == 1


# -- check ----------------------------------------------------------------------------------------------------------


def test_a_check_of_ones_own_is_asked_before_each_checkout(pg_node, open_pool):
    asked = []
    pool = open_pool(config(pg_node, connection_count=1, check=lambda conn: asked.append(pid(conn))))
    pool.wait(LIMIT)
    asked.clear()
    for _ in range(3):
        with pool.connection() as conn:
            assert asked[-1] == pid(conn)
    assert len(asked) == 3


def test_a_connection_that_fails_the_check_is_replaced_unseen(pg_node, open_pool):
    bad = set()

    def check(conn):
        if pid(conn) in bad:
            raise ValueError("do not like it")

    pool = open_pool(config(pg_node, connection_count=3, check=check))
    bad |= grow(pool, 3)
    with pool.connection(timeout=LIMIT) as conn:
        assert pid(conn) not in bad


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_check_that_likes_no_connection_makes_no_storm_of_them(model, pg_node, open_pool, monkeypatch):
    def check(conn):
        raise ValueError("do not like it")

    longest = 0.5  # far more than a connect takes
    monkeypatch.setattr("pgdbpool.core.topology.URGENT", longest)
    pool = open_pool(config(pg_node, type=model, connection_count=1, check=check))
    began = monotonic()
    with pytest.raises(PoolTimeout, match="do not like it"), pool.connection(timeout=2):
        pass
    tried = stats(pool).counters.connects
    assert 2 <= tried <= 2 + (monotonic() - began) / (0.1 * longest), "the shortest pause between two of them"


@BOTH
def test_what_a_check_leaves_open_is_ended(autocommit, pg_node, open_pool):
    def check(conn):
        conn.autocommit = False
        conn.execute("select 1")

    pool = open_pool(config(pg_node, connection_count=1, autocommit=autocommit, check=check))
    for _ in range(2):
        with pool.connection() as conn:
            assert idle(conn)
            assert conn.autocommit is autocommit


def test_check_ping_asks_the_server_before_each_checkout(pg_node, open_pool):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, type="non-threaded", check="ping"))
        with pool.connection():
            pass
        wire.statements.clear()
        for _ in range(3):
            with pool.connection():
                pass
        assert wire.statements == [""] * 3


def test_check_auto_does_not_ask_a_server_that_was_just_used(pg_node, open_pool):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, check="auto", monitor=False))
        for _ in range(10):
            with pool.connection():
                pass
        assert wire.of_users == []


@pytest.mark.parametrize(("rest", "asked"), [(15.0, []), (31.0, [""])])
def test_check_auto_asks_a_server_that_has_rested_for_half_a_minute(rest, asked, pg_node, open_pool, monkeypatch):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, type="non-threaded", check="auto"))
        with pool.connection():
            pass
        wire.statements.clear()
        for module in ("sync", "base", "session"):
            monkeypatch.setattr(f"pgdbpool.{module}.monotonic", lambda: monotonic() + rest)
        with pool.connection():
            pass
        assert wire.statements == asked


def test_check_off_does_not_look(pg_node, open_pool):
    # In this model nobody else looks either.
    pool = open_pool(config(pg_node, type="non-threaded", connection_count=1, check="off"))
    with pool.connection() as conn:
        dead = pid(conn)
    pg_node.terminate_backends("pid = %s", (dead,))
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        conn.execute("select 1")
    assert stats(pool).counters.connects == 1
    with pool.connection() as conn:
        assert one(conn, "select 1") == 1


# -- reset ----------------------------------------------------------------------------------------------------------


@BOTH
def test_reset_is_called_for_each_return_outside_a_transaction(autocommit, pg_node, open_pool, table):
    seen = []

    def reset(conn):
        seen.append((idle(conn), table()))

    pool = open_pool(config(pg_node, connection_count=1, autocommit=autocommit, reset=reset))
    with pool.connection() as conn:
        conn.execute("insert into groups_t values (1)")
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        raise ZeroDivisionError
    conn = pool.getconn()
    pool.putconn(conn)
    assert seen == [(True, 1)] * 3


def test_what_reset_undoes_nobody_sees(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, reset=lambda conn: conn.execute("discard all")))
    with pool.connection() as conn:
        conn.execute("set work_mem = '3MB'")
    with pool.connection() as again:
        assert again is conn
        assert one(again, "show work_mem") != "3MB"


@BOTH
def test_what_reset_leaves_open_is_committed_and_autocommit_put_right(autocommit, pg_node, open_pool, table):
    def reset(conn):
        conn.autocommit = False
        conn.execute("insert into groups_t select count(*) from groups_t")

    pool = open_pool(config(pg_node, connection_count=1, autocommit=autocommit, reset=reset))
    for number in range(3):
        with pool.connection() as conn:
            assert idle(conn)
            assert conn.autocommit is autocommit
        assert table() == number + 1


def test_a_reset_that_raises_costs_the_connection_and_not_the_caller(pg_node, open_pool, caplog):
    def reset(conn):
        raise ValueError("cannot be reset")

    pool = open_pool(config(pg_node, groups={"resets": {"connection_count": 1, "reset": reset}}))
    seen = set()
    for _ in range(3):
        with pool.connection("resets", timeout=LIMIT) as conn:
            seen.add(one(conn, "select pg_backend_pid()"))
    assert len(seen) == 3
    assert stats(pool, "resets").counters.closed == {"reset": 3}
    messages = [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "pgdbpool"]
    assert messages == [
        (
            logging.WARNING,
            "group 'resets': reset failed, connection closed: reset raised ValueError: cannot be reset",
        )
    ]


def test_a_reset_that_is_interrupted_lets_the_interrupt_through(pg_node, open_pool):
    interrupts = [KeyboardInterrupt()]

    def reset(conn):
        if interrupts:
            raise interrupts.pop()

    pool = open_pool(config(pg_node, connection_count=1, reset=reset))
    with pytest.raises(KeyboardInterrupt), pool.connection():
        pass
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1


def test_reset_is_not_called_for_a_connection_that_is_lost(pg_node, open_pool):
    called = []
    pool = open_pool(config(pg_node, connection_count=1, reset=called.append))
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        conn.execute("select pg_terminate_backend(pg_backend_pid())")
    assert called == []


# -- reconnect_failed -----------------------------------------------------------------------------------------------


def test_reconnect_failed_is_told_once_in_an_outage(open_pool):
    told = []
    with Impostor("53300", "no room at the inn") as server:
        place = server.endpoint(ssl="disable")
        pool = open_pool(config(place, reconnect_timeout=0.2, reconnect_failed=lambda *args: told.append(args)))
        wait_for(lambda: told)
        before = len(server.attempts)
        wait_for(lambda: len(server.attempts) >= before + 2)
        assert len(told) == 1
    label, error = told[0]
    assert label == pool.endpoints()[0].endpoint
    assert "no room at the inn" in error


def test_reconnect_failed_is_told_of_each_outage(pg_node, open_pool):
    told = []
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, reconnect_timeout=0, reconnect_failed=lambda *args: told.append(args)))
        for outage in (1, 2):
            with pool.connection() as conn:
                assert one(conn, "select 1") == 1
            proxy.refuse()
            proxy.reset()
            wait_for(lambda outage=outage: len(told) == outage)
            proxy.refuse(False)
            wait_for(lambda: pool.endpoints()[0].health == "up")
        assert len(told) == 2


def test_reconnect_failed_is_not_told_before_its_time(pg_node, open_pool):
    told = []
    with pg_node.proxy() as proxy:
        proxy.refuse()
        pool = open_pool(
            config(proxy, reconnect_timeout=300, reconnect_failed=lambda *args: told.append(args), monitor=False)
        )
        wait_for(lambda: stats(pool).counters.connect_failures >= 3)
        assert told == []


def test_a_reconnect_failed_that_raises_does_no_harm(pg_node, open_pool, caplog):
    def tell(endpoint, error):
        raise ValueError("nobody listens")

    with pg_node.proxy() as proxy:
        proxy.refuse()
        pool = open_pool(config(proxy, reconnect_timeout=0, reconnect_failed=tell))
        wait_for(lambda: "reconnect_failed raised" in caplog.text)
        proxy.refuse(False)
        with pool.connection() as conn:
            assert one(conn, "select 1") == 1
