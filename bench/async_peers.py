"""The asyncio pools that are compared, as `peers.py` has the others: used as their own documentation advises."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import repeat
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers import OURS, Limits

if TYPE_CHECKING:
    from pgdbpool.testing import Node


class AsyncPeer(ABC):
    """A pool, which `open` opens. It connects to the first of ``nodes``, or to all if the pool can do that."""

    name: ClassVar[str]
    module: ClassVar[str]
    """What has to be installed."""
    package: ClassVar[str]
    """Its name in the package index."""
    settings: ClassVar[str]
    """How it is set up and used; goes into the report."""

    connection: Callable[[], AbstractAsyncContextManager[Any]]
    """A checkout as an asynchronous context manager."""

    @abstractmethod
    async def open(self, nodes: Sequence[Node], limits: Limits) -> None: ...

    @staticmethod
    async def run(connection: Any, sql: str) -> Any:
        """One statement and its only row."""
        return await (await connection.execute(sql)).fetchone()

    @abstractmethod
    async def close(self) -> None: ...

    async def with_blocks(self, loops: int) -> float:
        """The time of so many empty ``async with`` blocks, in seconds."""
        connection = self.connection
        start = perf_counter()
        for _ in repeat(None, loops):
            async with connection():
                pass
        return perf_counter() - start

    async def warm(self, count: int) -> None:
        """Have ``count`` connections open at the same time and use each."""
        blocks = [self.connection() for _ in range(count)]
        for block in blocks:
            connection = await block.__aenter__()
            for _ in range(10):  # psycopg prepares a statement after the fifth time
                await self.run(connection, "select 1")
        for block in blocks:
            await block.__aexit__(None, None, None)


class Pgdbpool(AsyncPeer):
    name = OURS
    module = "pgdbpool"
    package = "pgdbpool"
    settings = 'AsyncPool(config), one group: autocommit, min_count and connection_count; pool.connection("read")'

    async def open(self, nodes: Sequence[Node], limits: Limits) -> None:
        from pgdbpool import AsyncPool

        group = {
            "autocommit": True,
            "min_count": limits.least,
            "connection_count": limits.most,
            "acquire_timeout": limits.timeout,
        }
        self._pool = AsyncPool({"db": [node.endpoint() for node in nodes], "groups": {"read": group}})
        await self._pool.wait(timeout=30)
        self.connection = functools.partial(self._pool.connection, "read")

    async def with_blocks(self, loops: int) -> float:
        connection = self._pool.connection
        start = perf_counter()
        for _ in repeat(None, loops):
            async with connection("read"):
                pass
        return perf_counter() - start

    async def close(self) -> None:
        await self._pool.close()


class PsycopgPool(AsyncPeer):
    name = "psycopg_pool"
    module = "psycopg_pool"
    package = "psycopg-pool"
    settings = "AsyncConnectionPool(min_size, max_size), autocommit; pool.connection()"

    async def open(self, nodes: Sequence[Node], limits: Limits) -> None:
        from psycopg_pool import AsyncConnectionPool

        self._pool = AsyncConnectionPool(
            nodes[0].dsn,
            kwargs={"autocommit": True},
            min_size=limits.least,
            max_size=limits.most,
            timeout=limits.timeout,
            open=False,
        )
        await self._pool.open(wait=True)
        self.connection = self._pool.connection

    async def close(self) -> None:
        await self._pool.close()


class Asyncpg(AsyncPeer):
    name = "asyncpg"
    module = package = "asyncpg"
    settings = (
        "asyncpg.create_pool(min_size, max_size); pool.acquire(). Another driver, which asks the server to reset the "
        "session at each return"
    )
    more: ClassVar[dict[str, Any]] = {}

    async def open(self, nodes: Sequence[Node], limits: Limits) -> None:
        import asyncpg

        self._pool = await asyncpg.create_pool(
            nodes[0].dsn, min_size=limits.least, max_size=limits.most, timeout=30, **self.more
        )
        self.connection = functools.partial(self._pool.acquire, timeout=limits.timeout)

    @staticmethod
    async def run(connection: Any, sql: str) -> Any:
        return await connection.fetchrow(sql)

    async def close(self) -> None:
        await self._pool.close()


async def _nothing(connection: Any) -> None:
    """In the place of asyncpg's reset."""


class AsyncpgNoReset(Asyncpg):
    name = "asyncpg, no reset"
    settings = "the same with a reset that does nothing"
    more = {"reset": _nothing}


class Hasql(AsyncPeer):
    name = "hasql"
    module = package = "hasql"
    settings = (
        "hasql.driver.psycopg3.PoolManager(dsn), which uses psycopg_pool, autocommit; acquire_master(). It may open "
        "one connection more than the others, since it keeps one for its checks"
    )

    async def open(self, nodes: Sequence[Node], limits: Limits) -> None:
        from hasql.driver.psycopg3 import PoolManager

        self._manager = PoolManager(
            nodes[0].dsn,
            acquire_timeout=limits.timeout,
            pool_factory_kwargs={
                "kwargs": {"autocommit": True},
                "min_size": limits.least + 1,
                "max_size": limits.most + 1,
                "timeout": limits.timeout,
            },
        )
        await self._manager.ready(masters_count=1, replicas_count=0, timeout=30)
        self.connection = self._manager.acquire_master

    async def close(self) -> None:
        await self._manager.close()


class SQLAlchemy(AsyncPeer):
    name = "SQLAlchemy, connect()"
    module = "sqlalchemy"
    package = "SQLAlchemy"
    settings = (
        "create_async_engine(postgresql+psycopg) with AsyncAdaptedQueuePool(pool_size, max_overflow=0), AUTOCOMMIT, "
        "skip_autocommit_rollback; engine.connect(), queries by exec_driver_sql"
    )

    async def open(self, nodes: Sequence[Node], limits: Limits) -> None:
        from sqlalchemy import AsyncAdaptedQueuePool
        from sqlalchemy.ext.asyncio import create_async_engine

        self._engine = create_async_engine(
            nodes[0].dsn.replace("postgresql:", "postgresql+psycopg:", 1),
            poolclass=AsyncAdaptedQueuePool,
            pool_size=limits.most,  # opened when needed; there is no least number
            max_overflow=0,
            pool_timeout=limits.timeout,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
        )
        self.connection = self._engine.connect
        await self.warm(limits.least)

    @staticmethod
    async def run(connection: Any, sql: str) -> Any:
        return (await connection.exec_driver_sql(sql)).fetchone()

    async def close(self) -> None:
        await self._engine.dispose()


ASYNC_PEERS: tuple[type[AsyncPeer], ...] = (Pgdbpool, PsycopgPool, Asyncpg, AsyncpgNoReset, Hasql, SQLAlchemy)
