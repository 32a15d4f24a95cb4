"""A server that is gone, silent or paused behind a pooler that lets everybody in."""

import threading
import time
from contextlib import contextmanager

import psycopg
import pytest
from conftest import LIMIT, config, wait_for

from pgdbpool import DBConnectionError, PoolTimeout
from tests.pooler.conftest import door_to
from tests.testing.helpers import needs_pgbouncer

pytestmark = needs_pgbouncer
LOST = (psycopg.OperationalError, DBConnectionError)


def healths(pool):
    """What has been said of the first endpoint's health, in order."""
    said = []
    label = pool.endpoint().endpoint
    pool.pool.on_event(
        lambda event: event.kind.startswith("endpoint-") and event.endpoint == label and said.append(event.kind)
    )
    return said


def after_it_was_down(said):
    """That it is up at first may be told late."""
    return said[said.index("endpoint-down") :] if "endpoint-down" in said else []


@contextmanager
def later(seconds, function):
    """Calls it after so many seconds, in a thread: the one that uses the pool waits meanwhile."""
    timer = threading.Timer(seconds, function)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_server_that_died_behind_a_pooler_is_left_for_the_promoted_one(pg_cluster, front, mode):
    old = pg_cluster.primary
    with door_to(old, mode, query_wait_timeout=60, server_login_retry=15) as door:
        new = pg_cluster.standbys[0]
        pool = front(config(door.pooler, new, target_session_attrs="primary"))
        assert pool.ask("show port") == str(old.port)
        said = healths(pool)
        old.stop("immediate")
        new.promote()
        # One call may be on the server that is gone: it is not left there for `query_wait_timeout`.
        began = time.monotonic()
        first = pool.outcome("show port", timeout=LIMIT)
        assert first == str(new.port) or issubclass(first, LOST)
        assert time.monotonic() - began < LIMIT
        assert {pool.ask("show port", timeout=LIMIT) for _ in range(5)} == {str(new.port)}
        for _ in range(20):  # and nobody is sent back to the pooler, which lets everybody in
            assert pool.ask("show port", timeout=LIMIT) == str(new.port)
            time.sleep(0.1)
        assert said.count("endpoint-down") <= 1
        assert "endpoint-up" not in after_it_was_down(said)


def test_while_nothing_is_behind_the_pooler_callers_wait_and_go_on_when_it_is_back(pg_cluster, front):
    primary = pg_cluster.primary
    with door_to(primary) as door:
        pool = front(config(door.pooler, target_session_attrs="primary"))
        pool.ask("select 1")
        said = healths(pool)
        primary.stop("immediate")
        assert pool.outcome("select 1", timeout=0.5) is not None
        assert pool.outcome("select 1", timeout=0.5) is PoolTimeout
        primary.start()
        assert pool.ask("select 1", timeout=LIMIT) == 1
        assert said.count("endpoint-down") <= 1
        assert after_it_was_down(said).count("endpoint-up") <= 1


def test_a_pause_of_a_few_seconds_is_not_death(pg_cluster, front):
    with door_to(pg_cluster.primary) as door:
        pool = front(config(door.pooler, target_session_attrs="primary", connection_count=2))
        pool.ask("select 1")
        opened = pool.opened()
        said = healths(pool)
        door.pooler.pause()
        began = time.monotonic()
        with later(3.0, door.pooler.resume):
            assert pool.ask("select 2", timeout=LIMIT) == 2
        assert time.monotonic() - began >= 3.0
        assert pool.ask("select 3", timeout=LIMIT) == 3
        assert "endpoint-down" not in said
        # Where there is no monitor a checkout asks itself, and a session that did not answer it is replaced.
        assert pool.opened() == opened or front.model == "non-threaded"


def test_a_mute_server_behind_a_pooler_is_not_used_where_another_one_will_do(pg_cluster, front):
    one, other = pg_cluster.standbys
    with door_to(one) as door:
        pool = front(config(door.pooler.endpoint(ssl="disable", priority=0), other.endpoint(ssl="disable", priority=1)))
        assert pool.ask("show port") == str(one.port)
        door.way.stall()
        if front.model == "non-threaded":  # nobody finds it out but a call
            said = healths(pool)
            with later(4.0, door.way.resume):
                assert pool.ask("show port", timeout=LIMIT) == str(one.port)
            assert pool.ask("show port", timeout=LIMIT) is not None
            assert [each for each in said if each != "endpoint-up"][:1] == ["endpoint-suspect"]
            assert "endpoint-down" not in said
            return
        wait_for(lambda: pool.endpoint().health == "suspect")
        began = time.monotonic()
        wait_for(lambda: pool.endpoint().health == "down")
        assert time.monotonic() - began < LIMIT
        assert {pool.ask("show port", timeout=LIMIT) for _ in range(10)} == {str(other.port)}
        door.way.resume()
        wait_for(lambda: pool.endpoint().health == "up")
        wait_for(lambda: pool.ask("show port", timeout=LIMIT) == str(one.port))


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_reconnect_is_not_noticed(pg_cluster, front, mode):
    with door_to(pg_cluster.primary, mode) as door:
        pool = front(config(door.pooler, target_session_attrs="primary"))
        said = healths(pool)
        for _ in range(5):
            assert pool.ask("select 1", timeout=LIMIT) == 1
            door.pooler.reconnect()
        assert "endpoint-down" not in said


def test_after_kill_callers_wait_for_resume(pg_cluster, front):
    with door_to(pg_cluster.primary) as door:
        pool = front(config(door.pooler, target_session_attrs="primary"))
        assert pool.ask("select 1") == 1
        door.pooler.admin("KILL app")
        with later(1.0, lambda: door.pooler.admin("RESUME app")):
            assert [pool.outcome("select 2", timeout=LIMIT) for _ in range(2)][-1] == 2


def test_a_database_that_is_disabled_at_the_pooler_turns_new_sessions_away_and_open_ones_go_on(pg_cluster, front):
    with door_to(pg_cluster.primary) as door:
        pool = front(config(door.pooler, connection_count=1))
        assert pool.ask("select 1") == 1
        door.pooler.admin("DISABLE app")
        for _ in range(3):
            assert pool.ask("select 1") == 1
        assert pool.outcome("select 1", "select pg_sleep(0)", timeout=1) == ""
        door.pooler.admin("ENABLE app")
