"""What a pool is called: in the log, in metrics, in the names of its threads."""

import itertools
import logging
import threading

import pytest
from conftest import config, wait_for
from support import LIMIT

from pgdbpool import AsyncPool, ConfigError, Connection, Pool

NOWHERE = {"db": {"host": "h"}, "groups": {"default": {}}}
_numbers = itertools.count(1)


@pytest.fixture
def name():
    """One that no pool has had."""
    return f"shop {next(_numbers)}"


@pytest.mark.parametrize("kind", [Pool, AsyncPool])
def test_a_pool_is_called_as_it_is_told(kind, name):
    first, second, third = (kind(NOWHERE, name=name, open=False) for _ in range(3))
    assert [pool.name for pool in (first, second, third)] == [name, f"{name}-2", f"{name}-3"]
    assert [pool.stats().name for pool in (first, second)] == [name, f"{name}-2"]
    assert kind(NOWHERE, name=f"{name}-2", open=False).name == f"{name}-2-2"
    assert kind(NOWHERE, open=False).name.startswith("pgdbpool-")


@pytest.mark.parametrize("kind", [Pool, AsyncPool])
def test_a_pool_from_a_url_or_a_file_has_a_name_too(kind, name, tmp_path):
    assert kind.from_url("postgresql+asyncpg://h/db", name=name, open=False).name == name
    file = tmp_path / "pool.toml"
    file.write_text("db.host = 'h'\n[groups.g]\n")
    pool = kind.from_toml(file, overrides={"groups": {"more": {}}}, name=name, open=False)
    assert pool.name == f"{name}-2"
    assert list(pool._groups) == ["g", "more"]
    assert list(kind.from_url("postgres://h", groups={"a": {}, "b": {}}, open=False)._groups) == ["a", "b"]


@pytest.mark.parametrize("kind", [Pool, AsyncPool])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (5, "name: expected a string, got a whole number"),
        ("", "name: expected up to 60 printable characters"),
        (" ", "name: expected up to 60 printable characters"),
        ("a\nb", "name: expected up to 60 printable characters"),
        ("a" * 61, "name: expected up to 60 printable characters"),
    ],
)
def test_what_can_be_no_name_is_an_error(kind, wrong, words):
    with pytest.raises(ConfigError) as caught:
        kind(NOWHERE, name=wrong, open=False)
    assert str(caught.value) == words


def test_the_process_wide_pool_may_have_a_name(name):
    try:
        assert Connection.init({**NOWHERE, "type": "non-threaded"}, name=name).name == name
    finally:
        Connection.close(timeout=0.0)


def test_the_log_and_the_threads_have_the_name_of_the_pool(pg_node, caplog, name):
    caplog.set_level(logging.INFO, "pgdbpool")
    with Pool(config(pg_node), name=name) as pool:
        pool.wait(LIMIT)
        assert f"{name} keeper" in {thread.name for thread in threading.enumerate()}
        wait_for(lambda: any(message.startswith(f"{name}: ") for message in caplog.messages))
