"""A configuration in a TOML file."""

from __future__ import annotations

from pathlib import Path

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
