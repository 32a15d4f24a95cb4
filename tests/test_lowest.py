"""What the lowest versions must be able to do, and which these are."""

import importlib.util
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import LIMIT, config
from support import start

from pgdbpool import Pool
from pgdbpool.testing import Node

ROOT = Path(__file__).resolve().parents[1]


def lowest(project: dict[str, Any]) -> list[str]:
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci" / "lowest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.lowest(project)
    return found


def test_each_requirement_is_held_to_its_lower_bound() -> None:
    extras = {"binary": ["a[binary]>=1.2"], "demo": ["pool[binary]", "c_d>=4"]}
    extras = {name: extras.get(name, []) for name in ("binary", "testing", "cli", "demo", "otel", "prometheus")}
    project = {"name": "pool", "dependencies": ["a>=1.2", "b>=3.0.1"], "optional-dependencies": extras}
    assert lowest(project)[:-1] == ["a==1.2", "a-binary==1.2", "b==3.0.1", "c_d==4"]
    with pytest.raises(ValueError, match="b: has no lower bound"):
        lowest({**project, "dependencies": ["b"]})
    with pytest.raises(ValueError, match="expected a name and a lower bound"):
        lowest({**project, "dependencies": ["b~=1"]})


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_call_on_a_frozen_server_ends_without_a_monitor(model: str, pg_node: Node) -> None:
    """psycopg's C implementation looked at nothing before something came, up to 3.2.10."""
    with pg_node.proxy() as proxy:
        pool = Pool(config(proxy.endpoint(ssl="disable", query_timeout=500), type=model, monitor=False))

        def call() -> float:
            with pool.connection(timeout=LIMIT) as conn:
                conn.execute("select 1")
                threading.Timer(0.1, proxy.stall).start()
                began = time.monotonic()
                with pytest.raises(psycopg.OperationalError, match="has not answered for"):
                    conn.execute("select pg_sleep(60)")
                return time.monotonic() - began

        try:
            assert start(call).result(LIMIT) < LIMIT
        finally:
            proxy.resume()
            pool.close(timeout=0.0)
