"""The non-threaded model: everything happens in the caller's own time, and it never starts a thread."""

import itertools
import json
import os
import threading
import time

import psycopg
import pytest
from conftest import LIMIT, SOON, backends, output, python, wait_for
from conftest import config as threaded_config

from pgdbpool import DBOfflineError, PoolClosed, PoolExhausted, PoolTimeout
from pgdbpool.testing import Impostor


def config(*places, **group):
    return threaded_config(*places, type="non-threaded", **group)


def query(pool, timeout=None):
    with pool.connection(timeout=timeout) as conn:
        return conn.execute("select 1").fetchone()


def native_threads():
    return set(os.listdir("/proc/self/task"))


@pytest.fixture
def no_new_thread(monkeypatch):
    """Fails if any thread is started, by whatever means, for however short a time."""
    started = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name))
    threads, tasks = (
        set(threading.enumerate()),
        native_threads(),
    )  # those of an earlier test may just be ending
    yield
    assert started == []
    assert set(threading.enumerate()) <= threads
    assert native_threads() <= tasks


def test_no_thread_is_ever_started_in_a_whole_life_with_failures(pg_cluster, open_pool, no_new_thread):
    node, other = pg_cluster.standbys
    nobody = {**other.endpoint(ssl="disable"), "port": 1}
    pool = open_pool(config(nobody, node, other, connection_count=3, acquire_timeout=LIMIT, max_idle=1.0))
    tasks = native_threads()

    def use():
        with pool.connection() as conn:
            assert conn.execute("select 1").fetchone() == (1,)
        assert native_threads() <= tasks

    pool.wait(LIMIT)
    for _ in range(20):
        use()
    node.stop()
    for _ in range(5):
        try:
            use()
        except psycopg.OperationalError:
            pass
    other.stop()
    for _ in range(5):
        with pytest.raises((PoolTimeout, psycopg.OperationalError)):
            query(pool, timeout=0.2)
    node.start()
    other.start()
    use()
    pool.resize("default", 2)
    pool.drain()
    pool.check()
    pool.stats()
    pool.endpoints()
    use()
    pool.pause()
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.0)
    pool.resume()
    use()
    pool.close()
    with pytest.raises(PoolClosed):
        use()
    pool.open()
    use()
    pool.close()
    assert native_threads() <= tasks


def test_a_whole_program_has_one_thread_from_its_beginning_to_its_end(pg_node):
    program = """
        import json, os, sys
        from pgdbpool import Pool
        with Pool(json.loads(sys.argv[1])) as pool:
            for _ in range(3):
                with pool.connection() as conn:
                    conn.execute("select 1")
                    assert len(os.listdir("/proc/self/task")) == 1
        assert len(os.listdir("/proc/self/task")) == 1
        print("one thread")
    """
    assert output(python(program, json.dumps(config(pg_node)))) == "one thread\n"


def test_nothing_is_opened_before_it_is_needed(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, min_count=2))
    assert backends(pg_node) == set()
    with pool.connection():
        assert len(backends(pg_node)) == 1


def test_wait_opens_what_is_to_be_kept_warm(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, min_count=2))
    pool.wait(LIMIT)
    assert len(backends(pg_node)) == 2


def test_at_the_limit_it_raises_at_once(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2, acquire_timeout=LIMIT))
    with pool.connection(), pool.connection():
        began = time.monotonic()
        with pytest.raises(PoolExhausted):
            pool.getconn()
        assert time.monotonic() - began < SOON
    assert pool.stats().groups["default"].counters.timeouts == 1
    with pool.connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_at_the_limit_it_names_the_line_that_holds_a_block(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection() as conn, pytest.raises(PoolExhausted) as caught:
        pool.getconn()
    words = str(caught.value)
    assert __file__ in words
    assert "test_at_the_limit_it_names_the_line_that_holds_a_block" in words
    assert f"backend {conn.info.backend_pid}" in words
    assert "'default'" in words
    assert caught.value.group == "default"


def test_at_the_limit_it_names_the_line_of_getconn(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))

    def forgets_to_return_it():
        return pool.getconn()

    conn = forgets_to_return_it()
    line = forgets_to_return_it.__code__.co_firstlineno + 1
    with pytest.raises(PoolExhausted, match=rf"test_nonthreaded\.py:{line} .*forgets_to_return_it"):
        pool.getconn()
    pool.putconn(conn)


def test_checkouts_can_be_nested(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3))
    for _ in range(3):
        with pool.connection() as one, pool.connection() as two, pool.connection() as three:
            assert len({conn.info.backend_pid for conn in (one, two, three)}) == 3
        stats = pool.stats().groups["default"]
        assert (stats.open, stats.idle, stats.leased) == (3, 3, 0)
    assert len(backends(pg_node)) == 3


def test_the_limit_holds_for_each_endpoint(pg_cluster, open_pool):
    one, two = pg_cluster.standbys
    pool = open_pool(config(one, two, connection_count=2))
    conns = [pool.getconn() for _ in range(4)]
    assert (len(backends(one)), len(backends(two))) == (2, 2)
    with pytest.raises(PoolExhausted, match="all 4 connections are in use"):
        pool.getconn()
    for conn in conns:
        pool.putconn(conn)


def test_one_dead_endpoint_of_two_does_no_harm(pg_node, open_pool):
    nobody = {**pg_node.endpoint(ssl="disable"), "port": 1}
    pool = open_pool(config(nobody, pg_node, connection_count=2))
    began = time.monotonic()
    for _ in range(50):
        with pool.connection(timeout=LIMIT) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert time.monotonic() - began < SOON


def test_a_frozen_endpoint_of_two_does_not_hold_callers_up_for_long(pg_cluster, open_pool):
    frozen, alive = pg_cluster.standbys
    db = [node.endpoint(ssl="disable", connect_timeout=1) for node in (frozen, alive)]
    pool = open_pool(config(*db, min_count=0))
    frozen.freeze()
    began = time.monotonic()
    for _ in range(50):
        with pool.connection(timeout=LIMIT) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("role", ["any", "primary"])
def test_nor_does_one_whose_connect_may_take_longer_than_the_caller_has(role, pg_cluster, open_pool):
    alive, frozen = pg_cluster.primary, pg_cluster.standbys[0]
    db = [node.endpoint(ssl="disable", connect_timeout=10 * LIMIT) for node in (frozen, alive)]
    pool = open_pool(config(*db, min_count=0, target_session_attrs=role))
    frozen.freeze()
    for _ in range(5):
        with pool.connection(timeout=LIMIT) as conn:
            assert conn.execute("select 1").fetchone() == (1,)


def test_a_connect_that_nobody_asked_for_takes_one_part_in_twenty_of_the_time_at_most(pg_node, open_pool):
    with Impostor() as frozen:
        frozen.hang()
        pool = open_pool(config(pg_node, frozen, min_count=1))
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            query(pool)
        wait_for(lambda: frozen.attempts)
        moments = [attempt.at for attempt in frozen.attempts]
        gaps = [after - before for before, after in itertools.pairwise(moments)]
        assert min(gaps, default=10.0) > 5.0, "each takes half a second, and ten must pass before the next"


def test_it_works_again_when_the_server_has_come_back(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2, acquire_timeout=LIMIT))
    pool.wait(LIMIT)
    pg_node.stop()
    for _ in range(3):
        with pytest.raises((psycopg.OperationalError, PoolTimeout)):
            query(pool, timeout=0.2)
    with pytest.raises(PoolTimeout, match="no endpoint can be used"):
        pool.getconn(timeout=0.2)
    pg_node.start()
    with pool.connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_idle_connections_of_a_server_that_was_restarted_fail_nobody(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=5, min_count=5))
    pool.wait(LIMIT)
    pg_node.stop()
    pg_node.start()
    # rested for less than half a second they are not looked at
    time.sleep(0.5)
    for _ in range(5):
        with pool.connection() as conn:
            assert conn.execute("select 1").fetchone() == (1,)


def test_a_killed_session_is_replaced(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection() as conn:
        old = conn.info.backend_pid
        pg_node.terminate_backends("pid = %s", (old,))
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 1")
    with pool.connection() as conn:
        assert conn.execute("select pg_backend_pid()").fetchone() != (old,)
    assert len(backends(pg_node)) == 1


def test_a_database_that_is_not_there_is_said_at_once_and_in_the_words_of_the_server(pg_node, open_pool):
    place = {**pg_node.endpoint(ssl="disable"), "name": "nowhere"}
    pool = open_pool(config(place, acquire_timeout=LIMIT))
    began = time.monotonic()
    with pytest.raises(DBOfflineError, match='database "nowhere" does not exist'):
        pool.getconn()
    assert time.monotonic() - began < SOON


def test_it_shrinks_to_min_count_when_connections_were_idle_for_max_idle(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=5, min_count=2, max_idle=0.5))
    for conn in [pool.getconn() for _ in range(5)]:
        pool.putconn(conn)
    assert len(backends(pg_node)) == 5

    def shrunk():
        with pool.connection():
            pass
        return len(backends(pg_node)) == 2

    wait_for(shrunk)


def test_a_connection_is_replaced_at_the_end_of_its_life(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, max_lifetime=0.3))
    with pool.connection() as conn:
        first = conn.info.backend_pid

    def replaced():
        with pool.connection() as conn:
            conn.execute("select 1")
            return conn.info.backend_pid != first

    wait_for(replaced)
    wait_for(lambda: len(backends(pg_node)) == 1 and first not in backends(pg_node))


def test_close_closes_idle_connections_at_once_and_leased_ones_on_return(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))
    with pool.connection() as conn:
        with pool.connection():
            pass
        assert len(backends(pg_node)) == 2
        began = time.monotonic()
        pool.close(timeout=LIMIT)
        assert time.monotonic() - began < SOON  # it would wait for its own caller
        wait_for(lambda: backends(pg_node) == {conn.info.backend_pid})
        assert conn.execute("select 1").fetchone() == (1,)
    wait_for(lambda: not backends(pg_node))


def test_a_paused_pool_says_so_at_once(pg_node, open_pool):
    pool = open_pool(config(pg_node, acquire_timeout=LIMIT))
    pool.pause()
    with pytest.raises(PoolTimeout, match="paused") as caught:
        pool.getconn()
    assert caught.value.reason == "paused"
    assert caught.value.waited < 1.0
    pool.resume()
    pool.putconn(pool.getconn())
