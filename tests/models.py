"""One story for the three models: a pool whose connections are asked by plain calls, whatever is behind.

from models import MODELS

@pytest.mark.parametrize("model", MODELS)
def test_something(pg_node, model):
    with MODELS[model](config(pg_node)) as pool:
        assert pool.ask("default", "select 1") == 1
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Self

import pytest
from conftest import LIMIT
from support import one

from pgdbpool import AsyncPool, Pool


class Lent:
    """A connection in the hands of the test."""

    def __init__(self, ask: Callable[[str], Any], give: Callable[[], None]) -> None:
        self.ask = ask
        self.give = give


class Sync:
    """`Pool`, of either threading model."""

    type = "threaded"

    def __init__(self, config: dict[str, Any]) -> None:
        self.pool: Any = Pool({**config, "type": self.type})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.close(timeout=0.0)

    def lend(self, group: str = "default", timeout: float = LIMIT) -> Lent:
        conn = self.pool.getconn(group, timeout=timeout)
        return Lent(lambda sql: one(conn, sql), lambda: self.pool.putconn(conn))

    def ask(self, group: str, sql: str, timeout: float = LIMIT) -> Any:
        with self.pool.connection(group, timeout=timeout) as conn:
            return one(conn, sql)

    def call(self, function: Callable[[], Any]) -> Any:
        """Where the pool lives."""
        return function()


class NonThreaded(Sync):
    type = "non-threaded"


class Asyncio:
    """`AsyncPool`, in a loop of its own in a thread of its own."""

    type = "asyncio"

    def __init__(self, config: dict[str, Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test loop", daemon=True)
        self._thread.start()
        config = {key: value for key, value in config.items() if key != "type"}

        async def make() -> AsyncPool:
            return AsyncPool(config)

        self.pool: Any = self._run(make())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(2 * LIMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._run(self.pool.close(timeout=0.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()

    def lend(self, group: str = "default", timeout: float = LIMIT) -> Lent:
        conn = self._run(self.pool.getconn(group, timeout=timeout))

        async def ask(sql: str) -> Any:
            row = await (await conn.execute(sql)).fetchone()
            assert row is not None
            return row[0]

        return Lent(lambda sql: self._run(ask(sql)), lambda: self._run(self.pool.putconn(conn)))

    def ask(self, group: str, sql: str, timeout: float = LIMIT) -> Any:
        async def ask() -> Any:
            async with self.pool.connection(group, timeout=timeout) as conn:
                row = await (await conn.execute(sql)).fetchone()
                assert row is not None
                return row[0]

        return self._run(ask())

    def call(self, function: Callable[[], Any]) -> Any:
        """Where the pool lives."""

        async def call() -> Any:
            return function()

        return self._run(call())


MODELS: dict[str, Any] = {model.type: model for model in (Sync, NonThreaded, Asyncio)}


@pytest.fixture
def open_model() -> Iterator[Callable[[dict[str, Any]], Any]]:
    """Makes pools of the model that their `type` names, and closes them after the test."""
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(MODELS[config["type"]](config))
