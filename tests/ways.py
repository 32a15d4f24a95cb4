"""One story for all models: a test written as a coroutine runs on a threaded and a non-threaded `Pool`, through
`Handler` and on an `AsyncPool`.

def test_something(pg_node, way):
    async def story(pool):
        async with pool.block("write") as conn:
            await conn.execute("insert into t values (1)")
    way(story, config(pg_node))
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from aio_support import Stage, until
from conftest import wait_for

from pgdbpool import AsyncPool, Handler, Pool
from pgdbpool import pool as dbpool
from pgdbpool.core.stats import GroupStats
from pgdbpool.drivers.blocking import run

NAMES = ("threaded", "non-threaded", "handler", "asyncio")
Story = Callable[["Face"], Coroutine[Any, Any, Any]]


class Awaited:
    """A psycopg.Connection or cursor with the methods of its asynchronous relative."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found) or name in ("xid", "cursor"):
            return (lambda *args, **more: Awaited(found(*args, **more))) if name == "cursor" else found

        async def call(*args: Any, **more: Any) -> Any:
            result = found(*args, **more)
            return Awaited(result) if isinstance(result, psycopg.Cursor) else result

        return call

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        with self.inner.transaction():
            yield

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[None]:
        with self.inner.pipeline():
            yield


class Face:
    """A pool of any model, with asynchronous methods."""

    def __init__(self, pool: Any, way: str) -> None:
        self.pool = pool
        self.way = way
        self.kept: list[Any] = []  # what a test leaves open on purpose

    def stats(self, group: str = "default") -> GroupStats:
        """What a group has counted."""
        stats: GroupStats = self.pool.stats().groups[group]
        return stats

    @asynccontextmanager
    async def block(self, group: str = "default") -> AsyncIterator[Any]:
        """A block of the pool, or of a Handler."""
        if self.way == "asyncio":
            async with self.pool.connection(group) as conn:
                yield conn
        elif self.way == "handler":
            with Handler(group) as db:
                yield Awaited(db.conn_ref)
        else:
            with self.pool.connection(group) as conn:
                yield Awaited(conn)

    async def getconn(self, group: str = "default") -> Any:
        """A connection without a block."""
        return await self.pool.getconn(group) if self.way == "asyncio" else Awaited(self.pool.getconn(group))

    async def putconn(self, conn: Any, *args: Any, **more: Any) -> None:
        """Give it back."""
        if self.way == "asyncio":
            await self.pool.putconn(conn, *args, **more)
        else:
            self.pool.putconn(conn.inner, *args, **more)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Ask again and again until the answer is true; an event loop goes on meanwhile."""
        if self.way == "asyncio":
            await until(condition)
        else:
            wait_for(condition)

    async def leave_open(self, conn: Any, what: str) -> None:
        """Leave something half done on the connection."""
        cursor = conn.cursor()
        asynchronous = self.way == "asyncio"
        if what == "stream":
            rows = (
                cursor.stream("select generate_series(1, 1000)")
                if asynchronous
                else cursor.inner.stream("select generate_series(1, 1000)")
            )
            self.kept.append(rows)
            await anext(rows) if asynchronous else next(rows)
        elif what == "copy":
            copy = (cursor if asynchronous else cursor.inner).copy("copy work_t from stdin")
            self.kept.append(copy)
            data = await copy.__aenter__() if asynchronous else copy.__enter__()
            await data.write("7\n") if asynchronous else data.write("7\n")
        elif what == "pipeline":
            pipeline = (conn if asynchronous else conn.inner).pipeline()
            self.kept.append(pipeline)
            await pipeline.__aenter__() if asynchronous else pipeline.__enter__()
            await conn.execute("insert into work_t values (8)")
        elif what == "notifies":
            await conn.execute("listen work")
            await conn.execute("notify work")
            await conn.commit()
            notes = (conn if asynchronous else conn.inner).notifies()
            self.kept.append(notes)
            await anext(notes) if asynchronous else next(notes)
        elif what == "closed":
            await conn.close()
        else:
            raise AssertionError(what)


class Way:
    """Runs a story in one model."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, story: Story, config: dict[str, Any]) -> None:
        if self.name == "asyncio":

            async def act(open_pool: Callable[..., AsyncPool]) -> None:
                face = Face(open_pool(config), self.name)
                await story(face)
                face.kept.clear()

            Stage(asyncio.new_event_loop)(act)
            return
        config = {**config, "type": "non-threaded" if self.name == "non-threaded" else "threaded"}
        if self.name == "handler":
            face = Face(dbpool.Connection.init(config), self.name)
        else:
            face = Face(Pool(config), self.name)
        try:
            run(story(face))
        finally:
            face.kept.clear()
            dbpool.Connection.close(timeout=0.0)
            face.pool.close(timeout=0.0)


@pytest.fixture(params=NAMES)
def way(request: pytest.FixtureRequest) -> Way:
    """A `Way` for each model."""
    return Way(request.param)
