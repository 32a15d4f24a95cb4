"""What the tests of AsyncPool have in common.

from aio_support import settled

def test_something(pg_node, run):
    async def story(open_pool):
        pool = open_pool(config(pg_node))
        ...
    run(story)
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import psycopg
import pytest
import uvloop
from conftest import LIMIT

from pgdbpool import AsyncPool

T = TypeVar("T")
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
OpenPool = Callable[..., AsyncPool]
Story = Callable[[OpenPool], Coroutine[Any, Any, T]]


class Stage:
    """Runs one story in one event loop, as `asyncio.run` does, and tidies up after it.

    The story is given a callable that makes pools; they are closed at its end. It fails if it takes longer than LIMIT,
    if the loop was told of an exception that nobody handled, and if it leaves a task behind.
    """

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop_factory = loop_factory

    def __call__(self, story: Story[T], limit: float = LIMIT) -> T:
        complaints: list[dict[str, Any]] = []

        async def whole() -> T:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: complaints.append(context))
            before = asyncio.all_tasks()
            pools: list[AsyncPool] = []

            def open_pool(config: Any, **more: Any) -> AsyncPool:
                pools.append(AsyncPool(config, **more))
                return pools[-1]

            try:
                async with asyncio.timeout(limit):
                    result = await story(open_pool)
            finally:
                for pool in pools:
                    await pool.close(timeout=0.0)
            await nobody_left(before)
            return result

        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            result = runner.run(whole())
        gc.collect()  # where a complaint of something not awaited would come from
        assert not complaints, complaints
        return result


async def nobody_left(before: set["asyncio.Task[Any]"]) -> None:
    """Wait until all tasks have ended that were not there before."""
    async with asyncio.timeout(LIMIT):
        while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(left)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Stage:
    """A `Stage` for each kind of loop."""
    return Stage(LOOPS[request.param])


@pytest.fixture
def run_plain() -> Stage:
    """A `Stage` with asyncio's own loop, for what does not depend on the loop."""
    return Stage(asyncio.new_event_loop)


async def until(condition: Callable[[], T], limit: float = LIMIT) -> T:
    """Ask again and again until the answer is true, and return it; the loop goes on meanwhile."""
    deadline = asyncio.get_running_loop().time() + limit
    while not (answer := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {limit} s: {condition}, last {answer!r}"
        await asyncio.sleep(0.005)
    return answer


async def until_seen(condition: Callable[[], T], limit: float = LIMIT) -> T:
    """The same for a condition that asks a server, which would block the loop."""
    deadline = asyncio.get_running_loop().time() + limit
    while not (answer := await asyncio.to_thread(condition)):
        assert asyncio.get_running_loop().time() < deadline, f"not within {limit} s: {condition}, last {answer!r}"
        await asyncio.sleep(0.005)
    return answer


async def one(conn: psycopg.AsyncConnection[Any], sql: str, params: Any = None) -> Any:
    """The first column of the first row."""
    row = await (await conn.execute(sql, params)).fetchone()
    assert row is not None
    return row[0]


def pid(conn: psycopg.AsyncConnection[Any]) -> int:
    """Which server process a connection belongs to."""
    return conn.info.backend_pid


async def hold(pool: AsyncPool, count: int, group: str = "default") -> list[psycopg.AsyncConnection[Any]]:
    """So many connections at the same time."""
    return [await pool.getconn(group, timeout=LIMIT) for _ in range(count)]


async def put(pool: AsyncPool, *conns: psycopg.AsyncConnection[Any]) -> None:
    """Return them."""
    for conn in conns:
        await pool.putconn(conn)


def start(work: Coroutine[Any, Any, T], name: str | None = None) -> "asyncio.Task[T]":
    """Have a task do it."""
    return asyncio.get_running_loop().create_task(work, name=name)


async def outcome(work: Awaitable[T]) -> T | BaseException:
    """What it gives, or what it raises."""
    try:
        return await work
    except BaseException as error:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise
        return error


async def passes(count: int = 10) -> None:
    """Let the loop go round so often."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def no_gc() -> Iterator[None]:
    """The collector runs when the test says so."""
    gc.disable()
    yield
    gc.enable()
