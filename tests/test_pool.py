"""One group on one server: sizes, waiting, lifetimes, and everything one can ask a running pool for."""

import gc
import threading
import time
import weakref

import psycopg
import pytest
from conftest import LIMIT, backends, config, wait_for
from support import Wire, grow, hold, one, pid, put, start, stats
from support import tidy as tidy

from pgdbpool import DBOfflineError, Pool, PoolClosed, PoolTimeout, TooManyWaiting, UnconfiguredGroupError
from pgdbpool.core.group import Waiter
from pgdbpool.testing import Impostor

# -- how many -------------------------------------------------------------------------------------------------------


def test_min_count_connections_are_opened_in_the_background(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=5, min_count=3))
    wait_for(lambda: stats(pool).idle == 3)
    assert stats(pool).open == 3
    assert len(backends(pg_node)) == 3


def test_with_min_count_0_nothing_is_opened_before_it_is_needed(pg_node, open_pool):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, min_count=0, monitor=False))
        with pool.connection() as conn:
            assert one(conn, "select 1") == 1
        assert len(wire.startups) == 1


def test_wait_returns_when_min_count_connections_are_there(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=5, min_count=4))
    pool.wait(LIMIT)
    assert stats(pool).open >= 4


def test_a_group_grows_when_all_are_in_use(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=4, min_count=1))
    assert len(grow(pool, 4)) == 4


def test_a_group_never_grows_beyond_connection_count(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))
    conns = hold(pool, 2)
    with pytest.raises(PoolTimeout) as caught:
        pool.getconn(timeout=0.1)
    assert caught.value.reason == "exhausted"
    assert caught.value.group == "default"
    assert len(backends(pg_node)) == 2
    put(pool, *conns)


def test_total_count_limits_a_group_over_all_its_endpoints(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, connection_count=3, total_count=4))
    conns = hold(pool, 4)
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.1)
    assert stats(pool).open == 4
    assert stats(pool).limit == 4
    put(pool, *conns)


def test_a_group_grows_by_more_than_one_at_a_time(pg_node, open_pool):
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, connection_count=8, min_count=1))
        pool.wait(LIMIT)
        proxy.latency(0.1)  # so that what is being opened can be seen
        first = pool.getconn()
        waiting = [start(pool.getconn, timeout=LIMIT) for _ in range(5)]
        wait_for(lambda: stats(pool).opening == 2)
        conns = [first, *(each.result(LIMIT) for each in waiting)]
        assert len({pid(conn) for conn in conns}) == 6
        proxy.latency(0)
        put(pool, *conns)


def test_who_waits_for_a_new_connection_takes_one_that_comes_back_first(pg_node, open_pool):
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, connection_count=2, min_count=1))
        pool.wait(LIMIT)
        held = pool.getconn()
        proxy.stall()
        waiting = start(pool.getconn, timeout=LIMIT)
        wait_for(lambda: stats(pool).opening == 1)
        pool.putconn(held)
        assert waiting.result(LIMIT) is held
        proxy.resume()
        pool.putconn(held)


def test_the_connection_returned_last_is_handed_out_first(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, min_count=3))
    conns = hold(pool, 3)
    put(pool, *conns)
    assert hold(pool, 3) == conns[::-1]


# -- waiting --------------------------------------------------------------------------------------------------------


def test_who_waits_gets_what_comes_back(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    held = pool.getconn()
    waiting = start(pool.getconn, timeout=LIMIT)
    wait_for(lambda: stats(pool).waiting == 1)
    pool.putconn(held)
    assert waiting.result(LIMIT) is held


@pytest.mark.parametrize("patient", [False, True], ids=["timed out", "in the queue again"])
def test_a_connection_whose_giver_was_held_up_goes_to_the_next(patient, pg_node, open_pool, monkeypatch):
    """The giver has claimed who waits, and stands still until that one has left."""
    pool = open_pool(config(pg_node, connection_count=1))
    held = pool.getconn()
    claimed, on = threading.Event(), threading.Event()
    receive = Waiter.receive

    def late(waiter, slot):
        monkeypatch.setattr(Waiter, "receive", receive)
        claimed.set()
        assert on.wait(LIMIT)
        return receive(waiter, slot)

    monkeypatch.setattr(Waiter, "receive", late)
    waiting = start(pool.getconn, timeout=LIMIT if patient else 0.3)
    wait_for(lambda: stats(pool).waiting == 1)
    giving = start(pool.putconn, held)
    assert claimed.wait(LIMIT)
    if patient:  # it looks after a while, and stands in the queue again
        wait_for(lambda: stats(pool).waiting == 1)
        on.set()
        assert waiting.result(LIMIT) is held
        pool.putconn(held)
    else:
        with pytest.raises(PoolTimeout):
            waiting.result(LIMIT)
        on.set()
    giving.result(LIMIT)
    assert (stats(pool).open, stats(pool).idle) == (1, 1)
    with pool.connection(timeout=LIMIT) as conn:
        assert conn is held
    assert stats(pool).counters.closed == {}


@pytest.mark.parametrize("way", ["connection", "getconn"])
def test_a_newcomer_does_not_take_what_is_idle_before_those_who_wait(way, pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    grow(pool, 1)
    group = pool._group("default")
    waiter = Waiter(time.monotonic(), lambda: None)
    group.waiters[waiter] = None  # and in the next moment it would see that something is idle
    with pytest.raises(PoolTimeout):
        getattr(pool, way)(timeout=0).__enter__()
    assert waiter.slot is not None
    group.give(waiter.slot, time.monotonic())
    assert grow(pool, 1)


def test_more_than_max_waiting_callers_are_turned_away_at_once(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, max_waiting=2))
    held = pool.getconn()
    waiting = [start(pool.getconn, timeout=LIMIT) for _ in range(2)]
    wait_for(lambda: stats(pool).waiting == 2)
    with pytest.raises(TooManyWaiting, match="2 callers wait already") as caught, pool.connection(timeout=LIMIT):
        pytest.fail("not reached")
    assert isinstance(caught.value, TimeoutError)
    assert stats(pool).counters.rejections == 1
    pool.putconn(held)
    wait_for(lambda: any(each.done() for each in waiting))
    for each in sorted(waiting, key=lambda each: not each.done()):
        pool.putconn(each.result(LIMIT))


def test_one_whose_connection_was_no_good_waits_for_another_though_too_many_wait(pg_node, open_pool):
    asked, answer, verdicts = threading.Event(), threading.Event(), iter([True])

    def check(conn):
        if next(verdicts, False):
            asked.set()
            assert answer.wait(LIMIT)
            raise RuntimeError("not this one")

    pool = open_pool(config(pg_node, connection_count=1, max_waiting=1, check=check))
    unlucky = start(pool.getconn, timeout=LIMIT)
    assert asked.wait(LIMIT)
    waiting = start(pool.getconn, timeout=LIMIT)
    wait_for(lambda: stats(pool).waiting == 1)
    with pytest.raises(TooManyWaiting):
        pool.getconn()
    answer.set()
    wait_for(lambda: unlucky.done() or waiting.done())
    for each in sorted([unlucky, waiting], key=lambda each: not each.done()):
        pool.putconn(each.result(LIMIT))
    assert stats(pool).counters.rejections == 1


def test_with_timeout_0_an_idle_connection_is_handed_out(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, acquire_timeout=0))
    pool.wait(LIMIT)
    with pool.connection() as conn:
        assert one(conn, "select 1") == 1


def test_with_timeout_0_nobody_waits_for_a_connection_in_use(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    held = pool.getconn()
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0)
    assert stats(pool).waiting == 0
    pool.putconn(held)


def test_a_group_has_a_timeout_of_its_own(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, acquire_timeout=0.05))
    held = pool.getconn(timeout=LIMIT)
    with pytest.raises(PoolTimeout) as caught, pool.connection():
        pytest.fail("not reached")
    assert caught.value.waited >= 0.05
    pool.putconn(held)


def test_who_gave_up_waiting_does_not_cost_a_connection(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    held = pool.getconn()
    for _ in range(3):
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.01)
    pool.putconn(held)
    assert pool.getconn(timeout=LIMIT) is held


def test_a_timeout_says_who_holds_the_connections(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection() as conn, pytest.raises(PoolTimeout) as caught:
        pool.getconn(timeout=0.01)
    message = str(caught.value)
    assert "1 connection in use, " in message
    assert "test_a_timeout_says_who_holds_the_connections" in message
    assert f"backend {pid(conn)}" in message
    assert "MainThread" in message


def test_holders_names_file_line_and_thread_of_each_lease(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))
    assert pool.holders() == []
    held = pool.getconn()
    (holder,) = pool.holders("default")
    assert holder.group == "default"
    assert holder.endpoint == f"127.0.0.1:{pg_node.port}"
    assert "test_pool.py" in holder.where
    assert holder.thread == threading.current_thread().name
    pool.putconn(held)


# -- how long -------------------------------------------------------------------------------------------------------


def test_a_connection_is_replaced_when_its_life_is_over(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2, min_count=2, max_lifetime=0.4))
    old = grow(pool, 2)
    wait_for(lambda: not old & backends(pg_node) and len(backends(pg_node)) == 2)
    assert stats(pool).counters.closed["lifetime"] >= 2


def test_lives_end_up_to_a_tenth_early_and_not_together(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=8, max_lifetime=1000))
    grow(pool, 8)
    slots = [slot for lane in pool._groups["default"].lanes for slot in lane.slots]
    lives = {slot.expires - slot.born for slot in slots}
    assert len(lives) == 8
    assert all(900 <= life <= 1000 for life in lives)


def test_a_life_that_is_over_is_seen_on_checkout(pg_node, open_pool):
    # In this model nobody else looks.
    pool = open_pool(config(pg_node, type="non-threaded", connection_count=1, max_lifetime=0.2))
    with pool.connection() as conn:
        old = pid(conn)
    over = time.monotonic() + 0.2
    wait_for(lambda: time.monotonic() > over)
    with pool.connection() as conn:
        assert pid(conn) != old


def test_a_leased_connection_outlives_its_time_until_it_comes_back(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, max_lifetime=0.2))
    with pool.connection() as conn:
        old = pid(conn)
        one(conn, "select pg_sleep(0.3)")
    with pool.connection() as conn:
        assert pid(conn) != old


def test_with_max_lifetime_0_a_life_has_no_end(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, max_lifetime=0))
    grow(pool, 1)
    (slot,) = pool._groups["default"].lanes[0].slots
    assert slot.expires == float("inf")


def test_a_group_shrinks_to_min_count_while_it_is_in_use(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=5, min_count=2, max_idle=0.3))
    grow(pool, 5)
    assert stats(pool).open == 5

    def shrunk():
        with pool.connection() as conn:
            conn.execute("select 1")
        return stats(pool).open == 2

    wait_for(shrunk)
    wait_for(lambda: len(backends(pg_node)) == 2)
    assert stats(pool).counters.closed == {"idle": 3}


def test_a_group_shrinks_to_nothing_with_min_count_0(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, min_count=0, max_idle=0.1))
    grow(pool, 3)
    wait_for(lambda: stats(pool).open == 0)
    wait_for(lambda: not backends(pg_node))
    with pool.connection() as conn:
        assert one(conn, "select 1") == 1


def test_a_group_does_not_shrink_below_min_count(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, min_count=2, max_idle=0.05))
    pids = grow(pool, 3)
    wait_for(lambda: stats(pool).open == 2)
    rested = time.monotonic() + 0.2
    wait_for(lambda: time.monotonic() > rested)
    assert backends(pg_node) < pids
    assert stats(pool).counters.closed == {"idle": 1}


# -- while it runs --------------------------------------------------------------------------------------------------


def test_resizing_up_serves_those_who_wait(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    held = pool.getconn()
    waiting = [start(pool.getconn, timeout=LIMIT) for _ in range(2)]
    wait_for(lambda: stats(pool).waiting == 2)
    pool.resize("default", 3)
    conns = [each.result(LIMIT) for each in waiting]
    assert stats(pool).limit == 3
    assert len({pid(conn) for conn in [held, *conns]}) == 3
    put(pool, held, *conns)


def test_resizing_down_closes_idle_connections_at_once(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=5))
    grow(pool, 5)
    pool.resize("default", 2)
    assert stats(pool).open == 2
    wait_for(lambda: len(backends(pg_node)) == 2)
    assert stats(pool).counters.closed == {"resized": 3}


def test_resizing_down_closes_leased_connections_when_they_come_back(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3))
    conns = hold(pool, 3)
    pool.resize("default", 1)
    assert {one(conn, "select pg_backend_pid()") for conn in conns} == backends(pg_node)
    put(pool, *conns)
    wait_for(lambda: len(backends(pg_node)) == 1)
    assert stats(pool).open == 1


def test_resizing_up_again_spares_what_was_to_be_closed(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3))
    conns = hold(pool, 3)
    pool.resize("default", 1)
    pool.resize("default", 3)
    put(pool, *conns)
    assert len(grow(pool, 3)) == 3


def test_resizing_min_count_up_opens_connections(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=5))
    pool.resize("default", 5, min_count=4)
    wait_for(lambda: stats(pool).idle == 4)


def test_resizing_below_min_count_takes_min_count_along(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=5, min_count=4))
    pool.wait(LIMIT)
    pool.resize("default", 2)
    wait_for(lambda: len(backends(pg_node)) == 2)
    assert stats(pool).open == 2


@pytest.mark.parametrize(
    ("numbers", "words"),
    [((0,), "connection_count: expected 1 or more, got 0"), ((2, 3), "min_count: expected 0 to"), ((2, -1), "min_co")],
)
def test_resizing_to_what_a_configuration_would_not_accept_is_an_error(pg_node, open_pool, numbers, words):
    pool = open_pool(config(pg_node))
    with pytest.raises(ValueError, match=words):
        pool.resize("default", *numbers)
    with pool.connection() as conn:
        assert one(conn, "select 1") == 1


def test_drain_replaces_idle_connections_now(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, min_count=3))
    old = grow(pool, 3)
    pool.drain("default")
    wait_for(lambda: len(backends(pg_node) - old) == 3 and not backends(pg_node) & old)
    assert stats(pool).counters.closed == {"drained": 3}


def test_drain_replaces_leased_connections_when_they_come_back(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection() as conn:
        old = pid(conn)
        pool.drain()
        assert one(conn, "select pg_backend_pid()") == old
    with pool.connection() as conn:
        assert pid(conn) != old


def test_a_connection_that_was_closed_is_kept_by_nobody(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    closed = weakref.ref(hold(pool, 1)[0])
    put(pool, closed())
    pool.drain()
    wait_for(lambda: gc.collect() >= 0 and closed() is None)


def test_drain_of_one_group_leaves_the_others_alone(pg_node, open_pool):
    pool = open_pool(config(pg_node, groups={"a": {}, "b": {}}))
    pool.wait(LIMIT)
    a, b = backends(pg_node, "a"), backends(pg_node, "b")
    pool.drain("a")
    wait_for(lambda: backends(pg_node, "a") and not backends(pg_node, "a") & a)
    assert backends(pg_node, "b") == b


def test_check_closes_idle_connections_that_give_no_answer(pg_node, open_pool):
    pool = open_pool(config(pg_node, type="non-threaded", connection_count=3))
    conns = hold(pool, 3)
    dead = pid(conns[1])
    put(pool, *conns)
    pg_node.terminate_backends("pid = %s", (dead,))
    assert stats(pool).open == 3
    pool.check()
    assert stats(pool).open == 2
    assert {pid(conn) for conn in hold(pool, 2)} == {pid(conns[0]), pid(conns[2])}


def test_check_leaves_sound_connections_where_they_are(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3))
    pids = grow(pool, 3)
    pool.check()
    assert stats(pool).idle == 3
    assert backends(pg_node) == pids


def test_check_asks_each_idle_connection_once(pg_node, open_pool):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, connection_count=3, monitor=False))
        grow(pool, 3)
        before = len(wire.statements)
        pool.check()
        assert len(wire.statements) - before == 3


def test_a_paused_group_hands_out_nothing_until_it_is_resumed(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))
    pool.wait(LIMIT)
    pool.pause()
    waiting = start(pool.getconn, timeout=LIMIT)
    wait_for(lambda: stats(pool).waiting == 1)
    assert stats(pool).paused
    with pytest.raises(PoolTimeout, match="the pool is paused") as caught:
        pool.getconn(timeout=0.05)
    assert caught.value.reason == "paused"
    assert not waiting.done()
    pool.resume()
    pool.putconn(waiting.result(LIMIT))
    assert not stats(pool).paused


def test_leases_go_on_while_a_group_is_paused(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection() as conn:
        waiting = start(pool.getconn, timeout=LIMIT)
        wait_for(lambda: stats(pool).waiting == 1)
        pool.pause()
        assert one(conn, "select 1") == 1
    assert not waiting.done()
    assert stats(pool).idle == 1
    pool.resume()
    assert waiting.result(LIMIT) is conn


def test_one_group_can_be_paused_alone(pg_node, open_pool):
    pool = open_pool(config(pg_node, groups={"a": {}, "b": {}}))
    pool.wait(LIMIT)
    pool.pause("a")
    with pool.connection("b") as conn:
        assert one(conn, "select 1") == 1
    with pytest.raises(PoolTimeout):
        pool.getconn("a", timeout=0.01)


def test_a_paused_pool_can_be_drained_and_resized(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3))
    old = grow(pool, 3)
    pool.pause()
    pool.drain()
    pool.resize("default", 1)
    wait_for(lambda: not backends(pg_node) & old)
    pool.resume()
    with pool.connection(timeout=LIMIT) as conn:
        assert pid(conn) not in old


# -- getconn and putconn --------------------------------------------------------------------------------------------


def test_a_connection_is_returned_once(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))
    conn = pool.getconn()
    pool.putconn(conn)
    with pytest.raises(ValueError, match="returned before"):
        pool.putconn(conn)
    assert stats(pool).idle == stats(pool).open


def test_a_foreign_connection_is_not_taken_in(pg_node, open_pool):
    pool, other = open_pool(config(pg_node)), open_pool(config(pg_node))
    conn = other.getconn()
    with pytest.raises(ValueError, match="not handed out by getconn of this pool"):
        pool.putconn(conn)
    other.putconn(conn)
    with (
        psycopg.connect(pg_node.conninfo()) as stranger,
        pytest.raises(ValueError, match="not handed out by getconn of this pool"),
    ):
        pool.putconn(stranger)


def test_what_connection_handed_out_is_not_returned_by_putconn(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection() as conn, pytest.raises(ValueError, match="not handed out by getconn"):
        pool.putconn(conn)
    with pool.connection(timeout=LIMIT) as again:
        assert again is conn


def test_a_connection_may_be_returned_by_another_thread(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    conn = start(pool.getconn).result(LIMIT)
    assert "support.py" in pool.holders()[0].where
    pool.putconn(conn)
    with pool.connection(timeout=0) as again:
        assert again is conn


def test_a_connection_closed_by_its_user_can_be_returned(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    conn = pool.getconn()
    conn.close()
    pool.putconn(conn)
    with pool.connection(timeout=LIMIT) as other:
        assert one(other, "select 1") == 1


def test_putconn_rolls_back_what_is_open(pg_node, open_pool):
    pg_node.execute("drop table if exists pool_put")
    pg_node.execute("create table pool_put (i int); grant all on pool_put to app")
    pool = open_pool(config(pg_node, connection_count=1, autocommit=False))
    conn = pool.getconn()
    conn.execute("insert into pool_put values (1)")
    pool.putconn(conn)
    assert pg_node.execute("select count(*) from pool_put") == [(0,)]
    assert stats(pool).counters.rollbacks == 1
    assert pool.getconn() is conn


def test_a_group_that_does_not_exist_is_an_error_with_a_hint(pg_node, open_pool):
    pool = open_pool(config(pg_node, groups={"read": {}, "write": {}}))
    calls = [pool.connection, pool.getconn, pool.drain, pool.pause, pool.resume, pool.holders]
    for call in calls:
        with pytest.raises(UnconfiguredGroupError, match="did you mean 'read'"):
            call("raed")
    with pytest.raises(UnconfiguredGroupError):
        pool.resize("raed", 3)
    with pytest.raises(LookupError):
        pool.connection()


# -- statistics -----------------------------------------------------------------------------------------------------


def test_statistics_are_exact(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2, min_count=2, max_waiting=1, autocommit=False))
    wait_for(lambda: stats(pool).idle == 2)
    for _ in range(10):
        with pool.connection() as conn:
            conn.execute("select 1")
    conns = hold(pool, 2)
    conns[0].execute("select 1")
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.01)
    waiting = start(pool.getconn, timeout=LIMIT)
    wait_for(lambda: stats(pool).waiting == 1)
    assert stats(pool).longest_wait > 0
    with pytest.raises(TooManyWaiting):
        pool.getconn()
    now = stats(pool)
    assert (now.open, now.idle, now.leased, now.opening, now.waiting, now.limit) == (2, 0, 2, 0, 1, 2)
    put(pool, *conns)
    pool.putconn(waiting.result(LIMIT))
    with pool.connection() as conn:
        conn.close()
    wait_for(lambda: stats(pool).idle == 2)
    counted = stats(pool).counters
    assert counted.requests == 14
    assert counted.waits == 2, "one was served, and one went away with nothing"
    assert counted.wait_time > 0
    assert counted.use_time > 0
    assert counted.timeouts == 1
    assert counted.rejections == 1
    assert counted.rollbacks == 1
    assert counted.connects == 3
    assert counted.connect_time > 0
    assert counted.connect_failures == 0
    assert counted.closed == {"closed": 1}


def test_pop_stats_begins_to_count_anew(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    for _ in range(3):
        with pool.connection():
            pass
    assert pool.pop_stats().groups["default"].counters.requests == 3
    with pool.connection():
        pass
    assert pool.stats().groups["default"].counters.requests == 1
    popped = pool.pop_stats().groups["default"]
    assert (popped.counters.requests, popped.counters.connects, popped.open) == (1, 0, 1)
    assert pool.stats().groups["default"].counters.requests == 0


def test_pop_stats_counts_nothing_twice_and_loses_nothing(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=4, min_count=4))
    pool.wait(LIMIT)
    pool.pop_stats()
    over = threading.Event()

    def work():
        rounds = 0
        while not over.is_set():
            with pool.connection():
                rounds += 1
        return rounds

    workers = [start(work) for _ in range(4)]
    popped = 0
    for _ in range(200):
        popped += pool.pop_stats().groups["default"].counters.requests
    over.set()
    rounds = sum(worker.result(LIMIT) for worker in workers)
    assert popped + pool.pop_stats().groups["default"].counters.requests == rounds


def test_connects_that_fail_are_counted(pg_node, open_pool):
    with pg_node.proxy() as proxy:
        proxy.refuse()
        pool = open_pool(config(proxy, monitor=False))
        wait_for(lambda: stats(pool).counters.connect_failures >= 2)
        assert stats(pool).counters.connects == 0


# -- life -----------------------------------------------------------------------------------------------------------


def test_a_pool_is_a_context_manager(pg_node):
    with Pool(config(pg_node), open=False) as pool:
        assert not pool.closed
        with pool.connection() as conn:
            assert one(conn, "select 1") == 1
    assert pool.closed
    wait_for(lambda: not backends(pg_node))


def test_a_pool_that_was_not_opened_hands_out_nothing(pg_node):
    pool = Pool(config(pg_node), open=False)
    assert pool.closed
    with pytest.raises(PoolClosed):
        pool.getconn()
    assert backends(pg_node) == set()


def test_a_closed_pool_can_be_opened_again(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    for _ in range(3):
        with pool.connection() as conn:
            assert one(conn, "select 1") == 1
        pool.close()
        pool.close()
        with pytest.raises(PoolClosed):
            pool.getconn()
        pool.open()
        pool.open()


def test_a_connection_leased_while_the_pool_closes_is_closed_when_it_comes_back(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    with pool.connection() as conn:
        pool.close(timeout=0)
        assert one(conn, "select 1") == 1
    assert conn.closed
    wait_for(lambda: not backends(pg_node))


def test_a_connection_of_an_earlier_life_of_the_pool_is_closed_when_it_comes_back(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    old = pool.getconn()
    pool.close(timeout=0)
    pool.open()
    pool.putconn(old)
    with pool.connection(timeout=LIMIT) as conn:
        assert conn is not old
        assert one(conn, "select 1") == 1
    wait_for(lambda: old.closed)
    assert stats(pool).open == 1


def test_wait_ends_in_time_where_nobody_answers_and_takes_no_connection(pg_node, open_pool):
    with Impostor("57P03") as server:
        pool = open_pool(config(pg_node, groups={"a": {}, "b": {}}) | {"db": [server.endpoint(ssl="disable")]})
        with pytest.raises(PoolTimeout, match="the database system is starting up"):
            pool.wait(0.3)
        assert stats(pool, "a").leased == stats(pool, "b").leased == 0


def test_wait_says_at_once_what_no_waiting_mends(pg_node, open_pool):
    pool = open_pool(config(pg_node.endpoint(ssl="disable", name="nowhere")))
    with pytest.raises(DBOfflineError, match="nowhere"):
        pool.wait(LIMIT)


def test_those_who_wait_hear_that_the_pool_is_closed(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    held = pool.getconn()
    waiting = start(pool.getconn, timeout=LIMIT)
    wait_for(lambda: stats(pool).waiting == 1)
    pool.close(timeout=0)
    with pytest.raises(PoolClosed, match="closed while the caller waited"):
        waiting.result(LIMIT)
    pool.putconn(held)
    assert held.closed


def test_a_pool_from_a_url_has_the_group_default(pg_node):
    with Pool.from_url(pg_node.dsn + "?sslmode=disable") as pool, pool.connection() as conn:
        assert conn.info.dbname == "app"


def test_a_pool_from_a_toml_file(pg_node, tmp_path):
    file = tmp_path / "pool.toml"
    file.write_text(
        f'[[db]]\nhost = "127.0.0.1"\nport = {pg_node.port}\nname = "app"\nuser = "app"\nssl = "disable"\n'
        "[groups.read]\nconnection_count = 2\n"
    )
    with Pool.from_toml(file) as pool, pool.connection("read") as conn:
        assert one(conn, "select current_user") == "app"


def test_a_pool_says_what_it_is(pg_node, open_pool):
    pool = open_pool(config(pg_node, groups={"a": {}, "b": {}}))
    assert repr(pool) == f"<Pool threaded, groups a, b on 127.0.0.1:{pg_node.port}, open>"
    pool.close()
    assert repr(pool).endswith("closed>")
