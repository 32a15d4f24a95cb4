# ruff: noqa: PT012  (what raises is a signal, at some moment)
"""A statement whose caller has gone ends on its server, whatever took the caller away, and its place counts until then.

The server itself is asked how many of its processes are busy.
"""

import asyncio
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import psycopg
import pytest
from aio_support import OpenPool, Stage, one, run, run_plain, start, until, until_seen
from conftest import LIMIT, SOON, config, output, python, wait_for
from support import one as one_of
from support import start as start_thread
from support import stats
from support import tidy as tidy
from test_refusals import keys as keys
from test_refusals import tls as tls
from testing.helpers import needs_debian

from pgdbpool import AsyncPool, Pool
from pgdbpool.testing import Node, PgBouncer
from pgdbpool.testing.impostor import SSL

__all__ = ["run", "run_plain"]

LONG = "select pg_sleep(600)"
THREE = {"connection_count": 3}


def busy(node: Node, group: str = "default") -> list[str]:
    """What the server's processes for a group are doing."""
    return [row["query"] for row in node.backends(f"pgdbpool:{group}") if row["state"] == "active"]


def counters(pool: Any) -> Any:
    return stats(pool).counters


class Watching:
    """Counts the busy processes of a group all the time, on a session of its own."""

    def __init__(self, node: Node, group: str = "default") -> None:
        self.most = self.looks = 0
        self._stop = False
        self._session = psycopg.connect(node.conninfo(), autocommit=True)
        self._group = group
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        sql = "select count(*) from pg_stat_activity where state = 'active' and application_name = %s"
        while not self._stop:
            row = self._session.execute(sql, (f"pgdbpool:{self._group}",)).fetchone()
            assert row is not None
            self.most, self.looks = max(self.most, row[0]), self.looks + 1
            time.sleep(0.001)

    def end(self) -> None:
        self._stop = True
        self._thread.join(LIMIT)
        self._session.close()


@contextmanager
def watching(node: Node, most: int) -> Iterator[Watching]:
    """At no moment are more than so many processes busy, and none is in the end.

    That takes milliseconds; a statement that was not cancelled would take 600 s.
    """
    watch = Watching(node)
    try:
        yield watch
        wait_for(lambda: not busy(node), SOON)
    finally:
        watch.end()
    assert watch.most <= most


# -- asyncio ----------------------------------------------------------------------------------------------------------


def test_a_scope_that_cancels_again_and_again_ends_the_statement_and_keeps_the_connection(
    pg_node: Node, run: Stage
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, **THREE))
        for _ in range(10):
            with anyio.move_on_after(0.02) as scope:
                async with pool.connection() as conn:
                    await conn.execute(LONG)
            assert scope.cancelled_caught
        await until_seen(lambda: not busy(pg_node))
        await until(lambda: not stats(pool).leased)  # type: ignore[arg-type]
        assert counters(pool).closed == {}
        assert counters(pool).connects <= 3

    run(story)


async def plainly(conn: Any) -> None:
    await conn.execute(LONG)


async def in_a_block_of_the_drivers_own(conn: Any) -> None:
    async with conn.transaction():
        await conn.execute(LONG)


async def after_much_data(conn: Any) -> None:
    await conn.execute("select pg_sleep(600), %s::text", ("x" * 50_000_000,))


async def by_several_statements(conn: Any) -> None:
    async with conn.pipeline() as pipeline:
        for _ in range(3):
            await conn.execute(LONG)
            await pipeline.sync()


async def by_rows_one_by_one(conn: Any) -> None:
    async for _ in conn.cursor().stream("select pg_sleep(0.001) from generate_series(1, 1000000)"):
        pass


async def by_a_cursor_of_the_servers(conn: Any) -> None:
    async with conn.transaction(), conn.cursor("named") as cursor:
        await cursor.execute("select pg_sleep(600)")
        await cursor.fetchall()


async def by_copying_out(conn: Any) -> None:
    async with conn.cursor().copy("copy (select pg_sleep(0.001) from generate_series(1, 1000000)) to stdout") as copy:
        async for _ in copy:
            pass


async def by_copying_in(conn: Any) -> None:
    async with conn.cursor().copy("copy cancelled_in from stdin") as copy:
        while True:
            await copy.write("1\n" * 10_000)


async def by_many(conn: Any) -> None:
    await conn.cursor().executemany("select pg_sleep(%s)", [(600,)] * 3)


WAYS = [
    plainly,
    in_a_block_of_the_drivers_own,
    after_much_data,
    by_several_statements,
    by_rows_one_by_one,
    by_a_cursor_of_the_servers,
    by_copying_out,
    by_copying_in,
    by_many,
]


@pytest.mark.filterwarnings("ignore:.*was deleted while still open")  # a cursor that psycopg could not close
@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "transactions"])
@pytest.mark.parametrize("scope", ["asyncio", "anyio"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_whatever_is_cancelled_ends(
    way: Callable[[Any], Any], scope: str, autocommit: bool, pg_node: Node, run_plain: Stage
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, autocommit=autocommit))

        async def use() -> None:
            async with pool.connection() as conn:
                await way(conn)

        for number in range(3):
            if scope == "anyio":
                with anyio.move_on_after(0.02 * number):
                    await use()
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.02 * number):
                        await use()
            await until_seen(lambda: not busy(pg_node))
            async with pool.connection() as conn:  # what comes next is not hit
                assert await one(conn, "select 1 from pg_sleep(0.01)") == 1

    pg_node.execute("create table if not exists cancelled_in (number bigint)")
    pg_node.execute("grant all on cancelled_in to app")
    run_plain(story)


def test_a_statement_that_was_cancelled_leaves_its_connection_usable_in_the_block(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection() as conn:
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await conn.execute(LONG)
                assert await one(conn, "select 1") == 1
        assert counters(pool).closed == {}

    run(story)


def test_a_statement_may_be_cancelled_and_its_connection_used_again_before_that_has_ended(
    pg_node: Node, run_plain: Stage
) -> None:
    """The second cancellation does not let the caller wait for the end of the statement; its next one waits."""

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection() as conn:

            async def use() -> None:
                await conn.execute(LONG)

            task = start(use())
            await until_seen(lambda: LONG in busy(pg_node))
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await one(conn, "select 1") == 1

    run_plain(story)


def test_a_cancelled_caller_is_not_held_up_by_a_server_that_does_not_answer(pg_node: Node, run: Stage) -> None:
    """Neither is anybody else: the place is free again while the server still says nothing."""

    async def story(open_pool: OpenPool) -> None:
        with pg_node.proxy() as proxy:
            pool = open_pool(config(proxy, connection_count=1, min_count=0, monitor=False))
            tasks = [start(use(pool)) for _ in range(2)]
            await until_seen(lambda: LONG in busy(pg_node))
            proxy.stall()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await until(lambda: not stats(pool).open and not stats(pool).leased)  # type: ignore[arg-type]
            proxy.resume()
        pg_node.terminate_backends()

    async def use(pool: AsyncPool) -> None:
        async with pool.connection(timeout=LIMIT) as conn:
            await conn.execute(LONG)

    run(story)


@pytest.mark.parametrize("how", ["returns", "is cancelled", "closes the loop"])
def test_no_statement_outlives_its_loop(how: str, pg_node: Node) -> None:
    code = """
        import asyncio, sys, warnings
        from pgdbpool import AsyncPool
        warnings.simplefilter("ignore")
        pool = AsyncPool({"db": eval(sys.argv[1]), "groups": {"default": {"connection_count": 2}}})
        async def use():
            async with pool.connection() as conn:
                await conn.execute("select pg_sleep(600)")
        async def main():
            tasks = [asyncio.ensure_future(use()) for _ in range(2)]
            while pool.stats().groups["default"].leased < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            if sys.argv[2] == "is cancelled":
                asyncio.current_task().cancel()
                await asyncio.sleep(1)
            return tasks
        if sys.argv[2] == "closes the loop":
            loop = asyncio.new_event_loop()
            tasks = loop.run_until_complete(main())
            for task in tasks:
                task._log_destroy_pending = False
            loop.close()
        else:
            try:
                asyncio.run(main())
            except asyncio.CancelledError:
                pass
    """
    output(python(code, pg_node.endpoint(ssl="disable"), how))
    wait_for(lambda: not busy(pg_node))


# -- threads and signals ----------------------------------------------------------------------------------------------


class Soft(Exception):
    """What Celery's handler of its soft time limit raises."""


class Hard(BaseException):
    """Something that even `except Exception` does not catch, as Ctrl-C."""


@contextmanager
def signals(kinds: list[type[BaseException]], rest: Callable[[], float]) -> Iterator[Callable[[], None]]:
    """The callable has the next signal come after a rest; its handler raises."""

    def handler(number: int, frame: object) -> None:
        raise random.choice(kinds)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_REAL, rest())  # type: ignore[return-value]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", [Soft, Hard, KeyboardInterrupt])
@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_signal_that_raises_ends_the_statement_and_the_connection_stays(
    model: str, kind: type[BaseException], pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    pool = open_pool(config(pg_node, type=model, connection_count=1))
    with signals([kind], lambda: 0.05) as arm:
        for _ in range(5):
            with pytest.raises(kind), pool.connection() as conn:
                arm()
                conn.execute(LONG)
            with pool.connection() as conn:
                assert one_of(conn, "select 1 from pg_sleep(0.01)") == 1
                with pytest.raises(kind):
                    arm()
                    conn.execute(LONG)
                assert one_of(conn, "select 1") == 1, "of no use in its block"
    wait_for(lambda: not busy(pg_node))
    assert (counters(pool).connects, counters(pool).closed) == (1, {})


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_stream_that_is_left_open_does_not_go_on(model: str, pg_node: Node, open_pool: Callable[..., Pool]) -> None:
    pool = open_pool(config(pg_node, type=model, connection_count=1))

    def leave(rows: list[Any]) -> None:
        with pool.connection() as conn:
            rows.append(conn.cursor().stream("select pg_sleep(0.001) from generate_series(1, 1000000)"))
            next(rows[0])
            raise ZeroDivisionError

    rows: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        leave(rows)
    wait_for(lambda: not busy(pg_node))
    with pool.connection() as conn:
        assert one_of(conn, "select 1") == 1


def test_a_connection_that_was_thrown_away_with_its_statement_is_closed_after_that_has_ended(
    pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    pool = open_pool(config(pg_node, connection_count=1))
    conn = pool.getconn()
    conn.pgconn.send_query(LONG.encode())
    conn.pgconn.flush()
    del conn
    with pool.connection(timeout=LIMIT) as found:
        assert one_of(found, "select 1") == 1
    wait_for(lambda: not busy(pg_node))
    assert dict(counters(pool).closed) == {"lost": 1}


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_an_interrupted_caller_is_not_held_up_by_a_server_that_does_not_answer(
    model: str, pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, type=model, connection_count=1, min_count=0, monitor=False))
        with signals([Soft], lambda: 0.3) as arm, pytest.raises(Soft), pool.connection() as conn:
            arm()
            start_thread(lambda: (wait_for(lambda: LONG in busy(pg_node)), proxy.stall()))
            conn.execute(LONG)
        wait_for(lambda: not stats(pool).open)
        proxy.resume()
    pg_node.terminate_backends()


# -- a COMMIT ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["leaves the block", "commits", "commits by SQL", "a block of the driver's own"])
def test_a_commit_that_waits_for_a_standby_is_not_cancelled(way: str, pg_node: Node, run_plain: Stage) -> None:
    """PostgreSQL would call it done, and it would be on no other server."""

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, autocommit=way == "a block of the driver's own"))

        async def write() -> None:
            async with pool.connection() as conn:
                if way == "a block of the driver's own":
                    async with conn.transaction():
                        await conn.execute("insert into cancelled_commit values (1)")
                    return
                await conn.execute("insert into cancelled_commit values (1)")
                if way == "commits":
                    await conn.commit()
                elif way == "commits by SQL":
                    await conn.execute("commit")

        task = start(write())
        await until_seen(lambda: [row for row in pg_node.backends() if row["wait_event"] == "SyncRep"])
        task.cancel()
        await asyncio.wait({task})
        await until(lambda: not stats(pool).open or way == "leaves the block")  # type: ignore[arg-type]
        assert await asyncio.to_thread(pg_node.execute, "select count(*) from cancelled_commit") == [(0,)]
        await asyncio.to_thread(pg_node.restore_settings)  # now it ends

    pg_node.execute("create table if not exists cancelled_commit (number bigint)")
    pg_node.execute("truncate cancelled_commit")
    pg_node.execute("grant all on cancelled_commit to app")
    pg_node.configure(synchronous_standby_names="nowhere")
    pg_node.execute("select pg_reload_conf()")
    try:
        wait_for(lambda: pg_node.execute("show synchronous_standby_names") == [("nowhere",)])
        run_plain(story)
    finally:
        pg_node.restore_settings()
    wait_for(lambda: pg_node.execute("select count(*) from cancelled_commit") == [(1,)])


# -- a call that has lasted too long ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["threaded", "asyncio"])
def test_a_call_that_is_ended_on_this_side_ends_on_the_server(
    model: str, pg_node: Node, open_pool: Callable[..., Pool], run_plain: Stage
) -> None:
    """The server's own limit was switched off by the user, say, or does not reach it behind a pooler."""
    settings = config(pg_node, connection_count=1, query_timeout=100, monitor=False)

    async def story(open_async: OpenPool) -> None:
        pool = open_async(settings)
        with pytest.raises(psycopg.OperationalError, match="has not answered for"):
            async with pool.connection() as conn:
                await conn.execute("set statement_timeout = 0")
                await conn.execute(LONG)
        await until_seen(lambda: not busy(pg_node))

    if model == "asyncio":
        run_plain(story)
        return
    pool = open_pool(settings)
    with pytest.raises(psycopg.OperationalError, match="has not answered for"), pool.connection() as conn:
        conn.execute("set statement_timeout = 0")
        conn.execute(LONG)
    wait_for(lambda: not busy(pg_node))


# -- how it is said ---------------------------------------------------------------------------------------------------


class Ear:
    """A go-between that notes the first message of each connection."""

    def __init__(self, target: Any) -> None:
        self.first: list[int] = []
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    def __enter__(self) -> "Ear":
        return self

    def __exit__(self, *error: object) -> None:
        self._shut(self._listener)
        self._threads[0].join(LIMIT)
        self._shut(*self._sockets)
        for thread in self._threads:
            thread.join(LIMIT)
        for each in self._sockets:
            each.close()

    def _start(self, function: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=function, args=args, daemon=True))
        self._threads[-1].start()

    @staticmethod
    def _shut(*sockets: socket.socket) -> None:
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._target.host, self._target.port))
                self._sockets += [client, server]
                head = client.recv(8, socket.MSG_WAITALL)
                self.first.append(int.from_bytes(head[4:]))
                server.sendall(head)
                self._start(self._pass, client, server)
                self._start(self._pass, server, client)

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        self._shut(one, other)


@needs_debian
@pytest.mark.skipif(not psycopg.capabilities.has_cancel_safe(), reason="libpq 17 and newer encrypt it")
def test_the_request_is_encrypted_where_the_session_is(tls: Node, open_pool: Callable[..., Pool]) -> None:
    with Ear(tls) as ear:
        place = {**tls.endpoint(ssl="require"), "port": ear.port}
        pool = open_pool(config(place, connection_count=1, monitor=False))
        with signals([Soft], lambda: 0.2) as arm, pytest.raises(Soft), pool.connection() as conn:
            arm()
            conn.execute(LONG)
        wait_for(lambda: not busy(tls))
        assert (counters(pool).connects, counters(pool).closed) == (1, {})
    assert len(ear.first) >= 2
    assert set(ear.first) == {SSL}


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_through_a_pooler_the_statement_ends_and_no_other_is_hit(
    mode: str, pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    with PgBouncer(pg_node, pool_mode=mode) as pooler:
        pool = open_pool(config(pooler, connection_count=2, monitor=False))
        with signals([Soft], lambda: 0.02) as arm:
            for _ in range(100):
                with pytest.raises(Soft), pool.connection(timeout=LIMIT) as conn:
                    arm()
                    conn.execute(LONG)
                with pool.connection(timeout=LIMIT) as conn:
                    assert one_of(conn, "select 1 from pg_sleep(0.005)") == 1
        wait_for(lambda: not [row for row in pg_node.backends() if row["state"] == "active"])


def test_an_older_libpq_cancels_too(pg_node: Node) -> None:
    """As far as psycopg finds one that does not come with its wheel."""
    code = """
        import os, sys, time
        try:
            import psycopg
        except ImportError:
            print("none")
            sys.exit()
        if psycopg.capabilities.has_cancel_safe():
            print("too new")
            sys.exit()
        import signal
        from pgdbpool import Pool
        class Soft(Exception): pass
        def handler(number, frame): raise Soft
        signal.signal(signal.SIGALRM, handler)
        for model in ("threaded", "non-threaded"):
            pool = Pool({"type": model, "db": eval(sys.argv[1]), "groups": {"default": {"connection_count": 1}}})
            try:
                with pool.connection() as conn:
                    signal.setitimer(signal.ITIMER_REAL, 0.1)
                    conn.execute("select pg_sleep(600)")
            except Soft:
                pass
            with pool.connection() as conn:
                assert conn.execute("select 1").fetchone() == (1,)
            assert not pool.stats().groups["default"].counters.closed
            pool.close()
        print("cancelled")
    """
    os.environ["PSYCOPG_IMPL"] = "python"
    try:
        said = output(python(code, pg_node.endpoint(ssl="disable"))).strip()
    finally:
        del os.environ["PSYCOPG_IMPL"]
    if said != "cancelled":
        pytest.skip(f"an older libpq: {said}")


# -- how long it takes ------------------------------------------------------------------------------------------------

ROUNDS = 11
WITHIN = 2.0  # s for the median of so many; it takes a few milliseconds, and without a cancel ten minutes


def until_none_is_busy(node: Node) -> float:
    began = time.monotonic()
    wait_for(lambda: not busy(node))
    return time.monotonic() - began


def test_when_tasks_are_cancelled_no_process_is_busy_two_seconds_later(pg_node: Node, run: Stage) -> None:
    async def use(pool: AsyncPool) -> None:
        async with pool.connection(timeout=LIMIT) as conn:
            await conn.execute(LONG)

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, **THREE))
        took = []
        for _ in range(ROUNDS):
            tasks = [start(use(pool)) for _ in range(3)]
            await until_seen(lambda: busy(pg_node) == [LONG] * 3)
            for task in tasks:
                task.cancel()
            took.append(await asyncio.to_thread(until_none_is_busy, pg_node))
            await asyncio.wait(tasks)
        assert sorted(took)[ROUNDS // 2] < WITHIN

    run(story, limit=120.0)


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_when_a_signal_has_interrupted_its_caller_no_process_is_busy_two_seconds_later(
    model: str, pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    pool = open_pool(config(pg_node, type=model, connection_count=1))
    took = []
    with signals([Soft], lambda: 0.05) as arm:
        for _ in range(ROUNDS):
            with pytest.raises(Soft), pool.connection(timeout=LIMIT) as conn:
                arm()
                conn.execute(LONG)
            took.append(until_none_is_busy(pg_node))
    assert sorted(took)[ROUNDS // 2] < WITHIN


# -- storms -----------------------------------------------------------------------------------------------------------

MANY = 500  # cancellations, of each kind
STATEMENTS = [LONG, LONG, "select pg_sleep(0.003)", "select 1", "select count(*) from generate_series(1, 2000000)"]


@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "transactions"])
def test_hundreds_of_cancellations_at_random_leave_nothing_busy(autocommit: bool, pg_node: Node, run: Stage) -> None:
    chance = random.Random(f"{autocommit}")

    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, autocommit=autocommit, **THREE))
        left = MANY

        async def use() -> None:
            async with pool.connection(timeout=LIMIT) as conn:
                await conn.execute(chance.choice(STATEMENTS))
                await conn.execute(chance.choice(STATEMENTS))

        async def client() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                rest = chance.random() * 0.02
                match chance.randrange(3):
                    case 0:
                        with anyio.move_on_after(rest):
                            await use()
                    case 1:
                        with suppress(TimeoutError):
                            async with asyncio.timeout(rest):
                                await use()
                    case 2:
                        task = start(use())
                        await asyncio.sleep(rest)
                        for _ in range(chance.randrange(1, 4)):
                            task.cancel()
                            await asyncio.sleep(0)
                        with suppress(asyncio.CancelledError):
                            await task

        await asyncio.gather(*(client() for _ in range(8)))
        await until(lambda: not stats(pool).leased)  # type: ignore[arg-type]
        async with pool.connection() as conn:
            assert await one(conn, "select 1") == 1

    with watching(pg_node, most=3):
        run(story, limit=120.0)


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_hundreds_of_signals_at_random_leave_nothing_busy(
    model: str, pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    chance = random.Random(model)
    pool = open_pool(config(pg_node, type=model, **THREE))
    served = 0
    with watching(pg_node, most=3), signals([Soft, Hard, KeyboardInterrupt], lambda: chance.random() * 0.02) as arm:
        for _ in range(MANY // 2):
            try:
                arm()
                with pool.connection(timeout=LIMIT) as conn:
                    conn.execute(chance.choice(STATEMENTS))
                    arm()
                    conn.execute(chance.choice(STATEMENTS))
                    served += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
            except (Soft, Hard, KeyboardInterrupt):
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        with pool.connection(timeout=LIMIT) as conn:
            assert one_of(conn, "select 1") == 1
    assert served
