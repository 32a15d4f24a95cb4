"""The life of an AsyncPool: before there is a loop, in one loop, in the next, in two at once, and at the end of all."""

import asyncio
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from aio_support import LOOPS, OpenPool, Stage, one, outcome, passes, pid, run, run_plain, start, until, until_seen
from conftest import LIMIT, backends, config, output, python, wait_for
from support import stats

from pgdbpool import AsyncPool, Error, PoolClosed
from pgdbpool.testing import Node

__all__ = ["run", "run_plain"]

NEVER = 600.0  # s


async def query(pool: AsyncPool, timeout: float = LIMIT) -> int:
    """The backend that answered."""
    async with pool.connection(timeout=timeout) as conn:
        return int(await one(conn, "select pg_backend_pid()"))


def pool_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pgdbpool")]


@pytest.fixture(params=LOOPS)
def factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes a loop of each kind."""
    return LOOPS[request.param]


# -- open and close ---------------------------------------------------------------------------------------------------


def test_a_pool_made_before_there_is_a_loop_opens_in_the_first_that_uses_it(
    pg_node: Node, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    pool = AsyncPool(config(pg_node, min_count=2))
    assert not pool.closed
    wait_for(lambda: pool_threads() == [])  # one of an earlier test may just be ending

    async def story() -> None:
        async with pool:
            await pool.wait(LIMIT)
            await query(pool)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(story())
    assert pool.closed
    wait_for(lambda: not backends(pg_node))
    wait_for(lambda: pool_threads() == [])


def test_a_pool_that_was_not_opened_hands_out_nothing(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node), open=False)
        assert pool.closed
        for use in (pool.getconn, pool.wait, lambda: query(pool)):
            with pytest.raises(PoolClosed):
                await use()
        await pool.close()
        await pool.open()
        await query(pool)

    run(story)


def test_a_closed_pool_says_that_it_is_closed(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node))
        await query(pool)
        await pool.close()
        for use in (pool.getconn, pool.wait, lambda: query(pool)):
            with pytest.raises(PoolClosed, match="closed"):
                await use()
        await pool.check()
        pool.drain()
        pool.resize("default", 3)
        pool.pause()
        pool.resume()
        assert stats(pool).open == 0
        assert pool.endpoints()
        assert pool.holders() == []
        assert "closed" in repr(pool)

    run(story)


def test_close_waits_for_tasks_that_hold_a_connection(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=2))
        enough = asyncio.Event()

        async def hold() -> int:
            async with pool.connection(timeout=LIMIT) as conn:
                await enough.wait()
                return int(await one(conn, "select 1"))

        holding = [start(hold()) for _ in range(2)]
        await until(lambda: stats(pool).leased == 2)
        closing = start(pool.close(timeout=LIMIT))
        await passes()
        assert not closing.done()
        enough.set()
        await closing
        assert await asyncio.gather(*holding) == [1, 1]
        await until_seen(lambda: not backends(pg_node))

    run(story)


def test_a_close_that_is_cancelled_has_closed_the_pool_and_what_comes_back_later_is_closed(
    pg_node: Node, run: Stage
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=2))
        conn = await pool.getconn(timeout=LIMIT)
        closing = start(pool.close(timeout=LIMIT))
        await until(lambda: pool._keeper.loop is None)
        await passes()
        closing.cancel()
        await asyncio.wait({closing})
        assert closing.cancelled()
        assert not pool._seen  # by others on this host
        await pool.putconn(conn)
        assert conn.closed
        await until_seen(lambda: not backends(pg_node))

    run(story)


def test_close_ends_every_wait_and_waits_no_longer_than_told(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection(timeout=LIMIT) as conn:
            waiting = [start(outcome(query(pool, timeout=NEVER))) for _ in range(20)]
            await until(lambda: stats(pool).waiting == 20)
            await pool.close(timeout=0.05)
            assert {type(error) for error in await asyncio.gather(*waiting)} == {PoolClosed}
            assert await one(conn, "select 1") == 1, "a lease goes on"
        await until_seen(lambda: not backends(pg_node))

    run(story)


def test_close_ends_the_wait_for_a_server_that_is_down(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        with pg_node.proxy() as proxy:
            proxy.stall()
            pool = open_pool(config(proxy))
            waiting = start(outcome(query(pool, timeout=NEVER)))
            await until(lambda: stats(pool).opening)
            await pool.close(timeout=LIMIT)
            assert isinstance(await waiting, PoolClosed)
            proxy.resume()  # so that it hears of the end
            await until(lambda: proxy.connections == 0)

    run(story)


def test_close_can_be_called_twice_and_by_many_at_once(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, min_count=2))
        await pool.wait(LIMIT)
        await asyncio.gather(*(pool.close() for _ in range(8)))
        await pool.close()
        await until_seen(lambda: not backends(pg_node))

    run(story)


def test_a_pool_can_be_opened_and_closed_again_and_again(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node))
        for _ in range(5):
            await query(pool)
            await pool.close()
            await pool.open()
        await query(pool)
        await pool.close()
        await until_seen(lambda: not backends(pg_node))
        await until(lambda: pool_threads() == [])

    run(story)


def test_a_lease_from_before_closing_and_opening_is_not_handed_out_again(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection(timeout=LIMIT) as conn:
            old = pid(conn)
            await pool.close(timeout=0.0)
            await pool.open()
        assert await query(pool) != old
        await until_seen(lambda: len(backends(pg_node)) == 1)

    run(story)


def test_close_returns_though_the_server_is_frozen(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=4, min_count=2))
        await pool.wait(LIMIT)
        pg_node.freeze()
        try:
            await pool.close(timeout=NEVER)
        finally:
            pg_node.thaw()
        await until_seen(lambda: not backends(pg_node))

    run(story)


def test_a_pool_from_a_url_and_from_a_file(pg_node: Node, run_plain: Stage, tmp_path: Any) -> None:
    path = tmp_path / "pool.toml"
    place = pg_node.endpoint(ssl="disable")
    lines = [f"{key} = {json.dumps(value)}" for key, value in place.items()]
    path.write_text("[[db]]\n" + "\n".join(lines) + "\n[groups.default]\n")

    async def story(open_pool: OpenPool) -> None:
        for pool in (AsyncPool.from_url(pg_node.dsn + "?sslmode=disable"), AsyncPool.from_toml(path)):
            async with pool:
                await query(pool)

    run_plain(story)


# -- loops ------------------------------------------------------------------------------------------------------------


def test_two_loops_in_two_threads_each_have_a_pool(pg_node: Node) -> None:
    counts: dict[str, int] = {}
    together = threading.Barrier(2)

    def work(name: str) -> None:
        async def story() -> None:
            async with AsyncPool(config(pg_node, connection_count=3)) as pool:
                await pool.wait(LIMIT)
                together.wait(LIMIT)
                await asyncio.gather(*(query(pool) for _ in range(100)))
                counts[name] = stats(pool).counters.requests

        with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
            runner.run(story())

    threads = [threading.Thread(target=work, args=(name,)) for name in LOOPS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert counts == dict.fromkeys(LOOPS, 100)
    wait_for(lambda: not backends(pg_node))
    wait_for(lambda: pool_threads() == [])


def test_a_pool_is_for_one_loop_and_says_so_in_another(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node))
        await query(pool)

        async def elsewhere() -> None:
            with pytest.raises(Error, match="belongs to another event loop"):
                await query(pool)
            with pytest.raises(Error, match="belongs to another event loop"):
                await pool.getconn()
            with pytest.raises(Error, match="belongs to another event loop"):
                await pool.wait()
            with pytest.raises(Error, match="belongs to another event loop"):
                await pool.close()

        await asyncio.to_thread(asyncio.run, elsewhere())
        await query(pool)
        assert stats(pool).leased == 0

    run(story)


def test_a_pool_that_was_closed_can_be_used_in_the_next_loop(
    pg_node: Node, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    pool = AsyncPool(config(pg_node))
    backend = []

    async def story() -> None:
        async with pool:
            backend.append(await query(pool))

    for _ in range(3):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(story())
    assert len(set(backend)) == 3


def test_a_pool_that_was_not_closed_before_its_loop_ends_says_so_and_leaves_nothing(
    pg_node: Node, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    pool = AsyncPool(config(pg_node, min_count=2))

    async def story() -> int:
        await pool.wait(LIMIT)
        return await query(pool)

    for _ in range(2):  # and it works in the next one
        with (
            pytest.warns(ResourceWarning, match="was not closed before the end of its event loop"),
            asyncio.Runner(loop_factory=factory) as runner,
        ):
            runner.run(story())
        wait_for(lambda: not backends(pg_node))
    wait_for(lambda: pool_threads() == [])


def test_a_pool_hears_of_a_loop_that_is_closed_without_more_ado(
    pg_node: Node, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    pool = AsyncPool(config(pg_node, connection_count=2))
    first, second = factory(), factory()
    old = first.run_until_complete(query(pool))
    with pytest.warns(ResourceWarning, match="was not closed"):
        first.close()  # no shutdown_asyncgens
    wait_for(lambda: not backends(pg_node))
    new = second.run_until_complete(query(pool))
    assert new != old
    wait_for(lambda: backends(pg_node) == {new})
    second.run_until_complete(pool.close())
    second.close()


@pytest.mark.parametrize("busy", ["waiting for one", "in a block", "in a statement", "on the way out"])
def test_tasks_cancelled_by_the_end_of_their_loop_leave_no_session(
    busy: str, pg_node: Node, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    pool = AsyncPool(config(pg_node, connection_count=1, autocommit=False))

    async def use(inside: asyncio.Event) -> None:
        async with pool.connection(timeout=LIMIT) as conn:
            await conn.execute("select 1")
            inside.set()
            if busy in ("in a block", "waiting for one"):
                await asyncio.sleep(NEVER)
            if busy == "in a statement":
                await conn.execute("select pg_sleep(600)")

    async def story() -> None:
        inside = asyncio.Event()
        tasks.append(start(use(inside)))
        await inside.wait()
        if busy == "waiting for one":
            tasks.append(start(query(pool, timeout=NEVER)))
            await until(lambda: stats(pool).waiting == 1)

    tasks: list[asyncio.Task[Any]] = []
    with pytest.warns(ResourceWarning, match="was not closed"), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(story())
    assert all(task.done() for task in tasks)
    wait_for(lambda: not backends(pg_node))


# -- dropped ----------------------------------------------------------------------------------------------------------


def test_a_pool_that_nobody_knows_any_more_closes_its_connections(pg_node: Node, run: Stage) -> None:
    async def opened() -> AsyncPool:
        pool = AsyncPool(config(pg_node, min_count=2))
        await pool.wait(LIMIT)
        await until_seen(lambda: len(backends(pg_node)) == 2)
        return pool

    async def story(open_pool: OpenPool) -> None:
        gone = weakref.ref(await opened())
        gc.collect()
        assert gone() is None
        await until_seen(lambda: not backends(pg_node))
        await until(lambda: pool_threads() == [])

    run(story)


def test_a_block_that_its_generator_left_unfinished_gives_its_connection_back(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))

        async def rows() -> Any:
            async with pool.connection(timeout=LIMIT) as conn:
                async for row in conn.cursor().stream("select generate_series(1, 3)"):
                    yield row

        async for _ in rows():
            break
        gc.collect()
        await query(pool)

    run(story)


# -- the end of the process -------------------------------------------------------------------------------------------

BEGINNING = """
import asyncio, json, logging, os, signal, socket, sys, threading, time, warnings
from pgdbpool import AsyncPool, PoolTimeout

config = json.loads(sys.argv[1])
warnings.simplefilter("always", ResourceWarning)  # printed, so that a test can see it
said = []
warnings.showwarning = lambda message, *more: said.append(str(message))

async def query(pool, timeout=20.0):
    async with pool.connection(timeout=timeout) as conn:
        await conn.execute("select 1")

"""
ENDINGS = {
    "not used": ("pool = AsyncPool(config)", False),
    "closed": ("async def main():\n    async with pool: await query(pool)\nasyncio.run(main())", False),
    "not closed": ("asyncio.run(query(pool))", True),
    "held": ("async def main(): global conn; conn = await pool.getconn()\nasyncio.run(main())", True),
    "loop closed": ("loop = asyncio.new_event_loop(); loop.run_until_complete(query(pool)); loop.close()", True),
    "loop left open": ("loop = asyncio.new_event_loop(); loop.run_until_complete(query(pool))", False),
    "loop at work in a daemon thread": (
        """
async def main():
    await query(pool)
    ready.set()
    await asyncio.sleep(600)

ready = threading.Event()
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
ready.wait(20)
""",
        False,
    ),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_a_program_ends_however_it_leaves_its_pool(how: str, pg_node: Node) -> None:
    code, warns = ENDINGS[how]
    program = BEGINNING + "pool = AsyncPool(config)\n" + code + "\nprint(json.dumps(said), flush=True)\n"
    process = python(program, json.dumps(config(pg_node, min_count=2)))
    said = json.loads(output(process))
    assert [text for text in said if "was not closed before the end of its event loop" in text] == said
    assert bool(said) is warns
    wait_for(lambda: not backends(pg_node))


def test_a_program_does_not_wait_for_a_name_server_that_is_silent(pg_node: Node) -> None:
    program = """
logging.disable()

def silent(*args, **more):
    time.sleep(600)

socket.getaddrinfo = silent

async def main():
    async with AsyncPool(config) as pool:
        for _ in range(3):
            try:
                await query(pool, timeout=0.1)
            except PoolTimeout:
                pass
    threads = [thread.name for thread in threading.enumerate()]
    print(threads.count("pgdbpool lookup"), flush=True)

asyncio.run(main())
"""
    place = {**pg_node.endpoint(ssl="disable"), "host": "db.example", "connect_timeout": 1}
    settings = config(place, monitor={"interval": 0.1, "timeout": 0.2})
    assert output(python(BEGINNING + program, json.dumps(settings))) == "1\n"


# -- fork -------------------------------------------------------------------------------------------------------------


def test_parent_and_child_go_on_with_connections_of_their_own(pg_node: Node) -> None:
    program = """
import psycopg
pool = AsyncPool(config)

async def backend():
    async with pool.connection(timeout=20.0) as conn:
        return (await (await conn.execute("select pg_backend_pid()")).fetchone())[0]

async def life():
    async with pool:
        print(await backend(), flush=True)

async def main():
    async with pool:
        first = await backend()
        print(first, flush=True)
        if not await asyncio.to_thread(lambda: 0) and (child := os.fork()) == 0:
            asyncio.events._set_running_loop(None)  # as a server that forks its workers inside a loop has to
            asyncio.run(life())
            os._exit(0)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert status == 0
        assert await backend() == first, "the child has not ended it"

asyncio.run(main())
"""
    process = python(BEGINNING + program, json.dumps(config(pg_node, connection_count=1)))
    first, second = map(int, output(process).split())
    assert first != second
    wait_for(lambda: not backends(pg_node))


def test_a_pool_opened_before_the_fork_and_not_used_works_in_every_child(pg_node: Node) -> None:
    program = """
pool = AsyncPool(config)  # as gunicorn --preload has it

async def life():
    async with pool:
        async with pool.connection(timeout=20.0) as conn:
            os.write(1, b"%d\\n" % await (await conn.execute("select pg_backend_pid()")).fetchone())

children = []
for _ in range(3):
    child = os.fork()
    if not child:
        asyncio.run(life())
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
"""
    process = python(BEGINNING + program, json.dumps(config(pg_node, connection_count=1)))
    assert len(set(output(process).split())) == 3
    wait_for(lambda: not backends(pg_node))


def test_a_program_whose_server_is_frozen_ends(pg_node: Node) -> None:
    program = """
logging.disable()
async def main():
    pool = AsyncPool(config)
    await pool.wait(20)
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for _ in range(2):
        try:
            await pool.getconn(timeout=0.2)
        except PoolTimeout:
            pass
asyncio.run(main())
print(time.time(), flush=True)
"""
    with python(BEGINNING + program, json.dumps(config(pg_node, connection_count=3))) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        pg_node.freeze()
        try:
            out, err = process.communicate("\n", timeout=LIMIT)
        finally:
            pg_node.thaw()
        assert (process.returncode, err) == (0, "")
        assert float(out) <= time.time()
    wait_for(lambda: not backends(pg_node))
