"""What the tests behind a pooler have in common: a PgBouncer before a way that can lead elsewhere, and three models.

def test_something(pg_cluster, front):
    with door_to(pg_cluster.primary, "transaction") as door:
        pool = front(config(door.pooler))
        pool.ask("select 1")
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
import pytest
from conftest import LIMIT

from pgdbpool import AsyncPool, Pool
from pgdbpool.testing import Node, PgBouncer, Proxy

MODELS = ("threaded", "non-threaded", "asyncio")
READ_ONLY = psycopg.errors.ReadOnlySqlTransaction


class Door(NamedTuple):
    """A pooler, and the way behind it."""

    pooler: PgBouncer
    way: Proxy

    def lead_to(self, node: Node) -> None:
        """What is behind the pooler is another server now, as after a switchover behind one name."""
        self.way.target = node
        self.way.reset()


@contextmanager
def door_to(node: Node, mode: str = "transaction", **settings: Any) -> Iterator[Door]:
    # It asks for a lost server again at once, and not after 15 s.
    how = {"server_login_retry": 0.1, "ignore_startup_parameters": "extra_float_digits", **settings}
    with node.proxy() as way, PgBouncer(way, mode, settings=how) as pooler:
        yield Door(pooler, way)


class Front:
    """A pool of any model, for tests that only wait."""

    def __init__(self, model: str, config: dict[str, Any]) -> None:
        self.model = model
        self._loop: asyncio.AbstractEventLoop | None = None
        self.pool: Any
        if model == "asyncio":
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="test loop", daemon=True)
            self._thread.start()
            self.pool = AsyncPool(config)
            self._wait(self.pool.open())
        else:
            self.pool = Pool(config | {"type": model})

    def _wait(self, coroutine: Any) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(2 * LIMIT)

    def ask(
        self, *statements: str, group: str = "default", timeout: float | None = None, catch: bool = False, **more: Any
    ) -> Any:
        """Run statements on one connection; the first column of the last one's first row.

        With `catch` the application catches what PostgreSQL says inside the block, and its words are returned.
        """
        if self._loop is not None:
            return self._wait(self._ask(statements, group, timeout, catch, more))
        with self.pool.connection(group, timeout) as conn:
            try:
                for sql in statements:
                    cursor = conn.execute(sql, **more)
                return cursor.fetchone()[0] if cursor.description else cursor.statusmessage
            except psycopg.Error as error:
                if not catch:
                    raise
                return str(error)

    async def _ask(
        self, statements: tuple[str, ...], group: str, timeout: float | None, catch: bool, more: dict[str, Any]
    ) -> Any:
        async with self.pool.connection(group, timeout) as conn:
            try:
                for sql in statements:
                    cursor = await conn.execute(sql, **more)
                return (await cursor.fetchone())[0] if cursor.description else cursor.statusmessage
            except psycopg.Error as error:
                if not catch:
                    raise
                return str(error)

    def outcome(self, *statements: str, **how: Any) -> Any:
        """As `ask`, and of an error its type."""
        try:
            return self.ask(*statements, **how)
        except Exception as error:
            return type(error)

    def opened(self, group: str = "default") -> int:
        """How many connections have been opened for a group."""
        return sum(sum(each.connect_times) for each in self._lanes(group))

    def _lanes(self, group: str) -> list[Any]:
        return list(self.pool._groups[group].lanes)

    def endpoint(self, number: int = 0) -> Any:
        return self.pool.endpoints()[number]

    def close(self) -> None:
        if self._loop is None:
            self.pool.close(timeout=0.0)
            return
        self._wait(self.pool.close(timeout=0.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()


@pytest.fixture(params=MODELS)
def front(request: pytest.FixtureRequest) -> Iterator[Callable[[dict[str, Any]], Front]]:
    """Makes a pool of each model, and closes it after the test."""
    fronts: list[Front] = []

    def make(config: dict[str, Any]) -> Front:
        fronts.append(Front(request.param, config))
        return fronts[-1]

    make.model = request.param  # type: ignore[attr-defined]
    yield make
    for each in fronts:
        each.close()
