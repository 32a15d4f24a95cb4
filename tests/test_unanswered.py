"""A server that answers what the pool asks by an error is there. What it is, is known if its sessions report it."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from conftest import LIMIT, config, wait_for
from support import Wire, one, stats

from pgdbpool import DBOfflineError, Pool
from pgdbpool.core.stats import EndpointStats
from pgdbpool.drivers import Unanswered, blocking
from pgdbpool.testing import Cluster, Node

REPORTS = {"in_hot_standby", "default_transaction_read_only"}
WORDS = "the server does not say whether it is a primary or a standby: permission denied"
ASKS = "pg_catalog.pg_is_in_recovery()"


@pytest.fixture
def reticent(pg_node: Node) -> Iterator[Node]:
    """A server that does not let our role ask whether it is a primary."""
    pg_node.execute(f"revoke execute on function {ASKS} from public")
    yield pg_node
    pg_node.execute(f"grant execute on function {ASKS} to public")


def belief(pool: Pool) -> EndpointStats:
    return pool.endpoints()[0]


@pytest.mark.parametrize("target", ["any", "primary", "read-write"])
def test_a_probe_that_is_answered_by_an_error_makes_nothing_down(reticent: Node, open_pool: Any, target: str) -> None:
    events: list[Any] = []
    pool = open_pool(config(reticent, monitor={"interval": 0.05}, target_session_attrs=target))
    pool.on_event(events.append)
    pool.wait(LIMIT)
    with pool.connection(timeout=LIMIT) as conn:
        for _ in range(20):
            seen = wait_for(lambda: belief(pool).probe_time)
            wait_for(lambda seen=seen: belief(pool).probe_time != seen)
        assert one(conn, "select 1") == 1
    assert (belief(pool).health, belief(pool).role, belief(pool).fault) == ("up", "primary", None)
    assert stats(pool).counters.closed == {}
    assert [event for event in events if event.kind in ("endpoint-suspect", "endpoint-down")] == []
    assert len(reticent.backends("pgdbpool:monitor")) == 1


def test_its_session_is_asked_again_and_not_replaced(reticent: Node, open_pool: Any) -> None:
    pool = open_pool(config(reticent, monitor={"interval": 0.05}))
    [asked] = wait_for(lambda: reticent.backends("pgdbpool:monitor"))
    for _ in range(10):
        seen = belief(pool).probe_time
        wait_for(lambda seen=seen: belief(pool).probe_time != seen)
    assert [each["pid"] for each in reticent.backends("pgdbpool:monitor")] == [asked["pid"]]


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_without_reports_its_role_is_unknown_and_a_group_that_wants_any_uses_it(
    type: str, reticent: Node, open_pool: Any
) -> None:
    with Wire(reticent, hide=REPORTS) as wire:
        pool = open_pool(config(wire, type=type, monitor={"interval": 0.05}))
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
        assert (belief(pool).health, belief(pool).role) == ("up", "unknown")
        pool.close()


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
@pytest.mark.parametrize("target", ["primary", "read-write", "standby", "read-only"])
def test_without_reports_a_group_that_wants_a_role_does_not_use_it_until_it_says_which(
    type: str, target: str, pg_node: Node, reticent: Node, open_pool: Any
) -> None:
    with Wire(reticent, hide=REPORTS) as wire:
        pool = open_pool(config(wire, type=type, target_session_attrs=target))
        with pytest.raises(DBOfflineError, match=WORDS):
            pool.getconn(timeout=LIMIT)
        assert belief(pool).health == "up"
        if target in ("primary", "read-write"):
            pg_node.execute(f"grant execute on function {ASKS} to public")
            conn = wait_for(lambda: connection(pool))
            assert one(conn, "select 1") == 1
            assert belief(pool).role == "primary"
            pool.putconn(conn)
        pool.close()


def connection(pool: Pool) -> Any:
    try:
        return pool.getconn(timeout=LIMIT)
    except DBOfflineError:
        return None


@pytest.fixture
def anonymous(pg_node: Node) -> Iterator[Node]:
    """A server that does not say who it is, and has to be asked for its role alone."""
    pg_node.execute("revoke execute on function pg_catalog.pg_control_system() from public")
    yield pg_node
    pg_node.execute("grant execute on function pg_catalog.pg_control_system() to public")


def test_a_role_whose_statement_timeout_is_too_short_for_the_question_gets_no_writes(
    anonymous: Node, open_pool: Any
) -> None:
    pg_node = anonymous
    groups = {"read": {"target_session_attrs": "any"}, "write": {"target_session_attrs": "primary"}}
    with Wire(pg_node, hide=REPORTS) as wire, pg_node._admin(None, LIMIT) as locks:
        locks.execute("begin")
        locks.execute("lock table pg_catalog.pg_settings in access exclusive mode")
        place = wire.endpoint(ssl="disable", query_timeout=100)
        pool = open_pool(config(place, groups=groups))
        with pool.connection("read", timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
        with pytest.raises(
            DBOfflineError, match="a primary or a standby: canceling statement due to statement timeout"
        ):
            pool.getconn("write", timeout=LIMIT)
        assert belief(pool).health == "up"
        locks.execute("rollback")
        pool.putconn(wait_for(lambda: connection_for_writes(pool)))
        pool.close()


def connection_for_writes(pool: Pool) -> Any:
    try:
        return pool.getconn("write", timeout=LIMIT)
    except DBOfflineError:
        return None


def test_a_session_that_refused_a_write_and_does_not_say_why_is_not_handed_out_again(
    pg_node: Node, open_pool: Any
) -> None:
    with Wire(pg_node, hide=REPORTS) as wire:
        pool = open_pool(config(wire, connection_count=1, target_session_attrs="read-write", monitor=False))
        with pool.connection(timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
        pg_node.execute(f"revoke execute on function {ASKS} from public")
        pg_node.refuse_writes()
        try:
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection(timeout=LIMIT) as conn:
                conn.execute("create table never ()")
            with pytest.raises(DBOfflineError, match=WORDS):
                pool.getconn(timeout=LIMIT)
            assert stats(pool).counters.closed == {"role": 1}
        finally:
            pg_node.refuse_writes(False)
            pg_node.execute(f"grant execute on function {ASKS} to public")
        pool.close()


def test_a_search_that_is_not_answered_on_a_session_of_another_group_costs_that_none(
    pg_cluster: Cluster, open_pool: Any
) -> None:
    primary, standby = pg_cluster.primary, pg_cluster.standbys[0]
    groups = {"any": {"connection_count": 1}, "write": {"target_session_attrs": "primary"}}
    with Wire(standby, hide=REPORTS) as wire:
        pool = open_pool(config(wire, type="non-threaded", groups=groups))
        with pool.connection("any", timeout=LIMIT) as conn:
            assert one(conn, "select 1") == 1
        assert belief(pool).role == "standby"
        primary.execute(f"revoke execute on function {ASKS} from public")
        try:
            standby.wait_replayed(primary.wal_position())
            with pytest.raises(DBOfflineError, match=WORDS):
                pool.getconn("write", timeout=LIMIT)
            assert stats(pool, "any").counters.closed == {}
            assert (stats(pool, "any").idle, belief(pool).health) == (1, "up")
        finally:
            primary.execute(f"grant execute on function {ASKS} to public")
        pool.close()


@pytest.mark.parametrize("ask", [blocking.sight, blocking.report])
def test_the_driver_says_so_and_the_session_goes_on(reticent: Node, ask: Any) -> None:
    with Wire(reticent, hide=REPORTS) as wire, closing(blocking.Pooled.connect(wire.dsn, autocommit=True)) as conn:
        with pytest.raises(Unanswered, match=WORDS):
            blocking.run(ask(conn, float("inf")))
        assert one(conn, "select 1") == 1


@pytest.mark.parametrize("ask", [blocking.sight, blocking.report])
def test_a_session_that_is_ended_in_place_of_an_answer_is_another_matter(pg_node: Node, ask: Any) -> None:
    with Wire(pg_node, hide=REPORTS) as wire:
        conn = blocking.Pooled.connect(wire.dsn, autocommit=True)
        pg_node.execute("select pg_terminate_backend(%s)", (conn.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError):
            blocking.run(ask(conn, float("inf")))
        conn.close()
