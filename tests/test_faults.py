"""What goes wrong, and what the pool makes of it: the server's words, no storm, nothing lost, no secret told."""

import itertools
import json
import logging
import os
import re
import signal
import socket
import threading
import traceback
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from time import monotonic

import psutil
import psycopg
import pytest
from conftest import LIMIT, backends, config, output, python, wait_for
from models import MODELS
from support import Wire, grow, hold, in_turn, one, pid, port, put, start, stats
from support import tidy as tidy

from pgdbpool import (
    DBConnectionError,
    DBOfflineError,
    DBQueryError,
    Error,
    Handler,
    OutcomeUnknown,
    Pool,
    PoolTimeout,
    habitat,
)
from pgdbpool import pool as dbpool
from pgdbpool.config import MonitorSettings
from pgdbpool.drivers.psycopg3 import quiet
from pgdbpool.keeper import Parked
from pgdbpool.testing import Cluster, Impostor

SECRET = "s3cr3t'\\ w0rd"
TOKEN = "t0ken-of-the-hour"


@pytest.fixture(scope="module")
def guarded():
    """A server that asks for a password, and has room for few."""
    settings = {"max_connections": 8, "superuser_reserved_connections": 2, "reserved_connections": 0}
    with Cluster(standbys=0, password=SECRET, settings=settings) as cluster:
        yield cluster.primary


@pytest.fixture
def table(pg_node):
    """An empty table; how many rows it has when asked by somebody else."""
    pg_node.execute("drop table if exists faults_t, faults_parent")
    pg_node.execute("create table faults_parent (i int primary key)")
    pg_node.execute(
        "create table faults_t (i int references faults_parent deferrable initially deferred, x text); "
        "grant all on faults_t, faults_parent to app"
    )
    return lambda: pg_node.execute("select count(*) from faults_t")[0][0]


@pytest.fixture(autouse=True)
def _process_wide():
    yield
    dbpool.Connection.close()


def storm(pool, calls=20, error=Error):
    """So many callers, one after the other, each of which must fail; returns their errors."""
    errors = []
    for _ in range(calls):
        with pytest.raises(error) as caught:
            pool.getconn(timeout=0.05)
        errors.append(caught.value)
    return errors


# -- logins that are turned away ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pass": "wrong"}, 'password authentication failed for user "app"'),
        ({"name": "nowhere"}, 'database "nowhere" does not exist'),
        ({"user": "nobody"}, 'password authentication failed for user "nobody"'),
        ({"pass": None}, "no password supplied"),
    ],
)
def test_a_wrong_login_fails_callers_with_the_servers_words_and_no_storm(change, words, guarded, open_pool):
    with Wire(guarded) as wire:
        pool = open_pool(config(wire.endpoint(ssl="disable", **change)))
        with pytest.raises(DBOfflineError, match=words):
            pool.getconn(timeout=LIMIT)
        for error in storm(pool, error=DBOfflineError):
            assert words in str(error)
            assert f"127.0.0.1:{wire.port}" in str(error)
        assert len(wire.startups) <= 3
        assert pool.endpoints()[0].fault == "misconfigured"


def test_a_role_that_does_not_exist_is_said_to_callers(pg_node, open_pool):
    pool = open_pool(config(pg_node.endpoint(ssl="disable", user="nobody")))
    with pytest.raises(DBOfflineError, match='role "nobody" does not exist'):
        pool.getconn(timeout=LIMIT)


def test_a_server_without_tls_is_a_wrong_configuration_where_it_is_required(pg_node, open_pool):
    pool = open_pool(config(pg_node.endpoint(ssl="require")))
    with pytest.raises(DBOfflineError, match="SSL"):
        pool.getconn(timeout=LIMIT)


def test_a_wrong_login_fails_those_who_wait_at_once(guarded, open_pool):
    with guarded.proxy() as proxy:
        proxy.stall()
        pool = open_pool(config(proxy.endpoint(ssl="disable", **{"pass": "wrong"})))
        waiting = [start(pool.getconn, timeout=LIMIT) for _ in range(5)]
        wait_for(lambda: stats(pool).waiting == 5)
        proxy.resume()
        for each in waiting:
            with pytest.raises(DBOfflineError, match="password authentication failed"):
                each.result(LIMIT)


def test_a_wrong_login_on_one_of_two_endpoints_does_not_matter(guarded, pg_node, open_pool):
    pool = open_pool(config(guarded.endpoint(ssl="disable", **{"pass": "wrong"}), pg_node))
    for _ in range(10):
        with pool.connection() as conn:
            assert int(conn.info.port) == pg_node.port


def test_a_role_whose_password_is_put_right_gets_in(guarded, open_pool):
    words = iter(["wrong"])
    place = guarded.endpoint(ssl="disable", **{"pass": lambda: next(words, SECRET)})
    pool = open_pool(config(place, monitor=False))
    with pytest.raises(DBOfflineError):
        pool.getconn(timeout=LIMIT)

    def works():
        try:
            with pool.connection() as conn:
                return one(conn, "select 1")
        except DBOfflineError:
            return None

    assert wait_for(works) == 1


# -- passwords ------------------------------------------------------------------------------------------------------


def test_a_callable_password_is_asked_at_each_connect(guarded, open_pool):
    asked = itertools.count(1)
    calls = []

    def token():
        calls.append(next(asked))
        return SECRET

    pool = open_pool(config(guarded.endpoint(ssl="disable", **{"pass": token}), connection_count=3, monitor=False))
    grow(pool, 3)
    assert len(calls) == 3
    pool.drain()
    put(pool, *hold(pool, 1))
    assert len(calls) >= 4


@pytest.mark.parametrize("how", [{}, {"monitor": False}, {"type": "non-threaded"}], ids=str)
def test_a_callable_password_that_raises_fails_callers_without_telling_what_it_said(how, guarded, open_pool):
    def token():
        raise RuntimeError(f"vault refuses {TOKEN}")

    pool = open_pool(config(guarded.endpoint(ssl="disable", **{"pass": token}), **how))
    with pytest.raises(DBOfflineError, match="the callable given as pass raised RuntimeError") as caught:
        pool.getconn(timeout=LIMIT)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_a_callable_password_that_gives_no_text_fails_callers(guarded, open_pool):
    pool = open_pool(config(guarded.endpoint(ssl="disable", **{"pass": lambda: object()})))
    with pytest.raises(Error):
        pool.getconn(timeout=1)
    assert stats(pool).leased == 0


def test_sessions_that_are_open_go_on_when_the_password_has_changed(guarded, open_pool):
    words = iter([SECRET])
    place = guarded.endpoint(ssl="disable", **{"pass": lambda: next(words, "expired")})
    pool = open_pool(config(place, connection_count=2, monitor=False))
    with pool.connection() as conn:
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.3)
        assert pool.endpoints()[0].fault == "misconfigured"
        assert one(conn, "select 1") == 1
    with pool.connection(timeout=0) as again:
        assert again is conn


# -- servers with no room, or not ready -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [("53300", "sorry, too many clients already"), ("57P03", "the database system is starting up")],
)
def test_a_server_that_has_no_place_now_is_asked_again_without_a_storm(code, words, open_pool):
    with Impostor(code) as server:
        pool = open_pool(config(server, connection_count=5, monitor=False))
        waiting = [start(pool.getconn, timeout=1.0) for _ in range(10)]
        for each in waiting:
            with pytest.raises(PoolTimeout, match=words) as caught:
                each.result(LIMIT)
            assert caught.value.reason == "unreachable"
        assert 2 <= len(server.attempts) <= 100
        # Never two at once: each try knows how the one before ended.
        assert stats(pool).counters.connect_failures >= len(server.attempts) - 1


def test_a_full_server_keeps_serving_the_sessions_it_has(guarded, open_pool):
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(psycopg.connect(guarded.conninfo(), autocommit=True))
        pool = open_pool(config(guarded, connection_count=8))
        held = []
        with pytest.raises(PoolTimeout) as caught:
            held.extend(pool.getconn(timeout=1.0) for _ in range(8))
        assert 1 <= len(held) <= 2
        assert "in use" in str(caught.value)
        endpoint = pool.endpoints()[0]
        assert (endpoint.fault, endpoint.health) == ("full", "up")
        assert "connection" in endpoint.last_error
        assert [one(conn, "select 1") for conn in held] == [1] * len(held)
        put(pool, *held)
        with pool.connection(timeout=0) as conn:
            assert one(conn, "select 1") == 1
    # Room again: the pool grows.
    assert len(grow(pool, 5)) == 5


def test_too_many_who_ask_at_a_unix_socket_are_no_reason_to_leave_the_server(pg_node, open_pool):
    place = {**pg_node.endpoint(ssl="disable"), "host": pg_node.socket_dir}
    pool = open_pool(config(place, connection_count=8))
    held = [pool.getconn()]
    postmaster = int((pg_node.data / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGSTOP)  # nobody accepts: the kernel's queue fills
    with ExitStack() as stack:
        stack.callback(os.kill, postmaster, signal.SIGCONT)
        wait_for(lambda: psutil.Process(postmaster).status() == psutil.STATUS_STOPPED)
        with suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(f"{pg_node.socket_dir}/.s.PGSQL.{pg_node.port}")
        with pytest.raises(PoolTimeout):
            held.extend(pool.getconn(timeout=0.5) for _ in range(8))
        wait_for(lambda: pool.endpoints()[0].fault is not None)
        endpoint = pool.endpoints()[0]
        assert (endpoint.fault, endpoint.down_for) == ("full", None)
        assert "temporarily unavailable" in endpoint.last_error
        backends = {pid(conn) for conn in held}
        put(pool, *held)
        with pool.connection(timeout=0) as conn:
            assert pid(conn) in backends
    assert len(grow(pool, 8)) == 8


@pytest.mark.parametrize("model", MODELS)
def test_a_process_that_has_no_descriptor_left_keeps_the_sessions_it_has(model, pg_node):
    program = """
import json, logging, os, resource, sys
sys.path.insert(0, sys.argv[2])
from models import MODELS
from pgdbpool import PoolTimeout
logging.disable()  # it says so, of course
settings = json.loads(sys.argv[1])
with MODELS[settings["type"]](settings) as pool:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    lent = pool.lend()
    backend = lent.ask("select pg_backend_pid()")
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, most[1]))
    try:
        pool.ask("default", "select 1", timeout=0.5)
    except PoolTimeout as error:
        assert "in use" in str(error) or settings["type"] == "non-threaded", error
    [endpoint] = pool.pool.endpoints()
    assert (endpoint.fault, endpoint.health) == ("local", "up"), endpoint
    assert "Too many open files" in endpoint.last_error, endpoint
    lent.give()
    for _ in range(3):
        assert pool.ask("default", "select pg_backend_pid()", timeout=0) == backend
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
    for each in [pool.lend(timeout=20), pool.lend(timeout=20)]:
        each.give()
print("fine")
"""
    settings = config(pg_node, type=model, connection_count=2)
    assert output(python(program, json.dumps(settings), Path(__file__).parent)) == "fine\n"


def test_a_server_that_has_no_room_is_said_once_in_the_log_with_what_tells_how_much_it_takes(
    open_pool, caplog, monkeypatch
):
    monkeypatch.setattr(habitat, "_said", {})  # as in a new process
    with Impostor("53300") as full:
        pool = open_pool(config(full.endpoint()))
        with caplog.at_level(logging.WARNING, "pgdbpool"), pytest.raises(PoolTimeout):
            pool.getconn(timeout=1.0)
    [said] = [text for text in caplog.messages if "takes no more connections" in text]
    assert "sorry, too many clients already" in said
    assert "pgdbpool check CONFIG --processes N" in said


def test_a_server_that_was_full_from_the_start_lets_the_pool_in_when_there_is_room(guarded, open_pool):
    wait_for(lambda: not guarded.backends())
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(psycopg.connect(guarded.conninfo()))
        pool = open_pool(config(guarded))
        with pytest.raises(PoolTimeout, match=r"connection slots|too many clients"):
            pool.getconn(timeout=0.5)
    with pool.connection() as conn:
        assert one(conn, "select 1") == 1


def test_a_server_that_starts_up_is_used_as_soon_as_it_is_ready(pg_node, open_pool):
    pg_node.stop()
    pool = open_pool(config(pg_node))
    waiting = start(hold, pool, 2)
    wait_for(lambda: pool.endpoints()[0].health == "down")
    pg_node.start(wait=False)
    put(pool, *waiting.result(LIMIT))


def test_a_server_that_does_not_answer_is_given_up_within_connect_timeout(open_pool):
    with Impostor() as server:
        server.hang()
        pool = open_pool(config(server.endpoint(ssl="disable", connect_timeout=0.2)))
        with pytest.raises(PoolTimeout, match="timed out"):
            pool.getconn(timeout=1.0)
        assert 2 <= len(server.attempts) <= 6
        assert pool.endpoints()[0].health == "down"


# -- statements and sessions that fail ------------------------------------------------------------------------------


def test_silence_for_the_little_time_of_a_caller_in_a_hurry_is_no_evidence(open_pool):
    with Impostor() as server:
        server.hang()
        pool = open_pool(config(server, type="non-threaded"))
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.2)
        (endpoint,) = pool.endpoints()
        assert (endpoint.health, endpoint.fault, endpoint.last_error) == ("suspect", None, None)

        def believed_after_a_second():
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=1.0)
            (endpoint,) = pool.endpoints()
            return (endpoint.health, endpoint.fault)

        wait_for(lambda: believed_after_a_second() == ("down", "timeout"))


@pytest.mark.parametrize("sql", ["select 1/0", "nonsense", "select * from nowhere", "select pg_sleep(9)"])
def test_a_users_sql_error_is_no_evidence(sql, pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, query_timeout=50))
    pids = grow(pool, 3)
    for _ in range(5):
        with pytest.raises(psycopg.Error), pool.connection() as conn:
            conn.execute(sql)
    (endpoint,) = pool.endpoints()
    assert (endpoint.health, endpoint.fault, endpoint.last_error) == ("up", None, None)
    assert backends(pg_node) == pids
    assert stats(pool).counters.closed == {}


def test_an_exhausted_pool_is_no_evidence(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection():
        storm(pool, error=PoolTimeout)
    (endpoint,) = pool.endpoints()
    assert (endpoint.health, endpoint.fault, endpoint.last_error) == ("up", None, None)


def test_a_users_own_read_only_transaction_is_no_evidence(pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=1, target_session_attrs="primary", autocommit=False))
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection() as conn:
        in_turn(lambda: setattr(conn, "read_only", True), lambda: insert(conn))
    (endpoint,) = pool.endpoints()
    assert (endpoint.role, endpoint.read_only, endpoint.health) == ("primary", False, "up")


def test_one_terminated_session_does_not_cost_the_others(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=4))
    pids = grow(pool, 4)
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        conn.execute("select pg_terminate_backend(pg_backend_pid())")
    assert stats(pool).counters.closed == {"broken": 1}
    held = hold(pool, 4)
    assert len({one(conn, "select pg_backend_pid()") for conn in held} & pids) == 3
    put(pool, *held)
    wait_for(lambda: pool.endpoints()[0].health == "up")


def test_an_idle_session_that_is_terminated_is_not_handed_out(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, min_count=0))
    pids = grow(pool, 3)
    dead = min(pids)
    pg_node.terminate_backends("pid = %s", (dead,))
    wait_for(lambda: stats(pool).counters.closed == {"broken": 1})
    held = hold(pool, 3)
    assert {one(conn, "select pg_backend_pid()") for conn in held} & pids == pids - {dead}


def test_an_idle_session_that_hears_something_else_than_goodbye_stays(pg_node, open_pool):
    pool = open_pool(config(pg_node, type="non-threaded", connection_count=2))
    conns = hold(pool, 2)
    pids = {pid(conn) for conn in conns}
    for conn in conns:
        conn.execute("listen faults")
    put(pool, *conns)
    pg_node.execute("notify faults")
    wait_for(lambda: not any(map(quiet, conns)))

    def looked_at():  # on the way back from a checkout, once in a second
        with pool.connection():
            pass
        return all(map(quiet, conns))

    wait_for(looked_at)
    assert grow(pool, 2) == pids


def test_a_session_ended_by_a_timeout_of_the_server_is_no_evidence(pg_node, open_pool):
    def configure(conn):
        conn.execute("set idle_in_transaction_session_timeout = 300")

    pool = open_pool(config(pg_node, connection_count=1, autocommit=False, configure=configure))
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout), pool.connection() as conn:
        in_turn(
            lambda: conn.execute("select 1"),
            lambda: wait_for(lambda: pid(conn) not in backends(pg_node)),
            lambda: conn.execute("select 1"),
        )
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1


def test_a_connection_broken_inside_the_block_raises_the_drivers_error_and_is_replaced(pg_node, open_pool, table):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, connection_count=1, autocommit=False))
        with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
            in_turn(lambda: insert(conn), wire.reset, lambda: conn.execute("select 1"))
        assert conn.closed
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
    assert table() == 0


def test_a_users_exception_is_seen_even_if_the_connection_broke_too(pg_node, open_pool, table):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, connection_count=1, autocommit=False))
        with pytest.raises(ZeroDivisionError), pool.connection() as conn:
            in_turn(lambda: insert(conn), wire.reset, lambda: 1 / 0)
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
    assert table() == 0


def test_a_connection_lost_inside_a_block_is_not_passed_over_in_silence(pg_node, open_pool, table):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, connection_count=1, autocommit=False))
        with pytest.raises(DBConnectionError, match="lost inside the block"), pool.connection() as conn:
            in_turn(lambda: insert(conn), wire.reset, lambda: start(conn.execute, "select 1").exception(LIMIT))
    assert table() == 0


def test_nothing_is_said_of_a_lost_connection_that_had_nothing_to_commit(pg_node, open_pool):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, connection_count=1))
        with pool.connection() as conn:
            wire.reset()
            with suppress(psycopg.OperationalError):
                conn.execute("select 1")
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1


def test_a_refused_write_is_confirmed_and_then_the_primary_is_left(pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=2, target_session_attrs="primary"))
    grow(pool, 2)
    pg_node.refuse_writes()
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection() as conn:
        insert(conn)
    with pytest.raises(PoolTimeout, match="takes no writes, not primary"):
        pool.getconn(timeout=0.2)
    pg_node.refuse_writes(False)
    with pool.connection(timeout=LIMIT) as conn:
        insert(conn)
    assert table() == 1


def as_its_cause(error):
    raise RuntimeError("the order could not be saved") from error


def in_a_group(error):
    raise ExceptionGroup("some orders could not be saved", [ValueError(), error])


@pytest.mark.parametrize("wrap", [as_its_cause, in_a_group])
def test_a_refused_write_is_recognised_in_what_the_application_makes_of_it(wrap, pg_node, open_pool, table):
    def save(conn):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as refused:
            insert(conn)
        wrap(refused.value)  # outside, or each would be the other's context as well

    with Wire(pg_node, hide=("in_hot_standby", "default_transaction_read_only")) as wire:
        pool = open_pool(config(wire, connection_count=1, target_session_attrs="primary", monitor=False))
        grow(pool, 1)
        pg_node.refuse_writes()
        with pytest.raises((RuntimeError, ExceptionGroup), match="could not be saved"), pool.connection() as conn:
            save(conn)
        with pytest.raises(PoolTimeout, match="takes no writes, not primary"):
            pool.getconn(timeout=0.2)
        pg_node.refuse_writes(False)


def test_a_refused_write_is_confirmed_by_a_question_where_a_pooler_hides_the_parameters(pg_node, open_pool, table):
    with Wire(pg_node, hide=("in_hot_standby", "default_transaction_read_only")) as wire:
        pool = open_pool(config(wire, connection_count=1, target_session_attrs="read-write"))
        with pool.connection() as conn:
            insert(conn)
        pg_node.refuse_writes()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection() as conn:
            insert(conn)
        with pytest.raises(PoolTimeout, match="takes no writes, not read-write"):
            pool.getconn(timeout=0.2)
        pg_node.refuse_writes(False)
        with pool.connection(timeout=LIMIT) as conn:
            insert(conn)
    assert table() == 2


def test_an_interrupt_in_the_middle_of_a_statement_costs_at_most_the_connection(pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
    with pytest.raises(KeyboardInterrupt), pool.connection() as conn:
        in_turn(
            lambda: insert(conn),
            lambda: interrupt_when(lambda: pg_node.backends("pgdbpool:default")[0]["wait_event"] == "PgSleep"),
            lambda: conn.execute("select pg_sleep(60)"),
        )
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1
    assert table() == 0
    wait_for(lambda: len(backends(pg_node)) == 1)


def test_a_configure_that_waits_for_a_frozen_server_is_ended_with_the_other_calls(pg_node, open_pool):
    froze = threading.Event()

    def configure(conn):
        if not froze.is_set():
            pg_node.freeze()
            froze.set()
        conn.execute("select 1")

    def openers():
        return [thread for thread in threading.enumerate() if thread.name == f"{pool.name} opener"]

    pool = open_pool(config(pg_node, configure=configure))
    try:
        assert froze.wait(LIMIT)
        wait_for(lambda: pool.endpoints()[0].health == "down")
        wait_for(lambda: not openers())
        assert stats(pool).opening == 0
    finally:
        pg_node.thaw()
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1


def test_an_interrupt_while_waiting_for_a_connection_loses_none(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    held = pool.getconn()
    interrupt_when(lambda: stats(pool).waiting == 1)
    with pytest.raises(KeyboardInterrupt):
        pool.getconn(timeout=LIMIT)
    assert stats(pool).waiting == 0
    pool.putconn(held)
    assert pool.getconn(timeout=LIMIT) is held


def test_an_interrupt_at_the_moment_of_the_hand_over_passes_the_connection_on(pg_node, open_pool, monkeypatch):
    park = Parked.park

    def interrupted(waiter, seconds):
        assert park(waiter, LIMIT)
        raise KeyboardInterrupt

    pool = open_pool(config(pg_node, connection_count=1))
    (conn,) = hold(pool, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Parked, "park", interrupted)
        waiting = start(pool.getconn, timeout=LIMIT)
        wait_for(lambda: stats(pool).waiting == 1)
        pool.putconn(conn)
        with pytest.raises(KeyboardInterrupt):
            waiting.result(LIMIT)
    assert pool.getconn(timeout=LIMIT) is conn


def insert(conn):
    conn.execute("insert into faults_t values (null, 'x')")


def interrupt_when(condition, by=signal.SIGINT):
    """Ctrl-C or another signal for the main thread, as soon as the condition holds."""

    def run():
        wait_for(condition)
        signal.pthread_kill(threading.main_thread().ident, by)

    start(run)


# -- COMMIT ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "rows"), [("after", 1), ("before", 0)])
def test_a_commit_cut_off_at_the_end_of_a_block_is_an_unknown_outcome(cut, rows, pg_node, open_pool, table):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, connection_count=1, autocommit=False))
        wire.cut = cut
        with pytest.raises(OutcomeUnknown, match="lost during COMMIT") as caught, pool.connection() as conn:
            insert(conn)
        wire.cut = None
        assert isinstance(caught.value, DBConnectionError)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert f"127.0.0.1:{wire.port}" in str(caught.value)
        wait_for(lambda: table() == rows)
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
        # The pool never repeats it.
        assert wire.statements.count("COMMIT") == 2
        assert stats(pool).counters.closed == {"broken": 1}


@pytest.mark.parametrize(("cut", "rows"), [("after", 1), ("before", 0)])
def test_a_commit_cut_off_at_the_end_of_a_handler_block_is_an_unknown_outcome(cut, rows, pg_node, table):
    with Wire(pg_node) as wire:
        dbpool.Connection.init(config(wire, autocommit=False))
        wire.cut = cut
        with pytest.raises(OutcomeUnknown), Handler() as db:
            db.query("insert into faults_t values (null, 'x')")
        wire.cut = None
        wait_for(lambda: table() == rows)


@pytest.mark.parametrize(("cut", "rows"), [("after", 1), ("before", 0)])
def test_a_commit_of_a_handler_that_is_cut_off_is_an_unknown_outcome(cut, rows, pg_node, table):
    with Wire(pg_node) as wire:
        dbpool.Connection.init(config(wire, autocommit=False))
        with Handler() as db:
            db.query("insert into faults_t values (null, 'x')")
            wire.cut = cut
            with pytest.raises(OutcomeUnknown, match="lost during COMMIT") as caught:
                db.commit()
            wire.cut = None
            assert isinstance(caught.value.__cause__, psycopg.OperationalError)
            with pytest.raises(DBQueryError):
                db.query("select 1")
        wait_for(lambda: table() == rows)
        with Handler() as db:
            assert db.query("select 1").fetchone() == (1,)


class TimeIsUp(Exception):
    """As task queues raise it."""


def test_a_commit_cut_off_by_a_signal_handler_is_an_unknown_outcome(pg_node, open_pool, table):
    def handler(number, frame):
        raise TimeIsUp

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pg_node.proxy() as proxy:
            pool = open_pool(config(proxy, connection_count=1, autocommit=False, monitor=False))
            with pytest.raises(OutcomeUnknown) as caught, pool.connection() as conn:
                in_turn(
                    lambda: insert(conn),
                    proxy.stall,
                    lambda: interrupt_when(lambda: conn.info.transaction_status.name == "ACTIVE", signal.SIGUSR1),
                )
            assert isinstance(caught.value.__cause__, TimeIsUp)
            wait_for(lambda: stats(pool).open == 0)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_commit_that_is_interrupted_costs_the_connection_and_none_is_lost(pg_node, open_pool, table, caplog):
    pg_node.execute("""
        create or replace function faults_sleep() returns trigger language plpgsql
            as $$ begin perform pg_sleep(60); return null; end $$;
        create constraint trigger sleeps after insert on faults_t deferrable initially deferred
            for each row execute function faults_sleep()
    """)
    pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
    with pytest.raises(KeyboardInterrupt), pool.connection() as conn:
        in_turn(
            lambda: insert(conn),
            lambda: interrupt_when(lambda: pg_node.backends("pgdbpool:default")[0]["wait_event"] == "PgSleep"),
        )
    assert (stats(pool).leased, stats(pool).counters.closed) == (0, {"busy": 1})
    assert table() == 0
    assert not caplog.records
    pg_node.terminate_backends("wait_event = 'PgSleep'")  # nobody cancels a COMMIT


def test_a_handler_cannot_roll_back_on_a_lost_connection_and_says_so(pg_node, table):
    with Wire(pg_node) as wire:
        dbpool.Connection.init(config(wire, autocommit=False))
        with Handler() as db:
            db.query("insert into faults_t values (null, 'x')")
            wire.reset()
            with pytest.raises(DBConnectionError) as caught:
                db.rollback()
            assert not isinstance(caught.value, OutcomeUnknown)
    assert table() == 0


def test_a_commit_that_the_server_refuses_is_the_drivers_error_and_costs_nothing(pg_node, open_pool, table):
    pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught, pool.connection() as conn:
        conn.execute("insert into faults_t values (1)")
    assert caught.value.sqlstate == "23503"
    assert table() == 0
    with pool.connection() as again:
        assert again is conn
        assert one(again, "select 1") == 1
    assert pool.endpoints()[0].health == "up"


def test_a_commit_of_a_handler_that_the_server_refuses_is_a_query_error(pg_node, table):
    dbpool.Connection.init(config(pg_node, connection_count=1, autocommit=False))
    with Handler() as db:
        db.query("insert into faults_t values (1)")
        with pytest.raises(DBQueryError) as caught:
            db.commit()
        assert caught.value.sqlstate == "23503"
        db.query("insert into faults_t values (null)")
        db.commit()
    assert table() == 1


def test_a_commit_that_the_driver_refuses_is_no_unknown_outcome(pg_node, table):
    dbpool.Connection.init(config(pg_node, connection_count=1, autocommit=False))
    with Handler() as db, db.conn_ref.transaction():
        db.query("insert into faults_t values (null)")
        with pytest.raises(DBQueryError, match="forbidden within a Transaction"):
            db.commit()
        assert table() == 0
    assert table() == 1


# -- frozen servers -------------------------------------------------------------------------------------------------


def test_a_checkout_on_a_frozen_server_ends_in_time(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2, check="ping"))
    grow(pool, 2)
    pg_node.freeze()
    with pytest.raises(PoolTimeout) as caught:
        pool.getconn(timeout=1.0)
    assert caught.value.reason == "unreachable"
    pg_node.thaw()
    with pool.connection() as conn:
        assert one(conn, "select 1") == 1


def test_a_call_that_is_never_answered_ends_a_second_after_its_query_timeout(pg_node, open_pool):
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, connection_count=1, query_timeout=200, monitor=False))
        grow(pool, 1)
        proxy.stall()
        began = monotonic()
        with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
            conn.execute("select 1")
        assert monotonic() - began >= 1.2, "the server had its time, and a second to say so"


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_nor_later_because_it_asks_whether_its_server_is_dead(type, pg_node, open_pool, monkeypatch):
    """A look takes up to 7.5 s here, and twice as long in all."""
    monkeypatch.setattr("pgdbpool.sync.MonitorSettings", partial(MonitorSettings, timeout=10.0))
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, type=type, connection_count=1, query_timeout=500, monitor=False))
        grow(pool, 1)
        proxy.stall()
        with pytest.raises(psycopg.OperationalError, match="has not answered for") as caught, pool.connection() as conn:
            conn.execute("select 1")
        (silent,) = re.findall(r"for ([0-9.]+) s", str(caught.value))
        assert 1.5 <= float(silent) < 6, caught.value


def test_a_ping_that_a_caller_in_a_hurry_did_not_wait_for_is_no_evidence(pg_node, open_pool):
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, type="non-threaded", connection_count=1, check="ping"))
        grow(pool, 1)
        proxy.stall()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.1)
        (endpoint,) = pool.endpoints()
        assert (endpoint.health, endpoint.fault, endpoint.last_error) == ("up", None, None)


def test_a_ping_without_an_answer_is_given_up_early_enough_to_try_another_server(pg_cluster, open_pool):
    frozen, other = pg_cluster.standbys
    with frozen.proxy() as proxy:
        places = (proxy.endpoint(ssl="disable"), other.endpoint(ssl="disable", priority=1))
        pool = open_pool(config(*places, type="non-threaded", check="ping"))
        grow(pool, 1)
        proxy.stall()
        with pool.connection(timeout=LIMIT) as conn:
            assert port(conn) == other.port


def test_a_frozen_endpoint_does_not_stop_checkouts_elsewhere(pg_node, pg_cluster, open_pool):
    pool = open_pool(config(pg_node, pg_cluster.primary, check="ping", connection_count=3))
    wait_for(lambda: all(each.open for each in pool.endpoints()))
    pg_node.freeze()
    for _ in range(20):
        with pool.connection(timeout=LIMIT) as conn:
            assert int(conn.info.port) == pg_cluster.primary.port
    pg_node.thaw()


def test_a_pool_closes_in_time_though_its_server_is_frozen(pg_node):
    pool = Pool(config(pg_node, connection_count=3))
    grow(pool, 3)
    pg_node.freeze()
    closing = start(pool.close)
    closing.result(LIMIT)
    pg_node.thaw()
    wait_for(lambda: not backends(pg_node))


# -- secrets --------------------------------------------------------------------------------------------------------


def provoke(pool, group="default"):
    """All that the pool says of itself, and its error to a caller."""
    texts = [repr(pool), repr(pool._settings), str(pool._settings), repr(pool.stats()), repr(pool.endpoints())]
    try:
        conn = pool.getconn(group, timeout=0.5)
    except Error as error:
        texts += [*traceback.format_exception(error), repr(error), str(error)]
    else:
        texts += [repr(conn), repr(pool.holders())]
        pool.putconn(conn)
    return texts


def shown(texts, caplog):
    logged = [record.getMessage() for record in caplog.records]
    logged += [str(record.__dict__) for record in caplog.records]
    logged += [caplog.text]
    return "\n".join([*texts, *logged])


@pytest.mark.parametrize("told", ["as text", "by a callable", "wrongly", "in params"])
def test_no_secret_is_in_any_repr_log_or_error(told, guarded, caplog, open_pool):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "psycopg")
    secret = "wr0ng-s3cret" if told == "wrongly" else SECRET
    given = {"pass": secret}
    if told == "by a callable":
        given = {"pass": lambda: SECRET}
    elif told == "in params":
        given = {"pass": SECRET, "params": {"sslpassword": TOKEN}}
    texts: list[str] = []

    def listen(*args):
        texts.extend(args)

    with Wire(guarded) as wire, Impostor("53300") as full, Impostor("57P03") as starting:
        places = [server.endpoint(ssl="disable") | given for server in (wire, full, starting)]
        for place in [*places, {**places[0], "name": "nowhere"}, {**places[0], "user": "nobody"}]:
            pool = open_pool(config(place, reconnect_timeout=0, reconnect_failed=listen))
            texts.extend(provoke(pool))
            pool.close()
        pool = open_pool(config(places[0], connection_count=1, autocommit=False))
        texts.extend(provoke(pool))
        if told != "wrongly":
            with pytest.raises(psycopg.OperationalError) as caught, pool.connection() as conn:
                in_turn(lambda: conn.execute("select 1"), wire.reset, lambda: conn.execute("select 1"))
            texts.extend([*traceback.format_exception(caught.value), repr(conn)])
            with pytest.raises(DBConnectionError) as lost, pool.connection(timeout=LIMIT) as conn:
                in_turn(lambda: conn.execute("select 1"), wire.reset)
            texts.extend([*traceback.format_exception(lost.value), repr(lost.value)])
        texts.extend(provoke(pool))
    everything = shown(texts, caplog)
    for word in (secret, repr(secret)[1:-1], secret.replace("\\", "\\\\"), TOKEN):
        assert word not in everything


def test_a_secret_is_not_in_a_configuration_error(guarded):
    place = guarded.endpoint(ssl="disable", connect_timeout=-1, nonsense=1)
    with pytest.raises(Error) as caught:
        Pool(config(place))
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "connect_timeout" in text
    assert SECRET not in text
    assert repr(SECRET)[1:-1] not in text
