"""What callers of AsyncPool notice when servers stop, freeze and change roles, or when their own loop stands still.

The decisions are made in core, and tested for all pools elsewhere; here is what the monitor's findings, the endings of
calls in flight and the timers come to in an event loop.
"""

import asyncio
import errno
import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from aio_support import OpenPool, Stage, hold, one, outcome, pid, put, run, run_plain, start, until, until_seen
from conftest import LIMIT, backends, config
from support import stats

from pgdbpool import AsyncPool, DBConnectionError, Error, Pool
from pgdbpool.testing import Cluster, Node, Proxy

__all__ = ["run", "run_plain"]

STRICT = {"interval": 0.1, "timeout": 0.3}  # for servers that really are dead
PATIENT = {"interval": 0.1, "timeout": 2.0}  # found out within `BLOCKED`, and not on a machine that is only busy
BLOCKED = 5.0  # s


async def use(pool: AsyncPool, group: str = "default") -> int:
    """The port of the server that answered."""
    async with pool.connection(group, timeout=LIMIT) as conn:
        return int(await one(conn, "select inet_server_port()"))


async def until_used(pool: AsyncPool, expected: set[int]) -> None:
    """Until these servers are used, all of them and no other."""
    async with asyncio.timeout(LIMIT):
        while {await use(pool) for _ in range(4 * len(expected))} != expected:
            await asyncio.sleep(0.01)


def health(pool: AsyncPool, place: Any) -> str:
    return next(each.health for each in pool.endpoints() if each.endpoint == f"127.0.0.1:{place.port}")


async def elsewhere(function: Callable[..., Any], *args: Any) -> Any:
    """Something that takes time, in a thread: the loop goes on."""
    return await asyncio.to_thread(function, *args)


def asleep(node: Node) -> list[int]:
    """The sessions in a `pg_sleep`."""
    return [pid for (pid,) in node.execute("select pid from pg_stat_activity where wait_event = 'PgSleep'")]


def block(seconds: float) -> None:
    """What an application should not do in its loop: wait, and compute."""
    time.sleep(seconds / 2)
    end = time.monotonic() + seconds / 2
    while time.monotonic() < end:
        pass


# -- a loop that is kept busy -----------------------------------------------------------------------------------------


def test_a_loop_that_is_blocked_does_not_make_a_healthy_server_look_dead(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=4, monitor=PATIENT, query_timeout=500))
        conn, other = await hold(pool, 2)
        await until(lambda: health(pool, pg_node) == "up")
        kinds: set[str] = set()
        pool.on_event(lambda event: kinds.add(event.kind.value))
        in_flight = start(one(conn, "select pg_sleep(0.1)::text || 'done'"))
        connecting = start(hold(pool, 2))
        waiting = [start(use(pool)) for _ in range(5)]
        # At each step of the loop, since a near server is soon connected to.
        while not (stats(pool).opening and stats(pool).waiting >= 5):
            await asyncio.sleep(0)
        block(BLOCKED)
        assert await in_flight == "done"
        await put(pool, conn, other, *await connecting)
        assert await asyncio.gather(*waiting) == [pg_node.port] * 5
        assert health(pool, pg_node) == "up"
        assert kinds <= {"endpoint-up"}
        seen = stats(pool).counters
        assert (seen.closed, seen.connect_failures) == ({}, 0)

    run(story)


def test_a_connect_whose_time_passed_while_the_loop_was_blocked_has_its_time_still(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        with pg_node.proxy() as proxy:
            proxy.stall()
            pool = open_pool(config({**proxy.endpoint(ssl="disable"), "connect_timeout": 1}, monitor=False))
            task = start(use(pool))
            await until(lambda: proxy.connections == 1)
            proxy.resume()
            time.sleep(2.0)
            await task
            assert stats(pool).counters.connect_failures == 0

    run(story)


# -- servers ----------------------------------------------------------------------------------------------------------


def test_no_checkout_fails_after_a_restart_with_ten_stale_connections(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=10))
        conns = await hold(pool, 10)
        old = {pid(conn) for conn in conns}
        await put(pool, *conns)
        await elsewhere(pg_node.stop)
        await elsewhere(pg_node.start)
        conns = await hold(pool, 10)
        assert not old & {int(await one(conn, "select pg_backend_pid()")) for conn in conns}
        await put(pool, *conns)

    run(story)


def test_a_connection_lost_inside_a_transaction_is_not_passed_over_in_silence(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, autocommit=False))

        async def loses_it() -> None:
            async with pool.connection(timeout=LIMIT) as conn:
                await conn.execute("select 1")
                await elsewhere(pg_node.terminate_backends, "application_name = 'pgdbpool:default'")
                assert isinstance(await outcome(conn.execute("select 1")), psycopg.OperationalError)

        assert isinstance(await outcome(loses_it()), DBConnectionError)
        await use(pool)

    run(story)


def test_a_frozen_servers_calls_end_and_no_others(pg_cluster: Cluster, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        frozen, well = pg_cluster.standbys
        pool = open_pool(config(frozen, well, monitor=STRICT, connection_count=3))
        await pool.open()
        await until(lambda: {health(pool, node) for node in (frozen, well)} == {"up"})
        conns = await hold(pool, 6)
        hung = [start(outcome(one(c, "select pg_sleep(600)"))) for c in conns if c.info.port == frozen.port]
        calls = [start(one(c, "select pg_sleep(600)")) for c in conns if c.info.port == well.port]
        assert len(hung) == len(calls) == 3
        sessions = {pid(conn) for conn in conns}
        await until_seen(lambda: sessions <= {*asleep(frozen), *asleep(well)})
        frozen.freeze()
        try:
            for error in await asyncio.gather(*hung):
                assert isinstance(error, psycopg.OperationalError)
                assert error.__notes__[0].startswith("pgdbpool: the call was ended by the pool: 127.0.0.1:")
            assert health(pool, frozen) == "down"
            assert not any(call.done() for call in calls)
        finally:
            frozen.thaw()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await put(pool, *conns)
        await until_used(pool, {frozen.port, well.port})

    run(story)


def test_reads_go_to_the_primary_when_no_standby_is_left_and_come_back(pg_cluster: Cluster, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(*pg_cluster.nodes, target_session_attrs="prefer-standby"))
        standbys = pg_cluster.standbys
        await until_used(pool, {node.port for node in standbys})
        for node in standbys:
            await elsewhere(node.kill)
        await until_used(pool, {pg_cluster.primary.port})
        for node in standbys:
            await elsewhere(node.start)
        await until_used(pool, {node.port for node in standbys})

    run(story)


def test_writes_find_a_promoted_primary_and_lose_only_what_was_in_flight(pg_cluster: Cluster, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        groups = {"write": {"target_session_attrs": "primary", "autocommit": False, "connection_count": 2}}
        pool = open_pool(config(*pg_cluster.nodes, groups=groups))
        pg_cluster.primary.execute("drop table if exists aio_servers")
        pg_cluster.primary.execute("create table aio_servers (i int); grant all on aio_servers to app")
        pg_cluster.wait_for_replication()

        async def write(number: int) -> int:
            async with pool.connection("write", timeout=LIMIT) as conn:
                await conn.execute("insert into aio_servers values (%s)", (number,))
                return int(conn.info.port)

        async def in_flight() -> None:
            async with pool.connection("write", timeout=LIMIT) as conn:
                await conn.execute("insert into aio_servers values (2)")
                await conn.execute("select pg_sleep(600)")

        old = pg_cluster.primary
        assert await write(1) == old.port
        pg_cluster.wait_for_replication()
        lost = start(outcome(in_flight()))
        await until_seen(lambda: asleep(old))
        moving = start(elsewhere(pg_cluster.failover))
        assert isinstance(await lost, psycopg.OperationalError)
        waiting = [start(write(number)) for number in range(3, 8)]
        new = await moving
        assert set(await asyncio.gather(*waiting)) == {new.port}
        assert sorted(new.execute("select i from aio_servers")) == [(1,), *((n,) for n in range(3, 8))]
        await elsewhere(old.rejoin, new)
        assert await write(8) == new.port
        assert backends(old, "write") == set()

    run(story)


def test_a_pool_that_opens_when_no_descriptor_is_left_for_a_monitor_goes_without(
    pg_node: Node, run: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def story(open_pool: OpenPool) -> None:
        monkeypatch.setattr(asyncio, "SelectorEventLoop", none_left)
        pool = open_pool(config(pg_node, connection_count=2))
        async with pool.connection(timeout=LIMIT) as conn:
            assert await one(conn, "select 1") == 1
        assert "cannot start the monitor" in caplog.text

    run(story)


def test_both_kinds_of_pool_share_one_monitor(pg_node: Node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        settings = config(pg_node, monitor=STRICT)
        pool = open_pool(settings)
        await pool.wait(LIMIT)
        with Pool(settings) as other:
            await elsewhere(other.wait, LIMIT)
            await until(lambda: health(pool, pg_node) == "up")
            await until_seen(lambda: len(pg_node.backends("pgdbpool:monitor")) == 1)
            pg_node.freeze()
            try:
                await until(lambda: health(pool, pg_node) == other.endpoints()[0].health == "down")
            finally:
                pg_node.thaw()
            await until(lambda: health(pool, pg_node) == other.endpoints()[0].health == "up")

    run(story)


# -- all of it at once ------------------------------------------------------------------------------------------------


async def shake(proxies: list[Proxy], chance: random.Random, faults: int) -> None:
    """Have networks break, stall, slow down and recover, one after the other; in the end all is well."""
    kinds: list[Callable[[Proxy], None]] = [
        lambda proxy: proxy.reset(),
        lambda proxy: (proxy.refuse(), proxy.reset())[0],
        lambda proxy: proxy.refuse(False),
        lambda proxy: proxy.stall(),
        lambda proxy: proxy.resume(),
        lambda proxy: proxy.latency(chance.choice([0.0, 0.02])),
    ]
    for _ in range(faults):
        await elsewhere(chance.choice(kinds), chance.choice(proxies))
        await asyncio.sleep(chance.random() * 0.1)
    for proxy in proxies:
        await elsewhere(proxy.refuse, False)
        await elsewhere(proxy.resume)
        await elsewhere(proxy.latency, 0.0)


def test_callers_cancelled_at_random_while_networks_break_lose_no_connection(pg_node: Node, run: Stage) -> None:
    chance = random.Random(3)
    served = failed = cancelled = 0

    async def use(pool: AsyncPool, number: int) -> None:
        nonlocal served, failed
        try:
            async with pool.connection(timeout=chance.choice([0.001, 0.05, 10.0])) as conn:
                answer = await one(conn, "select %s::int", (number,))
            served += 1
        except (Error, psycopg.OperationalError, psycopg.errors.InFailedSqlTransaction):
            failed += 1
        else:
            assert answer == number, "the answer of somebody else"

    async def story(open_pool: OpenPool) -> None:
        nonlocal cancelled
        with ExitStack() as stack:
            proxies = [stack.enter_context(pg_node.proxy()) for _ in range(3)]
            pool = open_pool(config(*proxies, connection_count=3, autocommit=False, monitor=STRICT, query_timeout=2000))
            shaking = start(shake(proxies, chance, 30))
            tasks: list[asyncio.Task[None]] = []
            while not shaking.done():
                tasks += [start(use(pool, len(tasks) + number)) for number in range(5)]
                at_work = [task for task in tasks[-100:] if not task.done()]
                for task in chance.sample(at_work, min(len(at_work), chance.randrange(3))):
                    cancelled += task.cancel()
                await asyncio.sleep(0.01)
            await shaking
            await asyncio.wait(tasks)
            assert [task for task in tasks if not task.cancelled() and task.exception()] == []
            await until(lambda: all(each.health == "up" for each in pool.endpoints()))
            await use(pool, 0)
            await until(lambda: not stats(pool).leased and not stats(pool).opening and not pool._settling)
            await until_seen(lambda: len(backends(pg_node)) == stats(pool).open)
            for lane in pool._topology.groups[0].lanes:
                assert (lane.opening, lane.endpoint.connecting, len(lane.idle)) == (0, 0, len(lane.slots))

    run(story, limit=90.0)
    assert served
    assert failed
    assert cancelled
