"""An application's published numbers, and the page that shows them, in this process."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import config

from pgdbpool import Pool
from pgdbpool.publish import read, writer
from pgdbpool.web import serve

TOKEN = "a token that nobody would guess"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has mounted is not there for the next."""
    monkeypatch.setattr(writer, "_everybody", None)
    monkeypatch.setattr(writer, "_publishers", {})


@pytest.fixture
def page(folder: Path) -> Iterator[Callable[..., str]]:
    """Starts the page's own server, and returns its address."""
    servers = []

    def make(**more: Any) -> str:
        server = serve.make("127.0.0.1", 0, **{"name": None, "directory": str(folder), "token": None} | more)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def shop(pg_node: Any, open_pool: Callable[..., Pool], folder: Path) -> Pool:
    """A pool that is published as "shop", and has done something."""
    status = {"name": "shop", "directory": str(folder), "interval": 0.1}
    pool: Pool = open_pool(config(pg_node) | {"status": status})
    with pool.connection() as conn:
        conn.execute("select 1")
    end = time.monotonic() + 30
    while not read("shop", folder):
        assert time.monotonic() < end
        time.sleep(0.01)
    return pool
