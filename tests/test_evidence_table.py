"""Rows of the evidence table (docs/design.rst, "Belief") that only a real server can show, and no other test has."""

import os
import signal

import psycopg
import pytest
from conftest import LIMIT, backends, config, wait_for
from support import grow, hold, one, pid, port, put, start, stats
from support import tidy as tidy

from pgdbpool import DBOfflineError
from pgdbpool.drivers import blocking
from pgdbpool.testing import Proxy


def belief(pool, place):
    return next(each for each in pool.endpoints() if each.endpoint == f"127.0.0.1:{place.port}")


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_when_a_server_crashes_only_statements_under_way_fail(type, pg_node, open_pool):
    # One backend is killed; the postmaster tells all the others by a warning (57P02), ends them, and recovers.
    pool = open_pool(config(pg_node, type=type, connection_count=4, monitor=False))
    pids = grow(pool, 4)
    with psycopg.connect(pg_node.dsn) as victim:
        conn = pool.getconn(timeout=LIMIT)
        backend = pid(conn)
        crash = start(crash_when_under_way, pg_node, backend, victim.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select pg_sleep(3600)")
        crash.result(LIMIT)
    assert blocking.last_words(conn)[0] == "57P02"
    pool.putconn(conn)
    wait_for(lambda: stats(pool).counters.closed == {"broken": 4})  # all that were open, together
    held = hold(pool, 4)
    assert not {one(conn, "select pg_backend_pid()") for conn in held} & pids
    put(pool, *held)
    wait_for(lambda: belief(pool, pg_node).health == "up")


def crash_when_under_way(node, backend, victim):
    sql = "select count(*) from pg_stat_activity where pid = %s and state = 'active' and query ~ 'pg_sleep'"
    wait_for(lambda: node.execute(sql, (backend,))[0][0])
    os.kill(victim, signal.SIGKILL)


def test_who_may_not_connect_is_told_so_in_the_servers_words_and_let_in_when_it_may(pg_node, open_pool):
    pg_node.execute("create database closed")
    try:
        pg_node.execute("revoke connect on database closed from public")
        pool = open_pool(config(pg_node.endpoint(ssl="disable", name="closed"), monitor=False))
        with pytest.raises(DBOfflineError, match='permission denied for database "closed"'):
            pool.getconn(timeout=LIMIT)
        assert pool.endpoints()[0].fault == "misconfigured"
        pg_node.execute("grant connect on database closed to app")
        wait_for(lambda: pool.endpoints()[0].fault is None)
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select current_database()") == "closed"
        pool.close()
    finally:
        pg_node.execute("drop database closed with (force)")


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_a_network_that_resets_all_connections_fails_no_checkout(type, pg_node, open_pool):
    with Proxy(pg_node) as proxy:
        pool = open_pool(config(proxy, type=type, connection_count=3, max_idle=3600))
        pids = grow(pool, 3)
        proxy.reset()
        wait_for(lambda: not backends(pg_node) & pids)
        pool.check()  # the last of them was used a moment ago, and would not be looked at in the non-threaded model
        held = hold(pool, 3)
        assert not {one(conn, "select pg_backend_pid()") for conn in held} & pids
        put(pool, *held)


def test_a_server_that_comes_back_gets_a_part_of_its_share_first_and_all_of_it_later(pg_cluster, open_pool):
    standby = pg_cluster.standbys[0]
    pool = open_pool(config(*pg_cluster.standbys, monitor={"slow_start": 5.0}))
    pool.wait(LIMIT)
    wait_for(lambda: belief(pool, standby).health == "up")
    assert belief(pool, standby).share == 1.0
    standby.kill()
    wait_for(lambda: belief(pool, standby).health == "down")
    standby.start()
    wait_for(lambda: belief(pool, standby).health == "up")
    assert wait_for(lambda: belief(pool, standby).share < 1.0)
    wait_for(lambda: belief(pool, standby).share == 1.0)
    wait_for(lambda: port_of_one(pool) == standby.port)


def port_of_one(pool):
    with pool.connection(timeout=LIMIT) as conn:
        return port(conn)
