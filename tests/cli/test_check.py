"""`pgdbpool check`, on real servers: what it finds, what it advises, and that it gives nothing away."""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console
from support import Wire
from testing.helpers import DEBIAN, needs_debian
from typer.testing import CliRunner

from examples import rows
from pgdbpool import Pool
from pgdbpool.cli.app import app
from pgdbpool.cli.check.judge import judge
from pgdbpool.cli.check.look import Look
from pgdbpool.cli.check.screen import show
from pgdbpool.cli.output import console
from pgdbpool.config import load
from pgdbpool.core.evidence import Report, Role, Sighting
from pgdbpool.testing import Cluster, Node
from pgdbpool.testing.binaries import server_account

from .command import LIMIT, Done, Terminal, run, toml

READ_WRITE = """
[groups.read]
target_session_attrs = "prefer-standby"
connection_count = 15
[groups.write]
target_session_attrs = "primary"
"""
ROOT = Path(__file__).resolve().parents[2]
SECRET = "gehe1m-3c9f"


@pytest.fixture(scope="module")
def small() -> Iterator[Node]:
    """A server with few connections, where a password is asked for."""
    with Cluster(0, password=SECRET, settings={"max_connections": 20}) as cluster:
        yield cluster.primary


def label(node: Node) -> str:
    return f"{node.host}:{node.port}"


# What it finds


def test_it_says_what_each_server_is_and_where_each_group_goes(pg_cluster: Cluster, tmp_path: Path) -> None:
    pg_cluster.wait_for_replication()
    done = run("check", toml(tmp_path, *pg_cluster.nodes, groups=READ_WRITE), "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["ok"]
    primary, standbys = label(pg_cluster.primary), {label(node) for node in pg_cluster.standbys}
    found = {each["endpoint"]: each for each in done.json["endpoints"]}
    assert {name for name, each in found.items() if each["role"] == "primary"} == {primary}
    assert {name for name, each in found.items() if each["role"] == "standby"} == standbys
    for name, each in found.items():
        assert 0 < each["round_trip"] < each["connect_time"] + LIMIT
        assert each["version"] == pg_cluster.primary.execute("show server_version")[0][0].split()[0]
        assert (each["max_connections"], each["reserved"], each["admits"]) == (100, 3, 97)
        assert (each["lag"] is None) == (name == primary)
        assert (each["lag"] or 0) < 1024**2
        assert each["tls"] is None
    read, write = done.json["groups"]
    assert [set(tier) for tier in read["tiers"]] == [standbys, {primary}]
    assert write["tiers"] == [[primary]]
    assert set(write["not_used"].values()) == {"is a standby"}


def test_an_endpoint_that_is_down_is_named_and_the_others_are_judged_all_the_same(
    pg_cluster: Cluster, tmp_path: Path
) -> None:
    gone, other = pg_cluster.standbys
    gone.kill()
    done = run("check", toml(tmp_path, *pg_cluster.nodes, groups=READ_WRITE), "--json")
    assert done.code == 1
    assert done.json["problems"] == [f"{label(gone)}: Connection refused"]
    assert done.json["groups"][0]["tiers"] == [[label(other)], [label(pg_cluster.primary)]]
    assert "Connection refused" in done.json["groups"][0]["not_used"][label(gone)]


def test_a_group_that_no_server_suits_is_a_problem(pg_node: Node, tmp_path: Path) -> None:
    groups = '[groups.read]\ntarget_session_attrs = "standby"'
    done = run("check", toml(tmp_path, pg_node, groups=groups))
    assert done.code == 1
    assert "group read: no endpoint that is standby" in done.out
    assert f"not {label(pg_node)}: is a primary" in done.out


def test_an_old_primary_is_not_used_beside_the_new_one(tmp_path: Path) -> None:
    with Cluster(1) as cluster:
        old, new = cluster.nodes
        new.promote()
        done = run("check", toml(tmp_path, old, new, groups=READ_WRITE), "--json")
        assert done.json["groups"][1]["tiers"] == [[label(new)]]
        assert done.json["endpoints"][0]["fenced"]


def test_a_server_that_does_not_answer_is_given_up_after_its_connect_timeout(pg_node: Node, tmp_path: Path) -> None:
    path = toml(tmp_path, pg_node.endpoint(connect_timeout=1.0))
    with pg_node.proxy() as proxy:
        proxy.stall()
        path = toml(tmp_path, proxy.endpoint(connect_timeout=1.0))
        done = run("check", path)
    assert done.code == 1
    assert "timed out" in done.out


def test_a_group_whose_sessions_cannot_be_set_up_is_a_problem(pg_node: Node, tmp_path: Path) -> None:
    done = run("check", toml(tmp_path, pg_node, groups="[groups.a]\nsqlprepare = true\n[groups.b]"), "--json")
    assert done.code == 1
    a, b = done.json["groups"]
    assert "SQLPrepare" in a["not_used"][label(pg_node)]
    assert (a["tiers"], b["tiers"]) == ([], [[label(pg_node)]])


def test_a_pooler_that_refuses_startup_options_is_noted(pg_node: Node, tmp_path: Path) -> None:
    with Wire(pg_node, refuse_options=True) as wire:
        done = run("check", toml(tmp_path, wire.endpoint(query_timeout=5000)), "--json")
        assert done.code == 0, done.out
        assert "takes no startup options" in done.json["groups"][0]["notes"][0]
        assert not [each for each in wire.statements if each.startswith("set ")]


def test_where_the_sessions_of_a_pooler_are_kept_apart_settings_are_tried_as_the_pool_sets_them(
    pg_node: Node, tmp_path: Path
) -> None:
    with Wire(pg_node, refuse_options=True) as wire:
        done = run("check", toml(tmp_path, wire.endpoint(query_timeout=5000, pooler="session")), "--json")
        assert done.code == 0, done.out
        assert done.json["groups"][0]["notes"] == []
        assert "set statement_timeout = '5000'" in wire.statements


def test_it_leaves_no_session_and_never_has_two(pg_node: Node, tmp_path: Path) -> None:
    with Wire(pg_node) as wire:
        assert run("check", toml(tmp_path, wire, groups=READ_WRITE)).code == 0
        names = [startup["application_name"] for startup in wire.startups]
    assert names == ["pgdbpool:check", "pgdbpool:read", "pgdbpool:write"]
    assert [row for row in pg_node.backends() if row["application_name"] == "pgdbpool:check"] == []


# TLS


@pytest.fixture
def tls_server() -> Iterator[Node]:
    """Debian's PostgreSQL, with a certificate of its own making."""
    with tempfile.TemporaryDirectory(prefix="tls", dir="/tmp") as name:
        key, cert = Path(name, "key"), Path(name, "cert")
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
        subprocess.run([*made, "-keyout", key, "-out", cert], check=True, capture_output=True)
        account = server_account()
        for path in (Path(name), key, cert):
            path.chmod(0o700 if path.is_dir() else 0o600)
            if account is not None:
                os.chown(path, *account)
        settings = {"ssl": True, "ssl_key_file": str(key), "ssl_cert_file": str(cert)}
        with Cluster(0, bin_folder=str(DEBIAN), settings=settings) as cluster:
            yield cluster.primary


@needs_debian
def test_the_protocol_of_an_encrypted_connection_is_shown(tls_server: Node, tmp_path: Path) -> None:
    on = run("check", toml(tmp_path, tls_server.endpoint(ssl="require")), "--json")
    off = run("check", toml(tmp_path, tls_server.endpoint(ssl="disable")), "--json")
    assert on.json["endpoints"][0]["tls"] == "TLSv1.3"
    assert off.json["endpoints"][0]["tls"] is None
    assert on.json["endpoints"][0]["version"].startswith("15.")


def test_a_server_without_tls_where_it_is_required_is_a_problem(pg_node: Node, tmp_path: Path) -> None:
    done = run("check", toml(tmp_path, pg_node.endpoint(ssl="require")))
    assert done.code == 1
    assert "server does not support SSL, but SSL was required" in done.out


# Sizing


def test_it_fits_or_says_what_would(small: Node, tmp_path: Path) -> None:
    groups = "[groups.read]\nconnection_count = 6\n[groups.write]\nconnection_count = 3"
    one = run("check", toml(tmp_path, small, groups=groups), "--processes", "1", "--json")
    assert one.code == 0, one.out
    server = one.json["sizing"]["servers"][0]
    assert (server["per_process"], server["connections"], server["admits"]) == (11, 11, 17)

    two = run("check", toml(tmp_path, small, groups=groups), "--processes", "2", "--json")
    assert two.code == 1
    assert two.json["problems"] == [f"{label(small)}: 2 processes may open 22 connections, it admits 17"]
    instead = two.json["sizing"]["instead"]
    assert instead["processes"] == 1
    assert instead["servers"] == {label(small): ["max_connections", 25]}
    assert instead["connection_count"] == {"read": 4, "write": 2}

    counts = instead["connection_count"]
    groups = "\n".join(f"[groups.{name}]\nconnection_count = {count}" for name, count in counts.items())
    again = run("check", toml(tmp_path, small, groups=groups), "--processes", "2")
    assert again.code == 0, again.out


def test_what_it_would_fit_with_is_shown_too(small: Node, tmp_path: Path) -> None:
    done = run("check", toml(tmp_path, small, groups="[groups.g]\nconnection_count = 30"), "--processes", "3")
    assert done.code == 1
    assert f"{label(small)}: 3 processes may open 96 connections, it admits 17" in done.out
    assert "fits with connection_count: g 3" in done.out
    assert "max_connections 99" in done.out
    done = run("check", toml(tmp_path, small, groups="[groups.g]"), "--processes", "30")
    assert "30 processes do not fit even with connection_count 1 for each group" in done.out
    assert "or with at most 1 process\n" in done.out


def test_sessions_of_others_take_room_and_those_of_this_pool_do_not(small: Node, tmp_path: Path) -> None:
    path = toml(tmp_path, small, groups="[groups.g]\nconnection_count = 12")
    with psycopg.connect(small.conninfo()), psycopg.connect(small.conninfo()), Pool.from_toml(path) as pool:
        held = [pool.getconn("g") for _ in range(3)]
        done = run("check", path, "--processes", "1", "--json")
        endpoint = done.json["endpoints"][0]
        assert endpoint["others"] == 2
        assert 3 <= endpoint["ours"] <= 5  # three, and the monitor's
        assert done.code == 0, done.out
        path = toml(tmp_path, small, groups="[groups.g]\nconnection_count = 14")
        words = "1 process may open 16 connections, it admits 17 and others have 2 of them"
        assert words in run("check", path, "--processes", "1").out
        for conn in held:
            pool.putconn(conn)


def test_a_server_that_does_not_tell_its_role_is_there_and_of_no_use_to_a_group_that_wants_one(
    pg_node: Node, tmp_path: Path
) -> None:
    groups = "[groups.all]\n" + READ_WRITE
    pg_node.execute("revoke execute on function pg_catalog.pg_is_in_recovery() from public")
    try:
        with Wire(pg_node, hide={"in_hot_standby"}) as wire:
            done = run("check", toml(tmp_path, wire, groups=groups), "--json")
    finally:
        pg_node.execute("grant execute on function pg_catalog.pg_is_in_recovery() to public")
    assert done.code == 1
    [endpoint] = done.json["endpoints"]
    assert (endpoint["role"], endpoint["error"]) == ("unknown", None)
    assert [bool(group["problem"]) for group in done.json["groups"]] == [False, False, True]
    words = "the server does not say whether it is a primary or a standby: permission denied for function"
    assert done.json["groups"][2]["not_used"][f"127.0.0.1:{wire.port}"].startswith(words)


@pytest.mark.parametrize(
    ("environment", "params", "group"),
    [
        (None, None, "größe " + 60 * "x"),
        (None, "the shop", "g"),
        ("the shop", None, "g"),
        ("", None, "g"),
        ("the shop", "another", "g"),
    ],
    ids=["long", "params", "environment", "empty", "both"],
)
def test_the_sessions_of_this_pool_are_known_by_whatever_name_they_have(
    small: Node, tmp_path: Path, monkeypatch: Any, environment: str | None, params: str | None, group: str
) -> None:
    if environment is not None:
        monkeypatch.setenv("PGAPPNAME", environment)
    given = "" if params is None else f'[db.params]\napplication_name = "{params}"\n'
    path = toml(tmp_path, small, groups=f'{given}[groups."{group}"]\nconnection_count = 12')
    with psycopg.connect(small.conninfo(application_name="somebody else")), Pool.from_toml(path) as pool:
        held = [pool.getconn(group) for _ in range(3)]
        [endpoint] = run("check", path, "--json").json["endpoints"]
        assert endpoint["others"] == 1
        assert 3 <= endpoint["ours"] <= 5  # three, and the monitor's
        for conn in held:
            pool.putconn(conn)


def test_sessions_with_the_names_of_this_pool_are_its_own_though_it_would_use_another_here(
    small: Node, tmp_path: Path
) -> None:
    path = toml(tmp_path, small, groups="[groups.g]")
    with Pool.from_toml(path) as pool:
        conn = pool.getconn("g")
        [endpoint] = run("check", path, "--json", PGAPPNAME="the shop").json["endpoints"]
        assert endpoint["others"] == 0
        assert 1 <= endpoint["ours"] <= 4
        pool.putconn(conn)


@pytest.mark.parametrize("what", ["role", "database"])
def test_the_limit_of_a_role_or_database_counts(small: Node, tmp_path: Path, what: str) -> None:
    path = toml(tmp_path, small, groups="[groups.g]\nconnection_count = 5")
    small.execute(f"alter {what} app connection limit 4")
    try:
        done = run("check", path, "--processes", "1", "--json")
    finally:
        small.execute(f"alter {what} app connection limit -1")
    assert done.code == 1
    assert done.json["sizing"]["instead"]["servers"] == {label(small): [f"alter {what} app connection limit", 7]}


def test_memory_is_what_the_server_would_really_give(small: Node, tmp_path: Path) -> None:
    small.execute("alter role app set work_mem = '16MB'")
    groups = "[groups.a]\nconnection_count = 2\nsession_tmp_buffer = 32\n[groups.b]\nconnection_count = 3"
    try:
        done = run("check", toml(tmp_path, small, groups=groups), "--processes", "2", "--json")
    finally:
        small.execute("alter role app reset work_mem")
    server = done.json["sizing"]["servers"][0]
    assert server["tmp_buffers"] == 2 * (2 * 32 + 3 * 8) * 1024**2  # 8 MB is the server's own
    assert server["work_mem"] == 2 * 5 * 16 * 1024**2


def test_where_memory_is_too_little_it_says_with_which_buffer_it_fits(small: Node, tmp_path: Path) -> None:
    def check(buffer: int, memory: str) -> Done:
        groups = f"[groups.a]\nconnection_count = 5\nsession_tmp_buffer = {buffer}"
        return run("check", toml(tmp_path, small, groups=groups), "--processes", "2", "--memory", memory, "--json")

    assert check(100, "2GB").code == 0
    done = check(100, "512MB")  # 16 MB are shared_buffers, 2 x 5 x 4 are work_mem
    assert done.code == 1
    words = "2 processes may take 1.0 GB (shared_buffers 16 MB, temp tables 1000 MB, sorts 40 MB), it has 512 MB"
    assert done.json["problems"] == [f"{label(small)}: {words}"]
    assert done.json["sizing"]["session_tmp_buffer"] == 45
    assert check(45, "512MB").code == 0
    assert check(46, "512MB").code == 1
    assert check(1, "56MB").json["sizing"]["session_tmp_buffer"] == 0


@pytest.mark.parametrize("size", ["16", "much", "-1GB", "1PB", ""])
def test_memory_is_a_size_with_a_unit(size: str) -> None:
    done = run("check", "postgresql://app@127.0.0.1/app", "--memory", size)
    assert (done.code, done.out) == (2, "")
    assert "expected a size such as 16GB or 512MB" in done.err


def test_groups_are_compared_with_threads(pg_node: Node, tmp_path: Path) -> None:
    groups = "\n".join(f"[groups.{name}]\nconnection_count = {count}" for name, count in (("a", 3), ("b", 4), ("c", 5)))
    done = run("check", toml(tmp_path, pg_node, groups=groups), "--threads", "4")
    assert done.code == 0
    for words in ("threads wait when more than 3 need one", "no thread waits", "1 never used"):
        assert words in done.out


def test_a_non_threaded_pool_under_threads_is_a_problem(pg_node: Node, tmp_path: Path) -> None:
    done = run("check", toml(tmp_path, pg_node, top='type = "non-threaded"'), "--threads", "2")
    assert done.code == 1
    assert 'type "non-threaded" is for one thread in each process, not 2' in done.out


# What it never shows


def test_a_wrong_password_is_a_problem_and_is_not_shown(small: Node, tmp_path: Path) -> None:
    path = toml(tmp_path, small.endpoint() | {"pass": f"wrong-{SECRET}"})
    for arguments in ([], ["--json"]):
        done = run("check", path, *arguments)
        assert done.code == 1
        assert "password authentication failed" in done.out
        assert SECRET not in done.out + done.err


def test_a_right_password_is_not_shown_either(small: Node, tmp_path: Path) -> None:
    for source in (toml(tmp_path, small), small.dsn):
        done = run("check", source, "--json", "--processes", "1")
        assert done.code == 0, done.out
        assert SECRET not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"postgresql://app:{SECRET}@127.0.0.1:99999/app"], "port"),
        ([f"mysql://app:{SECRET}@127.0.0.1/app"], "url: expected postgresql://"),
        (
            [f"postgresql://app:{SECRET}@127.0.0.1/app", f"postgresql://app:{SECRET}@127.0.0.1/app"],
            "unexpected extra argument",
        ),
        ([], "CONFIG"),
        (["no/such.toml"], "no/such.toml: cannot be read: No such file or directory"),
    ],
    ids=["port", "scheme", "two", "none", "file"],
)
def test_bad_input_is_one_clear_error_and_repeats_no_secret(arguments: list[str], words: str) -> None:
    done = run("check", *arguments)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err
    assert SECRET not in done.out + done.err


def test_every_mistake_in_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'[[db]]\nhost = "h"\npass = "{SECRET}"\nprot = 1\n[groups.g]\nconnection_count = 0\n')
    done = run("check", path)
    assert (done.code, done.out) == (2, "")
    assert f"{path}: db[0].prot: unknown key, did you mean port?" in done.err
    assert f"{path}: groups.g.connection_count: expected 1 or more, got 0" in done.err
    assert done.err.count("\n") == 2


def test_the_configuration_can_be_named_by_the_environment(pg_node: Node, tmp_path: Path) -> None:
    assert run("check", PGDBPOOL_CONFIG=str(toml(tmp_path, pg_node))).code == 0


def test_it_says_where_the_environment_decided_which_servers_there_are(pg_node: Node, tmp_path: Path) -> None:
    entry = pg_node.endpoint(ssl="disable")
    more = {"PGHOST": entry.pop("host"), "PGPORT": str(entry.pop("port")), "PGTARGETSESSIONATTRS": "primary"}
    path = toml(tmp_path, entry)
    done = run("check", path, **more)
    assert done.code == 0
    assert f"{label(pg_node)}: host from PGHOST, port from PGPORT" in done.out
    assert "target_session_attrs comes from PGTARGETSESSIONATTRS" in done.out
    found = run("check", path, "--json", **more).json
    assert found["endpoints"][0]["chosen"] == {"host": "PGHOST", "port": "PGPORT"}


@pytest.mark.parametrize(
    ("host", "more", "environment", "expected"),
    [
        ("db.test", {}, {}, ["ssl is prefer, so nothing proves", 'params.require_auth = "scram-sha-256" keeps it']),
        ("db.test", {"ssl": "require"}, {"PGREQUIREAUTH": "scram-sha-256"}, ["ssl is require"]),
        ("db.test", {}, {"PGSSLMODE": "disable"}, ["ssl is disable", "require_auth"]),
        ("db.test", {"ssl": "verify-full"}, {}, []),
        ("db.test", {}, {"PGSSLROOTCERT": "system"}, []),
        ("127.0.0.1", {}, {}, []),
        ("localhost", {}, {}, []),
        ("/run/postgresql", {}, {}, []),
    ],
)
def test_it_recommends_what_proves_who_answers(
    host: str, more: dict[str, Any], environment: dict[str, str], expected: list[str], monkeypatch: Any
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load({"db": {"host": host, **more}, "groups": {"g": {}}})
    report = judge(settings, [Look(sighting=Sighting(Report(Role.PRIMARY)), round_trip=0.001)])
    assert report.ok
    assert len(report.recommendations) == len(expected)
    for words, line in zip(expected, report.recommendations, strict=True):
        assert words in line
    screen = Console(file=io.StringIO(), width=300)
    show(report, screen)
    assert screen.file.getvalue().count("Safer: ") == len(expected)  # type: ignore[attr-defined]


# How it looks


def test_in_a_pipe_there_are_no_colours_and_nothing_is_folded(pg_node: Node, tmp_path: Path) -> None:
    done = run("check", toml(tmp_path, pg_node, groups=READ_WRITE))
    assert "\x1b" not in done.out
    assert any(label(pg_node) in line and "primary" in line for line in done.out.splitlines())


@pytest.mark.parametrize("colours", [True, False])
def test_in_a_terminal_there_are_colours_unless_they_are_not_wanted(
    pg_node: Node, tmp_path: Path, colours: bool
) -> None:
    more: dict[str, Any] = {} if colours else {"NO_COLOR": "1"}
    with Terminal("check", toml(tmp_path, pg_node), **more) as terminal:
        written = terminal.read()
        assert terminal.process.wait(LIMIT) == 0
    assert ("\x1b[32m" in written or "\x1b[1;35m" in written) == colours


def test_where_the_output_takes_no_ticks_it_says_ok(pg_node: Node, tmp_path: Path) -> None:
    done = run("check", toml(tmp_path, pg_node), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.code, done.err) == (0, "")
    assert "ok All is well." in done.out


def test_an_address_in_brackets_is_shown_as_it_is() -> None:
    db = {"host": "fe80::1", "name": "app", "user": "app"}
    found = Look(sighting=Sighting(Report(Role.PRIMARY)), round_trip=0.001)
    written = io.StringIO()
    screen = console()
    screen.file = written
    show(judge(load({"db": db, "groups": {"g": {}}}), [found], 2, 2), screen)
    assert written.getvalue().count("[fe80::1]:5432") == 3


# The deployments of the manual


@pytest.mark.parametrize("row", rows.load().values(), ids=lambda row: row.name)
def test_it_says_of_a_tested_deployment_what_the_manual_says(pg_node: Node, tmp_path: Path, row: rows.Row) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(rows.configuration(row, [pg_node.endpoint()]))
    command = ["check", str(path), "--processes", str(row.processes), "--threads", str(row.threads), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    (server,) = json.loads(done.stdout)["sizing"]["servers"]
    assert server["connections"] == row.connections


def test_the_manuals_table_has_every_deployment(tmp_path: Path) -> None:
    docs, examples = ROOT / "docs", os.path.relpath(ROOT / "examples", tmp_path)
    (tmp_path / "conf.py").write_text(f"import sys; sys.path.insert(0, {str(docs)!r})\nextensions = ['sizing_table']")
    (tmp_path / "index.rst").write_text(f"Sizing\n======\n\n.. sizing-table:: {examples}/rows.toml\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "text", tmp_path, tmp_path / "out"]
    subprocess.run(command, check=True, timeout=LIMIT, capture_output=True)
    text = (tmp_path / "out" / "index.txt").read_text()
    for row in rows.load().values():
        assert f"**{row.connections}**" in text
