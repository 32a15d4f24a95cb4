"""A waiter is not kept waiting while a place is free on an endpoint that is up, whatever hangs elsewhere."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aio_support import OpenPool, Stage, run_plain, until
from conftest import LIMIT, config, wait_for
from support import hold, port, put, start, stats, tidy

from pgdbpool import Pool
from pgdbpool.testing import Cluster, Node

__all__ = ["run_plain", "tidy"]

NEVER = 600.0  # s, the `connect_timeout` of what hangs: longer than any test


@pytest.fixture
def silent() -> Iterator[dict[str, Any]]:
    """An endpoint that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"host": "127.0.0.1", "port": server.getsockname()[1], "connect_timeout": NEVER}


def at(node: Node, silent: dict[str, Any]) -> list[dict[str, Any]]:
    good = node.endpoint(ssl="disable")
    return [good, {**good, **silent}]


@pytest.mark.parametrize("min_count", [0, 1])
@pytest.mark.parametrize("monitor", [True, False])
def test_a_connect_that_hangs_on_an_endpoint_that_never_answered_keeps_nobody_waiting(
    pg_node: Node, silent: dict[str, Any], open_pool: Callable[..., Pool], monitor: bool, min_count: int
) -> None:
    pool = open_pool(config(*at(pg_node, silent), monitor=monitor, connection_count=5, min_count=min_count))
    conns = hold(pool, 5)
    assert {port(conn) for conn in conns} == {pg_node.port}
    put(pool, *conns)


@pytest.mark.parametrize("min_count", [0, 1])
def test_nor_does_it_in_an_asyncio_pool(
    pg_node: Node, silent: dict[str, Any], run_plain: Stage, min_count: int
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(*at(pg_node, silent), monitor=False, connection_count=5, min_count=min_count))
        conns = await asyncio.gather(*(pool.getconn(timeout=LIMIT) for _ in range(5)))
        assert {conn.info.port for conn in conns} == {pg_node.port}
        for conn in conns:
            await pool.putconn(conn)

    run_plain(story)


def test_a_connect_that_hangs_on_an_endpoint_whose_sessions_answer_keeps_nobody_waiting(
    pg_cluster: Cluster, open_pool: Callable[..., Pool]
) -> None:
    good, other = pg_cluster.nodes[:2]
    with other.proxy() as proxy:
        places = [good.endpoint(ssl="disable"), proxy.endpoint(ssl="disable", connect_timeout=NEVER)]
        pool = open_pool(config(*places, monitor=False, connection_count=5, min_count=1))
        wait_for(lambda: stats(pool).idle == 2)  # one on each
        first = hold(pool, 2)
        assert {port(conn) for conn in first} == {good.port, proxy.port}
        proxy.stall()
        conns = hold(pool, 4)
        assert {port(conn) for conn in conns} == {good.port}
        assert {each.health for each in pool.endpoints()} == {"up"}
        proxy.resume()
        put(pool, *first, *conns)


def test_where_the_sum_is_limited_a_connect_that_hangs_gives_way(
    pg_node: Node, silent: dict[str, Any], open_pool: Callable[..., Pool]
) -> None:
    places = at(pg_node, silent)
    pool = open_pool(config(*places, monitor=False, connection_count=3, total_count=3, min_count=1))
    wait_for(lambda: stats(pool).opening == 1 and stats(pool).open == 1)
    conns = hold(pool, 3)
    assert {port(conn) for conn in conns} == {pg_node.port}
    assert stats(pool).opening == 0
    put(pool, *conns)


def test_a_configure_of_one_group_that_hangs_keeps_nobody_of_another_waiting(
    pg_node: Node, open_pool: Callable[..., Pool]
) -> None:
    release = threading.Event()
    hanging = threading.Semaphore(0)

    def hang(conn: Any) -> None:
        hanging.release()
        release.wait(NEVER)

    groups = {"slow": {"min_count": 4, "connection_count": 4, "configure": hang}, "other": {"connection_count": 3}}
    pool = open_pool(config({**pg_node.endpoint(ssl="disable"), "connect_timeout": NEVER}, groups=groups))
    assert hanging.acquire(timeout=LIMIT)
    conns = hold(pool, 3, "other")
    release.set()
    put(pool, *conns)
    put(pool, *hold(pool, 4, "slow"))


def test_a_configure_that_hangs_in_an_asyncio_pool_keeps_nobody_of_another_group_waiting(
    pg_node: Node, run_plain: Stage
) -> None:
    async def story(open_pool: OpenPool) -> None:
        release = asyncio.Event()

        async def hang(conn: Any) -> None:
            await release.wait()

        groups = {"slow": {"min_count": 4, "connection_count": 4, "configure": hang}, "other": {"connection_count": 3}}
        where = {**pg_node.endpoint(ssl="disable"), "connect_timeout": NEVER}
        pool = open_pool(config(where, groups=groups))
        conns = [await pool.getconn("other", timeout=LIMIT) for _ in range(3)]
        release.set()
        await until(lambda: pool.stats().groups["slow"].open == 4)
        for conn in conns:
            await pool.putconn(conn)

    run_plain(story)


def test_a_waiter_that_came_first_is_served_first_when_a_hanging_connect_is_passed_by(
    pg_node: Node, silent: dict[str, Any], open_pool: Callable[..., Pool]
) -> None:
    pool = open_pool(config(*at(pg_node, silent), monitor=False, connection_count=2, min_count=1))
    wait_for(lambda: stats(pool).open == 1)
    held = hold(pool, 2)
    one = start(pool.getconn, timeout=LIMIT)
    wait_for(lambda: stats(pool).waiting == 1)
    other = start(pool.getconn, timeout=LIMIT)
    wait_for(lambda: stats(pool).waiting == 2)
    put(pool, held[0])
    assert one.result(LIMIT) is held[0]
    put(pool, held[1])
    assert other.result(LIMIT) is held[1]
    put(pool, *held)
