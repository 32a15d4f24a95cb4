"""What is absent is libpq's choice: its environment, a service, or as it was built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgdbpool.config import EndpointSettings, conninfo, load, load_toml, load_url
from pgdbpool.config.environment import libpq_choice

from .support import SECRET, config, problems


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the service `app`."""

    def write(**params: object) -> None:
        lines = "".join(f"{key}={value}\n" for key, value in params.items())
        (tmp_path / "services").write_text(f"[app]\n{lines}")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

    return write


def endpoints(**entry: Any) -> tuple[EndpointSettings, ...]:
    return load({"db": entry, "groups": {"g": {}}}).db


def places(found: tuple[EndpointSettings, ...]) -> list[str]:
    return [each.label for each in found]


def test_without_an_environment_it_is_what_libpq_was_built_with() -> None:
    (endpoint,) = endpoints()
    assert endpoint.host == libpq_choice({}).socket
    assert (endpoint.is_socket, endpoint.port, endpoint.chosen) == (True, 5432, {})


@pytest.mark.parametrize(
    ("environment", "entry", "expected", "chosen"),
    [
        ({"PGHOST": "h1"}, {}, ["h1:5432"], {"host": "PGHOST"}),
        ({"PGHOST": "h1", "PGPORT": "6"}, {}, ["h1:6"], {"host": "PGHOST", "port": "PGPORT"}),
        ({"PGHOST": "h1,h2"}, {}, ["h1:5432", "h2:5432"], {"host": "PGHOST"}),
        ({"PGHOST": "h1,h2", "PGPORT": "6,7"}, {}, ["h1:6", "h2:7"], {"host": "PGHOST", "port": "PGPORT"}),
        ({"PGHOST": "h1,h2", "PGPORT": ",7"}, {}, ["h1:5432", "h2:7"], {"host": "PGHOST", "port": "PGPORT"}),
        ({"PGHOST": "h1,h2", "PGPORT": "6"}, {"port": 8}, ["h1:8", "h2:8"], {"host": "PGHOST"}),
        ({"PGHOST": "h1", "PGPORT": "6"}, {"host": "h"}, ["h:6"], {"port": "PGPORT"}),
        ({"PGHOST": "h1", "PGPORT": "6"}, {"host": "h", "port": 5432}, ["h:5432"], {}),
        ({"PGHOST": "/run/pg"}, {}, ["/run/pg:5432"], {"host": "PGHOST"}),
        ({"PGHOST": "::1"}, {}, ["[::1]:5432"], {"host": "PGHOST"}),
        ({"PGHOSTADDR": "10.0.0.1"}, {}, ["10.0.0.1:5432"], {"host": "PGHOSTADDR"}),
        ({"PGHOSTADDR": "10.0.0.1", "PGPORT": "6"}, {"host": "h"}, ["h:6"], {"port": "PGPORT"}),
    ],
)
def test_host_and_port(
    environment: dict[str, str],
    entry: dict[str, Any],
    expected: list[str],
    chosen: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = endpoints(**entry)
    assert places(found) == expected
    assert all(each.chosen == chosen for each in found)


def test_an_address_of_the_environment_belongs_to_the_host_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "h1,h2")
    monkeypatch.setenv("PGHOSTADDR", "10.0.0.1,10.0.0.2")
    assert [(each.host, each.params["hostaddr"]) for each in endpoints()] == [("h1", "10.0.0.1"), ("h2", "10.0.0.2")]
    assert "hostaddr" not in endpoints(host="h")[0].params


@pytest.mark.parametrize(
    ("environment", "entry", "expected"),
    [
        ({"PGPORT": "x"}, {}, "db.port: expected a whole number, got something else from PGPORT"),
        ({"PGPORT": "0"}, {}, "db.port: expected 1 or more, got 0 from PGPORT"),
        ({"PGPORT": "6,7"}, {"host": "h"}, "db.port: libpq chooses 2 ports for 1 host"),
        ({"PGHOST": "a,b,c", "PGPORT": "6,7"}, {}, "db.port: libpq chooses 2 ports for 3 hosts"),
        ({"PGHOST": "a,b,c", "PGHOSTADDR": "::1,::2"}, {}, "db.host: libpq chooses 2 addresses for 3 hosts"),
        (
            {"PGCONNECT_TIMEOUT": "soon"},
            {},
            "db.connect_timeout: expected a whole number, got something else from PGCONNECT_TIMEOUT",
        ),
        (
            {"PGSERVICE": "no such"},
            {},
            'db.host: missing, and libpq cannot choose one: definition of service "no such" not found',
        ),
    ],
)
def test_mistakes_in_the_environment(
    environment: dict[str, str], entry: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert problems(load, {"db": entry, "groups": {"g": {}}}) == [expected]


@pytest.mark.parametrize("by", ["params", "PGSERVICE"])
def test_a_service(by: str, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service(host="s1,s2", port=6, connect_timeout=3, keepalives=0, keepalives_idle=7, tcp_user_timeout=99)
    monkeypatch.setenv("PGHOST", "elsewhere")  # a service comes first
    entry: dict[str, Any] = {"params": {"service": "app"}} if by == "params" else {}
    if by == "PGSERVICE":
        monkeypatch.setenv("PGSERVICE", "app")
    found = endpoints(**entry)
    assert places(found) == ["s1:6", "s2:6"]
    (first, _) = found
    assert (first.connect_timeout, first.keepalives, first.keepalives_idle) == (3.0, False, 7)
    assert (first.tcp_user_timeout, first.keepalives_interval) == (99, 3)
    assert set(first.chosen.values()) == {'service "app"'}
    own = endpoints(**entry, host="h", port=5, connect_timeout=4, keepalives=True)[0]
    assert (own.label, own.connect_timeout, own.keepalives) == ("h:5", 4.0, True)


def test_a_service_that_is_not_there_is_told_at_the_connect_where_the_host_is_known() -> None:
    assert places(endpoints(host="h", params={"service": "no such"})) == ["h:5432"]


@pytest.mark.parametrize(("value", "expected"), [("3", 3.0), ("0", 10.0), ("-1", 10.0)])
def test_the_time_for_a_connect(value: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", value)
    assert endpoints(host="h")[0].connect_timeout == expected
    assert endpoints(host="h", connect_timeout=7)[0].connect_timeout == 7


def test_the_role_of_a_group_that_names_none(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "read-write")
    groups = {"own": {"target_session_attrs": "any"}, "absent": {}}
    found = load({"db": {"host": "h"}, "groups": groups}).groups
    assert [group.target_session_attrs for group in found.values()] == ["any", "read-write"]
    assert [dict(group.chosen) for group in found.values()] == [{}, {"target_session_attrs": "PGTARGETSESSIONATTRS"}]
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "rw")
    assert "got 'rw' from PGTARGETSESSIONATTRS" in problems(load, {"db": {"host": "h"}, "groups": groups})[0]
    monkeypatch.delenv("PGTARGETSESSIONATTRS")
    service(target_session_attrs="standby")
    entry = {"host": "s", "params": {"service": "app"}}
    assert load({"db": entry, "groups": groups}).groups["absent"].target_session_attrs == "standby"
    assert problems(load, {"db": [entry, {"host": "h"}], "groups": groups}) == [
        "groups.absent.target_session_attrs: missing, and the services name several: any, standby"
    ]


def test_the_other_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "h1,h2")
    monkeypatch.setenv("PGPORT", "6")
    file = tmp_path / "pool.toml"
    file.write_text('[[db]]\nname = "app"\n[groups.g]\n')
    assert places(load_toml(file).db) == ["h1:6", "h2:6"]
    for url in ("postgresql://", "postgresql:///app", f"postgresql://u:{SECRET}@/app"):
        assert places(load_url(url).db) == ["h1:6", "h2:6"]
    assert places(load_url("postgresql://h").db) == ["h:6"]
    assert places(load_url("postgresql://u@:7/app").db) == ["h1:7", "h2:7"]
    assert places(load_url("postgresql:///app?port=7").db) == ["h1:7", "h2:7"]


def test_options_of_the_environment_stay_beside_ours(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def options(**params: str) -> object:
        settings = load(config({"query_timeout": 5, "params": params}))
        return conninfo(settings.db[0], settings.groups["g"], None)["options"]

    monkeypatch.setenv("PGOPTIONS", "-c search_path=shop")
    assert options() == "-c search_path=shop -c statement_timeout=5"
    assert options(options="-c x.y=1") == "-c x.y=1 -c statement_timeout=5"
    service(options="-c x.y=2")
    assert options(service="app") == "-c x.y=2 -c statement_timeout=5"


def test_no_secret_of_the_environment_is_kept(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    service(password=SECRET, sslpassword=SECRET, host="h")
    (endpoint,) = endpoints(params={"service": "app"})
    assert SECRET not in repr(endpoint) + repr(libpq_choice({"service": "app"}))
    assert endpoint.password is None


# -- a second opinion: what libpq does by itself --

_TEXTS = {
    "PGHOST": st.lists(st.sampled_from(["127.0.0.1", "127.0.0.2", "/nowhere", "::1"]), min_size=1, max_size=3),
    "PGPORT": st.lists(st.sampled_from(["1", "2", "3"]), min_size=1, max_size=3),
    "PGSSLMODE": st.sampled_from([["disable"], ["verify-full"], ["prefer"]]),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.fixed_dictionaries({}, optional=_TEXTS))
def test_the_same_servers_as_libpq_itself(environment: dict[str, list[str]]) -> None:
    """libpq, given nothing at all, says where it could not connect to: nobody listens there."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, values in environment.items():
            monkeypatch.setenv(name, ",".join(values))
        pgconn = psycopg.pq.PGconn.connect(b"user=u dbname=d connect_timeout=2")
        said = pgconn.error_message.decode()
        pgconn.finish()
        if "could not match" in said:
            assert "libpq chooses" in problems(load, {"db": {}, "groups": {"g": {}}})[0]
            return
        if "PGHOST" not in environment and "failed" not in said:  # a server of whoever runs the tests
            return
        hosts = len(environment.get("PGHOST", [""]))
        found = endpoints() if len(set(environment.get("PGHOST", []))) in (0, hosts) else ()
        for each in found:
            shown = f'"{each.host}/.s.PGSQL.{each.port}"' if each.is_socket else f'"{each.host}", port {each.port}'
            assert f"connection to server {'on socket' if each.is_socket else 'at'} {shown} failed" in said
