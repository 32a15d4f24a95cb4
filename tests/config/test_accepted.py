"""What is accepted, with which defaults; and what is made of it does not change."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import psycopg
import pytest

from pgdbpool.config import (
    EndpointSettings,
    GroupSettings,
    MonitorSettings,
    Settings,
    StatusSettings,
    keys,
    load,
    load_toml,
    load_url,
)
from pgdbpool.errors import ConfigWarning

from .support import SECRET, config, problems

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
        "ssl": None,
        "connect_timeout": 10.0,
        "query_timeout": None,
        "session_tmp_buffer": None,
        "pooler": None,
        "keepalives": True,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 10000,
        "priority": 0,
        "weight": 1.0,
        "tags": frozenset(),
        "params": {},
        "chosen": {},
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
        "reset": "none",
        "reconnect_failed": None,
        "reconnect_timeout": 300.0,
        "leak_threshold": 0.0,
        "query_timeout": None,
        "session_tmp_buffer": None,
        "tags": frozenset(),
        "spill": False,
        "sqlprepare": False,
        "connection_class": None,
        "cursor_factory": None,
        "row_factory": None,
        "context": None,
        "prepare_threshold": "auto",
        "close_returns": False,
        "chosen": {},
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
    expected = MonitorSettings(interval=1.0, timeout=1.0, fall=2, max_lifetime=60.0, slow_start=10.0)
    assert load(config()).monitor == expected
    assert load(config(monitor={"fall": 3, "interval": 2})).monitor == MonitorSettings(fall=3, interval=2.0)
    assert load(config(monitor=False)).monitor is None


def test_settings_are_returned_as_they_are() -> None:
    settings = load(config())
    assert load(settings) is settings


@pytest.mark.parametrize("key", ["name", "user", "pass", "pass_env", "query_timeout", "session_tmp_buffer", "pooler"])
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


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("row_factory", "psycopg.rows.dict_row", psycopg.rows.dict_row),
        ("row_factory", "psycopg.rows:dict_row", psycopg.rows.dict_row),
        ("connection_class", "psycopg.AsyncConnection", psycopg.AsyncConnection),
        ("cursor_factory", "psycopg.ClientCursor", psycopg.ClientCursor),
        ("context", "psycopg.adapters", psycopg.adapters),
        ("configure", f"{__name__}.noop", noop),
        ("check", f"{__name__}:noop", noop),
        ("balance", f"{__name__}.noop", noop),
    ],
)
def test_what_a_group_takes_may_be_given_by_its_name(key: str, name: str, value: object) -> None:
    assert getattr(load(config(group={key: name})).groups["g"], key) is value


def test_a_password_with_a_dot_in_it_is_no_name() -> None:
    assert load(config({"pass": "os.getpid"})).db[0].password == "os.getpid"


@pytest.mark.parametrize("value", [None, False])
def test_prepare_threshold_is_a_number_or_never(value: object) -> None:
    assert load(config(group={"prepare_threshold": value})).groups["g"].prepare_threshold is None
    assert load(config(group={"prepare_threshold": 0})).groups["g"].prepare_threshold == 0


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
        *(("reset", word) for word in ("none", "state")),
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


def test_a_password_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DB_PASSWORD", SECRET)
    settings = load(config({"pass_env": "SHOP_DB_PASSWORD"}))
    assert settings == load(config({"pass": SECRET}))
    assert settings.db[0].password == SECRET
    assert SECRET not in repr(settings)
    assert settings == load_url("postgresql://h?pass_env=SHOP_DB_PASSWORD", groups={"g": {}})


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
    manual = (Path(__file__).parents[2] / "docs" / f"{page}.rst").read_text()
    _, _, rest = manual.partition(f"\n{section}\n{'-' * len(section)}\n")
    return re.findall(r"^   \* - ``(\w+)``$", rest.partition("\n---")[0], re.MULTILINE)


def test_the_manual_has_every_key() -> None:
    group = [key for key in GroupSettings.__struct_fields__ if key not in ("name", "chosen")]
    assert keys_of_the_manual("The whole") == list(Settings.__struct_fields__)
    assert keys_of_the_manual("Endpoints") == list(keys.ENDPOINT)
    assert keys_of_the_manual("Groups") == group
    assert keys_of_the_manual("Monitor") == list(MonitorSettings.__struct_fields__)
    assert keys_of_the_manual("What a process publishes", "status-page") == list(StatusSettings.__struct_fields__)


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
    settings = load(config({"params": {"options": "x"}, "tags": ["t"]}))
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert copy.deepcopy(settings) == settings


@pytest.mark.parametrize("entry", [{"pass": SECRET}, {"params": {"sslpassword": SECRET}}])
def test_settings_with_a_secret_are_copied_and_not_pickled(entry: dict[str, Any]) -> None:
    settings = load(config(entry))
    assert copy.deepcopy(settings) == settings == copy.copy(settings)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled; give the other process the configuration"):
            pickle.dumps(settings, protocol)
