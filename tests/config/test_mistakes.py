"""Every mistake, and its message: a path, what is wrong there, and the line the user sees."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pgdbpool.config import load
from pgdbpool.errors import ConfigError

from .support import SECRET, SSL, TARGETS, config, problems

ENDPOINT_KEYS = (
    "host, port, name, user, pass, pass_env, ssl, connect_timeout, query_timeout, session_tmp_buffer, pooler, "
    "keepalives, keepalives_idle, keepalives_interval, keepalives_count, tcp_user_timeout, priority, weight, tags, "
    "params"
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
        {**config(), "db": {"params": {"service": "no such"}}},
        ['db.host: missing, and libpq cannot choose one: definition of service "no such" not found'],
    ),
    (
        {**config(), "db": [{}, {"host": "h"}, {}]},
        ["db[2]: the same host, port, name and user as db[0]; remove one of them"],
    ),
    (
        config({"ssl": "require", "params": {"sslrootcert": "system"}}),
        ["db[0].ssl: expected verify-full beside sslrootcert = system; or leave ssl out"],
    ),
    (config({"pass": "x", "pass_env": "HOME"}), ["db[0].pass_env: expected pass or pass_env, not both"]),
    (
        config({"params": {"hostaddr": "10.0.0.1,10.0.0.2"}}),
        ["db[0].params.hostaddr: expected one address, got several; write one entry of db for each"],
    ),
    (
        config({"params": {"hostaddr": ["10.0.0.1"]}}),
        ["db[0].params.hostaddr: expected a string or a whole number, got a list"],
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
    ("pass_env", 5, "expected the name of an environment variable, got a whole number"),
    ("pass_env", "", "expected the name of an environment variable, got an empty string"),
    ("pass_env", "my secret", "expected the name of an environment variable, such as SHOP_DB_PASSWORD"),
    ("pass_env", "${NO_SUCH}", "expected the name of an environment variable, such as SHOP_DB_PASSWORD"),
    ("pass_env", "NO_SUCH_VARIABLE", "the environment variable that it names is not set"),
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
    ("pooler", "statement", "expected one of transaction, session, got 'statement'"),
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
    ("configure", "setup", "expected a callable, got a string"),
    (
        "configure",
        "no_such_package.setup",
        (
            "cannot import 'no_such_package.setup': importing no_such_package raised ModuleNotFoundError: "
            "No module named 'no_such_package'"
        ),
    ),
    ("check", "psycopg.rows.no_such", "cannot import 'psycopg.rows.no_such': module psycopg.rows has no 'no_such'"),
    ("row_factory", "os:sep", "expected a callable, got the name of a string"),
    ("row_factory", 1, "expected a callable, got 1"),
    ("connection_class", print, "expected a class of connections, got a callable"),
    ("connection_class", "psycopg.connect", "expected a class of connections, got the name of a callable"),
    ("context", {}, "expected an object with adapters, got a dict"),
    ("prepare_threshold", True, "expected a whole number, got True"),
    ("prepare_threshold", -1, "expected 0 or more, got -1"),
    ("close_returns", 1, "expected True or False, got 1"),
    ("reset", 1, "expected one of none, state or a callable, got 1"),
    ("reset", "all", "expected one of none, state or a callable, got 'all'"),
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
        ({"max_lifetime": 0}, "monitor.max_lifetime: expected more than 0, got 0"),
        ({"slow_start": -1}, "monitor.slow_start: expected 0 or more, got -1"),
        ({"slow_start": float("nan")}, "monitor.slow_start: expected a finite number, got nan"),
        ({"intervall": 1}, "monitor.intervall: unknown key, did you mean interval?"),
        ({"rise": 2}, "monitor.rise: unknown key; known keys are: interval, timeout, fall, max_lifetime, slow_start"),
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
        "groups.read.connection_count: expected 1 or more, got 0",
        "groups.read.connectioncount: unknown key, did you mean connection_count?",
        "groups.write.check: expected one of auto, off, ping or a callable, got 1",
    ]


@pytest.mark.parametrize(("value", "expected"), [("", "is empty"), ("a\udcff", "has no valid Unicode in it")])
def test_a_variable_without_a_password_in_it(monkeypatch: pytest.MonkeyPatch, value: str, expected: str) -> None:
    monkeypatch.setenv("SHOP_DB_PASSWORD", value)
    assert problems(load, config({"pass_env": "SHOP_DB_PASSWORD"})) == [
        f"db[0].pass_env: the environment variable that it names {expected}"
    ]
