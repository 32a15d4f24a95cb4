"""An endpoint is a name: what becomes of sessions when it leads to another server."""

import itertools
import time

import psycopg
import pytest
from conftest import LIMIT, SOON, config, wait_for
from models import MODELS
from support import start

from pgdbpool import PoolTimeout
from pgdbpool.core.systems import APART
from pgdbpool.testing import Proxy

EACH = pytest.mark.parametrize("model", MODELS)
PORT = "select inet_server_port()"
PID = "select pg_backend_pid()"


def write(count=4, **more):
    return {"write": {"target_session_attrs": "primary", "connection_count": count, **more}}


def reaches(lent, node):
    return lent.ask(PORT) == node.port


def lend_if_any(pool, group):
    try:
        return pool.lend(group, timeout=1.0)
    except PoolTimeout:
        return None


def ended(lent):
    """The next statement on it fails, and no server sees it."""
    try:
        lent.ask(PORT)
    except psycopg.Error:
        return True
    return False


# -- the name moves, and the old primary lives on ---------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("endpoints", [1, 2])
@pytest.mark.parametrize("target", ["primary", "read-write", "any", "prefer-primary", "prefer-standby"])
def test_a_session_with_a_newer_primary_ends_those_with_the_old_one(pg_cluster, model, endpoints, target):
    if endpoints == 2 and target in ("any", "prefer-standby"):
        pytest.skip("the other endpoint serves as well")
    old, (new, other) = pg_cluster.primary, pg_cluster.standbys
    with old.proxy() as name:
        places = [name, other][:endpoints]
        groups = {"g": {"target_session_attrs": target, "connection_count": 4}}
        with MODELS[model](config(*places, groups=groups, monitor={"interval": 3600.0})) as pool:
            leased = [pool.lend("g") for _ in range(2)]
            assert all(reaches(each, old) for each in leased)
            idle = pool.lend("g")
            idle.give()
            new.promote()
            other.rejoin(new)
            name.target = new
            idle = pool.lend("g")  # the one that rests
            newest = pool.lend("g")
            assert reaches(newest, new)
            for each in [*leased, idle]:
                wait_for(lambda each=each: ended(each))
                each.give()
            newest.give()
            for _ in range(8):
                assert pool.ask("g", PORT) == new.port


@EACH
def test_a_call_in_flight_on_the_old_primary_is_ended(pg_cluster, model):
    if model == "non-threaded":
        pytest.skip("one thread has one call in flight")
    old, new = pg_cluster.primary, pg_cluster.standbys[0]
    with (
        old.proxy() as name,
        MODELS[model](config(name, groups=write(), monitor={"interval": 3600.0})) as pool,
    ):
        leased = pool.lend("write")
        call = start(leased.ask, "select pg_sleep(600)")
        wait_for(lambda: old.execute("select 1 from pg_stat_activity where query like 'select pg_sleep(600)%'"))
        new.promote()
        name.target = new
        newest = pool.lend("write")
        assert reaches(newest, new)
        with pytest.raises(psycopg.OperationalError):
            call.result(LIMIT)
        leased.give()
        newest.give()


def test_a_call_on_a_frozen_old_primary_ends_where_nobody_else_would_look(pg_cluster):
    # The name leads to the new primary already, which answers: that says nothing for the old one.
    old, new = pg_cluster.primary, pg_cluster.standbys[0]
    groups = write()
    with old.proxy() as name, MODELS["non-threaded"](config(name, groups=groups)) as pool:
        leased = pool.lend("write")
        new.promote()
        old.freeze()
        name.target = new
        with pytest.raises(psycopg.OperationalError):
            leased.ask(PORT)
        leased.give()
        assert pool.ask("write", PORT) == new.port


@EACH
def test_groups_of_both_roles_share_a_name_that_leads_to_either_and_nothing_is_told_to_fail(pg_cluster, model):
    primary, standby = pg_cluster.primary, pg_cluster.standbys[0]
    groups = {
        "write": {"target_session_attrs": "primary", "connection_count": 3},
        "read": {"target_session_attrs": "standby", "connection_count": 3},
    }
    monitor = {"interval": 0.1, "timeout": 5.0, "max_lifetime": 0.5}
    with Alternating(primary, standby) as name, MODELS[model](config(name, groups=groups, monitor=monitor)) as pool:
        assert pool.ask("write", PORT) == primary.port
        assert pool.ask("read", PORT) == standby.port
        pids = {group: pool.ask(group, PID) for group in groups}
        events = []
        pool.pool.on_event(events.append)
        accepted = name.accepted
        wait_for(lambda: asks(pool, groups) and (name.accepted >= accepted + 12 or model == "non-threaded"))
        wrong = {"failover-started", "failover-finished", "recovered", "fenced", "endpoint-down", "endpoint-suspect"}
        assert not wrong & {event.kind.value for event in events}
        assert {group: pool.ask(group, PID) for group in groups} == pids


def asks(pool, groups):
    """Each gets what it wants, again and again."""
    for _ in range(20):
        assert pool.ask("write", "select pg_is_in_recovery()") is False
        assert pool.ask("read", "select pg_is_in_recovery()") is True
    return True


class Alternating(Proxy):
    """Leads each connection to the next of its targets, as a balancer that knows nothing of roles."""

    def __init__(self, *targets):
        self.targets = itertools.cycle(targets)
        super().__init__(targets[0])

    @property
    def target(self):
        return next(self.targets)

    @target.setter
    def target(self, first):
        pass


@EACH
def test_a_name_that_goes_back_to_the_old_primary_is_not_followed(pg_cluster, model):
    old, new = pg_cluster.primary, pg_cluster.standbys[0]
    with (
        old.proxy() as name,
        MODELS[model](config(name, groups=write(20, min_count=0), monitor={"interval": 3600.0})) as pool,
    ):
        first = pool.lend("write")
        new.promote()
        name.target = new
        kept = pool.lend("write")
        assert reaches(kept, new)
        wait_for(lambda: ended(first))
        first.give()
        name.target = old
        held = [kept]
        while (another := lend_if_any(pool, "write")) is not None:  # some may have been opened before
            held.append(another)
            assert reaches(another, new)
        name.target = new
        held.append(pool.lend("write"))
        assert all(reaches(each, new) for each in held)
        for each in held:
            each.give()


# -- a name that leads to several at once -----------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("target", ["standby", "any", "prefer-standby", "read-only"])
def test_a_name_that_leads_to_several_standbys_keeps_the_sessions_with_each(pg_cluster, model, target):
    one, two = pg_cluster.standbys
    groups = {"g": {"target_session_attrs": target, "connection_count": 4}}
    with one.proxy() as name, MODELS[model](config(name, groups=groups)) as pool:
        leased = []
        for turn in range(4):
            name.target = (one, two)[turn % 2]
            leased.append(pool.lend("g"))
        pids = [each.ask(PID) for each in leased]
        assert [each.ask(PORT) for each in leased] == [one.port, two.port] * 2
        for each in leased:
            each.give()
        leased = [pool.lend("g") for _ in range(4)]
        assert {each.ask(PID) for each in leased} == set(pids)
        for each in leased:
            each.give()


# -- the name moves, and the old server is something else -------------------------------------------------------------


@EACH
@pytest.mark.parametrize("target", ["primary", "read-write", "prefer-primary", "any"])
def test_writes_find_the_new_primary_behind_the_same_name(pg_cluster, model, target):
    old, new = pg_cluster.primary, pg_cluster.standbys[0]
    groups = {"write": {"target_session_attrs": target}, "read": {"target_session_attrs": "any"}}
    old.execute("drop table if exists moves; create table moves (port int); grant select, insert on moves to app")
    pg_cluster.wait_for_replication()
    with old.proxy() as name, MODELS[model](config(name, groups=groups)) as pool:
        assert writes(pool) == old.port
        old.stop()
        new.promote()
        old.rejoin(new)
        wait_for(lambda: reads(pool) == old.port)  # it is back as a standby, and found there
        name.target = new
        assert wait_for(lambda: writes(pool), SOON) == new.port


@EACH
def test_a_group_that_is_meant_for_a_standby_keeps_its_session_whatever_it_writes(pg_cluster, model):
    groups = {"any": {"target_session_attrs": "any"}}
    with pg_cluster.standbys[0].proxy() as name, MODELS[model](config(name, groups=groups)) as pool:
        pid = pool.ask("any", PID)
        accepted = name.accepted
        began = time.monotonic()
        refused = 0
        while refused < 100 or time.monotonic() < began + 3:
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                pool.ask("any", "create table refused (i int)")
            refused += 1
        seconds = time.monotonic() - began
        if model != "non-threaded":  # there a session is replaced to see what a new one would reach
            assert pool.ask("any", PID) == pid
        assert 1 <= name.accepted - accepted <= seconds + 2


@EACH
def test_a_group_that_made_itself_read_only_stays_so_and_says_nothing_against_its_server(pg_node, model):
    def guard(conn):
        return conn.execute("set default_transaction_read_only = on")

    groups = {"read": {"configure": guard}, "write": {"target_session_attrs": "primary"}}
    with MODELS[model](config(pg_node, groups=groups)) as pool:
        pids = {group: pool.ask(group, PID) for group in groups}
        for _ in range(3):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                pool.ask("read", "create table refused (i int)")
        assert {group: pool.ask(group, PID) for group in groups} == pids
        assert pool.ask("read", "show default_transaction_read_only") == "on"


@EACH
@pytest.mark.parametrize("target", ["prefer-primary", "any"])
def test_a_refused_write_that_its_user_catches_puts_a_second_choice_in_doubt(pg_cluster, model, target):
    groups = {"write": {"target_session_attrs": target}}
    with MODELS[model](config(pg_cluster.standbys[0], groups=groups)) as pool:
        [endpoint] = pool.pool._topology.endpoints
        lent = pool.lend("write")
        endpoint.doubted = False
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            lent.ask("create table refused (i int)")
        lent.give()
        assert endpoint.doubted


def writes(pool):
    """Where to; None: it was refused, or there was nowhere."""
    try:
        return pool.ask("write", "insert into moves values (inet_server_port()) returning port", timeout=5.0)
    except (psycopg.Error, PoolTimeout):
        return None


def reads(pool):
    """From where; None: from a connection that was ended a moment ago."""
    try:
        return pool.ask("read", PORT)
    except psycopg.OperationalError:
        return None


@EACH
def test_readers_find_the_standby_behind_the_same_name(pg_cluster, model):
    one, (two, three) = pg_cluster.primary, pg_cluster.standbys
    groups = {"read": {"target_session_attrs": "standby"}, "any": {"target_session_attrs": "any"}}
    with two.proxy() as name, MODELS[model](config(name, groups=groups)) as pool:
        assert pool.ask("read", PORT) == two.port
        one.stop()
        two.promote()
        three.rejoin(two)
        name.target = three
        wait_for(lambda: pool.ask("read", PORT) == three.port)


@EACH
@pytest.mark.parametrize("target", ["primary", "read-write", "prefer-primary", "any"])
def test_a_read_only_setting_that_was_lifted_for_new_sessions_is_over(pg_node, model, target):
    admin = pg_node._admin(None, LIMIT)
    groups = {"write": {"target_session_attrs": target, "connection_count": 3}}
    pg_node.execute("drop table if exists moves; create table moves (port int); grant select, insert on moves to app")
    with admin, MODELS[model](config(pg_node, groups=groups)) as pool:
        assert writes(pool) == pg_node.port
        admin.execute("alter database app set default_transaction_read_only = on")
        try:
            pg_node.terminate_backends("usename = 'app'")
            # Once on a session that was ended there, and then for some time.
            wait_for(lambda: refused(pool, target))
            for _ in range(20):
                refused(pool, target)
        finally:
            admin.execute("set default_transaction_read_only = off")
            admin.execute("alter database app reset default_transaction_read_only")
        assert wait_for(lambda: writes(pool), SOON) == pg_node.port


def refused(pool, target):
    """A write is: by the server, or since there is none that would take it."""
    with pytest.raises((psycopg.Error, PoolTimeout)) as refusal:
        pool.ask("write", "insert into moves values (inet_server_port()) returning port", timeout=0.2)
    wanted = psycopg.errors.ReadOnlySqlTransaction if target in ("prefer-primary", "any") else PoolTimeout
    return refusal.errisinstance(wanted)


# -- the name moves to another system ---------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("target", ["primary", "read-write", "prefer-primary", "any"])
def test_a_name_that_moved_to_another_system_ends_the_sessions_with_the_old_one(pg_cluster, pg_node, model, target):
    old, new = pg_cluster.primary, pg_node
    groups = {"g": {"target_session_attrs": target, "connection_count": 20}}
    monitor = {"interval": 3600.0}
    with old.proxy() as name, MODELS[model](config(name, groups=groups, monitor=monitor)) as pool:
        leased, idle = pool.lend("g"), pool.lend("g")
        assert reaches(leased, old)
        held = []

        def over():
            if model == "non-threaded":  # nobody else makes a new connection
                held.append(pool.lend("g"))
                assert reaches(held[-1], new)
                time.sleep(APART)
            return ended(leased)

        idle.give()
        name.target = new
        held.append(lend_elsewhere(pool, old))
        assert reaches(held[0], new)
        assert pool.ask("g", PORT) == new.port
        wait_for(over)
        leased.give()
        for each in held:
            each.give()
        assert {pool.ask("g", PORT) for _ in range(20)} == {new.port}


def lend_elsewhere(pool, old):
    """A connection with another server; those with the old one, that were at rest, are kept out of the way."""
    lent = pool.lend("g")
    if not reaches(lent, old):
        return lent
    found = lend_elsewhere(pool, old)
    lent.give()
    return found


@EACH
def test_a_name_that_leads_to_two_systems_in_turn_keeps_the_sessions_with_each(pg_cluster, pg_node, model):
    groups = {"g": {"target_session_attrs": "primary", "connection_count": 6}}
    with (
        Alternating(pg_cluster.primary, pg_node) as name,
        MODELS[model](config(name, groups=groups, monitor={"max_lifetime": 0.5})) as pool,
    ):
        for _ in range(2):  # in the first round it is found out that the name leads to both
            lent = [pool.lend("g") for _ in range(6)]
            for each in lent:
                each.give()
        lent = [pool.lend("g") for _ in range(6)]
        pids = [each.ask(PID) for each in lent]
        accepted = name.accepted
        wait_for(lambda: name.accepted >= accepted + 4 or model == "non-threaded")
        assert [each.ask(PID) for each in lent] == pids
        for each in lent:
            each.give()
        lent = [pool.lend("g") for _ in range(6)]
        assert {each.ask(PID) for each in lent} == set(pids)
        for each in lent:
            each.give()
