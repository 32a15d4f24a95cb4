"""What is told of events: one line each, and of a server that comes and goes not thousands."""

import logging
import re
import threading
from collections import deque
from dataclasses import dataclass

import pytest
from conftest import LIMIT, config, wait_for
from support import one, start, stats
from support import tidy as tidy

from pgdbpool import PoolTimeout, herald
from pgdbpool.core.events import Event, EventKind


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(herald, "monotonic", clock)
    return clock


def event(kind=EventKind.ENDPOINT_DOWN, endpoint="db1:5432", message="db1:5432 is down"):
    return Event(kind=kind, endpoint=endpoint, message=message)


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def test_of_one_event_again_and_again_three_lines_are_written_and_then_one_every_ten_seconds(clock, caplog):
    teller = herald.Herald("pool")
    for _ in range(600):
        clock.now += 0.1
        teller.deliver(deque([event()]))
    assert len(lines(caplog)) == 3 + 5
    assert [line for line in lines(caplog)[:3] if "left out" in line] == []
    left_out = [int(found[1]) for line in lines(caplog) if (found := re.search(r"\((\d+) lines like this", line))]
    assert len(left_out) == 5
    assert all(90 <= number <= 100 for number in left_out)


def test_after_a_quiet_time_there_are_three_lines_again(clock, caplog):
    teller = herald.Herald("pool")
    for _ in range(5):
        teller.deliver(deque([event()]))
    clock.now += 3600
    for _ in range(5):
        teller.deliver(deque([event()]))
    assert len(lines(caplog)) == 6


def test_other_events_and_other_servers_are_not_left_out_for_that(clock, caplog):
    teller = herald.Herald("pool")
    for _ in range(50):
        teller.deliver(deque([event()]))
    teller.deliver(deque([event(EventKind.FENCED, message="db1:5432 is fenced")]))
    teller.deliver(deque([event(endpoint="db2:5432", message="db2:5432 is down")]))
    assert lines(caplog) == [*["pool: db1:5432 is down"] * 3, "pool: db1:5432 is fenced", "pool: db2:5432 is down"]


def test_leases_of_other_groups_are_not_left_out_for_that(clock, caplog):
    teller = herald.Herald("pool")
    for group in ["read"] * 50 + ["write"]:
        words = f"group {group!r}: held too long"
        teller.deliver(deque([Event(kind=EventKind.LEAK_SUSPECTED, endpoint="db1:5432", message=words, group=group)]))
    assert lines(caplog) == [*["pool: group 'read': held too long"] * 3, "pool: group 'write': held too long"]


def test_good_news_are_no_warnings(clock, caplog):
    teller = herald.Herald("pool")
    with caplog.at_level(logging.INFO, "pgdbpool"):
        for kind in EventKind:
            teller.deliver(deque([event(kind, message=kind.value)]))
    levels = {record.getMessage().removeprefix("pool: "): record.levelname for record in caplog.records}
    quiet = {"endpoint-up", "endpoint-suspect", "role-changed", "recovered", "leak-ended", "outage-ended"}
    assert levels == {kind.value: "INFO" if kind.value in quiet else "WARNING" for kind in EventKind}


def test_details_are_more_lines_of_the_log(clock, caplog):
    details = "taken at:\n  app.py:7"
    herald.Herald("pool").deliver(
        deque([Event(kind=EventKind.LEAK_SUSPECTED, endpoint="db1:5432", message="held too long", details=details)])
    )
    assert lines(caplog) == ["pool: held too long\n  taken at:\n    app.py:7"]


def test_callables_are_told_of_every_event_until_they_are_not_to_be_told_any_more(clock):
    teller = herald.Herald("pool")
    told = []
    stop = teller.tell(told.append)
    for _ in range(100):
        teller.deliver(deque([event()]))
    assert len(told) == 100
    assert all(each.at > 0 for each in told)
    stop()
    stop()
    teller.deliver(deque([event()]))
    assert len(told) == 100


def test_a_callable_that_raises_keeps_no_other_from_being_told(clock, caplog):
    teller = herald.Herald("pool")
    told = []
    teller.tell(lambda event: 1 / 0)
    teller.tell(told.append)
    teller.deliver(deque([event(), event()]))
    assert len(told) == 2
    assert "ZeroDivisionError" in caplog.text


def test_an_outage_through_which_callers_wait_is_told_in_a_few_lines(pg_node, open_pool, caplog):
    caplog.set_level(logging.INFO, "pgdbpool")
    pool = open_pool(config(pg_node, connection_count=4))
    pool.wait(LIMIT)
    wait_for(lambda: pool.endpoints()[0].health == "up")
    pg_node.kill()
    over = threading.Event()

    def wait_again_and_again():
        while not over.is_set():
            try:
                with pool.connection(timeout=0.05) as conn:
                    one(conn, "select 1")
            except PoolTimeout:
                pass

    callers = [start(wait_again_and_again) for _ in range(4)]
    wait_for(lambda: stats(pool).counters.timeouts >= 100)
    pg_node.start()
    wait_for(lambda: pool.endpoints()[0].health == "up")
    over.set()
    for caller in callers:
        caller.result(LIMIT)
    wait_for(lambda: not pool._topology.events)
    of_the_pool = [record.getMessage() for record in caplog.records if record.name == "pgdbpool"]
    assert len(of_the_pool) <= 12, of_the_pool


@pytest.fixture
def hangs():
    """A callable that does not return before the test has ended."""
    called, over = threading.Event(), threading.Event()

    def hang(*args):
        called.set()
        assert over.wait(2 * LIMIT)

    hang.called = called
    yield hang
    over.set()
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name.endswith(" herald")])


def test_a_listener_that_hangs_does_not_keep_the_pool_from_healing(pg_node, open_pool, hangs):
    pool = open_pool(config(pg_node))
    pool.on_event(hangs)
    heals_after_a_kill(pool, pg_node, hangs.called)


def test_a_reconnect_failed_that_hangs_does_not_keep_the_pool_from_healing(pg_node, open_pool, hangs):
    heals_after_a_kill(open_pool(config(pg_node, reconnect_failed=hangs, reconnect_timeout=0)), pg_node, hangs.called)


def heals_after_a_kill(pool, node, told):
    pool.wait(LIMIT)
    node.kill()
    assert told.wait(LIMIT)
    node.start()
    with pool.connection(timeout=LIMIT) as conn:
        assert one(conn, "select 1") == 1


def test_a_listener_that_wants_to_end_the_program_ends_neither_the_pool_nor_what_it_is_told(pg_node, open_pool, caplog):
    told = []

    def leave(event):
        told.append(event.kind)
        raise SystemExit(1)

    pool = open_pool(config(pg_node))
    pool.on_event(leave)
    for _ in range(2):
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
        wait_for(lambda: pool.endpoints()[0].health == "up")
        before = len(told)
        pg_node.kill()
        wait_for(lambda before=before: "endpoint-down" in told[before:])
        pg_node.start()
    assert "a callable that was told of an event raised SystemExit" in caplog.text


def test_events_are_told_in_the_order_in_which_they_happened_one_after_the_other(pg_node, open_pool):
    told, within = [], []

    def listen(event):
        within.append(event)
        assert len(within) == 1
        told.append(event.kind)
        within.clear()

    pool = open_pool(config(pg_node))
    pool.wait(LIMIT)
    wait_for(lambda: pool.endpoints()[0].health == "up" and not pool._topology.events)
    pool.on_event(listen)
    pg_node.kill()
    wait_for(lambda: "endpoint-down" in told)
    pg_node.start()
    wait_for(lambda: "endpoint-up" in told)
    assert [kind for kind in told if kind in ("endpoint-down", "endpoint-up")] == ["endpoint-down", "endpoint-up"]


def test_a_failover_is_told_with_the_time_that_it_took(pg_cluster, open_pool):
    told = []
    pool = open_pool(config(*pg_cluster.nodes, target_session_attrs="primary"))
    pool.wait(LIMIT)
    wait_for(lambda: all(each.role != "unknown" for each in pool.endpoints()))
    pool.on_event(told.append)
    old, new = pg_cluster.primary, pg_cluster.most_advanced_standby()
    old.kill()
    wait_for(lambda: "failover-started" in [each.kind for each in told])
    new.promote()
    finished = wait_for(lambda: [each for each in told if each.kind == "failover-finished"])[0]
    started = next(each for each in told if each.kind == "failover-started")
    assert str(old.port) in started.message
    assert (str(new.port) in finished.message, str(old.port) in finished.message) == (True, True)
    assert finished.seconds is not None
    assert finished.seconds > 0
