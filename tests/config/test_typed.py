"""The keys of a configuration as editors and type checkers know them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pgdbpool.config import ConfigDict, EndpointDict, GroupDict, MonitorDict, StatusDict, keys, load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("typed", "accepted"),
    [
        (ConfigDict, keys.TOP),
        (EndpointDict, keys.ENDPOINT),
        (GroupDict, keys.GROUP),
        (MonitorDict, keys.MONITOR),
        (StatusDict, keys.STATUS),
    ],
    ids=["top", "endpoint", "group", "monitor", "status"],
)
def test_the_typed_keys_are_those_that_are_accepted(typed: type, accepted: dict[str, keys.Kind]) -> None:
    assert set(typed.__annotations__) == set(accepted)


def test_a_typed_configuration_is_a_configuration() -> None:
    config: ConfigDict = {"db": [{"host": "h", "pass": "x"}], "groups": {"read": {"connection_count": 3}}}
    assert load(config).groups["read"].connection_count == 3


def judged_by_mypy(tmp_path: Path, program: str) -> str:
    file = tmp_path / "program.py"
    file.write_text(program)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        f"--cache-dir={tmp_path / 'cache'}",
        str(file),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout


GOOD = """
import os
from pgdbpool import AsyncPool, Pool
from pgdbpool.config import ConfigDict, EndpointDict, load

def of_the_program() -> str:
    return "x"

first: EndpointDict = {"host": "db1", "pass": of_the_program, "tags": ["a"], "params": {"sslsni": False}}
config: ConfigDict = {
    "type": "threaded",
    "monitor": {"fall": 3},
    "status": False,
    "db": [first, {"host": "db2", "weight": 2}],
    "groups": {"read": {"balance": "latency", "check": lambda conn: None}},
}
Pool(config)
AsyncPool(config, name="shop")
Pool({"db": {"host": "db1"}, "groups": {"default": {}}})
Pool.from_url(os.environ["DATABASE_URL"], groups={"read": {"autocommit": True}})
load(config)
"""


def test_mypy_accepts_the_readmes_example_and_typed_configurations(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    assert judged_by_mypy(tmp_path, example[1] + GOOD).startswith("Success")


def test_mypy_finds_a_key_that_does_not_exist(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    said = judged_by_mypy(tmp_path, GOOD.replace('"balance"', '"blance"').replace('"fall": 3', '"fall": "3"'))
    assert '"blance"' in said
    assert 'item "monitor" has type' in said
    assert "Found 2 errors" in said
