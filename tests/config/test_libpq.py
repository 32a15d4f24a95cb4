"""What libpq is told."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdbpool.config import EndpointSettings, GroupSettings, conninfo, load, session_settings
from pgdbpool.core.evidence import Fault
from pgdbpool.drivers import ConnectFailed
from pgdbpool.drivers.sealed import sealed

from .support import SECRET, config


def both(endpoint: Any = None, group: Any = None) -> tuple[EndpointSettings, GroupSettings]:
    settings = load(config(endpoint, group))
    return settings.db[0], settings.groups["g"]


def test_conninfo_of_a_bare_endpoint() -> None:
    assert conninfo(*both(), None) == {
        "host": "h",
        "port": 5432,
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
    assert info.keys() == {"host", "port", "target_session_attrs", "hostaddr", "fallback_application_name"}


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
    parsed = psycopg.conninfo.conninfo_to_dict(sealed(info).opened()[0].reveal())
    assert parsed == {key: str(value) for key, value in info.items()} | {"password": "p'w \\"}


@given(st.dictionaries(st.sampled_from(["host", "user", "password", "options"]), st.text(max_size=12), min_size=1))
def test_libpq_reads_what_it_is_told_or_is_told_nothing(info: dict[str, str]) -> None:
    if "\0" in "".join(info.values()):
        with pytest.raises(ConnectFailed, match="NUL") as caught:
            sealed(info)
        assert caught.value.fault is Fault.MISCONFIGURED
        return
    try:
        "".join(info.values()).encode()
    except UnicodeEncodeError:
        with pytest.raises(ConnectFailed, match="no Unicode"):
            sealed(info)
        return
    assert psycopg.conninfo.conninfo_to_dict(sealed(info).opened()[0].reveal()) == info
