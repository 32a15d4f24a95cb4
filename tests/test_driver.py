"""The psycopg 3 driver: each of its functions, with a server that answers and with one that does not."""

import inspect
import os
import socket
import time
from functools import partial
from itertools import count

import psycopg
import pytest
from conftest import LIMIT, output, python, wait_for
from psycopg import pq
from psycopg.rows import dict_row
from support import Wire, in_turn, one, pid, start

from pgdbpool.core.evidence import Fault, Report, Role
from pgdbpool.drivers import ConnectFailed, DriverTimeout, Status, blocking
from pgdbpool.drivers.psycopg3 import LOOK_EVERY
from pgdbpool.testing import Impostor

BOTH = pytest.mark.parametrize("autocommit", [True, False])


def params(place, **more):
    return {
        "host": place.host,
        "port": place.port,
        "dbname": place.login.database,
        "user": place.login.user,
        "sslmode": "disable",
        "application_name": "driver",
    } | more


class Plain:
    """A driver whose coroutines are carried out when called."""

    def __init__(self, driver):
        self.driver = driver

    def __getattr__(self, name):
        function = getattr(self.driver, name)
        if not inspect.iscoroutinefunction(function):
            return function
        return lambda *args: blocking.run(function(*args))


psycopg3 = Plain(blocking)


def soon(seconds=LIMIT):
    return time.monotonic() + seconds


@pytest.fixture
def connect():
    """Opens connections by the driver, and closes them after the test."""
    conns = []

    def open_one(place, autocommit=True, **more):
        conns.append(psycopg3.connect(params(place, **more), autocommit, soon()))
        return conns[-1]

    yield open_one
    for conn in conns:
        psycopg3.close(conn)


# -- opening --------------------------------------------------------------------------------------------------------


@BOTH
def test_connect_gives_an_ordinary_connection_in_the_wanted_mode(autocommit, pg_node, connect):
    conn = connect(pg_node, autocommit)
    assert isinstance(conn, psycopg.Connection)
    assert conn.autocommit is autocommit
    assert one(conn, "select 1") == 1
    assert (psycopg3.status(conn) is Status.IDLE) is autocommit


def test_an_ordinary_connection_can_do_all_that_it_can(pg_node, connect):
    conn = connect(pg_node)
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute("create temp table t (i int)")
        with cursor.copy("copy t from stdin") as copy:
            copy.write_row((1,))
        cursor.executemany("insert into t values (%s)", [(2,), (3,)])
    with conn.pipeline():
        conn.execute("insert into t values (4)")
    with conn.transaction(), conn.cursor("named") as cursor:
        assert cursor.execute("select sum(i) from t").fetchall() == [(10,)]


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("57P03", Fault.STARTING),
        ("53300", Fault.FULL),
        ("28P01", Fault.MISCONFIGURED),
        ("3D000", Fault.MISCONFIGURED),
    ],
)
def test_a_refused_connect_has_the_servers_words_and_their_meaning(code, fault):
    words = {"3D000": 'database "app" does not exist', "28P01": 'password authentication failed for user "app"'}
    with Impostor(code, words.get(code)) as server:
        with pytest.raises(ConnectFailed) as caught:
            psycopg3.connect(params(server), True, soon())
        assert caught.value.fault is fault
        assert words.get(code, "the database system is" if code == "57P03" else "too many") in str(caught.value)


def test_a_server_that_says_no_in_another_language_is_understood():
    with Impostor("57P03", "das Datenbanksystem startet") as server:
        with pytest.raises(ConnectFailed, match="das Datenbanksystem startet") as caught:
            psycopg3.connect(params(server), True, soon())
        assert caught.value.fault is Fault.STARTING


def test_a_pooler_that_refuses_startup_options_is_recognised(pg_node):
    with Wire(pg_node, refuse_options=True) as wire:
        with pytest.raises(ConnectFailed, match="unsupported startup parameter") as caught:
            psycopg3.connect(params(wire, options="-c work_mem=1MB"), True, soon())
        assert caught.value.options_refused


def test_where_nobody_listens_a_connect_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectFailed) as caught:
        psycopg3.connect({"host": "127.0.0.1", "port": port}, True, soon())
    assert caught.value.fault is Fault.REFUSED


def test_a_name_that_does_not_resolve_says_nothing_about_the_server():
    with pytest.raises(ConnectFailed, match="no-such-host") as caught:
        psycopg3.connect({"host": "no-such-host.invalid"}, True, soon())
    assert caught.value.fault is Fault.UNRESOLVED


@pytest.mark.parametrize("kind", ["frozen", "stalled", "silent"])
def test_connecting_to_a_server_that_does_not_answer_ends_at_the_deadline(kind, pg_node):
    with pg_node.proxy() as proxy, Impostor() as impostor:
        impostor.hang()
        place = {"frozen": pg_node, "stalled": proxy, "silent": impostor}[kind]
        proxy.stall()
        if kind == "frozen":
            pg_node.freeze()
        began = time.monotonic()
        connecting = start(psycopg3.connect, params(place), True, soon(0.2))
        with pytest.raises(ConnectFailed, match="timed out") as caught:
            connecting.result(LIMIT)
        assert time.monotonic() - began >= 0.2
        assert caught.value.fault is Fault.TIMEOUT


def test_a_deadline_that_is_over_ends_a_connect():
    with Impostor() as server:
        server.hang()
        with pytest.raises(ConnectFailed) as caught:
            psycopg3.connect(params(server), True, time.monotonic() - 1)
        assert caught.value.fault is Fault.TIMEOUT


def test_a_failed_connect_leaves_no_socket_open():
    with Impostor("53300") as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(ConnectFailed):
                psycopg3.connect(params(server), True, soon())
        # The impostor's own ends of the connections may take a moment.
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)


# -- closing --------------------------------------------------------------------------------------------------------


def test_close_says_goodbye_to_the_server(pg_node, connect):
    conn = connect(pg_node)
    number = pid(conn)
    psycopg3.close(conn)
    psycopg3.close(conn)
    assert conn.closed
    wait_for(lambda: number not in {row["pid"] for row in pg_node.backends("driver")})


def test_close_does_not_wait_for_a_frozen_server(pg_node, connect):
    conn = connect(pg_node)
    pg_node.freeze()
    start(psycopg3.close, conn).result(LIMIT)
    assert conn.closed


def test_close_of_a_broken_connection_raises_nothing(pg_node, connect):
    conn = connect(pg_node)
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select pg_terminate_backend(pg_backend_pid())")
    psycopg3.close(conn)
    assert conn.closed


def test_abort_wakes_a_blocked_statement_of_another_thread(pg_node, connect):
    conn = connect(pg_node)
    blocked = start(conn.execute, "select pg_sleep(600)")
    wait_for(lambda: pg_node.backends("driver")[0]["wait_event"] == "PgSleep")
    psycopg3.abort(conn)
    with pytest.raises(psycopg.OperationalError):
        blocked.result(LIMIT)
    assert psycopg3.status(conn) is Status.BROKEN
    pg_node.terminate_backends("application_name = 'driver'")


def test_abort_wakes_a_statement_on_a_frozen_server(pg_node, connect):
    conn = connect(pg_node)
    pg_node.freeze()
    blocked = start(conn.execute, "select 1")
    wait_for(lambda: conn.pgconn.transaction_status == pq.TransactionStatus.ACTIVE)
    psycopg3.abort(conn)
    with pytest.raises(psycopg.OperationalError):
        blocked.result(LIMIT)


def test_abort_of_a_closed_connection_does_nothing(pg_node, connect):
    conn = connect(pg_node)
    psycopg3.close(conn)
    psycopg3.abort(conn)
    psycopg3.disown(conn)


@pytest.mark.parametrize(("function", "session"), [("disown", "alive"), ("close", "lost")])
def test_a_child_that_disowns_a_connection_leaves_its_parents_session_alive(function, session, pg_node):
    # Closing it instead, which is what Python does at the end, is a goodbye on the socket of both.
    program = python(
        """
        import os, sys, psycopg
        from pgdbpool.drivers import blocking as psycopg3
        conn = psycopg.connect(sys.argv[1], autocommit=True)
        child = os.fork()
        if child == 0:
            getattr(psycopg3, sys.argv[2])(conn)
            os._exit(0 if conn.closed else 1)
        assert os.waitpid(child, 0)[1] == 0
        try:
            conn.execute("select 1")
            print("alive")
        except psycopg.OperationalError:
            print("lost")
        conn.close()
        """,
        pg_node.conninfo(),
        function,
    )
    assert output(program) == f"{session}\n"


# -- asking ---------------------------------------------------------------------------------------------------------


def test_the_descriptor_is_that_of_the_socket(pg_node, connect):
    conn = connect(pg_node)
    assert psycopg3.descriptor(conn) == conn.fileno()
    psycopg3.close(conn)
    assert psycopg3.descriptor(conn) == -1


def test_an_idle_connection_is_quiet(pg_node, connect):
    conn = connect(pg_node)
    one(conn, "select 1")
    assert psycopg3.quiet(conn)


def test_a_connection_whose_server_said_goodbye_is_not_quiet(pg_node, connect):
    conn = connect(pg_node)
    pg_node.terminate_backends("pid = %s", (pid(conn),))
    wait_for(lambda: not psycopg3.quiet(conn))


def test_a_connection_that_was_reset_is_not_quiet(pg_node, connect):
    with pg_node.proxy() as proxy:
        conn = connect(proxy)
        assert psycopg3.quiet(conn)
        proxy.reset()
        wait_for(lambda: not psycopg3.quiet(conn))


def test_a_notification_is_a_reason_not_to_be_quiet(pg_node, connect):
    conn = connect(pg_node)
    conn.execute("listen driver")
    pg_node.execute("notify driver")
    wait_for(lambda: not psycopg3.quiet(conn))
    psycopg3.ping(conn, soon())
    assert psycopg3.quiet(conn)


def test_a_closed_connection_is_not_quiet(pg_node, connect):
    conn = connect(pg_node)
    psycopg3.close(conn)
    assert not psycopg3.quiet(conn)


@BOTH
def test_ping_is_one_round_trip_and_no_transaction(autocommit, pg_node, connect):
    with Wire(pg_node) as wire:
        conn = connect(wire, autocommit)
        psycopg3.ping(conn, soon())
        assert wire.statements == [""]
        assert psycopg3.status(conn) is Status.IDLE


def test_ping_of_a_lost_session_raises_the_drivers_error(pg_node, connect):
    conn = connect(pg_node)
    pg_node.terminate_backends("pid = %s", (pid(conn),))
    with pytest.raises(psycopg.OperationalError):
        psycopg3.ping(conn, soon())


@pytest.mark.parametrize("kind", ["frozen", "stalled", "dropped"])
def test_a_ping_without_an_answer_ends_at_the_deadline(kind, pg_node, connect):
    with pg_node.proxy() as proxy:
        conn = connect(proxy)
        {"frozen": pg_node.freeze, "stalled": proxy.stall, "dropped": proxy.drop}[kind]()
        pinging = start(psycopg3.ping, conn, soon(0.2))
        with pytest.raises(DriverTimeout):
            pinging.result(LIMIT)


def test_a_slow_answer_within_the_deadline_is_waited_for(pg_node, connect):
    with pg_node.proxy() as proxy:
        conn = connect(proxy)
        proxy.latency(0.2)
        psycopg3.ping(conn, soon())


def test_run_runs_a_statement_outside_any_transaction(pg_node, connect):
    with Wire(pg_node) as wire:
        conn = connect(wire, autocommit=False)
        psycopg3.statement(conn, "set work_mem = '3MB'", soon())
        assert psycopg3.status(conn) is Status.IDLE
        assert wire.statements == ["set work_mem = '3MB'"]
        assert one(conn, "show work_mem") == "3MB"


def test_run_raises_the_drivers_error(pg_node, connect):
    conn = connect(pg_node)
    with pytest.raises(psycopg.errors.UndefinedTable):
        psycopg3.statement(conn, "select * from nowhere", soon())


def test_run_ends_at_the_deadline(pg_node, connect):
    conn = connect(pg_node)
    with pytest.raises(DriverTimeout):
        psycopg3.statement(conn, "select pg_sleep(5)", soon(0.1))


def test_describe_names_the_backend(pg_node, connect):
    conn = connect(pg_node)
    assert psycopg3.describe(conn) == f"backend {one(conn, 'select pg_backend_pid()')}"
    psycopg3.close(conn)
    assert psycopg3.describe(conn) == "closed connection"


# -- roles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hide", [(), ("in_hot_standby",), ("default_transaction_read_only",), ("in_hot_standby", "x")])
def test_the_role_is_reported_or_asked_for(hide, pg_cluster, connect):
    for node, role in ((pg_cluster.primary, Role.PRIMARY), (pg_cluster.standbys[0], Role.STANDBY)):
        with Wire(node, hide=hide) as wire:
            conn = connect(wire, autocommit=False)
            assert psycopg3.report(conn, soon()) == Report(role, False)
            assert len(wire.statements) == (1 if hide else 0)
            assert psycopg3.status(conn) is Status.IDLE


@pytest.mark.parametrize("hide", [(), ("in_hot_standby", "default_transaction_read_only")])
def test_a_server_that_refuses_writes_says_so(hide, pg_node, connect):
    pg_node.refuse_writes()
    with Wire(pg_node, hide=hide) as wire:
        conn = connect(wire)
        assert psycopg3.report(conn, soon()) == Report(Role.PRIMARY, True)
        assert not psycopg3.says_read_only_itself(conn, soon())


def test_a_session_made_read_only_is_told_from_a_server(pg_node, connect):
    conn = connect(pg_node)
    conn.execute("set default_transaction_read_only = on")
    assert psycopg3.report(conn, soon()) == Report(Role.PRIMARY, True)
    assert psycopg3.says_read_only_itself(conn, soon())


def test_asking_a_frozen_server_for_its_role_ends_at_the_deadline(pg_node, connect):
    with Wire(pg_node, hide=["in_hot_standby"]) as wire:
        conn = connect(wire)
        pg_node.freeze()
        asking = start(psycopg3.report, conn, soon(0.2))
        with pytest.raises(DriverTimeout):
            asking.result(LIMIT)
        pg_node.thaw()


# -- watching -------------------------------------------------------------------------------------------------------


def test_status_tells_what_a_session_does(pg_node, connect):
    conn = connect(pg_node)
    assert psycopg3.status(conn) is Status.IDLE
    conn.execute("begin")
    assert psycopg3.status(conn) is Status.IN_TRANSACTION
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("select 1/0")
    assert psycopg3.status(conn) is Status.IN_TRANSACTION
    psycopg3.rollback(conn)
    assert psycopg3.status(conn) is Status.IDLE
    conn.pgconn.send_query(b"select 1")
    assert psycopg3.status(conn) is Status.BUSY
    psycopg3.close(conn)
    assert psycopg3.status(conn) is Status.CLOSED


def test_a_lost_session_is_broken(pg_node, connect):
    conn = connect(pg_node)
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select pg_terminate_backend(pg_backend_pid())")
    assert psycopg3.status(conn) is Status.BROKEN


def watch(conn, writes):
    """As `psycopg3.watch` has it, asked once a second."""
    clean, clock = psycopg3.watch(conn, writes), count()
    return lambda: clean(next(clock))


@BOTH
@pytest.mark.parametrize("writes", [True, False])
def test_the_watch_calls_a_session_clean_only_as_it_was(autocommit, writes, pg_node, connect):
    conn = connect(pg_node, autocommit)
    clean = watch(conn, writes)
    assert clean()
    conn.execute("begin") if autocommit else conn.execute("select 1")
    assert not clean()
    psycopg3.commit(conn)
    assert clean()
    psycopg3.close(conn)
    assert not clean()


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("autocommit", None),
        ("isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
        ("read_only", True),
        ("deferrable", True),
    ],
)
def test_what_a_user_changes_of_transactions_is_noticed_and_put_back(name, value, autocommit, pg_node, connect):
    conn = connect(pg_node, autocommit)
    clean = watch(conn, False)
    before = getattr(conn, name)
    setattr(conn, name, not autocommit if value is None else value)
    assert not clean()
    psycopg3.restore(conn)
    assert clean()
    assert getattr(conn, name) is before


def test_what_is_adopted_is_what_is_put_back(pg_node, connect):
    conn = connect(pg_node, False)
    conn.read_only = True
    psycopg3.adopt(conn, False)
    conn.read_only = False
    psycopg3.restore(conn)
    assert conn.read_only


@pytest.mark.parametrize("writes", [True, False])
def test_the_watch_looks_at_read_only_mode_where_writes_matter(writes, pg_node, connect):
    conn = connect(pg_node)
    clean = watch(conn, writes)
    conn.execute("set default_transaction_read_only = on")
    assert clean() is not writes


def test_the_watch_sees_a_promotion_with_the_next_answer(pg_cluster, connect):
    node = pg_cluster.standbys[0]
    conn = connect(node)
    clean = watch(conn, False)
    node.promote()
    psycopg3.ping(conn, soon())
    assert not clean()
    assert psycopg3.report(conn, soon()).role is Role.PRIMARY


@pytest.mark.parametrize("writes", [True, False])
def test_the_watch_of_a_busy_connection_looks_at_the_role_only_now_and_then(writes, pg_cluster, connect):
    node = pg_cluster.standbys[0]
    conn = connect(node)
    clean = psycopg3.watch(conn, writes)
    assert clean(1.0)
    node.promote()
    psycopg3.ping(conn, soon())
    assert clean(1.0)
    for _ in range(2):
        assert not clean(1.0 + LOOK_EVERY)


def outcome(execute, *args, **more):
    try:
        cursor = execute(*args, **more)
    except (psycopg.Error, TypeError) as error:
        return type(error), str(error)
    if cursor.description is None:
        return type(cursor), cursor.statusmessage
    return type(cursor), cursor.description[0].type_code, cursor.format, cursor.fetchall()


@pytest.mark.parametrize(
    ("args", "more"),
    [
        (("select 1",), {}),
        (("select %s::int4", (1,)), {}),
        (("select %(a)s::int4", {"a": 1}), {}),
        (("select 1", None), {"prepare": True}),
        (("select %s::int8", (1,)), {"prepare": False}),
        (("select 1",), {"binary": True}),
        (("set search_path = public",), {}),
        (("select 1/0",), {}),
        (("select 1", (1,)), {}),
        (("nonsense",), {}),
    ],
)
def test_execute_is_that_of_psycopg(args, more, pg_node, connect):
    conn = connect(pg_node)
    plain = partial(psycopg.Connection.execute, conn)
    for change in (lambda: None, lambda: setattr(conn, "row_factory", dict_row), conn.close):
        change()
        assert outcome(conn.execute, *args, **more) == outcome(plain, *args, **more)


def test_execute_uses_the_cursor_class_that_its_user_wants(pg_node, connect):
    conn = connect(pg_node)
    conn.cursor_factory = psycopg.ClientCursor
    assert isinstance(conn.execute("select %s", (1,)), psycopg.ClientCursor)


def test_the_code_of_an_error_is_known_if_it_is_the_drivers(pg_node, connect):
    conn = connect(pg_node)
    with pytest.raises(psycopg.errors.DivisionByZero) as caught:
        in_turn(lambda: conn.execute("select 1/0"))
    assert psycopg3.sqlstate(caught.value) == "22012"
    assert psycopg3.sqlstate(psycopg.OperationalError("?")) is None
    assert psycopg3.sqlstate(ValueError("?")) is None
