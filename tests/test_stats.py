"""Statistics of real pools: what is promised on docs/metrics.rst, in every model."""

import json
import threading
from typing import Any

import psycopg
import pytest
from conftest import LIMIT, config, wait_for
from support import hold, put, start, stats

from pgdbpool import PoolTimeout
from pgdbpool.core import times
from pgdbpool.core.stats import Counters

MODELS = ["threaded", "non-threaded"]


@pytest.fixture(params=MODELS)
def model(request: Any) -> str:
    return request.param


def tail(counts: tuple[int, ...], seconds: float) -> int:
    """How many took so long or longer; `seconds` is one of the bounds."""
    return sum(counts[times.BOUNDS.index(seconds) + 1 :])


def test_each_lease_is_in_the_histogram_of_uses(pg_node, open_pool, model):
    pool = open_pool(config(pg_node, type=model, connection_count=2))
    for _ in range(20):
        with pool.connection(timeout=LIMIT):
            pass
    with pool.connection(timeout=LIMIT) as conn:
        conn.execute("select pg_sleep(0.3)")
    pool.putconn(pool.getconn(timeout=LIMIT))
    counted = stats(pool).counters
    assert counted.requests == sum(counted.use_times) == 22
    assert tail(counted.use_times, 0.25) >= 1
    assert counted.use_time >= 0.3


def test_each_connect_is_in_the_histogram_of_connects(pg_node, open_pool, model):
    pool = open_pool(config(pg_node, type=model, connection_count=3))
    put(pool, *hold(pool, 3))
    counted = stats(pool).counters
    assert counted.connects == sum(counted.connect_times) == 3
    assert counted.connect_time > 0


def test_each_wait_is_in_the_histogram_of_waits(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    pool.wait(LIMIT)
    before = stats(pool).counters
    held = pool.getconn(timeout=LIMIT)
    waiting = start(pool.getconn)
    wait_for(lambda: stats(pool).longest_wait > 0.26)
    pool.putconn(held)
    pool.putconn(waiting.result(LIMIT))
    counted = stats(pool).counters.since(before)
    assert (counted.requests, counted.prompt, counted.waits) == (2, 1, 1)
    assert tail(counted.wait_times, 0.25) == sum(counted.wait_times) == 1


def test_the_longest_use_grows_until_the_lease_ends(pg_node, open_pool, model):
    pool = open_pool(config(pg_node, type=model, connection_count=2))
    with pool.connection(timeout=LIMIT):
        first = stats(pool).longest_use
        wait_for(lambda: stats(pool).longest_use > first)
    assert stats(pool).longest_use == 0


def test_reading_does_not_wait_for_the_pools_lock(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    pool.wait(LIMIT)
    with pool._lock:
        for read in (pool.stats, pool.pop_stats, pool.endpoints):
            start(read).result(LIMIT)


def test_what_all_threads_counted_is_counted(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, max_lifetime=0.05))
    over = threading.Event()
    seen: list[int] = []

    def watch() -> None:
        while not over.is_set():
            seen.append(pool.stats(all_time=True).groups["default"].counters.requests)

    def work() -> None:
        for _ in range(200):
            with pool.connection(timeout=LIMIT) as conn:
                conn.execute("select 1")

    watcher = start(watch)
    workers = [start(work) for _ in range(6)]
    popped = Counters()
    while not all(worker.done() for worker in workers):
        popped += pool.pop_stats().groups["default"].counters
    for worker in workers:
        worker.result(LIMIT)
    over.set()
    watcher.result(LIMIT)
    popped += pool.pop_stats().groups["default"].counters
    everything = pool.stats(all_time=True).groups["default"].counters
    assert popped.requests == sum(popped.use_times) == everything.requests == 1200
    assert popped.requests == popped.prompt + popped.waits
    assert seen == sorted(seen)
    assert everything.closed.get("lifetime", 0) > 0, "connections went while they were counted"


def test_a_failover_is_counted(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, target_session_attrs="primary"))
    pool.wait(LIMIT)
    wait_for(lambda: "primary" in {each.role for each in pool.endpoints()})
    wait_for(lambda: sum(each.role == "standby" for each in pool.endpoints()) == len(pg_cluster.standbys))
    assert pool.stats().failovers == 0
    old = pg_cluster.primary
    old.kill()
    pg_cluster.failover()
    wait_for(lambda: pool.stats().failovers == 1)
    moment = pool.pop_stats()
    assert moment.events["failover-finished"] == 1
    down = next(each for each in moment.endpoints if each.endpoint == f"{old.host}:{old.port}")
    assert (down.health, down.role) == ("down", "unknown")
    assert down.down_for is not None
    assert down.last_error
    assert (pool.stats().failovers, pool.stats(all_time=True).failovers) == (0, 1)


def test_probes_tell_the_position_of_each_server_and_the_lag_of_the_standbys(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes))
    wait_for(lambda: all(each.position is not None for each in pool.endpoints()))
    standby = pg_cluster.standbys[0]
    label = f"{standby.host}:{standby.port}"

    def read() -> Any:
        return next(each for each in pool.endpoints() if each.endpoint == label)

    wait_for(lambda: read().lag == 0)
    standby.execute("select pg_wal_replay_pause()")
    try:
        pg_cluster.primary.execute("create table lagging as select generate_series(1, 20000) n")
        wait_for(lambda: (read().lag or 0) > 100_000)
        primary = next(each for each in pool.endpoints() if each.role == "primary")
        assert primary.lag is None
        assert primary.probe_time is not None
        assert primary.answered is not None
    finally:
        standby.execute("select pg_wal_replay_resume()")
        pg_cluster.primary.execute("drop table if exists lagging")
    wait_for(lambda: read().lag == 0)


def test_json_tells_everything_and_no_secret(pg_node, open_pool, model):
    place = {**pg_node.endpoint(ssl="disable"), "pass": "hunter2"}
    pool = open_pool(config(place, type=model, acquire_timeout=0.1))
    put(pool, *hold(pool, 1))
    with pytest.raises(psycopg.Error), pool.connection() as conn:
        conn.execute("not sql")
    text = pool.stats().to_json()
    assert "hunter2" not in text
    read = json.loads(text)
    assert read["name"] == pool.name
    assert read["groups"]["default"]["counters"]["requests"] == 2
    assert read["groups"]["default"]["counters"]["use_p99"] > 0
    assert read["endpoints"][0]["health"] == "up"
    assert read["at"] > 1e9


def test_a_timeout_is_counted(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection(timeout=LIMIT), pytest.raises(PoolTimeout), pool.connection(timeout=0.01):
        pass
    assert stats(pool).counters.timeouts == 1


def test_a_connection_whose_call_was_ended_on_a_dead_server_is_closed_as_aborted(pg_cluster, open_pool):
    frozen, other = pg_cluster.standbys[:2]
    monitor = {"interval": 0.1, "timeout": 0.2}
    pool = open_pool(config(frozen, other, monitor=monitor, connection_count=2, min_count=0))
    label = f"{frozen.host}:{frozen.port}"
    conns = hold(pool, 2)
    calls = [start(conn.execute, "select pg_sleep(3600)") for conn in conns if conn.info.port == frozen.port]
    assert calls, "least-busy uses both"
    frozen.freeze()
    try:
        for call in calls:
            with pytest.raises(psycopg.OperationalError):
                call.result(LIMIT)
        put(pool, *conns)
        lane = next(lane for lane in stats(pool).endpoints if lane.endpoint == label)
        assert lane.counters.closed == {"aborted": len(calls)}
    finally:
        frozen.thaw()
        # They sleep on, and what they may yet read would be kept: it holds up the standby.
        frozen.execute("select pg_terminate_backend(pid) from pg_stat_activity where query like 'select pg_sleep%'")
