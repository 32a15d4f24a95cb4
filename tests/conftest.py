"""What the tests of the pool on real servers have in common.

from conftest import config, wait_for

def test_something(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from pgdbpool import Pool

# What libpq reads from there is meant for other servers than those of the tests.
for _name in [name for name in os.environ if name.startswith("PG") and not name.startswith("PGDBPOOL")]:
    del os.environ[_name]

# A background job of a script has Ctrl-C ignored, and so would its children. Tests send it to themselves and to these.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing on a busy machine.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

T = TypeVar("T")
LIMIT = 30.0  # s: generous, since it is only ever reached when something is wrong
SOON = 12.0  # s: far longer than it takes even on a busy machine, and far shorter than to wait for the `LIMIT`


def config(
    *places: Any, type: str = "threaded", groups: Any = None, monitor: Any = True, **group: Any
) -> dict[str, Any]:
    """A configuration: `places` are nodes, proxies or entries of `db`; `group` are the keys of the group "default".

    With `groups` there are those instead. `ssl` is off, since the servers have none. `monitor` is off where a test
    counts what is said or how often the pool itself connects.
    """
    db = [place if isinstance(place, dict) else place.endpoint(ssl="disable") for place in places]
    return {"type": type, "monitor": monitor, "db": db, "groups": {"default": group} if groups is None else groups}


def wait_for(condition: Callable[[], T], limit: float = LIMIT) -> T:
    """Ask again and again until the answer is true, and return it."""
    deadline = time.monotonic() + limit
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {limit} s: {condition}, last answer {answer!r}"
        time.sleep(0.005)
    return answer


def backends(node: Any, group: str = "default") -> set[int]:
    """The server processes that serve a group now, by their pids."""
    return {row["pid"] for row in node.backends(f"pgdbpool:{group}")}


def python(code: str, *args: Any, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """Run a little program in a process of its own, all warnings being errors; stdout and stderr are piped.

    `env` is added to its environment.
    """
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", textwrap.dedent(code), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
    )


def output(process: "subprocess.Popen[str]", code: int = 0, limit: float = LIMIT) -> str:
    """What the program wrote. It has to end within the limit, with this exit code, and silent on stderr."""
    with process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.send_signal(6)  # faulthandler shows where it hangs
            out, err = process.communicate()
            pytest.fail(f"not ended within {limit} s\n{out}\n{err}")
    assert (process.returncode, err) == (code, ""), f"{out}\n{err}"
    return out


@pytest.fixture
def open_pool() -> Iterator[Callable[..., Pool]]:
    """Makes pools, and closes them after the test."""
    pools: list[Pool] = []

    def make(config: Any, **more: Any) -> Pool:
        pool = Pool(config, **more)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close(timeout=0.0)


@pytest.fixture(autouse=True)
def _no_exception_is_left_behind() -> Iterator[None]:
    """Raised where none can be, say by a tracer at the end of an ``except`` block, an exception counts as handled for
    ever: it would be the context of what later tests raise, and keep alive what its frames have in their variables."""
    before = sys.exc_info()[1]
    yield
    left = sys.exc_info()[1]
    assert left is before, f"after this test {left!r} is still being handled"
