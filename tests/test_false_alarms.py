"""What must not be taken for a dead server, and what must: also where no monitor asks.

Not one that is far away, nor one too busy for probes, nor one whose name server is silent.
"""

import asyncio
import json
import os
import signal
import socket
import threading

import psycopg
import pytest
from conftest import LIMIT, backends, config, output, python, wait_for
from support import Wire, one, port, start
from support import tidy as tidy

from pgdbpool import AsyncPool, Pool, PoolTimeout
from pgdbpool.drivers import names
from pgdbpool.testing import Proxy


def belief(pool, place):
    return next(each for each in pool.endpoints() if each.endpoint == f"127.0.0.1:{place.port}")


def alarms(pool):
    """A list of what goes wrong from now on."""
    events = []
    kinds = ("endpoint-suspect", "endpoint-down", "failover-started")
    pool.on_event(lambda event: events.append(event.message) if event.kind.value in kinds else None)
    return events


# -- far away ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_a_server_to_which_a_connect_takes_longer_than_the_time_for_a_probe_is_used(type, pg_node, open_pool):
    with Proxy(pg_node) as proxy:
        proxy.latency(0.4)
        # Three round trips for a connection and one for the question: more than a probe has for each.
        pool = open_pool(config(proxy, type=type, monitor={"interval": 0.05, "timeout": 1.0}, groups=two_groups()))
        pool.wait(LIMIT)
        events = alarms(pool)
        for _ in range(2):
            pg_node.terminate_backends("application_name = 'pgdbpool:monitor'")
            for group in ("read", "write"):
                with pool.connection(group, timeout=LIMIT) as conn:
                    assert one(conn, "select 1") == 1
        assert belief(pool, proxy).health == "up"
        assert [each for each in events if "down" in each] == []


def test_a_slow_query_on_such_a_server_is_not_ended(pg_node, open_pool):
    with Proxy(pg_node) as proxy:
        pool = open_pool(config(proxy, type="non-threaded"))
        with pool.connection(timeout=LIMIT) as conn, psycopg.connect(pg_node.dsn, autocommit=True) as keeper:
            keeper.execute("select pg_advisory_lock(6)")
            proxy.latency(0.4)
            over = start(unlock_when_asked_thrice, keeper, proxy, proxy.accepted)
            assert one(conn, "select 'done' from pg_advisory_lock(6)") == "done"
            over.result(LIMIT)


def unlock_when_asked_thrice(keeper, proxy, before):
    """Once it was asked again and again whether the server is still there."""
    wait_for(lambda: proxy.accepted >= before + 3)
    keeper.execute("select pg_advisory_unlock(6)")


def two_groups():
    return {"read": {"target_session_attrs": "any"}, "write": {"target_session_attrs": "primary"}}


# -- too busy for probes ----------------------------------------------------------------------------------------------


def test_a_server_that_answers_its_sessions_is_not_taken_for_dead_though_no_probe_is_answered(pg_node, open_pool):
    pool = open_pool(config(pg_node, monitor={"interval": 0.05, "timeout": 1.5}, connection_count=2))
    pool.wait(LIMIT)
    wait_for(lambda: belief(pool, pg_node).health == "up" and backends(pg_node, "monitor"))
    (probed,) = backends(pg_node, "monitor")
    endpoint = pool._topology.endpoints[0]
    events = alarms(pool)
    working, over = threading.Event(), threading.Event()

    def work():
        with pool.connection(timeout=LIMIT) as conn:
            while not over.is_set():
                assert one(conn, "select 1 from pg_sleep(0.01)") == 1
                working.set()

    with pool.connection(timeout=LIMIT) as conn, psycopg.connect(pg_node.dsn, autocommit=True) as keeper:
        keeper.execute("select pg_advisory_lock(7)")
        slow = start(one, conn, "select 'done' from pg_advisory_lock(7)")
        worker = start(work)
        assert working.wait(LIMIT)
        postmaster = int((pg_node.data / "postmaster.pid").read_text().split()[0])
        stopped = (postmaster, probed)
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        try:
            for _ in range(4):  # probes in a row, each of them in vain
                before = endpoint.last_error_at
                wait_for(lambda before=before: endpoint.last_error_at != before)
            assert belief(pool, pg_node).health == "suspect"
            assert not worker.done()
            assert not slow.done()
        finally:
            for process in stopped:
                os.kill(process, signal.SIGCONT)
            over.set()
        keeper.execute("select pg_advisory_unlock(7)")
        assert slow.result(LIMIT) == "done"
        worker.result(LIMIT)
    assert [each for each in events if "is down" in each] == []
    wait_for(lambda: belief(pool, pg_node).health == "up")


# -- a name server that does not answer -------------------------------------------------------------------------------


class NameServer:
    """In the place of the system's resolver: knows one name, and answers when it is let."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        self.asked = 0
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host, *args, **more):
        if host != "db.test":
            return self._real(host, *args, **more)
        self.asked += 1
        self.open.wait(LIMIT)
        return self._real("127.0.0.1", *args, **more)


@pytest.fixture
def name_server(monkeypatch):
    server = NameServer(monkeypatch)
    yield server
    server.open.set()
    wait_for(lambda: not names._under_way)


def named(node):
    return {**node.endpoint(ssl="disable"), "host": "db.test"}


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_names_are_looked_up_where_no_other_thread_is_stopped_by_it(type, pg_node, open_pool, name_server):
    # libpq, which does not know the name, is never asked.
    name_server.open.set()
    pool = open_pool(config(named(pg_node), type=type))
    with pool.connection(timeout=LIMIT) as conn:
        assert port(conn) == pg_node.port
        assert conn.info.host == "db.test"
    assert name_server.asked


def test_a_name_server_that_hangs_holds_up_nobody_else(pg_node, open_pool, name_server):
    elsewhere = pg_node.endpoint(ssl="disable")
    monitor = {"interval": 0.05, "timeout": 1.0}
    pool = open_pool(config({**named(pg_node), "port": 1}, elsewhere, monitor=monitor))
    for _ in range(50):
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
    wait_for(lambda: "timed out" in (pool.endpoints()[0].last_error or ""))
    lookups = [thread for thread in threading.enumerate() if thread.name == "pgdbpool lookup"]
    assert len(lookups) == 1  # all probes share it


def test_a_name_server_that_hangs_ends_no_call_on_a_server_that_is_well(pg_node, open_pool, name_server):
    name_server.open.set()
    pool = open_pool(config(named(pg_node), monitor={"interval": 0.05, "timeout": 1.0}))
    pool.wait(LIMIT)
    wait_for(lambda: backends(pg_node, "monitor"))
    events = alarms(pool)
    name_server.open.clear()
    with pool.connection(timeout=LIMIT) as conn, psycopg.connect(pg_node.dsn, autocommit=True) as keeper:
        keeper.execute("select pg_advisory_lock(8)")
        slow = start(one, conn, "select 'done' from pg_advisory_lock(8)")
        asked = name_server.asked
        pg_node.terminate_backends("application_name = 'pgdbpool:monitor'")
        wait_for(lambda: name_server.asked > asked)
        wait_for(lambda: "timed out" in (pool.endpoints()[0].last_error or ""))
        assert not slow.done()
        keeper.execute("select pg_advisory_unlock(8)")
        assert slow.result(LIMIT) == "done"
    assert [each for each in events if "is down" in each] == []


def test_with_asyncio_a_lookup_that_hangs_is_given_up_at_the_deadline(pg_node, name_server):
    async def story():
        async with AsyncPool(config(named(pg_node), monitor=False)) as pool:
            with pytest.raises(PoolTimeout):
                async with pool.connection(timeout=0.2):
                    pass
            name_server.open.set()
            async with pool.connection(timeout=LIMIT) as conn:
                return conn.info.host

    assert asyncio.run(story()) == "db.test"


def test_a_program_ends_though_its_name_server_hangs(pg_node):
    program = """
    import json, socket, sys, threading
    from pgdbpool import Pool, PoolTimeout

    asked = threading.Event()

    def getaddrinfo(*args, **more):
        asked.set()
        threading.Event().wait()

    socket.getaddrinfo = getaddrinfo
    pool = Pool(json.loads(sys.argv[1]))
    assert asked.wait(30)
    try:
        pool.getconn(timeout=0.1)
    except PoolTimeout:
        print("told")
    """
    assert output(python(program, json.dumps(config(named(pg_node))))) == "told\n"


def test_the_process_made_by_fork_looks_names_up_for_itself(pg_node, name_server):
    in_parent = names.look_up("db.test")
    assert names.look_up("db.test") is in_parent
    child = os.fork()
    if not child:
        os._exit(names.look_up("db.test") is in_parent)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- a password that does not come ------------------------------------------------------------------------------------


def test_a_callable_password_that_hangs_does_not_blind_the_monitor_for_ever(pg_node, open_pool):
    released = threading.Event()

    def password():
        released.wait(LIMIT)
        return "secret"

    place = {**pg_node.endpoint(ssl="disable"), "pass": password, "connect_timeout": 0.2}
    pool = open_pool(config(place, monitor={"interval": 0.05, "timeout": 0.2}))
    wait_for(lambda: "pass has not returned in time" in (pool.endpoints()[0].last_error or ""))
    released.set()
    wait_for(lambda: backends(pg_node, "monitor"))


# -- what is shared ---------------------------------------------------------------------------------------------------


def test_a_pool_and_an_async_pool_that_share_the_monitor_both_follow_a_promotion(pg_cluster, open_pool):
    groups = {"write": {"target_session_attrs": "primary"}, "read": {"target_session_attrs": "prefer-standby"}}
    settings = config(*pg_cluster.nodes, groups=groups)

    async def story():
        pool = open_pool(settings)
        async with AsyncPool(settings) as other:
            for _ in range(2):
                old = pg_cluster.primary
                assert await where(pool, other) == {old.port}
                new = pg_cluster.most_advanced_standby()
                await asyncio.to_thread(pg_cluster.failover, new)
                assert await where(pool, other) == {new.port}

    async def where(pool: Pool, other: AsyncPool):
        def threaded():
            with pool.connection("write", timeout=LIMIT) as conn:
                assert one(conn, "select pg_is_in_recovery()") is False
                return port(conn)

        async with other.connection("write", timeout=LIMIT) as conn:
            assert await (await conn.execute("select pg_is_in_recovery()")).fetchone() == (False,)
            return {conn.info.port, await asyncio.to_thread(threaded)}

    asyncio.run(story())


# -- in the non-threaded model ----------------------------------------------------------------------------------------


def test_a_search_asks_the_sessions_that_are_open_and_connects_every_other_time(pg_cluster, open_pool):
    standby = pg_cluster.standbys[0]
    groups = {
        "read": {"target_session_attrs": "standby"},
        "write": {"target_session_attrs": "primary"},
    }
    with Wire(standby) as wire:
        pool = open_pool(config(wire, type="non-threaded", groups=groups))
        with pool.connection("read", timeout=LIMIT) as conn:
            assert port(conn) == wire.port
        with pytest.raises(PoolTimeout, match="is a standby, not primary"):
            pool.getconn("write", timeout=1.0)
        asked = len(wire.statements) - len(wire.startups)  # each connection asks as well, when it is opened
        # One to read, one at first when nothing was known, and one that was not answered any more.
        assert len(wire.startups) - 3 <= asked <= len(wire.startups)
        standby.promote()
        with pool.connection("write", timeout=LIMIT) as conn:
            assert one(conn, "select pg_is_in_recovery()") is False


def test_a_connect_that_is_never_answered_is_not_waited_for_when_the_network_is_well_again(pg_node, open_pool):
    with Proxy(pg_node) as proxy:
        place = proxy.endpoint(ssl="disable", connect_timeout=3600)
        pool = open_pool(config(place, type="non-threaded", monitor={"timeout": 0.2, "interval": 0.2}))
        with pool.connection(timeout=LIMIT) as conn:
            proxy.drop()
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select 1")
        healed = start(heal_after_a_connect, proxy, proxy.accepted)
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
        healed.result(LIMIT)


def heal_after_a_connect(proxy, before):
    wait_for(lambda: proxy.accepted > before)  # and swallowed
    proxy.drop(False)


# -- where there is no monitor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_a_call_on_a_frozen_server_ends_also_where_no_monitor_asks(type, pg_cluster, open_pool):
    standby = pg_cluster.standbys[0]
    pool = open_pool(config(standby, type=type, monitor=False))
    with pytest.raises(psycopg.OperationalError, match="has not answered for"), pool.connection(timeout=LIMIT) as conn:
        freeze_and_ask(standby, conn)
    assert belief(pool, standby).health == "down"


def freeze_and_ask(node, conn):
    node.freeze()
    conn.execute("select 1")


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_a_call_that_waits_on_an_overtaken_primary_ends_also_where_no_monitor_asks(type, pg_cluster, open_pool):
    old, new = pg_cluster.primary, pg_cluster.most_advanced_standby()
    groups = {"write": {"target_session_attrs": "primary"}, "read": {"target_session_attrs": "any"}}
    pool = open_pool(config(old, new, type=type, monitor=False, groups=groups))
    with pytest.raises(psycopg.OperationalError) as caught, pool.connection("write") as conn:
        promote_and_wait(old, new, conn)
    assert "was promoted after it" in "\n".join([str(caught.value), *caught.value.__notes__])
    with pool.connection("write", timeout=LIMIT) as conn:
        assert port(conn) == new.port


def promote_and_wait(old, new, conn):
    new.promote()
    with psycopg.connect(old.dsn, autocommit=True) as keeper:
        keeper.execute("select pg_advisory_lock(5)")
        conn.execute("select pg_advisory_lock(5)")
