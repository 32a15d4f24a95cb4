"""A configuration in a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgdbpool.config import load_toml

from .support import SECRET, problems

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


# -- with overrides --


def noop(*_: object) -> None:
    """A callable, which no file can have."""


def test_overrides_count_instead_of_what_the_file_says(tmp_path: Path) -> None:
    overrides = {
        "type": "non-threaded",
        "monitor": {"fall": 3},
        "db": {"pass": noop, "params": {"sslsni": 1}},
        "groups": {"read": {"configure": noop, "connection_count": 2}, "new": {"spill": True}},
    }
    settings = load_toml(written(tmp_path, TOML), overrides=overrides)
    assert settings.type == "non-threaded"
    assert settings.monitor is not None
    assert settings.monitor.fall == 3
    assert [endpoint.host for endpoint in settings.db] == ["db1", "db2"]
    assert [endpoint.password for endpoint in settings.db] == [noop, noop]
    assert [dict(each.params) for each in settings.db] == [{"application_name": "shop", "sslsni": "1"}, {"sslsni": "1"}]
    assert list(settings.groups) == ["read", "batch jobs", "new"]
    assert (settings.groups["read"].configure, settings.groups["read"].connection_count) == (noop, 2)
    assert settings.groups["batch jobs"].tags == {"batch"}


def test_a_list_of_endpoints_takes_the_place_of_those_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "db.host = 'h'\n[groups.g]\n")
    assert [each.host for each in load_toml(file, overrides={"db": [{"host": "x"}, {"host": "y"}]}).db] == ["x", "y"]
    assert load_toml(file, overrides={"db": {"port": 1}}).db[0].label == "h:1"
    assert load_toml(file, overrides={}) == load_toml(file) == load_toml(file, overrides=None)
    file = written(tmp_path, "[groups.g]\n")
    assert load_toml(file, overrides={"db": {"host": "h"}}).db[0].host == "h"


def test_one_way_to_give_a_password_takes_the_place_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_DB_PASSWORD", SECRET)
    file = written(tmp_path, "db.host = 'h'\ndb.pass_env = 'NO_SUCH_VARIABLE'\n[groups.g]\n")
    assert load_toml(file, overrides={"db": {"pass": "x"}}).db[0].password == "x"
    file = written(tmp_path, "db.host = 'h'\ndb.pass = 'x'\n[groups.g]\n")
    assert load_toml(file, overrides={"db": {"pass_env": "SHOP_DB_PASSWORD"}}).db[0].password == SECRET


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"db": {"prt": 1}}, "{file} with overrides: db.prt: unknown key, did you mean port?"),
        (
            {"groups": {"g": {"spill": SECRET}}},
            "{file} with overrides: groups.g.spill: expected True or False, got a string",
        ),
        ({"groups": {"g": 1}}, "{file} with overrides: groups.g: expected a dict, got a whole number"),
        ({"db": 1}, "{file} with overrides: db: expected a dict or a list of dicts, got a whole number"),
        ([SECRET], "overrides: expected a dict, got a list"),
    ],
)
def test_mistakes_in_overrides(tmp_path: Path, overrides: Any, expected: str) -> None:
    file = written(tmp_path, "db.host = 'h'\n[groups.g]\n")
    assert problems(lambda path: load_toml(path, overrides=overrides), file) == [expected.format(file=file)]
