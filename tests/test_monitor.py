"""The monitor, on real servers: what it finds out, what it leaves alone, and that it leaves nothing behind."""

import asyncio
import errno
import gc
import os
import threading
from collections import Counter

import psycopg
import pytest
from conftest import LIMIT, backends, config, wait_for
from support import Wire, grow, one, port, put, start, stats
from support import tidy as tidy

from pgdbpool import Pool, PoolTimeout, lifecycle, monitor
from pgdbpool.config import load
from pgdbpool.testing import Impostor

# Quick to probe, and patient enough for a busy machine.
QUICK = {"interval": 0.05, "timeout": 2.0}
# Quick to find out: for servers that really are dead.
STRICT = {"interval": 0.05, "timeout": 0.4}
SELDOM = {"interval": 3600.0}


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "pgdbpool monitor"]


def sessions(node):
    """The monitor's, by the pids of their backends."""
    return backends(node, "monitor")


def probes(wire):
    """How many have been sent by way of this wire."""
    return sum("pg_control_system" in statement for statement in wire.statements)


def belief(pool, node):
    return next(each for each in pool.endpoints() if each.endpoint == f"127.0.0.1:{node.port}")


def health(pool, node):
    return belief(pool, node).health


def listen(pool):
    """A list of what happens from now on."""
    events = []
    pool.on_event(lambda event: events.append((event.kind.value, event.endpoint)))
    return events


def bad(pool, events):
    """Those that say that something is wrong, once all has been told."""
    wait_for(lambda: not pool._topology.events)
    return [event for event in events if event[0] in ("endpoint-suspect", "endpoint-down", "failover-started")]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """After each test, once its pools are closed, no thread of the monitor is left."""
    yield
    wait_for(lambda: not threads() or any_pool_open())


def any_pool_open():
    # Fixtures end in the reverse order: `open_pool` may still have to close what the test opened.

    return any(not pool.closed for pool in list(lifecycle._pools))


# -- one thread, one session ------------------------------------------------------------------------------------------


def test_pools_that_name_the_same_endpoint_share_one_thread_and_one_session(pg_node, open_pool):
    pools = [open_pool(config(pg_node, monitor=QUICK)) for _ in range(3)]
    for pool in pools:
        wait_for(lambda pool=pool: health(pool, pg_node) == "up")
    wait_for(lambda: sessions(pg_node))
    assert len(threads()) == 1
    assert len(sessions(pg_node)) == 1


def test_every_endpoint_has_a_session_of_its_own_and_all_share_the_thread(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, monitor=QUICK))
    wait_for(lambda: all(each.role != "unknown" for each in pool.endpoints()))
    for node in pg_cluster.nodes:
        wait_for(lambda node=node: len(sessions(node)) == 1)
    assert len(threads()) == 1


def test_other_logins_at_the_same_server_are_other_endpoints(pg_node, open_pool):
    open_pool(config(pg_node, monitor=QUICK))
    open_pool(config(pg_node.endpoint(ssl="disable", name="postgres"), monitor=QUICK))
    wait_for(lambda: len(sessions(pg_node)) == 2)
    assert len(threads()) == 1


def test_one_session_is_used_for_many_probes(pg_node, open_pool):
    with Wire(pg_node) as wire:
        open_pool(config(wire, monitor=QUICK))
        wait_for(lambda: probes(wire) >= 10)
        assert [each["application_name"] for each in wire.startups].count("pgdbpool:monitor") == 1


def test_without_a_monitor_there_is_no_thread_and_no_session(pg_node, open_pool):
    pool = open_pool(config(pg_node, monitor=False))
    pool.wait(LIMIT)
    assert threads() == []
    assert sessions(pg_node) == set()


def test_the_non_threaded_model_starts_no_monitor(pg_node, open_pool):
    before = set(threading.enumerate())
    pool = open_pool(config(pg_node, type="non-threaded", monitor=QUICK))
    grow(pool, 2)
    assert set(threading.enumerate()) <= before
    assert sessions(pg_node) == set()


# -- its end ----------------------------------------------------------------------------------------------------------


def gone(node):
    return not threads() and not sessions(node) and monitor._monitor is None


def test_after_the_last_pool_is_closed_neither_thread_nor_session_is_left(pg_node, open_pool):
    one_pool, other = (open_pool(config(pg_node, monitor=QUICK)) for _ in range(2))
    wait_for(lambda: sessions(pg_node))
    one_pool.close()
    wait_for(lambda: monitor._monitor is not None and monitor._monitor.subscriptions == 1)
    assert len(sessions(pg_node)) == len(threads()) == 1
    other.close()
    wait_for(lambda: gone(pg_node))


def test_a_pool_that_nobody_knows_any_more_leaves_neither_thread_nor_session(pg_node, open_pool):

    pool = Pool(config(pg_node, monitor=QUICK))
    pool.wait(LIMIT)
    wait_for(lambda: sessions(pg_node))
    del pool
    gc.collect()
    wait_for(lambda: gone(pg_node))


def test_a_pool_that_is_opened_again_is_probed_again(pg_node, open_pool):
    pool = open_pool(config(pg_node, monitor=QUICK))
    wait_for(lambda: sessions(pg_node))
    pool.close()
    wait_for(lambda: gone(pg_node))
    pool.open()
    wait_for(lambda: sessions(pg_node))
    pg_node.kill()
    wait_for(lambda: health(pool, pg_node) == "down")


def test_pools_that_open_and_close_in_many_threads_leave_nothing(pg_node, open_pool):
    def come_and_go():
        for _ in range(10):
            pool = open_pool(config(pg_node, monitor=QUICK))
            with pool.connection(timeout=LIMIT) as conn:
                one(conn, "select 1")
            pool.close()

    for each in [start(come_and_go) for _ in range(4)]:
        each.result(4 * LIMIT)
    wait_for(lambda: gone(pg_node))


def test_closing_a_pool_does_not_wait_for_a_frozen_server(pg_node, open_pool):
    pool = open_pool(config(pg_node, monitor={"interval": 0.05, "timeout": 3600.0}))
    wait_for(lambda: sessions(pg_node))
    pg_node.freeze()
    pool.close()
    wait_for(lambda: not threads())


# -- what is no failure -----------------------------------------------------------------------------------------------


def test_the_end_of_the_monitors_own_session_is_no_failure(pg_node, open_pool):
    pool = open_pool(config(pg_node, monitor=QUICK))
    pool.wait(LIMIT)
    wait_for(lambda: health(pool, pg_node) == "up" and sessions(pg_node))
    events = listen(pool)
    for _ in range(5):
        before = sessions(pg_node)
        pg_node.terminate_backends("application_name = 'pgdbpool:monitor'")
        wait_for(lambda before=before: sessions(pg_node) - before)
    assert bad(pool, events) == []


def test_a_slow_query_is_never_ended(pg_node, open_pool):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, monitor={"interval": 0.01, "timeout": 2.0, "fall": 1}))
        with pool.connection(timeout=LIMIT) as conn:
            with psycopg.connect(pg_node.dsn, autocommit=True) as keeper:
                keeper.execute("select pg_advisory_lock(1)")
                slow = start(one, conn, "select 'done' from pg_advisory_lock(1)")
                done = probes(wire)
                wait_for(lambda: probes(wire) >= done + 40)
                assert not slow.done()
            assert slow.result(LIMIT) == "done"


def test_an_exhausted_pool_is_no_evidence(pg_node, open_pool):
    pool = open_pool(config(pg_node, monitor=QUICK, connection_count=1))
    pool.wait(LIMIT)
    wait_for(lambda: health(pool, pg_node) == "up")
    events = listen(pool)
    held = pool.getconn(timeout=LIMIT)
    for _ in range(20):
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.01)
    put(pool, held)
    assert health(pool, pg_node) == "up"
    assert bad(pool, events) == []


def test_errors_of_a_users_sql_are_no_evidence(pg_node, open_pool):
    pool = open_pool(config(pg_node, monitor=QUICK))
    pool.wait(LIMIT)
    wait_for(lambda: health(pool, pg_node) == "up")
    events = listen(pool)
    for wrong in ("select 1/0", "select nothing", "begin read only; create table t (i int)"):
        with pytest.raises(psycopg.Error), pool.connection(timeout=LIMIT) as conn:
            conn.execute(wrong)
    assert health(pool, pg_node) == "up"
    assert bad(pool, events) == []


def test_a_pool_that_opens_when_no_descriptor_is_left_for_a_monitor_goes_without(
    pg_node, open_pool, monkeypatch, caplog
):
    def none_left():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(asyncio, "SelectorEventLoop", none_left)
    pool = open_pool(config(pg_node, connection_count=2))
    with pool.connection(timeout=LIMIT) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert "cannot start the monitor" in caplog.text
    assert threads() == []


def test_a_wrong_password_is_tried_seldom(pg_node, open_pool):
    with Wire(pg_node) as wire, Impostor("28P01", 'password authentication failed for user "app"') as guarded:
        open_pool(config(guarded.endpoint(ssl="disable"), wire, monitor={"interval": 0.02}))
        wait_for(lambda: probes(wire) >= 40)
        tried = Counter(attempt.parameters["application_name"] for attempt in guarded.attempts)
        assert 1 <= tried["pgdbpool:monitor"] <= 3


def test_a_server_that_is_full_is_not_taken_for_dead(pg_node, open_pool):
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, monitor=QUICK, min_count=1))
        pool.wait(LIMIT)
        wait_for(lambda: health(pool, proxy) == "up")
        events = listen(pool)
        pg_node.execute("alter role app connection limit 1")
        try:
            pg_node.terminate_backends("application_name = 'pgdbpool:monitor'")
            wait_for(lambda: belief(pool, proxy).fault == "full")
            with pool.connection(timeout=LIMIT) as conn:
                assert one(conn, "select 1") == 1
        finally:
            pg_node.execute("alter role app connection limit -1")
        wait_for(lambda: belief(pool, proxy).fault is None and sessions(pg_node))
        assert bad(pool, events) == []


# -- what a server may refuse -----------------------------------------------------------------------------------------


def test_an_ordinary_role_is_told_all_that_a_probe_asks(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, monitor=QUICK))
    endpoints = pool._topology.endpoints
    wait_for(lambda: all(endpoint.identity and endpoint.position for endpoint in endpoints))
    # A standby's control file learns of an earlier promotion only by and by.
    assert max(endpoint.identity.timeline for endpoint in endpoints) == pg_cluster.primary.timeline()
    (system,) = {endpoint.identity.system for endpoint in endpoints}
    assert system == str(pg_cluster.primary.execute("select system_identifier from pg_control_system()")[0][0])
    assert not pg_cluster.primary.execute("select rolsuper from pg_roles where rolname = 'app'")[0][0]


def test_a_server_that_keeps_its_control_file_to_itself_is_still_probed_for_its_role(pg_cluster, open_pool):
    primary = pg_cluster.primary
    primary.execute("revoke execute on function pg_control_system() from public")
    try:
        pg_cluster.wait_for_replication()
        pool = open_pool(config(*pg_cluster.nodes, monitor=QUICK))
        roles = {node.port: "standby" for node in pg_cluster.standbys} | {primary.port: "primary"}
        for node in pg_cluster.nodes:
            wait_for(lambda node=node: belief(pool, node).role == roles[node.port])
        assert [endpoint.identity for endpoint in pool._topology.endpoints] == [None] * 3
        standby = pg_cluster.standbys[0]
        standby.promote()
        wait_for(lambda: belief(pool, standby).role == "primary")
    finally:
        pg_cluster.primary.execute("grant execute on function pg_control_system() to public")


# -- what it finds out ------------------------------------------------------------------------------------------------


def assert_told_why(error, pool, node):
    (note,) = error.__notes__[:1]
    assert note.startswith("pgdbpool: the call was ended by the pool: ")
    assert f"127.0.0.1:{node.port} is lost: " in note
    assert belief(pool, node).last_error in note


def test_a_frozen_servers_calls_end_and_no_others(pg_cluster, open_pool):
    frozen, well = pg_cluster.standbys
    pool = open_pool(config(frozen, well, monitor=STRICT, connection_count=4))
    wait_for(lambda: {health(pool, node) for node in (frozen, well)} == {"up"})
    conns = [pool.getconn(timeout=LIMIT) for _ in range(6)]
    on_frozen = [conn for conn in conns if port(conn) == frozen.port]
    on_well = [conn for conn in conns if port(conn) == well.port]
    assert on_frozen
    assert on_well
    with psycopg.connect(well.dsn, autocommit=True) as keeper:
        keeper.execute("select pg_advisory_lock(2)")
        calls = [start(one, conn, "select 'done' from pg_advisory_lock_shared(2)") for conn in on_well]
        hung = [start(one, conn, "select pg_sleep(600)") for conn in on_frozen]
        wait_for(
            lambda: len(frozen.execute("select 1 from pg_stat_activity where wait_event = 'PgSleep'")) == len(hung)
        )
        frozen.freeze()
        for call in hung:
            with pytest.raises(psycopg.OperationalError) as caught:
                call.result(LIMIT)
            assert_told_why(caught.value, pool, frozen)
        assert health(pool, frozen) == "down"
        assert not any(call.done() for call in calls)
    assert [call.result(LIMIT) for call in calls] == ["done"] * len(calls)
    assert health(pool, well) == "up"
    put(pool, *conns)
    assert {port(conn) for conn in [pool.getconn(timeout=LIMIT) for _ in range(3)]} == {well.port}


def test_a_call_that_begins_on_a_frozen_server_before_it_is_found_out_ends(pg_node, open_pool):
    pool = open_pool(config(pg_node, monitor=STRICT))
    conn = pool.getconn(timeout=LIMIT)
    pg_node.freeze()
    with pytest.raises(psycopg.OperationalError):
        start(one, conn, "select 1").result(LIMIT)
    put(pool, conn)
    pg_node.thaw()
    wait_for(lambda: health(pool, pg_node) == "up")
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1


def test_a_call_by_way_of_a_network_that_swallows_everything_ends(pg_node, open_pool):
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, monitor=STRICT))
        conn = pool.getconn(timeout=LIMIT)
        proxy.drop()
        with pytest.raises(psycopg.OperationalError):
            start(one, conn, "select 1").result(LIMIT)
        put(pool, conn)
        proxy.drop(False)
        wait_for(lambda: health(pool, proxy) == "up")


def test_a_server_that_dies_is_found_out_at_once_however_seldom_it_is_probed(pg_node, open_pool):
    pool = open_pool(config(pg_node, monitor=SELDOM))
    pool.wait(LIMIT)
    pg_node.kill()
    wait_for(lambda: health(pool, pg_node) == "down")


def test_a_new_primary_is_found_however_seldom_servers_are_probed(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, monitor=SELDOM, target_session_attrs="primary"))
    pool.wait(LIMIT)
    pg_cluster.primary.kill()
    wait_for(lambda: stats(pool).idle == 0)  # its end was heard
    standby = pg_cluster.standbys[0]
    waiting = start(pool.getconn, timeout=2 * LIMIT)
    wait_for(lambda: stats(pool).waiting == 1 or waiting.done())
    standby.promote()
    conn = waiting.result(LIMIT)
    assert port(conn) == standby.port
    put(pool, conn)


def test_a_promotion_is_found_out_though_nobody_uses_the_server(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, monitor=QUICK, target_session_attrs="primary"))
    pool.wait(LIMIT)
    standby = pg_cluster.standbys[1]
    wait_for(lambda: belief(pool, standby).role == "standby")
    standby.promote()
    wait_for(lambda: belief(pool, standby).role == "primary")


def test_an_overtaken_primary_is_left_and_the_calls_there_end(pg_cluster, open_pool):
    old, new = pg_cluster.primary, pg_cluster.standbys[0]
    pool = open_pool(config(*pg_cluster.nodes, monitor=QUICK, target_session_attrs="primary"))
    wait_for(lambda: all(endpoint.identity for endpoint in pool._topology.endpoints))
    events = listen(pool)
    conn = pool.getconn(timeout=LIMIT)
    assert port(conn) == old.port
    call = start(one, conn, "select pg_sleep(600)")
    new.promote()
    with pytest.raises(psycopg.OperationalError):
        call.result(LIMIT)
    put(pool, conn)
    conn = pool.getconn(timeout=LIMIT)
    assert port(conn) == new.port
    put(pool, conn)
    wait_for(lambda: ("fenced", f"127.0.0.1:{old.port}") in events)
    assert health(pool, old) == "up"


def test_a_primary_that_stops_taking_writes_is_left_for_another_without_a_failed_write(pg_cluster, open_pool):
    old, new = pg_cluster.primary, pg_cluster.standbys[0]
    pool = open_pool(config(*pg_cluster.nodes, monitor=QUICK, target_session_attrs="primary"))
    wait_for(lambda: all(endpoint.identity for endpoint in pool._topology.endpoints))
    grow(pool, 2)
    old.refuse_writes()
    wait_for(lambda: not any(lane.live for lane in stats(pool).endpoints))
    new.promote()
    with pool.connection(timeout=LIMIT) as conn:
        assert port(conn) == new.port


# -- interval, timeout, fall ------------------------------------------------------------------------------------------


def test_the_interval_is_heeded(pg_node, open_pool):
    with Wire(pg_node) as often, Wire(pg_node) as seldom:
        open_pool(config(often, monitor={"interval": 0.02}))
        open_pool(config(seldom, monitor=SELDOM, min_count=0))  # whose sessions would ask as well
        wait_for(lambda: probes(often) >= 40)
        assert probes(seldom) == 1


def test_of_two_pools_the_shorter_interval_counts(pg_node, open_pool):
    with Wire(pg_node) as wire:
        open_pool(config(wire, monitor=SELDOM, min_count=0))
        wait_for(lambda: probes(wire) == 1)
        quick = open_pool(config(wire, monitor={"interval": 0.02}))
        wait_for(lambda: probes(wire) >= 20)
        quick.close()


@pytest.mark.parametrize(("timeout", "expected"), [(10.0, "up"), (0.1, "down")])
def test_the_timeout_is_heeded(timeout, expected, pg_node, open_pool):
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, monitor={"interval": 0.02, "timeout": timeout}))
        wait_for(lambda: health(pool, proxy) == "up")
        proxy.latency(0.6)
        if expected == "up":
            probed = pool._topology.endpoints[0]
            wait_for(lambda: (probed.probe_time or 0) >= 0.6)
        wait_for(lambda: health(pool, proxy) == expected)


class Told:
    """Writes down what the monitor tells."""

    def __init__(self):
        self.told = []

    def probed(self, sighting, seconds, since):
        self.told.append("answered")

    def probe_failed(self, fault, error):
        self.told.append(fault.value)

    def in_a_hurry(self):
        return False

    def in_doubt(self):
        return False

    def is_urgent(self):
        return False

    def ended(self):
        pass


@pytest.mark.parametrize("fall", [1, 2, 4])
def test_a_silent_server_fails_so_many_probes_in_a_row_each_on_a_connection_of_its_own(fall, pg_node):

    with pg_node.proxy() as proxy:
        settings = load(config(proxy, monitor={"interval": 0.02, "timeout": 0.4, "fall": fall}))
        told = Told()
        subscription = monitor.subscribe(settings.db[0], settings.monitor, told)
        try:
            wait_for(lambda: told.told)
            accepted = proxy.accepted
            proxy.stall()
            wait_for(lambda: told.told.count("timeout") >= fall)
            assert set(told.told) == {"answered", "timeout"}
            assert proxy.accepted >= accepted + fall - 1
            proxy.resume()
            wait_for(lambda: told.told[-1] == "answered")
        finally:
            subscription.cancel()


def test_a_subscriber_that_raises_does_not_blind_the_others(pg_node, caplog):
    class Broken(Told):
        def probed(self, sighting, seconds, since):
            raise RuntimeError("of a subscriber")

    settings = load(config(pg_node, monitor=QUICK))
    told = Told()
    subscriptions = [monitor.subscribe(settings.db[0], settings.monitor, each) for each in (Broken(), told)]
    try:
        wait_for(lambda: told.told.count("answered") >= 3)
    finally:
        for each in subscriptions:
            each.cancel()
    assert "of a subscriber" in caplog.text
