"""Whose fault it is that a connect failed: only a server's own "no" counts against it, and costs open sessions.

Real servers, Debian's with TLS, really misconfigured on one side or the other.
"""

import errno
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import psycopg
import pytest
from conftest import LIMIT, backends, config, wait_for
from models import MODELS
from models import open_model as open_model
from psycopg.conninfo import conninfo_to_dict
from support import start
from support import tidy as tidy
from testing.helpers import DEBIAN, needs_debian
from ways import way as way

from pgdbpool import DBOfflineError, Error, PoolTimeout
from pgdbpool.core.evidence import Fault
from pgdbpool.drivers import ConnectFailed, blocking, refusals, steps
from pgdbpool.drivers.sealed import sealed
from pgdbpool.testing import Cluster, Impostor
from pgdbpool.testing.binaries import server_account


def certificate(folder, name):
    """A key and a certificate that nobody else knows."""
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    subprocess.run([*made, "-keyout", key, "-out", cert], check=True, capture_output=True)
    key.chmod(0o600)
    return key, cert


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Files of a client: a key with a certificate that the server trusts ("ours"), and another ("other")."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "other"):
        certificate(folder, name)
    return folder


@pytest.fixture(scope="module")
def tls(keys):
    """A server with TLS, that looks at certificates of clients."""
    with tempfile.TemporaryDirectory(prefix="tls", dir="/tmp") as name:
        folder, account = Path(name), server_account()
        key, cert = certificate(folder, "127.0.0.1")
        roots = folder / "roots"
        shutil.copy(keys / "ours.crt", roots)
        for path in (folder, key, cert, roots):
            path.chmod(0o700 if path.is_dir() else 0o600)
            if account is not None:
                os.chown(path, *account)
        settings = {"ssl": True, "ssl_key_file": str(key), "ssl_cert_file": str(cert), "ssl_ca_file": str(roots)}
        with Cluster(0, bin_folder=str(DEBIAN), settings=settings) as cluster:
            yield cluster.primary


def connect(conninfo, limit=LIMIT):
    """One attempt; returns why it failed."""
    with pytest.raises(ConnectFailed) as caught:
        blocking.drive(steps.connecting(sealed(conninfo_to_dict(conninfo))), time.monotonic() + limit).finish()
    return caught.value


# -- what libpq says of what it was told --------------------------------------------------------------------------


@needs_debian
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("sslmode=require sslkey={keys}/none sslcert={keys}/ours.crt", "private key file"),
        ("sslmode=require sslkey={keys}/other.key sslcert={keys}/ours.crt", "key values mismatch"),
        ("sslmode=require sslkey={keys}/other.key sslcert={keys}/other.crt", "unknown ca"),
        (
            "sslmode=require sslkey={keys}/other.key sslcert={keys}/other.crt ssl_max_protocol_version=TLSv1.2",
            "unknown ca",
        ),
        ("sslmode=verify-full sslrootcert={keys}/other.crt", "certificate verify failed"),
        ("sslmode=verify-full sslrootcert={keys}/none", "root certificate file"),
        ("sslmode=require ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", "protocol version"),
        ("sslmode=disable channel_binding=require", "channel binding required"),
        ("sslmode=require channel_binding=require", "channel binding required"),
        ("require_auth=scram-sha-256", "authentication method requirement"),
        ("gssencmode=require", "GSSAPI"),
        ("hostaddr=1.2.3.x", "could not parse network address"),
        ("service=nowhere", 'service "nowhere" not found'),
        ("options='-c nonsense=1'", 'unrecognized configuration parameter "nonsense"'),
        ("options='-c work_mem=apple'", 'invalid value for parameter "work_mem"'),
        ("target_session_attrs=standby", "not in hot standby mode"),
        ("sslmode=sure", "sslmode"),
        ("port=99999", "port"),
    ],
)
def test_what_libpq_or_the_server_says_of_the_configuration_is_misconfigured(params, words, tls, keys):
    failed = connect(f"{tls.conninfo()} {params.format(keys=keys)}")
    assert failed.fault is Fault.MISCONFIGURED, failed
    assert words in str(failed)
    assert "LOCATION" not in str(failed)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("57P03", Fault.STARTING),
        ("53300", Fault.FULL),
        ("28P01", Fault.MISCONFIGURED),
        ("42704", Fault.MISCONFIGURED),
        ("57P01", Fault.REFUSED),
        ("XX000", Fault.FULL),
    ],
)
def test_what_a_server_says_is_known_by_its_code_whatever_its_language(code, fault):
    with Impostor(code, "Это сервер: он не хочет") as server:
        failed = connect(server.dsn)
    assert (failed.fault, failed.sqlstate) == (fault, code)
    assert str(failed).endswith("FATAL:  Это сервер: он не хочет")


def test_what_a_server_says_is_known_also_to_psycopg_in_python():
    program = """
from psycopg import pq
from pgdbpool.drivers import ConnectFailed, blocking, steps
from pgdbpool.drivers.sealed import sealed
from pgdbpool.testing import Impostor
from psycopg.conninfo import conninfo_to_dict
from time import monotonic
assert pq.__impl__ == "python"
with Impostor("57P03", "das Datenbanksystem startet") as server:
    try:
        blocking.drive(steps.connecting(sealed(conninfo_to_dict(server.conninfo()))), monotonic() + 30)
    except ConnectFailed as error:
        print(error.fault.value, error.sqlstate)
"""
    env = {**os.environ, "PSYCOPG_IMPL": "python"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=LIMIT)
    if "libpq library not found" in done.stderr:
        pytest.skip("there is no libpq for psycopg's Python implementation")
    assert done.stdout == "starting 57P03\n", done.stderr


def test_a_server_that_says_no_where_the_code_cannot_be_had_is_full(monkeypatch):
    monkeypatch.setattr("pgdbpool.drivers.private._set_verbosity", lambda: None)
    with Impostor("57P03", "das Datenbanksystem startet") as server:
        assert connect(server.dsn).fault is Fault.FULL


def test_the_errors_of_an_open_session_have_the_words_that_users_know(pg_node):
    pgconn = blocking.drive(steps.connecting(sealed(conninfo_to_dict(pg_node.conninfo()))), time.monotonic() + LIMIT)
    try:
        words = pgconn.exec_(b"select 1/0").error_message.decode()
    finally:
        pgconn.finish()
    assert words.strip() == "ERROR:  division by zero"


# -- what the kernel says, and who closes -------------------------------------------------------------------------


class Player:
    """Listens, and does the same with each connection."""

    def __init__(self, play):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = f"host=127.0.0.1 port={self._listener.getsockname()[1]} user=app dbname=app"
        self._play = play
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with conn:
                try:
                    self._play(conn)
                except OSError:
                    pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._listener.close()


def closes(conn):
    conn.recv(1000)


def resets(conn):
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hears_and_resets(conn):
    conn.recv(1000)
    resets(conn)


def says_a_word_and_closes(conn):
    conn.recv(1000)
    conn.sendall(b"N")
    conn.recv(1000)


def says_a_word_and_resets(conn):
    says_a_word_and_closes(conn)
    resets(conn)


def promises_tls_and_closes(conn):
    conn.recv(1000)
    conn.sendall(b"S")
    conn.recv(1000)


def speaks_http(conn):
    conn.recv(1000)
    conn.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("play", "fault"),
    [
        (closes, Fault.REFUSED),
        (resets, Fault.REFUSED),
        (hears_and_resets, Fault.REFUSED),
        (says_a_word_and_closes, Fault.ENDED),
        (says_a_word_and_resets, Fault.ENDED),
        (promises_tls_and_closes, Fault.ENDED),
        (speaks_http, Fault.MISCONFIGURED),
    ],
)
def test_a_connection_that_is_closed_is_refused_only_before_any_word(play, fault):
    with Player(play) as server:
        more = "sslmode=require" if play is promises_tls_and_closes else ""
        assert connect(f"{server.dsn} gssencmode=disable {more}").fault is fault


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("host=127.0.0.1 port=1", Fault.REFUSED),
        ("host=/nowhere", Fault.REFUSED),
        ("host=fe80::1", Fault.LOCAL),  # which interface is not said
    ],
)
def test_what_the_kernel_says(where, fault):
    assert connect(where).fault is fault


class Accepted:
    """A connection of libpq's that a server has accepted."""

    status = psycopg.pq.ConnStatus.MADE


RECEIVE = 'connection to server at "192.0.2.1", port 5432 failed: could not receive data from server: '


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.ETIMEDOUT, Fault.UNREACHABLE),
        (errno.EHOSTUNREACH, Fault.UNREACHABLE),
        (errno.ENETUNREACH, Fault.UNREACHABLE),
        (errno.ECONNRESET, None),
    ],
)
def test_a_network_that_breaks_off_after_the_server_has_accepted_is_no_refusal(code, fault, heard):
    attempt = refusals.Attempt(Accepted())
    attempt.reached = attempt.closed = True  # the kernel closes the connection
    attempt.heard = heard
    expected = fault or (Fault.ENDED if heard else Fault.REFUSED)
    assert attempt._fault(RECEIVE + os.strerror(code)) is expected


def test_a_server_that_tells_of_a_network_behind_it_is_there():
    attempt = refusals.Attempt(Accepted())
    attempt.reached = attempt.heard = True
    assert attempt._fault(f"failed: FATAL:  no server: {os.strerror(errno.ETIMEDOUT)}") is Fault.FULL


def test_a_file_for_which_there_is_no_descriptor_is_a_fault_of_this_machine():
    attempt = refusals.Attempt(Accepted())
    attempt.reached = attempt.heard = True
    assert attempt._fault(f'could not read private key "k": {os.strerror(errno.EMFILE)}') is Fault.LOCAL


def test_a_network_that_cannot_be_reached_is_no_refusal():
    """In a network of its own, which has no way out."""
    assert in_own_network("print(failed('host=192.0.2.1 port=5432').fault.value)") == "unreachable\n"


def test_a_machine_without_a_free_port_says_nothing_about_the_server():
    program = """
with socket.create_server(("127.0.0.1", 5999)) as server:
    taken = []
    try:
        while True:
            taken.append(socket.create_connection(("127.0.0.1", 5999)))
    except OSError as error:
        pass
    print(failed("host=127.0.0.1 port=5999").fault.value)
"""
    assert in_own_network(program) == "local\n"


def in_own_network(program):
    head = """
import logging, socket
logging.disable()
from pgdbpool.drivers import ConnectFailed, blocking, steps
from pgdbpool.drivers.sealed import sealed
from psycopg.conninfo import conninfo_to_dict
from time import monotonic
open("/proc/sys/net/ipv4/ip_local_port_range", "w").write("40000 40003")
def failed(conninfo):
    try:
        blocking.drive(steps.connecting(sealed(conninfo_to_dict(conninfo))), monotonic() + 30)
    except ConnectFailed as error:
        return error
"""
    shell = f'ip link set lo up && exec "{sys.executable}" -c "$PROGRAM"'
    env = {**os.environ, "PROGRAM": head + program}
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", shell], capture_output=True, text=True, env=env, timeout=LIMIT, check=False
    )
    if "unshare" in done.stderr:
        pytest.skip("this machine lets us make no network")
    assert not done.stderr, done.stderr
    return done.stdout


# -- a pool -------------------------------------------------------------------------------------------------------


def never_lost(calls, node, spoil, words):
    """A call in flight goes on, and its session serves, while no other can be opened."""
    calls.ask("default", "select 1")
    (backend,) = backends(node)
    events = []
    calls.pool.on_event(lambda event: events.append(event.message))

    def meanwhile():
        wait_for(
            lambda: node.execute(
                "select 1 from pg_stat_activity where query ~ '^select pg_backend_pid.. from pg_sleep'"
            )
        )
        spoil()
        node.terminate_backends("application_name = 'pgdbpool:monitor'")
        if calls.type != "non-threaded":
            with pytest.raises(PoolTimeout, match="in use"):
                calls.ask("default", "select 2", timeout=1.0)

    spoiled = start(meanwhile)
    # Longer than a call waits until it asks whether its server is still there.
    assert calls.ask("default", "select pg_backend_pid() from pg_sleep(3)") == backend
    spoiled.result(LIMIT)
    (endpoint,) = calls.pool.endpoints()
    if calls.type != "non-threaded":
        assert words in endpoint.last_error, endpoint
        assert endpoint.fault == "misconfigured"
    assert endpoint.health == "up"
    for _ in range(3):
        assert calls.ask("default", "select pg_backend_pid()", timeout=0) == backend
    assert [each for each in events if "is down" in each] == []
    assert len(events) <= 3, events


@needs_debian
@pytest.mark.parametrize("model", MODELS)
def test_a_key_that_cannot_be_read_any_more_costs_no_open_session(model, tls, keys, tmp_path, open_model):
    key, cert = tmp_path / "key", tmp_path / "cert"
    shutil.copy(keys / "ours.key", key)
    shutil.copy(keys / "ours.crt", cert)
    place = tls.endpoint(ssl="require", params={"sslkey": str(key), "sslcert": str(cert)})
    pool = open_model(config(place, type=model, connection_count=2))
    never_lost(pool, tls, lambda: key.chmod(0o644), "group or world access")


@needs_debian
@pytest.mark.parametrize("model", MODELS)
def test_a_certificate_that_the_server_does_not_trust_costs_no_open_session(model, tls, keys, tmp_path, open_model):
    key, cert = tmp_path / "key", tmp_path / "cert"
    place = tls.endpoint(ssl="require", params={"sslkey": str(key), "sslcert": str(cert)})

    def use(name):
        shutil.copy(keys / f"{name}.key", key)
        shutil.copy(keys / f"{name}.crt", cert)

    use("ours")
    pool = open_model(config(place, type=model, connection_count=2))
    never_lost(pool, tls, lambda: use("other"), "unknown ca")


@pytest.mark.parametrize("model", MODELS)
def test_a_service_file_that_is_being_rotated_costs_no_open_session(model, pg_node, tmp_path, open_model, monkeypatch):
    file = tmp_path / "services"
    file.write_text("[prod]\nclient_encoding=UTF8\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    place = pg_node.endpoint(ssl="disable", params={"service": "prod"})
    pool = open_model(config(place, type=model, connection_count=2))
    never_lost(pool, pg_node, lambda: file.write_text(""), '"prod" not found')


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"service": "nowhere"}, 'service "nowhere" not found'),
        ({"channel_binding": "require"}, "channel binding required"),
        ({"require_auth": "scram-sha-256"}, "authentication method requirement"),
        ({"gssencmode": "require"}, "GSSAPI"),
        ({"hostaddr": "1.2.3.x"}, "could not parse network address"),
        ({"options": "-c nonsense=1"}, 'unrecognized configuration parameter "nonsense"'),
    ],
)
def test_callers_get_the_words_at_once_where_nothing_is_open(model, params, words, pg_node, open_model):
    pool = open_model(config(pg_node.endpoint(ssl="disable", params=params), type=model))
    events = []
    pool.pool.on_event(lambda event: events.append(event.message))
    for _ in range(5):
        with pytest.raises(DBOfflineError, match=words):
            pool.ask("default", "select 1")
    (endpoint,) = pool.pool.endpoints()
    assert (endpoint.fault, endpoint.health) == ("misconfigured", "suspect")
    assert len(events) <= 1, events  # that no connection can be opened


def test_a_pool_on_a_machine_without_a_free_port_says_so_at_once(pg_node):
    program = """
import json, sys
from pgdbpool import DBOfflineError, Pool
settings = {"db": {"host": "127.0.0.1", "port": 5999, "name": "app", "user": "app"}, "groups": {"default": {}}}
with socket.create_server(("127.0.0.1", 5999)) as server:
    taken = []
    try:
        while True:
            taken.append(socket.create_connection(("127.0.0.1", 5999)))
    except OSError as error:
        pass
    with Pool(settings) as pool:
        try:
            pool.getconn(timeout=20)
        except DBOfflineError as error:
            assert "Cannot assign requested address" in str(error)
            print(pool.endpoints()[0].fault, pool.endpoints()[0].health)
"""
    assert in_own_network(program) == "local suspect\n"


def told(pool):
    """Of what kinds the events are that come from now on; that the server is up, as seen first, is none."""
    kinds = set()
    pool.on_event(lambda event: kinds.add(event.kind.value))
    return lambda: kinds - {"endpoint-up"}


def broken(pool):
    """How many connections of a pool were closed since they were found broken."""
    return pool.stats().groups["default"].counters.closed.get("broken", 0)


@pytest.mark.parametrize("model", MODELS)
def test_a_session_whose_own_time_is_over_makes_nobody_suspect_its_server(model, pg_node, open_model):
    """57P05: also where it rests, and the listener hears that it ended."""
    place = pg_node.endpoint(ssl="disable", params={"options": "-c idle_session_timeout=100ms"})
    pool = open_model(config(place, type=model, min_count=2, check="ping"))
    kinds = told(pool.pool)
    pool.ask("default", "select 1")

    def ended():
        if model == "non-threaded":  # which looks when it is used
            wait_for(lambda: not backends(pg_node))
            pool.ask("default", "select 1")
        return broken(pool.pool) >= 6

    wait_for(ended)
    assert kinds() == set()
    (endpoint,) = pool.pool.endpoints()
    assert (endpoint.health, endpoint.last_error) == ("up", None)


@pytest.mark.parametrize("caught", [False, True])
@pytest.mark.parametrize("autocommit", [False, True])
def test_a_transaction_whose_time_is_over_makes_nobody_suspect_its_server(caught, autocommit, pg_node, way):
    """25P04, `transaction_timeout`, from PostgreSQL 17 on; also where only the block hears of it."""

    async def story(pool):
        kinds = told(pool.pool)
        with suppress(psycopg.Error, Error):
            async with pool.block() as conn:
                await conn.execute("set transaction_timeout = '50ms'")
                await conn.commit()
                await conn.execute("begin")
                with suppress(psycopg.errors.TransactionTimeout) if caught else nullcontext():
                    await conn.execute("select pg_sleep(30)")
        await pool.until(lambda: broken(pool.pool))
        async with pool.block():  # by then all events are delivered in the non-threaded model, too
            assert kinds() == set()
        assert pool.pool.endpoints()[0].health == "up"

    way(story, config(pg_node, monitor=False, autocommit=autocommit))


@pytest.mark.parametrize("model", MODELS)
def test_the_last_error_keeps_the_words_that_explain(model, pg_node, open_model):
    """A session that rests is told why it ends; and what is closed without a word explains nothing."""
    pool = open_model(config(pg_node, type=model, monitor=False, connection_count=3, check="ping"))
    for conn in [pool.lend() for _ in range(3)]:
        conn.give()
    wait_for(lambda: len(backends(pg_node)) == 3)
    pg_node.terminate_backends("application_name = 'pgdbpool:default'")

    def ended():
        if model == "non-threaded":  # which looks when it is used
            pool.ask("default", "select 1")
        return broken(pool.pool) == 3

    wait_for(ended)
    assert "terminating connection due to administrator command" in pool.pool.endpoints()[0].last_error
