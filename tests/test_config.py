"""The configuration: what is accepted in each form, and the exact message for each mistake.

The tables read as the specification: a path, what is wrong there, and the line the user sees.
"""

from __future__ import annotations

import copy
import json
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgdbpool.config import (
    EndpointSettings,
    GroupSettings,
    MonitorSettings,
    Settings,
    StatusSettings,
    conninfo,
    load,
    load_toml,
    load_url,
    session_settings,
)
from pgdbpool.errors import ConfigError, ConfigWarning

SECRET = "s3cr3t-Zq9"


def config(endpoint: Any = None, group: Any = None, **top: Any) -> dict[str, Any]:
    """A good configuration of one endpoint and one group, with some keys added to either."""
    return {"db": [{"host": "h", **(endpoint or {})}], "groups": {"g": group or {}}, **top}


def problems(call: Callable[[Any], Settings], argument: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call(argument)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return list(error.problems)


# -- what is accepted --


def test_defaults_of_an_endpoint() -> None:
    (endpoint,) = load(config()).db
    assert endpoint == EndpointSettings(host="h")
    assert msgspec.structs.asdict(endpoint) == {
        "host": "h",
        "port": 5432,
        "name": None,
        "user": None,
        "password": None,
        "ssl": "prefer",
        "connect_timeout": 10.0,
        "query_timeout": None,
        "session_tmp_buffer": None,
        "keepalives": True,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 10000,
        "priority": 0,
        "weight": 1.0,
        "tags": frozenset(),
        "params": {},
    }


def test_defaults_of_a_group() -> None:
    settings = load(config())
    assert settings.type == "threaded"
    assert msgspec.structs.asdict(settings.groups["g"]) == {
        "name": "g",
        "connection_count": 10,
        "total_count": None,
        "min_count": 1,
        "autocommit": True,
        "target_session_attrs": "any",
        "balance": "least-busy",
        "acquire_timeout": 30.0,
        "max_waiting": 0,
        "max_lifetime": 3600.0,
        "max_idle": 600.0,
        "check": "auto",
        "configure": None,
        "reset": None,
        "reconnect_failed": None,
        "reconnect_timeout": 300.0,
        "leak_threshold": 0.0,
        "query_timeout": None,
        "session_tmp_buffer": None,
        "tags": frozenset(),
        "spill": False,
        "sqlprepare": False,
    }


def test_the_example_of_the_manual() -> None:
    settings = load(
        {
            "type": "non-threaded",
            "db": [
                {
                    "host": "db1",
                    "port": 5433,
                    "name": "app",
                    "user": "app",
                    "pass": SECRET,
                    "ssl": "verify-full",
                    "connect_timeout": 3,
                    "query_timeout": 5000,
                    "session_tmp_buffer": 128,
                    "priority": 0,
                    "weight": 2,
                    "tags": ["zone-a", "analytics"],
                    "params": {"sslrootcert": "/etc/ca.pem", "sslsni": False, "channel_binding": "require"},
                },
                {"host": "/run/postgresql", "priority": 1},
            ],
            "groups": {
                "read": {
                    "connection_count": 15,
                    "target_session_attrs": "prefer-standby",
                    "tags": ["zone-a"],
                },
                "write": {"autocommit": False, "target_session_attrs": "primary", "total_count": 12},
            },
        }
    )
    first, second = settings.db
    assert settings.type == "non-threaded"
    assert (first.port, first.password, first.weight, first.connect_timeout) == (5433, SECRET, 2.0, 3.0)
    assert type(first.weight) is type(first.connect_timeout) is float
    assert first.tags == {"zone-a", "analytics"}
    assert first.params == {"sslrootcert": "/etc/ca.pem", "sslsni": "0", "channel_binding": "require"}
    assert second.priority == 1
    assert list(settings.groups) == ["read", "write"]
    assert settings.groups["write"].name == "write"
    assert settings.groups["write"].autocommit is False


def test_db_may_be_one_dict() -> None:
    settings = load({"db": {"host": "h"}, "groups": {"g": {}}})
    assert settings == load(config())


def test_any_mapping_and_any_sequence_will_do() -> None:
    frozen = MappingProxyType
    settings = load(
        frozen(
            {
                "db": (frozen({"host": "h", "params": frozen({"sslsni": 1}), "tags": {"t"}}),),
                "groups": frozen({"g": frozen({"tags": ("t",)})}),
            }
        )
    )
    assert settings.db[0].params == {"sslsni": "1"}
    assert settings.groups["g"].tags == {"t"}


def test_the_monitor_is_on_and_can_be_set_or_switched_off() -> None:
    assert load(config()).monitor == load(config(monitor=True)).monitor == load(config(monitor={})).monitor
    assert load(config()).monitor == MonitorSettings(interval=1.0, timeout=1.0, fall=2, slow_start=10.0)
    assert load(config(monitor={"fall": 3, "interval": 2})).monitor == MonitorSettings(fall=3, interval=2.0)
    assert load(config(monitor=False)).monitor is None


def test_settings_are_returned_as_they_are() -> None:
    settings = load(config())
    assert load(settings) is settings


@pytest.mark.parametrize("key", ["name", "user", "pass", "query_timeout", "session_tmp_buffer"])
def test_none_means_not_given_in_an_endpoint(key: str) -> None:
    assert load(config({key: None})) == load(config())


@pytest.mark.parametrize(
    "key",
    ["total_count", "query_timeout", "session_tmp_buffer", "configure", "reset", "reconnect_failed"],
)
def test_none_means_not_given_in_a_group(key: str) -> None:
    assert load(config(group={key: None})) == load(config())


def noop(*_: object) -> None:
    """A callable for the keys that take one."""


@pytest.mark.parametrize("key", ["balance", "check", "configure", "reset", "reconnect_failed"])
def test_callables_in_a_group(key: str) -> None:
    assert getattr(load(config(group={key: noop})).groups["g"], key) is noop


def test_password_may_be_a_callable_and_is_not_called() -> None:
    def token() -> str:
        raise AssertionError("called while the configuration was read")

    assert load(config({"pass": token})).db[0].password is token


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("connection_count", 1),
        ("min_count", 0),
        ("total_count", 1),
        ("acquire_timeout", 0),
        ("max_lifetime", 0),
        ("max_idle", 0),
        ("reconnect_timeout", 0.5),
        ("leak_threshold", 2.5),
        ("query_timeout", 0),
        ("session_tmp_buffer", 1),
        *(("balance", word) for word in ("least-busy", "round-robin")),
        *(("check", word) for word in ("auto", "off", "ping")),
        *(
            ("target_session_attrs", word)
            for word in (
                "any",
                "read-write",
                "read-only",
                "primary",
                "standby",
                "prefer-standby",
                "prefer-primary",
            )
        ),
    ],
)
def test_values_at_the_edge_of_a_group(key: str, value: Any) -> None:
    assert getattr(load(config(group={key: value})).groups["g"], key) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", 1),
        ("port", 65535),
        ("weight", 0.001),
        ("priority", -5),
        ("query_timeout", 0),
        ("tcp_user_timeout", 0),
        ("keepalives", False),
        *(("ssl", word) for word in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")),
    ],
)
def test_values_at_the_edge_of_an_endpoint(key: str, value: Any) -> None:
    assert getattr(load(config({key: value})).db[0], key) == value


def test_an_empty_password_is_a_password() -> None:
    assert load(config({"pass": ""})).db[0].password == ""


def test_the_same_host_twice_is_fine_for_another_port_database_user_or_address() -> None:
    db = [
        {"host": "h"},
        {"host": "h", "port": 5433},
        {"host": "h", "name": "a"},
        {"host": "h", "name": "a", "user": "b"},
        {"host": "h", "params": {"hostaddr": "10.0.0.1"}},
    ]
    assert len(load({"db": db, "groups": {"g": {}}}).db) == 5


@pytest.mark.parametrize(
    ("host", "port", "label"),
    [
        ("db1", 5432, "db1:5432"),
        ("10.0.0.1", 5433, "10.0.0.1:5433"),
        ("::1", 5432, "[::1]:5432"),
        ("/run/postgresql", 5432, "/run/postgresql:5432"),
        ("@abstract", 5432, "@abstract:5432"),
    ],
)
def test_label(host: str, port: int, label: str) -> None:
    assert load(config({"host": host, "port": port})).db[0].label == label


def keys_of_the_manual(section: str, page: str = "configuration") -> list[str]:
    manual = (Path(__file__).parent.parent / "docs" / f"{page}.rst").read_text()
    _, _, rest = manual.partition(f"\n{section}\n{'-' * len(section)}\n")
    return re.findall(r"^   \* - ``(\w+)``$", rest.partition("\n---")[0], re.MULTILINE)


def test_the_manual_has_every_key() -> None:
    endpoint = ["pass" if key == "password" else key for key in EndpointSettings.__struct_fields__]
    group = [key for key in GroupSettings.__struct_fields__ if key != "name"]
    assert keys_of_the_manual("The whole") == list(Settings.__struct_fields__)
    assert keys_of_the_manual("Endpoints") == endpoint
    assert keys_of_the_manual("Groups") == group
    assert keys_of_the_manual("Monitor") == list(MonitorSettings.__struct_fields__)
    assert keys_of_the_manual("What a process publishes", "status-page") == list(StatusSettings.__struct_fields__)


# -- every mistake, and its message --

SSL = "disable, allow, prefer, require, verify-ca, verify-full"
TARGETS = "any, read-write, read-only, primary, standby, prefer-standby, prefer-primary"
ENDPOINT_KEYS = (
    "host, port, name, user, pass, ssl, connect_timeout, query_timeout, session_tmp_buffer, keepalives, "
    "keepalives_idle, keepalives_interval, keepalives_count, tcp_user_timeout, priority, weight, tags, params"
)

WHOLE_MISTAKES: list[tuple[Any, list[str]]] = [
    (None, ["config: expected a dict, got None"]),
    ([], ["config: expected a dict, got a list"]),
    ("postgresql://u:pw@h", ["config: expected a dict, got a string; for a URL there is load_url"]),
    (
        {},
        [
            "db: missing; it says where the database is: a dict, or a list of dicts",
            'groups: missing; it names at least one group, such as {"default": {}}',
        ],
    ),
    ({1: 2, **config()}, ["config: expected strings as keys, got a whole number"]),
    (config(type="treaded"), ["type: expected one of threaded, non-threaded, got 'treaded'"]),
    (config(type=True), ["type: expected one of threaded, non-threaded, got True"]),
    (config(group_s={}), ["group_s: unknown key, did you mean groups?"]),
    (config(pool=5), ["pool: unknown key; known keys are: type, monitor, status, db, groups"]),
    (config(database=[]), ["database: unknown key, use db"]),
    (config(host="h"), ["host: unknown key, use host in db"]),
    (config(autocommit=True), ["autocommit: unknown key, use autocommit in a group"]),
    ({**config(), "db": []}, ["db: expected at least one endpoint, got an empty list"]),
    ({**config(), "db": "h"}, ["db: expected a dict or a list of dicts, got a string"]),
    ({**config(), "db": None}, ["db: expected a dict or a list of dicts, got None"]),
    ({**config(), "db": ["h"]}, ["db[0]: expected a dict, got a string"]),
    (
        {**config(), "db": {}},
        ["db.host: missing; a host name, an address, or the directory of a Unix socket"],
    ),
    (
        {**config(), "db": [{"host": "h"}, {"port": 1}]},
        ["db[1].host: missing; a host name, an address, or the directory of a Unix socket"],
    ),
    (
        {**config(), "db": [{"host": "h"}, {"host": "i"}, {"host": "H", "port": 5432}]},
        ["db[2]: the same host, port, name and user as db[0]; remove one of them"],
    ),
    (
        {**config(), "groups": {}},
        ['groups: expected at least one group, such as {"default": {}}, got an empty dict'],
    ),
    ({**config(), "groups": ["g"]}, ["groups: expected a dict of groups, got a list"]),
    ({**config(), "groups": {"g": None}}, ["groups.g: expected a dict, got None"]),
    ({**config(), "groups": {"": {}}}, ["groups: expected a non-empty, printable name for each group"]),
    ({**config(), "groups": {" ": {}}}, ["groups: expected a non-empty, printable name for each group"]),
    ({**config(), "groups": {"a\0": {}}}, ["groups: expected a non-empty, printable name for each group"]),
    ({**config(), "groups": {"\ud800": {}}}, ["groups: expected a non-empty, printable name for each group"]),
    ({**config(), "groups": {5: {}}}, ["groups: expected strings as names of groups, got a whole number"]),
    ({**config(), "groups": {"a b": {"spill": 1}}}, ["groups['a b'].spill: expected True or False, got 1"]),
]

ENDPOINT_MISTAKES: list[Any] = [
    ("host", "", "expected a string, got an empty string"),
    ("host", " ", "expected a string, got an empty string"),
    ("host", None, "expected a string, got None"),
    ("host", ["a", "b"], "expected a string, got a list"),
    ("host", "a,b", "expected one host, got several; write one entry of db for each"),
    ("host", "[::1]", "expected an address without brackets"),
    ("host", "postgresql://u:pw@h/db", "expected a host name, got a URL; for a URL there is load_url"),
    ("host", "u:pw@h", "expected a host name, got a string with blanks, / or @ in it"),
    ("host", "a\0b", "expected a string, got a string with a NUL character in it"),
    ("host", "\ud800", "expected a string, got a string that is not valid Unicode"),
    ("port", 0, "expected 1 or more, got 0"),
    ("port", 65536, "expected 65535 or less, got 65536"),
    ("port", "5432", "expected a whole number, got '5432'"),
    ("port", "five", "expected a whole number, got a string"),
    ("port", 5432.0, "expected a whole number, got 5432.0"),
    ("port", True, "expected a whole number, got True"),
    ("port", None, "expected a whole number, got None"),
    pytest.param("port", 10**5000, "expected 65535 or less, got a far larger number", id="huge port"),
    ("name", "", "expected a string, got an empty string"),
    ("name", 5, "expected a string, got 5"),
    ("name", b"app", "expected a string, got bytes"),
    ("name", print, "expected a string, got a callable"),
    (
        "name",
        "postgresql://u:pw@h",
        "expected the name of a database, got a URL; for a URL there is load_url",
    ),
    ("user", ["u"], "expected a string, got a list"),
    ("pass", 12345, "expected a string or a callable, got a whole number"),
    ("pass", b"pw", "expected a string or a callable, got bytes"),
    ("pass", ["pw"], "expected a string or a callable, got a list"),
    ("pass", 1.5, "expected a string or a callable, got a number"),
    ("pass", True, "expected a string or a callable, got a boolean"),
    ("pass", object(), "expected a string or a callable, got an object of type object"),
    ("pass", "a\0b", "expected a string or a callable, got a string with a NUL character in it"),
    ("ssl", "on", f"expected one of {SSL}, got 'on'"),
    ("ssl", True, f"expected one of {SSL}, got True"),
    ("ssl", "x" * 21, f"expected one of {SSL}, got a string"),
    ("connect_timeout", 0, "expected more than 0, got 0"),
    ("connect_timeout", -1.5, "expected more than 0, got -1.5"),
    ("connect_timeout", "10", "expected a number of seconds, got '10'"),
    ("connect_timeout", "10s", "expected a number of seconds, got a string"),
    ("connect_timeout", float("nan"), "expected a finite number, got nan"),
    ("connect_timeout", float("inf"), "expected a finite number, got inf"),
    ("connect_timeout", 1e10, "expected 1000000000 or less, got 10000000000.0"),
    pytest.param(
        "connect_timeout", 10**400, "expected a number of seconds, got a far larger number", id="huge timeout"
    ),
    ("connect_timeout", True, "expected a number of seconds, got True"),
    ("query_timeout", -1, "expected 0 or more, got -1"),
    ("query_timeout", 1.5, "expected a whole number, got 1.5"),
    ("query_timeout", 2**31, "expected 2147483647 or less, got 2147483648"),
    ("session_tmp_buffer", 0, "expected 1 or more, got 0"),
    ("session_tmp_buffer", "128MB", "expected a whole number, got a string"),
    ("session_tmp_buffer", 8388608, "expected 8388607 or less, got 8388608"),
    ("keepalives", 1, "expected True or False, got 1"),
    ("keepalives_idle", -1, "expected 0 or more, got -1"),
    ("keepalives_interval", 32768, "expected 32767 or less, got 32768"),
    ("keepalives_count", 128, "expected 127 or less, got 128"),
    ("tcp_user_timeout", -1, "expected 0 or more, got -1"),
    ("priority", "high", "expected a whole number, got a string"),
    ("priority", -(2**40), "expected -2147483647 or more, got -1099511627776"),
    ("weight", 0, "expected more than 0, got 0"),
    ("weight", -1, "expected more than 0, got -1"),
    ("weight", float("inf"), "expected a finite number, got inf"),
    ("tags", "analytics", "expected a list of words, got a string"),
    ("tags", [""], "expected a list of words, got an empty string"),
    ("tags", [1], "expected a list of words, got a list"),
    ("params", "sslrootcert=x", "expected a dict, got a string"),
    ("params", {1: 2}, "expected strings as keys, got a whole number"),
]

GROUP_MISTAKES: list[tuple[str, Any, str]] = [
    ("connection_count", 0, "expected 1 or more, got 0"),
    ("connection_count", "10", "expected a whole number, got '10'"),
    ("connection_count", True, "expected a whole number, got True"),
    ("connection_count", 262144, "expected 262143 or less, got 262144"),
    ("total_count", 0, "expected 1 or more, got 0"),
    ("min_count", -1, "expected 0 or more, got -1"),
    ("min_count", 11, "expected connection_count (10) or less, got 11"),
    ("autocommit", "yes", "expected True or False, got a string"),
    ("autocommit", None, "expected True or False, got None"),
    ("target_session_attrs", "master", f"expected one of {TARGETS}, got 'master'"),
    ("balance", "fastest", "expected one of least-busy, round-robin, random, latency or a callable, got 'fastest'"),
    ("acquire_timeout", -1, "expected 0 or more, got -1"),
    ("acquire_timeout", float("inf"), "expected a finite number, got inf"),
    ("acquire_timeout", None, "expected a number of seconds, got None"),
    ("max_waiting", -1, "expected 0 or more, got -1"),
    ("max_lifetime", -1, "expected 0 or more, got -1"),
    ("max_idle", float("nan"), "expected a finite number, got nan"),
    ("check", "always", "expected one of auto, off, ping or a callable, got 'always'"),
    ("check", False, "expected one of auto, off, ping or a callable, got False"),
    ("configure", "app.setup", "expected a callable, got a string"),
    ("reset", 1, "expected a callable, got 1"),
    ("reconnect_failed", msgspec.UNSET, "expected a callable, got an object of type UnsetType"),
    ("reconnect_timeout", -1, "expected 0 or more, got -1"),
    ("leak_threshold", -1, "expected 0 or more, got -1"),
    ("leak_threshold", True, "expected a number of seconds, got True"),
    ("query_timeout", -1, "expected 0 or more, got -1"),
    ("session_tmp_buffer", 0, "expected 1 or more, got 0"),
    ("tags", "batch", "expected a list of words, got a string"),
    ("spill", 0, "expected True or False, got 0"),
    ("sqlprepare", "true", "expected True or False, got a string"),
]

UNKNOWN_IN_ENDPOINT: list[tuple[str, str]] = [
    ("prot", "db[0].prot: unknown key, did you mean port?"),
    ("Host", "db[0].Host: unknown key, did you mean host?"),
    ("zzz", f"db[0].zzz: unknown key; known keys are: {ENDPOINT_KEYS}"),
    ("dbname", "db[0].dbname: unknown key, use name"),
    ("database", "db[0].database: unknown key, use name"),
    ("password", "db[0].password: unknown key, use pass"),
    ("sslmode", "db[0].sslmode: unknown key, use ssl"),
    ("statement_timeout", "db[0].statement_timeout: unknown key, use query_timeout"),
    ("application_name", "db[0].application_name: unknown key, use params.application_name"),
    ("autocommit", "db[0].autocommit: unknown key, use autocommit in a group"),
    ("target_session_attrs", "db[0].target_session_attrs: unknown key, use target_session_attrs in a group"),
    ("connect timeout", "db[0]['connect timeout']: unknown key, did you mean connect_timeout?"),
]

UNKNOWN_IN_GROUP: list[tuple[str, str]] = [
    ("connectioncount", "groups.g.connectioncount: unknown key, did you mean connection_count?"),
    ("weight", "groups.g.weight: unknown key, use weight in db"),
    ("max_size", "groups.g.max_size: unknown key, use connection_count"),
    ("min_size", "groups.g.min_size: unknown key, use min_count"),
    ("timeout", "groups.g.timeout: unknown key, use acquire_timeout"),
    ("pool_recycle", "groups.g.pool_recycle: unknown key, use max_lifetime"),
]

PARAM_MISTAKES: list[tuple[str, Any, str]] = [
    ("foo", "x", "libpq knows no such parameter"),
    ("aplication_name", "x", "libpq knows no such parameter, did you mean application_name?"),
    ("host", "x", "has a key of its own, use host"),
    ("port", 5, "has a key of its own, use port"),
    ("user", "x", "has a key of its own, use user"),
    ("password", "x", "has a key of its own, use pass"),
    ("dbname", "x", "has a key of its own, use name"),
    ("sslmode", "require", "has a key of its own, use ssl"),
    ("connect_timeout", 3, "has a key of its own, use connect_timeout"),
    ("keepalives_idle", 3, "has a key of its own, use keepalives_idle"),
    ("tcp_user_timeout", 3, "has a key of its own, use tcp_user_timeout"),
    ("target_session_attrs", "any", "not accepted here, use target_session_attrs in a group"),
    ("sslrootcert", 1.5, "expected a string or a whole number, got a number"),
    ("sslrootcert", None, "expected a string or a whole number, got None"),
    ("sslpassword", ["x"], "expected a string or a whole number, got a list"),
    (
        "application_name",
        "a\0b",
        "expected a string or a whole number, got a string with a NUL character in it",
    ),
]


@pytest.mark.parametrize(("given", "expected"), WHOLE_MISTAKES)
def test_mistakes_in_the_whole(given: Any, expected: list[str]) -> None:
    assert problems(load, given) == expected


@pytest.mark.parametrize(("key", "value", "expected"), ENDPOINT_MISTAKES)
def test_mistakes_in_an_endpoint(key: str, value: Any, expected: str) -> None:
    good = {"host": "first"}
    given = {**config(), "db": [good, {"host": "h", key: value}]}
    assert problems(load, given) == [f"db[1].{key}: {expected}"]


@pytest.mark.parametrize(("key", "value", "expected"), GROUP_MISTAKES)
def test_mistakes_in_a_group(key: str, value: Any, expected: str) -> None:
    assert problems(load, config(group={key: value})) == [f"groups.g.{key}: {expected}"]


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [
        ({"interval": 0}, "monitor.interval: expected more than 0, got 0"),
        ({"interval": "1"}, "monitor.interval: expected a number of seconds, got '1'"),
        ({"timeout": 0}, "monitor.timeout: expected more than 0, got 0"),
        ({"timeout": True}, "monitor.timeout: expected a number of seconds, got True"),
        ({"fall": 0}, "monitor.fall: expected 1 or more, got 0"),
        ({"fall": 1001}, "monitor.fall: expected 1000 or less, got 1001"),
        ({"fall": 1.5}, "monitor.fall: expected a whole number, got 1.5"),
        ({"slow_start": -1}, "monitor.slow_start: expected 0 or more, got -1"),
        ({"slow_start": float("nan")}, "monitor.slow_start: expected a finite number, got nan"),
        ({"intervall": 1}, "monitor.intervall: unknown key, did you mean interval?"),
        ({"rise": 2}, "monitor.rise: unknown key; known keys are: interval, timeout, fall, slow_start"),
        ({1: 1}, "monitor: expected strings as keys, got a whole number"),
        ("yes", "monitor: expected a dict, True or False, got a string"),
        (None, "monitor: expected a dict, True or False, got None"),
    ],
)
def test_mistakes_in_the_monitor(monitor: Any, expected: str) -> None:
    assert problems(load, config(monitor=monitor)) == [expected]


@pytest.mark.parametrize(("key", "expected"), UNKNOWN_IN_ENDPOINT)
def test_unknown_keys_in_an_endpoint(key: str, expected: str) -> None:
    assert problems(load, config({key: "x"})) == [expected]


@pytest.mark.parametrize(("key", "expected"), UNKNOWN_IN_GROUP)
def test_unknown_keys_in_a_group(key: str, expected: str) -> None:
    assert problems(load, config(group={key: 1})) == [expected]


@pytest.mark.parametrize(("key", "value", "expected"), PARAM_MISTAKES)
def test_mistakes_in_params(key: str, value: Any, expected: str) -> None:
    assert problems(load, config({"params": {key: value}})) == [f"db[0].params.{key}: {expected}"]


@pytest.mark.parametrize("key", ["sslrootcert", "application_name", "options", "hostaddr", "service", "passfile"])
def test_params_of_libpq_are_accepted(key: str) -> None:
    assert load(config({"params": {key: "x"}})).db[0].params == {key: "x"}


def test_an_unknown_key_that_looks_like_a_value_is_not_shown() -> None:
    (line,) = problems(load, config({f"pass={SECRET}": 1}))
    assert line.startswith("db[0]['...']: unknown key")


def test_counts_that_contradict_each_other() -> None:
    group = {"connection_count": 5, "min_count": 6, "total_count": 4}
    assert problems(load, config(group=group)) == [
        "groups.g.min_count: expected connection_count (5) or less, got 6",
        "groups.g.min_count: expected total_count (4) or less, got 6",
    ]


@pytest.mark.parametrize(
    ("borne", "wanted", "expected"),
    [
        (["batch"], ["bacth"], "groups.g.tags: no endpoint bears 'bacth', did you mean batch?"),
        (["a", "b"], ["zone"], "groups.g.tags: no endpoint bears 'zone'; tags of endpoints are: a, b"),
        ([], ["zone"], "groups.g.tags: no endpoint bears 'zone'; tags of endpoints are: none"),
        (["a"], ["a", "zone"], "groups.g.tags: no endpoint bears 'zone'; tags of endpoints are: a"),
    ],
)
def test_tags_that_no_endpoint_bears(borne: list[str], wanted: list[str], expected: str) -> None:
    assert problems(load, config({"tags": borne}, {"tags": wanted})) == [expected]


def test_all_mistakes_are_told_at_once() -> None:
    given = {
        "type": "x",
        "db": [{"host": "h", "ssl": "on"}, {"port": 0}],
        "groups": {"read": {"connection_count": 0, "connectioncount": 5}, "write": {"check": 1}},
    }
    with pytest.raises(ConfigError) as caught:
        load(given)
    assert str(caught.value).splitlines() == [
        "type: expected one of threaded, non-threaded, got 'x'",
        f"db[0].ssl: expected one of {SSL}, got 'on'",
        "db[1].port: expected 1 or more, got 0",
        "db[1].host: missing; a host name, an address, or the directory of a Unix socket",
        "groups.read.connection_count: expected 1 or more, got 0",
        "groups.read.connectioncount: unknown key, did you mean connection_count?",
        "groups.write.check: expected one of auto, off, ping or a callable, got 1",
    ]


# -- keys of older pools --


@pytest.mark.parametrize(
    "given",
    [
        config({"connection_retry_sleep": 1}),
        config(group={"connection_retry_sleep": 1}),
        config(connection_retry_sleep=1),
        config({"connection_retry_sleep": 1}, {"connection_retry_sleep": 1}, connection_retry_sleep=1),
    ],
    ids=["endpoint", "group", "top", "everywhere"],
)
def test_keys_of_older_pools_give_one_warning(given: dict[str, Any]) -> None:
    with pytest.warns(ConfigWarning) as caught:
        settings = load(given)
    assert settings == load(config())
    (warning,) = caught
    assert str(warning.message) == (
        "connection_retry_sleep has no effect any more: the pool tries again by itself, with growing pauses; "
        "how long a caller waits is acquire_timeout of a group, and how long one attempt may take is "
        "connect_timeout in db"
    )
    assert warning.filename == __file__


def test_the_warning_names_the_users_line_through_other_forms(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text('db.host = "h"\nconnection_retry_sleep = 1\n[groups.g]\n')
    with pytest.warns(ConfigWarning) as from_toml:
        load_toml(file)
    with pytest.warns(ConfigWarning) as from_url:
        load_url("postgresql://h/?connection_retry_sleep=1")
    assert [warning.filename for warning in (*from_toml, *from_url)] == [__file__, __file__]


def test_no_warning_hides_a_mistake() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert problems(load, config({"connection_retry_sleep": 1, "port": 0})) == [
            "db[0].port: expected 1 or more, got 0"
        ]


# -- TOML --

TOML = """
type = "threaded"

[[db]]
host = "db1"
name = "app"
pass = "s3cr3t-Zq9"
connect_timeout = 3
tags = ["batch"]
params = {application_name = "shop"}

[[db]]
host = "db2"
weight = 0.5

[groups.read]
connection_count = 15

[groups."batch jobs"]
tags = ["batch"]
query_timeout = 0
"""


def written(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "pool.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_toml(tmp_path: Path) -> None:
    settings = load_toml(written(tmp_path, TOML))
    assert [endpoint.host for endpoint in settings.db] == ["db1", "db2"]
    assert settings.db[0].password == SECRET
    assert settings.db[0].params == {"application_name": "shop"}
    assert settings.groups["batch jobs"].query_timeout == 0
    assert settings == load_toml(str(tmp_path / "pool.toml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("db.host = 'h'\n[groups.g]\nspil = true\n", "groups.g.spil: unknown key, did you mean spill?"),
        (
            "db.host = 'h'\n[groups.g]\nmax_idle = inf\n",
            "groups.g.max_idle: expected a finite number, got inf",
        ),
        (
            "db.host = 'h'\n[groups.g]\nmax_idle = 10:00:00\n",
            "groups.g.max_idle: expected a number of seconds, got an object of type time",
        ),
        (b"\xff", "not valid TOML: not UTF-8 text"),
        ("x = " + "9" * 5000, "not valid TOML: a number of thousands of digits, or too many levels"),
    ],
)
def test_mistakes_in_toml_name_the_file(tmp_path: Path, text: str | bytes, expected: str) -> None:
    file = written(tmp_path, text)
    assert problems(load_toml, file) == [f"{file}: {expected}"]


def test_broken_toml_does_not_show_the_document(tmp_path: Path) -> None:
    file = written(tmp_path, f'[[db]]\npass = "{SECRET}')
    (line,) = problems(load_toml, file)
    assert line.startswith(f"{file}: not valid TOML: ")
    assert SECRET not in line


def test_toml_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert problems(load_toml, missing) == [f"{missing}: cannot be read: No such file or directory"]
    assert problems(load_toml, "a\0b") == ["a\0b: cannot be read: not a file name"]


# -- URL --


def hosts(settings: Settings) -> list[tuple[str, int]]:
    return [(endpoint.host, endpoint.port) for endpoint in settings.db]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://h", [("h", 5432)]),
        ("postgres://h:5433/", [("h", 5433)]),
        ("postgresql://h:/db", [("h", 5432)]),
        ("postgresql://h1:5432,h2:5433/db", [("h1", 5432), ("h2", 5433)]),
        ("postgresql://h1,h2/db?port=5433", [("h1", 5433), ("h2", 5433)]),
        ("postgresql://h1,h2/db?port=5433,5434", [("h1", 5433), ("h2", 5434)]),
        ("postgresql://[::1],[fe80::1%25eth0]:5433/db", [("::1", 5432), ("fe80::1%eth0", 5433)]),
        ("postgresql://%2Fvar%2Frun%2Fpostgresql/db", [("/var/run/postgresql", 5432)]),
        ("postgresql://%2Frun%2Fpg:5433,h/db", [("/run/pg", 5433), ("h", 5432)]),
        ("postgresql:///db?host=/run/pg&port=5433", [("/run/pg", 5433)]),
        ("postgresql:///db?host=h1,h2&port=1,2", [("h1", 1), ("h2", 2)]),
        ("postgresql://u@/db?host=::1", [("::1", 5432)]),
    ],
)
def test_hosts_of_a_url(url: str, expected: list[tuple[str, int]]) -> None:
    assert hosts(load_url(url)) == expected


@pytest.mark.parametrize(
    ("url", "user", "password", "name"),
    [
        ("postgresql://u:p@h/db", "u", "p", "db"),
        ("postgresql://u@h/db", "u", None, "db"),
        ("postgresql://u:@h", "u", None, None),
        ("postgresql://u%40corp:p%40%2F%3F%3A%25@h/a%20b%2Fc", "u@corp", "p@/?:%", "a b/c"),
        ("postgresql://ü:pä@h/dö", "ü", "pä", "dö"),
        ("postgresql://u:p:q@h", "u", "p:q", None),
        ("postgresql://u:p@q@h", "u", "p@q", None),
        ("postgresql://h?user=u&password=p&dbname=db", "u", "p", "db"),
        ("postgresql://h?user=u&pass=p&name=db", "u", "p", "db"),
        ("postgresql://h?user=a+b", "a+b", None, None),
    ],
)
def test_login_of_a_url(url: str, user: str | None, password: str | None, name: str | None) -> None:
    (endpoint,) = load_url(url).db
    assert (endpoint.user, endpoint.password, endpoint.name) == (user, password, name)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40w@h1:5432/db?connect_timeout=3&application_name=a%20b",
        "postgresql://u@[::1]:5433/db",
        "postgresql://%2Fvar%2Frun%2Fpostgresql/db?sslmode=require",
        "postgresql://h/db?ssl=true",
        "postgresql:///db?host=/run/pg&port=5433&options=-c%20work_mem%3D1MB",
    ],
)
def test_one_host_is_understood_as_libpq_does(url: str) -> None:
    settings = load_url(url)
    (endpoint,) = settings.db
    theirs = psycopg.conninfo.conninfo_to_dict(url)
    ours = conninfo(endpoint, settings.groups["default"], endpoint.password)  # type: ignore[arg-type]
    theirs.pop("connect_timeout", None)
    assert {key: str(ours[key]) for key in theirs} == theirs | {}


def test_query_of_a_url() -> None:
    settings = load_url(
        "postgresql://h1,h2/db?type=non-threaded&sslmode=require&connect_timeout=2.5&query_timeout=5000"
        "&keepalives=0&tags=a,b&priority=0,1&weight=2&sslrootcert=/ca.pem&application_name=shop"
        "&target_session_attrs=prefer-standby&connection_count=3&autocommit=off&max_lifetime=60&check=ping"
    )
    first, second = settings.db
    assert settings.type == "non-threaded"
    assert (first.ssl, first.connect_timeout, first.query_timeout) == ("require", 2.5, 5000)
    assert (first.keepalives, first.tags, first.weight) == (False, {"a", "b"}, 2.0)
    assert first.params == {"sslrootcert": "/ca.pem", "application_name": "shop"}
    assert (first.priority, second.priority) == (0, 1)
    assert second == msgspec.structs.replace(first, host="h2", priority=1)
    assert settings.groups == {
        "default": GroupSettings(
            name="default",
            target_session_attrs="prefer-standby",
            connection_count=3,
            autocommit=False,
            max_lifetime=60.0,
            check="ping",
        )
    }


def test_a_url_alone_gives_one_group() -> None:
    settings = load_url("postgresql://h")
    assert settings == Settings(db=(EndpointSettings(host="h"),), groups={"default": GroupSettings(name="default")})


def test_a_url_with_groups() -> None:
    settings = load_url(
        "postgresql://h?target_session_attrs=primary&max_idle=5",
        groups={"read": {"target_session_attrs": "any"}, "write": {"autocommit": False}},
    )
    assert list(settings.groups) == ["read", "write"]
    assert [group.target_session_attrs for group in settings.groups.values()] == ["any", "primary"]
    assert [group.max_idle for group in settings.groups.values()] == [5.0, 5.0]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"read": {"spill": 1}}, "groups.read.spill: expected True or False, got 1"),
        ({"read": 5}, "groups.read: expected a dict, got a whole number"),
        ([], "groups: expected a dict of groups, got a list"),
    ],
)
def test_mistakes_in_the_groups_beside_a_url(groups: Any, expected: str) -> None:
    assert problems(lambda url: load_url(url, groups=groups), "postgresql://h") == [expected]


ENCODE = "in a password write / as %2F"
PAIRS = "expected key=value, joined by &, after the ?; in a value write = as %3D and & as %26"
NO_HOST = (
    "names no host; write postgresql://localhost/database, or the directory of a Unix socket as "
    "postgresql://%2Fvar%2Frun%2Fpostgresql/database"
)
URL_MISTAKES: list[tuple[Any, str]] = [
    (5, "expected a string, got a whole number"),
    ("", "expected postgresql://user:password@host:port/database"),
    ("mysql://u:s3cr3t-Zq9@h/db", "expected postgresql://user:password@host:port/database"),
    ("host=h password=s3cr3t-Zq9", "expected postgresql://user:password@host:port/database"),
    ("postgresql://", NO_HOST),
    ("postgresql:///db", NO_HOST),
    ("postgresql://u:s3cr3t-Zq9@/db", NO_HOST),
    ("postgresql://h1,,h2", "an empty host"),
    ("postgresql://u:s3cr3t-Zq9@:5432/db", "an empty host"),
    (
        "postgresql://::1:5432/db",
        "a host with several colons; write an IPv6 address in brackets, as [::1]:5432",
    ),
    ("postgresql://[::1/db", "a host with several colons; write an IPv6 address in brackets, as [::1]:5432"),
    ("postgresql://[h/db", "a bracket without its counterpart around an IPv6 address"),
    ("postgresql://h:0/db", f"expected ports from 1 to 65535; {ENCODE}, ? as %3F and @ as %40"),
    ("postgresql://h:70000", f"expected ports from 1 to 65535; {ENCODE}, ? as %3F and @ as %40"),
    ("postgresql://u:s3cr3t-Zq9", f"expected ports from 1 to 65535; {ENCODE}, ? as %3F and @ as %40"),
    (
        "postgresql://u:12345/s3cr3t-Zq9@h/db",
        f"an @ after the host; {ENCODE} and ? as %3F, elsewhere @ as %40",
    ),
    ("postgresql://u:1?s3cr3t-Zq9=1@h/db", f"an @ after the host; {ENCODE} and ? as %3F, elsewhere @ as %40"),
    ("postgresql://h/a/b", "the name of the database has a / in it; write it as %2F"),
    (
        "postgresql://u:s3cr3t-Zq9%zz@h/db",
        "a % that is not followed by two hexadecimal digits; write a % itself as %25",
    ),
    ("postgresql://u:s3cr3t-Zq9%ff@h/db", "what is percent-encoded is not valid UTF-8 text"),
    ("postgresql://u:s3cr3t-Zq9%00@h/db", "what is percent-encoded is not valid UTF-8 text"),
    ("postgresql://u:s3cr3t-Zq9\ud800@h/db", "what is percent-encoded is not valid UTF-8 text"),
    ("postgresql://h?sslmode", PAIRS),
    ("postgresql://h?=x", PAIRS),
    ("postgresql://h?a=b=c", PAIRS),
    ("postgresql://h?&", PAIRS),
    ("postgresql://h?foo=1", "foo: unknown parameter"),
    ("postgresql://h?sslmod=require", "sslmod: unknown parameter, did you mean sslmode?"),
    (
        "postgresql://h?params=1",
        "params: unknown parameter; write the parameters of libpq by their own names",
    ),
    ("postgresql://h?a%20b=1", "a key: unknown parameter"),
    ("postgresql://h?sslmode=require&ssl=require", "ssl: given twice"),
    ("postgresql://u@h?user=u", "user: given twice"),
    ("postgresql://h?host=h", "host: given twice, after the // and after the ?"),
    ("postgresql://h:5432?port=5432", "port: given twice, after the host and after the ?"),
    (
        "postgresql://h1,h2?priority=1,2,3",
        "priority: expected one value, or one for each of the 2 hosts, got 3",
    ),
    ("postgresql://h1,h2?sslmode=on", f"sslmode: expected one of {SSL}, got 'on'"),
    ("postgresql://h?port=0", "port: expected 1 or more, got 0"),
    ("postgresql://h?port=x", "port: expected a whole number, got a string"),
    ("postgresql://h?connect_timeout=0", "connect_timeout: expected more than 0, got 0"),
    ("postgresql://h?connect_timeout=1e3", "connect_timeout: expected a number of seconds, got a string"),
    ("postgresql://h?keepalives=2", "keepalives: expected True or False, got '2'"),
    ("postgresql://h?tags=", "tags: expected a list of words, got an empty string"),
    ("postgresql://h?connection_count=0", "connection_count: expected 1 or more, got 0"),
    ("postgresql://h?configure=x", "configure: expected a callable, got a string"),
    ("postgresql://h?target_session_attrs=rw", f"target_session_attrs: expected one of {TARGETS}, got 'rw'"),
    ("postgresql://h?type=async", "type: expected one of threaded, non-threaded, got 'async'"),
    ("postgresql:///db?host=a%20b", "host: expected a host name, got a string with blanks, / or @ in it"),
]


@pytest.mark.parametrize(("url", "expected"), URL_MISTAKES)
def test_mistakes_in_a_url(url: Any, expected: str) -> None:
    assert problems(load_url, url) == [f"url: {expected}"]


def test_the_same_host_twice_in_a_url() -> None:
    assert problems(load_url, "postgresql://h,h/db") == [
        "db[1]: the same host, port, name and user as db[0]; remove one of them"
    ]


# -- what libpq is told --


def both(endpoint: Any = None, group: Any = None) -> tuple[EndpointSettings, GroupSettings]:
    settings = load(config(endpoint, group))
    return settings.db[0], settings.groups["g"]


def test_conninfo_of_a_bare_endpoint() -> None:
    assert conninfo(*both(), None) == {
        "host": "h",
        "port": 5432,
        "sslmode": "prefer",
        "target_session_attrs": "any",
        "hostaddr": "",
        "fallback_application_name": "pgdbpool:g",
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 10000,
    }


def test_conninfo_of_a_full_endpoint() -> None:
    endpoint, group = both(
        {
            "name": "app",
            "user": "u",
            "ssl": "require",
            "connect_timeout": 3,
            "keepalives": False,
            "query_timeout": 5000,
            "params": {"application_name": "shop", "sslsni": 0, "fallback_application_name": "x"},
        }
    )
    assert conninfo(endpoint, group, SECRET) == {
        "host": "h",
        "port": 5432,
        "dbname": "app",
        "user": "u",
        "password": SECRET,
        "sslmode": "require",
        "target_session_attrs": "any",
        "hostaddr": "",
        "fallback_application_name": "x",
        "keepalives": 0,
        "tcp_user_timeout": 10000,
        "application_name": "shop",
        "sslsni": "0",
        "options": "-c statement_timeout=5000",
    }


@pytest.mark.parametrize("host", ["/run/postgresql", "@abstract"])
def test_conninfo_of_a_unix_socket_has_nothing_of_tcp(host: str) -> None:
    info = conninfo(*both({"host": host}), None)
    assert info.keys() == {"host", "port", "sslmode", "target_session_attrs", "hostaddr", "fallback_application_name"}


@pytest.mark.parametrize(
    ("endpoint", "group", "expected"),
    [
        ({}, {}, {}),
        ({"query_timeout": 5000}, {}, {"statement_timeout": "5000"}),
        ({"query_timeout": 5000}, {"query_timeout": 0}, {"statement_timeout": "0"}),
        ({}, {"query_timeout": 7}, {"statement_timeout": "7"}),
        ({"session_tmp_buffer": 128}, {}, {"temp_buffers": "128MB"}),
        (
            {"session_tmp_buffer": 128, "query_timeout": 1},
            {"session_tmp_buffer": 8},
            {"statement_timeout": "1", "temp_buffers": "8MB"},
        ),
    ],
)
def test_session_settings(endpoint: Any, group: Any, expected: dict[str, str]) -> None:
    pair = both(endpoint, group)
    assert session_settings(*pair) == expected
    options = " ".join(f"-c {name}={value}" for name, value in expected.items())
    assert conninfo(*pair, None).get("options", "") == options
    assert "options" not in conninfo(*pair, None, startup_options=False)


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ("-c work_mem=1MB", r"-c work_mem=1MB -c statement_timeout=5"),
        (r"-c x.y=a\ b", r"-c x.y=a\ b -c statement_timeout=5"),
        ("-c x.y=a\\ ", "-c x.y=a\\  -c statement_timeout=5"),
        ("-c x.y=a\\", "-c x.y=a -c statement_timeout=5"),
        ("-c x.y=a\\\\", "-c x.y=a\\\\ -c statement_timeout=5"),
        ("", "-c statement_timeout=5"),
    ],
)
def test_the_users_own_options_come_first(users: str, expected: str) -> None:
    pair = both({"query_timeout": 5, "params": {"options": users}})
    assert conninfo(*pair, None)["options"] == expected
    assert conninfo(*pair, None, startup_options=False)["options"] == users


def split_as_the_server_does(options: str) -> list[str]:
    """PostgreSQL's rule for startup options: blanks separate, a backslash takes the next character."""
    words = re.findall(r"(?:\\.|\\$|[^\s\\])+", options, re.DOTALL)
    return [re.sub(r"\\(.?)", r"\1", word, flags=re.DOTALL) for word in words if word != "\\"]


@given(st.text(alphabet="ab-c=\\ \t", max_size=12))
def test_ours_never_changes_the_users_options(users: str) -> None:
    pair = both({"query_timeout": 5, "params": {"options": "x" + users}})
    merged = conninfo(*pair, None)["options"]
    assert isinstance(merged, str)
    expected = [*split_as_the_server_does("x" + users), "-c", "statement_timeout=5"]
    assert split_as_the_server_does(merged) == expected


def test_libpq_takes_all_of_it() -> None:
    endpoint, group = both(
        {
            "host": "/no such\\dir'",
            "name": "a b",
            "query_timeout": 5,
            "params": {"options": r"-c x.y=a\ b", "application_name": "it's"},
        }
    )
    info = conninfo(endpoint, group, "p'w \\")
    parsed = psycopg.conninfo.conninfo_to_dict(psycopg.conninfo.make_conninfo(**info))
    assert parsed == {key: str(value) for key, value in info.items()}


# -- frozen --


def test_settings_are_frozen() -> None:
    settings = load(config({"params": {"options": "x"}}))
    for target in (settings, settings.db[0], settings.groups["g"]):
        with pytest.raises(AttributeError):
            setattr(target, target.__struct_fields__[0], "x")
    for mapping in (settings.groups, settings.db[0].params):
        with pytest.raises(TypeError):
            mapping["g"] = "x"  # type: ignore[index]
    hash(settings)


def test_settings_do_not_change_with_what_they_were_made_of() -> None:
    given = config({"params": {"options": "x"}, "tags": ["t"]})
    settings = load(given)
    before = copy.deepcopy(settings)
    given["db"][0]["params"]["options"] = "y"
    given["db"][0]["tags"].append("u")
    given["db"].append({})
    given["groups"]["h"] = {}
    assert settings == before


def test_made_directly_they_freeze_what_they_are_given() -> None:
    params = {"options": "x"}
    endpoint = EndpointSettings(host="h", params=params, tags={"a"})  # type: ignore[arg-type]
    params["options"] = "y"
    assert endpoint.params == {"options": "x"}
    assert isinstance(endpoint.tags, frozenset)
    settings = Settings(db=[endpoint], groups={})  # type: ignore[arg-type]
    assert settings.db == (endpoint,)


def test_settings_survive_pickle_and_copy() -> None:
    settings = load(config({"pass": SECRET, "params": {"options": "x"}, "tags": ["t"]}))
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert copy.deepcopy(settings) == settings
    assert pickle.loads(pickle.dumps(settings)).db[0].password == SECRET


# -- secrets --


def rotating() -> str:
    """A callable password, whose name must not be shown either."""
    return SECRET


@pytest.mark.parametrize("password", [SECRET, rotating], ids=["text", "callable"])
def test_no_secret_in_any_repr(password: Any) -> None:
    settings = load(
        config(
            {
                "pass": password,
                "params": {"sslpassword": SECRET, "oauth_client_secret": SECRET, "passfile": "/shown"},
            }
        )
    )
    endpoint = settings.db[0]
    for text in (
        repr(settings),
        str(settings),
        f"{endpoint}",
        repr(endpoint),
        str(list(endpoint.__rich_repr__())),
    ):
        assert SECRET not in text
        assert "rotating" not in text
        assert "password='***'" in text or "('password', '***')" in text
        assert "/shown" in text


def test_an_absent_password_is_shown_as_absent() -> None:
    assert "password=None" in repr(EndpointSettings(host="h"))


def test_no_secret_through_rich() -> None:
    pretty = pytest.importorskip("rich.pretty")
    settings = load(config({"pass": SECRET, "params": {"sslpassword": SECRET}}))
    assert SECRET not in pretty.pretty_repr(settings)


@pytest.mark.parametrize(
    "given",
    [
        config({"pass": SECRET, "port": 0}),
        config({"pass": [SECRET]}),
        config({"pass": {SECRET: SECRET}}),
        config({"pass": SECRET.encode()}),
        config({"password": SECRET}),
        config({"port": SECRET, "name": [SECRET], "query_timeout": SECRET}),
        config({"host": f"postgresql://u:{SECRET}@h"}),
        config({"host": f"u:{SECRET}@h"}),
        config({"params": {"sslpassword": [SECRET], "password": SECRET, "foo": SECRET}}),
        config({"params": SECRET}),
        {"db": f"postgresql://u:{SECRET}@h", "groups": {}},
        {"db": {f"postgresql://u:{SECRET}@h": 1}, "groups": {}},
        {f"postgresql://u:{SECRET}@h": 1, "groups": {}, "db": [SECRET]},
        f"postgresql://u:{SECRET}@h",
    ],
)
def test_no_secret_in_any_message(given: Any) -> None:
    assert SECRET not in "".join(problems(load, given))


# -- whatever is given, it is an answer or a ConfigError --

KEYS = st.sampled_from(
    [
        *("type", "db", "groups", "host", "port", "name", "user", "ssl", "weight", "tags", "params", "g"),
        *("connection_count", "min_count", "total_count", "check", "balance", "max_idle", "query_timeout"),
        *("connect_timeout", "autocommit", "options", "application_name", "target_session_attrs", ""),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["h", "any", "threaded", "on", "prefer", "5"])
)


def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(children, max_size=4) | st.dictionaries(KEYS | st.text(max_size=8), children, max_size=5)


ANYTHING = st.recursive(SCALARS, nested, max_leaves=12)


def with_password(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "pass": SECRET}


ENTRIES = st.dictionaries(KEYS, ANYTHING, max_size=5).map(with_password)
NEARLY = st.fixed_dictionaries(
    {"db": ENTRIES | st.lists(ENTRIES, max_size=3) | ANYTHING},
    optional={
        "groups": st.dictionaries(st.text(max_size=4), st.dictionaries(KEYS, ANYTHING, max_size=5), max_size=3),
        "type": ANYTHING,
    },
)


def answer(call: Callable[[Any], Settings], argument: Any) -> Settings | ConfigError:
    """Settings or the error. Whatever else is raised fails the test, and so does the password in a text."""
    try:
        result: Settings | ConfigError = call(argument)
    except ConfigError as error:
        result = error
    if isinstance(result, ConfigError):
        assert result.problems
        assert all(re.match(r"[^\n]+: .", line) for line in result.problems)
    assert SECRET not in str(result) + repr(result)
    return result


@given(ANYTHING | NEARLY)
@example(json.loads('{"db": {"host": "h"}, "groups": {"g": {}}}'))
def test_anything_given_to_load_is_answered(given: Any) -> None:
    result = answer(load, given)
    if isinstance(result, Settings):
        assert load(result) == result
        assert isinstance(given, Mapping)


@given(st.text(alphabet=f"postgresql:/@[]?&=,.%20h1{SECRET}\0", max_size=30))
def test_any_text_given_to_load_url_is_answered(text: str) -> None:
    answer(load_url, text)
    answer(load_url, f"postgresql://u:{SECRET}@{text}")
    answer(load_url, f"postgresql://u:{text}{SECRET}@h/db")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_in_a_toml_file_are_answered(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(content)
    answer(load_toml, file)
