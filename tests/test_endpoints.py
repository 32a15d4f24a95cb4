"""Several endpoints: roles, preferences, shares, and what becomes of them when servers go and come."""

import random
import time
from collections import Counter
from contextlib import ExitStack
from threading import Event

import psycopg
import pytest
from conftest import LIMIT, backends, config, wait_for
from support import Wire, grow, hold, one, pid, port, put, start, stats
from support import tidy as tidy

from pgdbpool import PoolTimeout
from pgdbpool.base import POLL_AFTER
from pgdbpool.testing import Impostor

HIDDEN = ("in_hot_standby", "default_transaction_read_only")


def use(pool, group="default"):
    """One checkout with a query; returns the port of the server that answered."""
    with pool.connection(group, timeout=LIMIT) as conn:
        return one(conn, "select inet_server_port()")


def share(pool, count, group="default"):
    """Which servers answer so many checkouts, one after the other."""
    return Counter(use(pool, group) for _ in range(count))


def wait_for_ports(pool, expected, group="default"):
    """Until every one of these has been used lately, and no other."""
    rounds = 4 * len(expected)
    wait_for(lambda: set(share(pool, rounds, group)) == set(expected))


def beliefs(pool):
    return {each.endpoint: each for each in pool.endpoints()}


def lose(pool, proxy):
    """Let an endpoint vanish, and wait until the pool has heard of it."""
    proxy.refuse()
    proxy.reset()
    wait_for(lambda: beliefs(pool)[label(proxy)].health != "up")


def label(node):
    return f"127.0.0.1:{node.port}"


def open_idle(pool, group="default"):
    """Idle connections by port."""
    return {int(lane.endpoint.rpartition(":")[2]): lane.idle for lane in stats(pool, group).endpoints}


# -- roles ----------------------------------------------------------------------------------------------------------


def test_the_role_of_each_endpoint_is_what_its_sessions_report(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes))
    wait_for(lambda: all(each.role != "unknown" for each in pool.endpoints()))
    roles = {each.endpoint: (each.role, each.health) for each in pool.endpoints()}
    expected = {label(node): ("standby", "up") for node in pg_cluster.standbys}
    assert roles == {label(pg_cluster.primary): ("primary", "up"), **expected}


def test_reading_the_role_costs_one_round_trip_when_a_connection_is_opened_and_none_later(pg_cluster, open_pool):
    with Wire(pg_cluster.standbys[0]) as wire:
        pool = open_pool(config(wire, target_session_attrs="standby", monitor=False))
        use(pool)
        assert len(wire.statements) == 2
        use(pool)
        assert wire.statements[1:] == ["select inet_server_port()"] * 2


@pytest.mark.parametrize(
    ("words", "primary", "standbys"),
    [
        ("any", True, True),
        ("read-write", True, False),
        ("read-only", False, True),
        ("primary", True, False),
        ("standby", False, True),
        ("prefer-standby", False, True),
        ("prefer-primary", True, False),
    ],
)
def test_a_group_uses_the_servers_it_asks_for(words, primary, standbys, pg_cluster, open_pool):
    expected = {pg_cluster.primary.port} if primary else set()
    expected |= {node.port for node in pg_cluster.standbys} if standbys else set()
    pool = open_pool(config(*pg_cluster.nodes, target_session_attrs=words))
    assert set(share(pool, 10)) <= expected
    wait_for_ports(pool, expected)


@pytest.mark.parametrize("words", ["prefer-standby", "prefer-primary"])
def test_a_preference_that_cannot_be_had_is_done_without(words, pg_cluster, open_pool):
    nodes = [pg_cluster.primary] if words == "prefer-standby" else pg_cluster.standbys
    pool = open_pool(config(*nodes, target_session_attrs=words))
    wait_for_ports(pool, {node.port for node in nodes})


@pytest.mark.parametrize(("words", "role"), [("primary", "standby"), ("standby", "primary"), ("read-write", "standby")])
def test_who_asks_for_a_role_that_nobody_has_is_told_what_there_is(words, role, pg_cluster, open_pool):
    node = pg_cluster.primary if role == "primary" else pg_cluster.standbys[0]
    pool = open_pool(config(node, target_session_attrs=words))
    wait_for(lambda: pool.endpoints()[0].role == role)
    with pytest.raises(PoolTimeout, match=f"{label(node)}: is a {role}, not {words}") as caught:
        pool.getconn(timeout=0.2)
    assert caught.value.reason == "unreachable"


def test_a_primary_that_refuses_writes_is_read_only_but_still_the_primary(pg_cluster, open_pool):
    node = pg_cluster.primary
    node.refuse_writes()
    words = ("primary", "read-only", "any", "read-write")
    pool = open_pool(config(node, groups={word: {"target_session_attrs": word} for word in words}))
    assert [use(pool, word) for word in words[:3]] == [node.port] * 3
    with pytest.raises(PoolTimeout, match="takes no writes, not read-write"):
        pool.getconn("read-write", timeout=0.2)
    assert beliefs(pool)[label(node)].read_only
    node.refuse_writes(False)
    assert use(pool, "read-write") == node.port


def test_a_session_that_hears_that_writes_are_refused_is_left(pg_cluster, open_pool):
    node = pg_cluster.primary
    pool = open_pool(config(node, connection_count=2, target_session_attrs="read-write"))
    old = grow(pool, 2)
    node.refuse_writes()

    def gone():
        try:
            with pool.connection(timeout=0.2) as conn:
                conn.execute("select 1")
        except PoolTimeout:
            return True
        return False

    wait_for(gone)
    wait_for(lambda: not backends(node) & old)


def test_behind_a_pooler_that_hides_parameters_the_role_is_asked_for(pg_cluster, open_pool):
    with ExitStack() as stack:
        wires = {node: stack.enter_context(Wire(node, hide=HIDDEN)) for node in pg_cluster.nodes}
        groups = {word: {"target_session_attrs": word} for word in ("primary", "standby")}
        pool = open_pool(config(*wires.values(), groups=groups))
        assert set(share(pool, 5, "primary")) == {pg_cluster.primary.port}
        wait_for_ports(pool, {node.port for node in pg_cluster.standbys}, "standby")
        roles = {each.endpoint: each.role for each in pool.endpoints()}
        assert roles == {
            f"127.0.0.1:{wire.port}": "primary" if node is pg_cluster.primary else "standby"
            for node, wire in wires.items()
        }
        for wire in wires.values():
            assert "pg_is_in_recovery" in wire.statements[0]


def test_asking_for_the_role_begins_no_transaction(pg_cluster, open_pool):
    with Wire(pg_cluster.primary, hide=HIDDEN) as wire:
        pool = open_pool(config(wire, autocommit=False))
        with pool.connection():
            pass
        assert "BEGIN" not in wire.statements


def test_a_pooler_that_hides_read_only_mode_is_asked_for_that_too(pg_cluster, open_pool):
    pg_cluster.primary.refuse_writes()
    with Wire(pg_cluster.primary, hide=HIDDEN) as wire:
        pool = open_pool(config(wire, target_session_attrs="read-only"))
        assert use(pool) == pg_cluster.primary.port
        assert pool.endpoints()[0].read_only


def test_where_a_pooler_keeps_sessions_apart_settings_are_set_after_the_connect(pg_node, open_pool):
    with Wire(pg_node, refuse_options=True) as wire:
        place = wire.endpoint(ssl="disable", query_timeout=6000, session_tmp_buffer=32, pooler="session")
        pool = open_pool(config(place, connection_count=1, monitor=False))
        with pool.connection() as conn:
            assert one(conn, "show statement_timeout") == "6s"
            assert one(conn, "show temp_buffers") == "32MB"
        assert ["options" in startup for startup in wire.startups] == [False]


def test_where_a_pooler_refuses_startup_options_nothing_is_set_that_others_could_get(pg_node, open_pool):
    with Wire(pg_node, refuse_options=True) as wire:
        place = wire.endpoint(ssl="disable", query_timeout=6000, session_tmp_buffer=32)
        pool = open_pool(config(place, connection_count=1, monitor=False))
        with pool.connection() as conn:
            assert one(conn, "show statement_timeout") == "0"
        assert ["options" in startup for startup in wire.startups] == [True, False]


def test_a_transaction_group_behind_such_a_pooler_keeps_its_settings(pg_node, open_pool):
    with Wire(pg_node, refuse_options=True) as wire:
        pool = open_pool(config(wire, autocommit=False, query_timeout=6000))
        for _ in range(2):
            with pool.connection() as conn:
                assert one(conn, "show statement_timeout") == "6s"
                conn.rollback()


# -- preference and share -------------------------------------------------------------------------------------------


def test_the_endpoint_of_the_lowest_priority_is_used_alone(pg_cluster, open_pool):
    a, b, c = pg_cluster.nodes
    places = [node.endpoint(ssl="disable", priority=priority) for node, priority in ((a, 1), (b, 0), (c, 1))]
    pool = open_pool(config(*places))
    wait_for_ports(pool, {b.port})
    assert share(pool, 20) == {b.port: 20}


def test_when_the_preferred_endpoint_is_lost_the_next_ones_serve_until_it_is_back(pg_cluster, open_pool):
    a, b, c = pg_cluster.nodes
    with a.proxy() as proxy:
        places = [proxy.endpoint(ssl="disable"), *(n.endpoint(ssl="disable", priority=1) for n in (b, c))]
        pool = open_pool(config(*places))
        assert use(pool) == a.port
        lose(pool, proxy)
        wait_for_ports(pool, {b.port, c.port})
        proxy.refuse(False)
        wait_for_ports(pool, {a.port})


def test_role_counts_before_priority(pg_cluster, open_pool):
    primary, standby = pg_cluster.primary, pg_cluster.standbys[0]
    places = [primary.endpoint(ssl="disable", priority=0), standby.endpoint(ssl="disable", priority=9)]
    pool = open_pool(config(*places, target_session_attrs="prefer-standby"))
    wait_for_ports(pool, {standby.port})


@pytest.mark.parametrize("balance", ["round-robin", "least-busy"])
def test_checkouts_are_spread_evenly(balance, pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, balance=balance, min_count=2))
    wait_for(lambda: all(open_idle(pool).values()) and stats(pool).idle == 6)
    assert share(pool, 30) == {node.port: 10 for node in pg_cluster.nodes}


@pytest.mark.parametrize("balance", ["round-robin", "least-busy"])
def test_checkouts_are_spread_by_weight(balance, pg_cluster, open_pool):
    a, b, _ = pg_cluster.nodes
    places = [a.endpoint(ssl="disable", weight=3), b.endpoint(ssl="disable", weight=1)]
    pool = open_pool(config(*places, balance=balance, min_count=2))
    wait_for(lambda: stats(pool).idle == 4)
    assert share(pool, 40) == {a.port: 30, b.port: 10}


def test_least_busy_evens_out_what_is_held(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, connection_count=4, min_count=4))
    wait_for(lambda: stats(pool).idle == 12)
    held = hold(pool, 6)
    assert sorted(Counter(map(port, held)).values()) == [2, 2, 2]
    busiest = port(held[0])
    kept = [conn for conn in held if port(conn) == busiest]
    put(pool, *(conn for conn in held if port(conn) != busiest))
    more = hold(pool, 4)
    assert busiest not in {port(conn) for conn in more}
    put(pool, *kept, *more)


def test_least_busy_counts_what_is_held_by_weight(pg_cluster, open_pool):
    a, b, _ = pg_cluster.nodes
    places = [a.endpoint(ssl="disable", weight=3), b.endpoint(ssl="disable", weight=1)]
    pool = open_pool(config(*places, connection_count=8, min_count=8))
    wait_for(lambda: stats(pool).idle == 16)
    held = hold(pool, 8)
    assert Counter(map(port, held)) == {a.port: 6, b.port: 2}
    put(pool, *held)


def test_a_balancer_of_ones_own_decides(pg_cluster, open_pool):
    class ByName:
        """Always the lane with the highest port."""

        def __init__(self, lanes):
            self.lanes = sorted(lanes, key=lambda lane: lane.endpoint.label)

        def __call__(self):
            return self.lanes[-1]

    pool = open_pool(config(*pg_cluster.nodes, balance=ByName))
    wait_for(lambda: all(open_idle(pool).values()))
    favourite = max(pg_cluster.nodes, key=lambda node: f"127.0.0.1:{node.port}")
    assert share(pool, 10) == {favourite.port: 10}


def test_a_busy_endpoint_is_helped_out_by_its_neighbour_and_grows(pg_cluster, open_pool):
    a, b, _ = pg_cluster.nodes
    pool = open_pool(config(a, b, connection_count=3, balance=lambda lanes: lambda: lanes[0]))
    wait_for(lambda: all(open_idle(pool).values()) and len(open_idle(pool)) == 2)
    first, second = hold(pool, 2)
    assert {port(first), port(second)} == {a.port, b.port}
    wait_for(lambda: open_idle(pool)[a.port] == 1)
    third = pool.getconn()
    assert port(third) == a.port
    put(pool, first, second, third)


def test_a_group_uses_only_endpoints_that_bear_its_tags(pg_cluster, open_pool):
    a, b, c = pg_cluster.nodes
    tags = ((a, ["web"]), (b, ["web", "analytics"]), (c, ["batch"]))
    places = [node.endpoint(ssl="disable", tags=words) for node, words in tags]
    groups = {"web": {"tags": ["web"]}, "slow": {"tags": ["analytics"]}, "all": {"tags": ["web", "batch"]}}
    pool = open_pool(config(*places, groups=groups))
    wait_for_ports(pool, {a.port, b.port}, "web")
    wait_for_ports(pool, {b.port}, "slow")
    wait_for_ports(pool, {a.port, b.port, c.port}, "all")
    assert backends(c, "web") == backends(c, "slow") == backends(a, "slow") == set()


def test_without_spill_a_busy_tier_is_waited_for(pg_cluster, open_pool):
    a, b, _ = pg_cluster.nodes
    pool = open_pool(config(a.endpoint(ssl="disable"), b.endpoint(ssl="disable", priority=1), connection_count=2))
    held = hold(pool, 2)
    assert {port(conn) for conn in held} == {a.port}
    waiting = start(pool.getconn, timeout=LIMIT)
    wait_for(lambda: stats(pool).waiting == 1)
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.1)
    put(pool, held[0])
    assert waiting.result(LIMIT) is held[0]
    put(pool, *held)


def test_with_spill_the_next_tier_helps_out_a_busy_one(pg_cluster, open_pool):
    a, b, _ = pg_cluster.nodes
    places = (a.endpoint(ssl="disable"), b.endpoint(ssl="disable", priority=1))
    pool = open_pool(config(*places, connection_count=2, spill=True, min_count=2))
    wait_for(lambda: stats(pool).idle == 4)
    held = hold(pool, 4)
    assert [port(conn) for conn in held] == [a.port, a.port, b.port, b.port]
    put(pool, *held)
    assert use(pool) == a.port


# -- servers that are not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_one_dead_endpoint_does_not_stop_the_pool_from_starting(kind, position, pg_cluster, open_pool):
    with ExitStack() as stack:
        if kind == "silent":
            dead = stack.enter_context(Impostor())
            dead.hang()
        else:
            dead = stack.enter_context(pg_cluster.primary.proxy())
            dead.refuse()
        alive = list(pg_cluster.nodes[:2])
        places = [*alive[:position], dead, *alive[position:]]
        pool = open_pool(config(*places))
        pool.wait(LIMIT)
        wait_for_ports(pool, {node.port for node in alive})


def test_with_all_endpoints_dead_a_caller_hears_the_last_error_of_each(pg_cluster, open_pool):
    with pg_cluster.nodes[0].proxy() as a, Impostor("57P03") as b:
        a.refuse()
        pool = open_pool(config(a, b))
        wait_for(lambda: all(each.last_error for each in pool.endpoints()))
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=0.1)
        assert caught.value.reason == "unreachable"
        assert "Connection refused" in str(caught.value)
        assert "the database system is starting up" in str(caught.value)
        assert f"127.0.0.1:{a.port}: " in str(caught.value)


def test_who_waits_while_all_endpoints_are_dead_is_served_when_one_comes_back(pg_node, open_pool):
    with pg_node.proxy() as proxy:
        proxy.refuse()
        pool = open_pool(config(proxy, monitor=False))
        waiting = start(use, pool)
        wait_for(lambda: stats(pool).counters.connect_failures >= 2)
        proxy.refuse(False)
        assert waiting.result(LIMIT) == pg_node.port


def test_an_endpoint_that_comes_back_gets_its_share_back(pg_cluster, open_pool):
    a, b, c = pg_cluster.nodes
    with a.proxy() as proxy:
        pool = open_pool(config(proxy, b, c, connection_count=4))
        wait_for_ports(pool, {a.port, b.port, c.port})
        lose(pool, proxy)
        wait_for_ports(pool, {b.port, c.port})
        accepted = proxy.accepted
        proxy.refuse(False)
        wait_for(lambda: share(pool, 30) == {a.port: 10, b.port: 10, c.port: 10})
        assert proxy.accepted - accepted <= 4


def test_an_endpoint_that_comes_back_gets_its_share_of_held_connections(pg_cluster, open_pool):
    a, b, _ = pg_cluster.nodes
    with a.proxy() as proxy:
        proxy.refuse()
        pool = open_pool(config(proxy, b, connection_count=8))
        put(pool, *hold(pool, 6))
        proxy.refuse(False)

        def even():
            held = hold(pool, 6)
            count = Counter(map(port, held))
            put(pool, *held)
            return count == {proxy.port: 3, b.port: 3}

        wait_for(even)


def test_reads_go_on_when_a_standby_is_killed(pg_cluster, open_pool):
    dead, other = pg_cluster.standbys
    pool = open_pool(config(*pg_cluster.nodes, connection_count=3, target_session_attrs="prefer-standby", min_count=3))
    wait_for_ports(pool, {dead.port, other.port})
    dead.kill()
    wait_for(lambda: beliefs(pool)[label(dead)].health != "up")
    assert share(pool, 50) == {other.port: 50}
    dead.start()
    wait_for_ports(pool, {dead.port, other.port})


def test_a_killed_standby_costs_no_more_than_the_queries_in_flight_on_it(pg_cluster, open_pool):
    dead, other = pg_cluster.standbys
    pool = open_pool(config(*pg_cluster.nodes, connection_count=2, target_session_attrs="standby", min_count=2))
    wait_for(lambda: stats(pool).idle == 4)
    served, errors, over = Counter(), [], Event()

    def work():
        while not over.is_set():
            try:
                served[use(pool)] += 1
            except psycopg.OperationalError as error:
                errors.append(error)

    workers = [start(work) for _ in range(6)]
    wait_for(lambda: served[dead.port] > 50 and served[other.port] > 50)
    dead.kill()
    before = served[other.port]
    wait_for(lambda: served[other.port] > before + 100)
    over.set()
    for worker in workers:
        worker.result(LIMIT)
    # Two connections, and one that was taken in the moment in which the first of them was lost.
    assert len(errors) <= 4


def test_reads_go_to_the_primary_when_no_standby_is_left_and_come_back(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, target_session_attrs="prefer-standby"))
    wait_for_ports(pool, {node.port for node in pg_cluster.standbys})
    for node in pg_cluster.standbys:
        node.kill()
        wait_for(lambda node=node: beliefs(pool)[label(node)].health != "up")
    wait_for_ports(pool, {pg_cluster.primary.port})
    for node in pg_cluster.standbys:
        node.start()
    wait_for_ports(pool, {node.port for node in pg_cluster.standbys})


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_no_checkout_fails_after_a_restart_with_ten_stale_connections(mode, pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=10))
    old = grow(pool, 10)
    pg_node.stop(mode)
    pg_node.start()
    held = hold(pool, 10)
    for conn in held:
        assert one(conn, "select pg_backend_pid()") not in old
    put(pool, *held)


def test_no_checkout_fails_after_a_restart_even_if_nobody_listened(pg_node, open_pool):
    # Without a listening thread the stale connections are still there, and are found out by looking.
    pool = open_pool(config(pg_node, type="non-threaded", connection_count=10))
    old = grow(pool, 10)
    rested = time.monotonic() + POLL_AFTER
    pg_node.stop()
    pg_node.start()
    assert stats(pool).idle == 10
    wait_for(lambda: time.monotonic() > rested)
    with pool.connection() as conn:
        assert one(conn, "select pg_backend_pid()") not in old


def terminate_all_and_use(node, conn):
    node.terminate_backends("application_name = 'pgdbpool:default'")
    conn.execute("select 1")


def test_one_stale_connection_that_was_used_tells_of_all_the_others(pg_node, open_pool):
    pool = open_pool(config(pg_node, type="non-threaded", connection_count=10))
    grow(pool, 10)
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        terminate_all_and_use(pg_node, conn)
    assert stats(pool).counters.closed == {"broken": 10}
    assert use(pool) == pg_node.port


# -- promotion ------------------------------------------------------------------------------------------------------


def test_a_promotion_is_noticed_by_the_next_answer_of_an_open_session(pg_cluster, open_pool):
    node = pg_cluster.standbys[0]
    pool = open_pool(config(node, type="non-threaded", connection_count=1))
    with pool.connection() as conn:
        conn.execute("select 1")
        assert pool.endpoints()[0].role == "standby"
        node.promote()
        conn.execute("select 1")
    assert pool.endpoints()[0].role == "primary"
    with pool.connection() as again:
        assert again is conn


def test_a_promoted_server_is_left_by_a_group_that_wants_standbys(pg_cluster, open_pool):
    new, other = pg_cluster.standbys
    pool = open_pool(config(new, other, target_session_attrs="standby"))
    wait_for_ports(pool, {new.port, other.port})
    new.promote()
    wait_for_ports(pool, {other.port})
    wait_for(lambda: not backends(new))


def test_writes_find_a_promoted_primary_by_themselves(pg_cluster, open_pool):
    groups = {"write": {"target_session_attrs": "primary", "autocommit": False}}
    pool = open_pool(config(*pg_cluster.nodes, groups=groups))
    old = pg_cluster.primary
    pg_cluster.primary.execute("drop table if exists endpoints_w")
    pg_cluster.primary.execute("create table endpoints_w (i int); grant all on endpoints_w to app")
    pg_cluster.wait_for_replication()

    def write(number):
        with pool.connection("write", timeout=LIMIT) as conn:
            conn.execute("insert into endpoints_w values (%s)", (number,))
            return port(conn)

    assert write(1) == old.port
    held = pool.getconn("write")
    writing = start(write, 2)
    writing.result(LIMIT)
    new = pg_cluster.failover()
    assert write(3) == new.port
    with pytest.raises(psycopg.OperationalError):
        held.execute("select 1")
    pool.putconn(held)
    assert pg_cluster.primary.execute("select i from endpoints_w order by i") == [(1,), (2,), (3,)]
    old.rejoin(new)
    wait_for(lambda: beliefs(pool)[label(old)].role == "standby" or not use(pool, "write"))


def test_writes_that_wait_for_a_primary_are_served_by_the_promoted_one(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, target_session_attrs="read-write"))
    use(pool)
    pg_cluster.primary.kill()
    waiting = start(use, pool)
    new = pg_cluster.failover()
    assert waiting.result(LIMIT) == new.port


# -- the pool's books -----------------------------------------------------------------------------------------------


def test_the_books_are_right_after_endpoints_have_come_and_gone(pg_cluster, open_pool):
    with ExitStack() as stack:
        proxies = [stack.enter_context(node.proxy()) for node in pg_cluster.nodes]
        pool = open_pool(config(*proxies, connection_count=3))
        dice = random.Random(7)
        for _ in range(8):
            proxy = dice.choice(proxies)
            wait_for(lambda: stats(pool).opening == 0)
            proxy.refuse()
            proxy.reset()
            held = hold(pool, 3)
            proxy.refuse(False)
            put(pool, *held)
        wait_for(lambda: stats(pool).opening == 0 and stats(pool).leased == 0)
        wait_for(lambda: sum(len(backends(node)) for node in pg_cluster.nodes) == stats(pool).open)
        held = wait_for_all(pool)
        assert len({(port(conn), pid(conn)) for conn in held}) == 9
        put(pool, *held)


def wait_for_all(pool):
    """All nine places, once every endpoint is up again."""
    wait_for(lambda: all(each.health == "up" for each in pool.endpoints()))
    return hold(pool, 9)
