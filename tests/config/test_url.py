"""A configuration in a URL."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
import pytest

from pgdbpool.config import EndpointSettings, GroupSettings, Settings, conninfo, load_url
from pgdbpool.drivers.sealed import sealed

from .support import SSL, TARGETS, problems


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
        ("postgresql+psycopg://h:5433/db", [("h", 5433)]),
        ("postgresql+psycopg_async://h1,h2:5433/db", [("h1", 5432), ("h2", 5433)]),
        ("postgresql+asyncpg://h/db", [("h", 5432)]),
        ("postgres+psycopg2://h/db", [("h", 5432)]),
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
    told = psycopg.conninfo.conninfo_to_dict(sealed(ours).opened()[0].reveal())
    assert {key: told[key] for key in theirs} == theirs


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
URL_MISTAKES: list[tuple[Any, str]] = [
    (5, "expected a string, got a whole number"),
    ("", "expected postgresql://user:password@host:port/database"),
    ("mysql://u:s3cr3t-Zq9@h/db", "expected postgresql://user:password@host:port/database"),
    ("postgresql+://u:s3cr3t-Zq9@h/db", "expected postgresql://user:password@host:port/database"),
    ("host=h password=s3cr3t-Zq9", "expected postgresql://user:password@host:port/database"),
    ("postgresql://h1,,h2", "an empty host"),
    ("postgresql://u:s3cr3t-Zq9@,h:5432/db", "an empty host"),
    ("postgresql:///db?host=", "host: expected a host, got nothing; without it libpq chooses"),
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
    ("postgresql://h?configure=os.getpid", "configure: a URL cannot name a callable; give it in groups"),
    (
        "postgresql://h?row_factory=psycopg.rows:dict_row",
        "row_factory: a URL cannot name a callable; give it in groups",
    ),
    ("postgresql://h?target_session_attrs=rw", f"target_session_attrs: expected one of {TARGETS}, got 'rw'"),
    ("postgresql://h?type=async", "type: expected one of threaded, non-threaded, got 'async'"),
    ("postgresql:///db?host=a%20b", "host: expected a host name, got a string with blanks, / or @ in it"),
]


@pytest.mark.parametrize(("url", "expected"), URL_MISTAKES)
def test_mistakes_in_a_url(url: Any, expected: str) -> None:
    assert problems(load_url, url) == [f"url: {expected}"]


def test_all_mistakes_of_a_url_are_told_at_once() -> None:
    url = "postgresql://u:s3cr3t-Zq9%zz@h1:x,,[h2/a/b?sslmod=require&port&autocommit=2&ssl=on&priority=1,2&configure=x"
    assert problems(load_url, url) == [
        "url: a % that is not followed by two hexadecimal digits; write a % itself as %25",
        "url: the name of the database has a / in it; write it as %2F",
        "url: sslmod: unknown parameter, did you mean sslmode?",
        f"url: {PAIRS}",
        f"url: expected ports from 1 to 65535; {ENCODE}, ? as %3F and @ as %40",
        "url: an empty host",
        "url: a bracket without its counterpart around an IPv6 address",
        "url: priority: expected one value, or one for each of the 3 hosts, got 2",
        f"url: ssl: expected one of {SSL}, got 'on'",
        "url: autocommit: expected True or False, got '2'",
        "url: configure: expected a callable, got a string",
    ]


def test_several_addresses_are_those_of_the_hosts_in_turn() -> None:
    settings = load_url("postgresql://h1,h2/db?hostaddr=10.0.0.1,10.0.0.2&application_name=shop")
    assert [dict(endpoint.params) for endpoint in settings.db] == [
        {"application_name": "shop", "hostaddr": "10.0.0.1"},
        {"application_name": "shop", "hostaddr": "10.0.0.2"},
    ]
    assert problems(load_url, "postgresql://h1,h2/db?hostaddr=10.0.0.1,10.0.0.2,10.0.0.3") == [
        "url: hostaddr: expected one for each of the 2 hosts, got 3"
    ]
    assert problems(load_url, "postgresql://h1,h2/db?hostaddr=10.0.0.1") == [
        "url: hostaddr: expected one for each of the 2 hosts, got 1"
    ]
    assert load_url("postgresql://h1/db?hostaddr=10.0.0.1").db[0].params == {"hostaddr": "10.0.0.1"}


def test_the_same_host_twice_in_a_url() -> None:
    assert problems(load_url, "postgresql://h,h/db") == [
        "db[1]: the same host, port, name and user as db[0]; remove one of them"
    ]
