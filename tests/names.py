"""Names with several addresses, and servers of every kind at them: loopback addresses from 127.0.0.2 on.

def test_something(pg_node, resolver, model):
    resolver["db.test"] = ["127.0.0.2", "127.0.0.3"]
    with swallows("127.0.0.2", port), pg_node.proxy(host="127.0.0.3", port=port), Client(model, config(...)) as client:
        client.ask("select 1")
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import pytest
from conftest import LIMIT

from pgdbpool import AsyncPool, Pool
from pgdbpool.testing.loop import LoopThread

MODELS = ("threaded", "non-threaded", "asyncio")
NAME = "db.test"


class Resolver(dict[str, list[str]]):
    """In the place of the system's resolver, for the names in it: their addresses, in this order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        real = socket.getaddrinfo

        def getaddrinfo(host: Any, *args: Any, **more: Any) -> Any:
            addresses = self.get(host)
            if addresses is None:
                return real(host, *args, **more)
            return [info for address in list(addresses) for info in real(address, *args, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """Give it names: `resolver["db.test"] = ["127.0.0.2", "127.0.0.3"]`."""
    return Resolver(monkeypatch)


class Client:
    """A pool of any model, used from the test's thread."""

    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        self.pool: Pool | AsyncPool
        self._loop = LoopThread("client") if model == "asyncio" else None
        if self._loop is None:
            self.pool = Pool({**settings, "type": model})
        else:
            self.pool = self._loop.run(self._open({**settings, "type": "threaded"}))

    async def _open(self, settings: dict[str, Any]) -> AsyncPool:
        pool = AsyncPool(settings, open=False)
        await pool.open()
        return pool

    def ask(self, sql: str = "select inet_server_port()", group: str = "default", timeout: float = LIMIT) -> Any:
        """The first column of the first row of what this statement gives on a connection of the group."""
        if isinstance(self.pool, AsyncPool):
            assert self._loop is not None
            return self._loop.run(self._ask(self.pool, sql, group, timeout), 2 * LIMIT)
        with self.pool.connection(group, timeout=timeout) as conn:
            row = conn.execute(sql).fetchone()
        assert row is not None
        return row[0]

    async def _ask(self, pool: AsyncPool, sql: str, group: str, timeout: float) -> Any:
        async with pool.connection(group, timeout=timeout) as conn:
            row = await (await conn.execute(sql)).fetchone()
        assert row is not None
        return row[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if isinstance(self.pool, AsyncPool):
            assert self._loop is not None
            self._loop.run(self.pool.close(timeout=0.0))
            self._loop.close()
        else:
            self.pool.close(timeout=0.0)


# -- who may be at an address -----------------------------------------------------------------------------------------


@contextmanager
def refuses(host: str, port: int) -> Iterator[None]:
    """Nobody listens."""
    yield


@contextmanager
def swallows(host: str, port: int) -> Iterator[None]:
    """What is sent there vanishes: the queue of the listener is full, so the kernel drops each SYN."""
    with ExitStack() as stack:
        hole = stack.enter_context(socket.socket())
        hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hole.bind((host, port))
        hole.listen(0)
        for _ in range(4):
            each = stack.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex((host, port))
        yield


@contextmanager
def _serving(host: str, port: int, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """A thread that accepts, and does this to each connection; all are kept open until the end."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, port), backlog=128))
        open_ones: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                open_ones.append(client)
                try:
                    serve(client)
                except OSError:
                    pass

        thread = threading.Thread(target=accept, name=f"server at {host}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(LIMIT)
            for client in open_ones:
                client.close()


def mute(host: str, port: int) -> Any:
    """Accepts, and never says a word."""
    return _serving(host, port, lambda client: None)


def resets(host: str, port: int) -> Any:
    """Accepts, and breaks the connection."""

    def serve(client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    return _serving(host, port, serve)


def babbles(host: str, port: int) -> Any:
    """Accepts, and answers with what is no PostgreSQL."""
    return _serving(host, port, lambda client: client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))


def turns_away(host: str, port: int) -> Any:
    """Answers each startup packet with "too many clients"."""
    fields = b"SFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0\0"

    def serve(client: socket.socket) -> None:
        client.settimeout(LIMIT)
        client.recv(65536)
        client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        client.close()

    return _serving(host, port, serve)


OBSTACLES = {each.__name__: each for each in (refuses, swallows, mute, resets, babbles, turns_away)}
