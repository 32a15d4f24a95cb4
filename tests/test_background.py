"""What the pool does in the background has an empty context, and keeps nothing of a request alive."""

import asyncio
import contextvars
import gc
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from aio_support import OpenPool, Stage, one, run, run_plain, until
from conftest import LIMIT, config, output, python, wait_for
from support import start, stats

import pgdbpool
from pgdbpool import AsyncPool, Error
from pgdbpool.testing import Node

__all__ = ["run", "run_plain"]

request: contextvars.ContextVar[Any] = contextvars.ContextVar("request")


class Request:
    """What a web framework would keep in a context variable."""


def seen() -> Any:
    return request.get(None)


def test_an_asyncio_pool_keeps_no_request_alive_and_shows_none_to_callables(pg_node: Node, run: Stage) -> None:
    """The first request begins the pool and all that this starts; others open, wait, are cancelled, see it fail."""
    runs_for: dict[str, set[Any]] = {"configure": set(), "event": set(), "outage": set(), "password": set()}
    requests: list[weakref.ref[Request]] = []

    async def configure(conn: Any) -> None:
        runs_for["configure"].add(seen())

    def password() -> str:
        runs_for["password"].add(seen())
        return "not asked for"

    def failed(endpoint: Any, error: Any) -> None:
        runs_for["outage"].add(seen())

    async def story(open_pool: OpenPool) -> None:
        group = {"connection_count": 2, "max_lifetime": 0.5, "configure": configure, "reconnect_failed": failed}
        with pg_node.proxy() as proxy:
            where = {**proxy.endpoint(ssl="disable"), "pass": password}
            pool = open_pool(config(where, reconnect_timeout=0.1, **group))
            pool.on_event(lambda event: runs_for["event"].add(seen()))

            async def handle(seconds: float = 0.0, timeout: float = LIMIT) -> None:
                mine = Request()
                request.set(mine)
                requests.append(weakref.ref(mine))
                async with pool.connection(timeout=timeout) as conn:
                    await conn.execute("select pg_sleep(%s)", (seconds,))

            await asyncio.create_task(handle())
            await asyncio.gather(*(asyncio.create_task(handle(0.02)) for _ in range(6)))  # some wait, two open
            cancelled = [asyncio.create_task(handle(LIMIT)) for _ in range(4)]
            await until(lambda: stats(pool).waiting == 2)  # type: ignore[arg-type]
            for task in cancelled:
                task.cancel()
            await asyncio.gather(*cancelled, return_exceptions=True)
            proxy.close()
            await until(lambda: runs_for["outage"])
            del cancelled, task

        def gone() -> bool:
            gc.collect()
            return not any(each() for each in requests)

        await until(gone)
        assert runs_for == {what: {None} for what in runs_for}

    run(story)


def test_a_connection_let_go_by_the_collector_is_settled_in_nobodys_context(pg_node: Node, run_plain: Stage) -> None:
    ran_for: set[Any] = set()

    async def reset(conn: Any) -> None:
        ran_for.add(seen())

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, reset=reset))

        async def rows() -> Any:
            async with pool.connection() as conn:
                yield await one(conn, "select 1")

        request.set(Request())
        generator = rows()
        await anext(generator)
        ran_for.clear()
        with pytest.raises(StopIteration):
            generator.aclose().send(None)
        await until(lambda: stats(pool).idle == 1)  # type: ignore[arg-type]
        assert ran_for == {None}

    run_plain(story)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="threads inherit no context before Python 3.14")
def test_a_threaded_pool_keeps_no_request_alive_either(pg_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import contextvars, gc, sys, time, weakref
        from pgdbpool import Pool
        assert sys.flags.thread_inherit_context
        request = contextvars.ContextVar("request", default=None)
        class Request: pass
        saw = set()
        def configure(conn): saw.add(request.get())
        def handle():
            mine = Request()
            request.set(mine)
            pool = Pool({"db": eval(sys.argv[1]), "groups": {"default": {"configure": configure}}})
            pool.on_event(lambda event: saw.add(request.get()))
            with pool.connection() as conn:
                conn.execute("select 1")
            return pool, weakref.ref(mine)
        pool, mine = contextvars.Context().run(handle)
        deadline = time.monotonic() + 30
        while mine() is not None:
            gc.collect()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert saw == {None}, saw
        pool.close()
    """
    monkeypatch.setenv("PYTHON_THREAD_INHERIT_CONTEXT", "1")
    output(python(code, pg_node.endpoint(ssl="disable")))


def test_every_thread_and_task_of_the_pool_begins_in_one_place() -> None:
    """`background` is the only module that starts threads, and tasks and timers are given a context."""
    root = Path(pgdbpool.__file__).parent
    tools = {"testing", "cli", "web"}  # which run no user's request
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] not in tools and path.name != "background.py"
        for line in path.read_text().splitlines()
        if re.search(r"threading\.Thread\(|\.call_(soon|later)\((?!.*context=)", line)
    ]
    assert found == []


# -- loops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["connection", "getconn"])
def test_a_second_loop_in_the_same_thread_gets_no_connection_of_the_first(way: str, pg_node: Node, run: Stage) -> None:
    first, second = run.loop_factory(), run.loop_factory()
    pool = AsyncPool(config(pg_node, connection_count=1))

    async def use() -> int:
        if way == "getconn":
            conn = await pool.getconn(timeout=LIMIT)
            await pool.putconn(conn)
        else:
            async with pool.connection(timeout=LIMIT) as conn:
                pass
        return conn.info.backend_pid

    try:
        backend = first.run_until_complete(use())
        with pytest.raises(Error, match="belongs to another event loop"):
            second.run_until_complete(use())
        assert first.run_until_complete(use()) == backend
    finally:
        first.run_until_complete(pool.close())
        first.close()
        second.close()


def test_a_loop_that_goes_on_in_another_thread_keeps_its_pool(pg_node: Node, run: Stage) -> None:
    loop = run.loop_factory()
    pool = AsyncPool(config(pg_node, connection_count=1))

    async def use() -> int:
        async with pool.connection(timeout=LIMIT) as conn:
            return conn.info.backend_pid

    backend = loop.run_until_complete(use())
    assert start(lambda: [loop.run_until_complete(use()) for _ in range(2)]).result(LIMIT) == [backend, backend]
    assert loop.run_until_complete(use()) == backend
    loop.run_until_complete(pool.close())
    loop.close()


@pytest.mark.parametrize("again", [False, True], ids=["no other loop", "another loop uses the pool"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_task_left_inside_when_its_loop_is_closed_can_be_thrown_away(again: bool, pg_node: Node, run: Stage) -> None:
    pool = AsyncPool(config(pg_node, connection_count=2, monitor=False))
    loop = run.loop_factory()
    inside = loop.create_future()

    async def user() -> None:
        async with pool.connection(timeout=LIMIT) as conn:
            await conn.execute("select 1")
            inside.set_result(None)
            await asyncio.sleep(1000)

    async def main() -> Any:
        task = asyncio.ensure_future(user())
        await inside
        return task

    task = loop.run_until_complete(main())
    loop.close()

    async def use() -> None:
        async with pool.connection(timeout=LIMIT) as conn:
            assert await one(conn, "select 1") == 1

    other = run.loop_factory()
    if again:
        other.run_until_complete(use())
    task._log_destroy_pending = False
    task.get_coro().close()  # raises nothing
    other.run_until_complete(use())
    seen = stats(pool)  # type: ignore[arg-type]
    assert (seen.leased, seen.open) == (0, 1)
    other.run_until_complete(pool.close())
    other.close()
    wait_for(lambda: pg_node.backends("pgdbpool:default") == [])
