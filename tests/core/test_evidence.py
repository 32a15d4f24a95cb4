"""The table in the head of `pgdbpool.core.topology`, row by row: what follows from each kind of evidence.

Of each: what is believed, which route follows, which connections must not be used again, whose calls are ended, and
what is told.
"""

import pytest

from pgdbpool.core.endpoint import URGENT
from pgdbpool.core.evidence import Fault, Health, Role
from pgdbpool.core.lane import Slot

from .harness import PRIMARY, READ_ONLY_PRIMARY, STANDBY, UNKNOWN, Place, Rules, World, places

# The server itself turns us away; or this machine does, before the server is asked.
TURNED_AWAY = (Fault.STARTING, Fault.FULL, Fault.MISCONFIGURED, Fault.LOCAL)


def up(world: World) -> World:
    """Every endpoint is a primary that answers; what was told on the way is forgotten."""
    for endpoint in world.endpoints:
        world.probed(endpoint)
    world.events()
    return world


def with_one_leased(world: World) -> tuple[Slot, Slot]:
    """On the first endpoint: one connection in use, one idle."""
    world.grow(count=2, report=PRIMARY)
    leased = world.lease()
    (idle,) = world.lane.idle
    return leased, idle


# -- refused, reset ---------------------------------------------------------------------------------------------------


def test_a_refused_connect_takes_the_endpoint_down_with_its_connections():
    world = up(World(places("a", "b")))
    leased, idle = with_one_leased(world)
    world.failed(world.order(), Fault.REFUSED, "nobody listens")
    assert (world.endpoint.health, world.endpoint.role) == (Health.DOWN, Role.UNKNOWN)
    assert world.route() == [["b"]]
    assert world.bury() == [(idle, "broken")]
    world.give(leased)
    assert world.bury() == [(leased, "retired")]
    assert world.events() == [("endpoint-down", "a")]


def test_a_refused_connect_alone_ends_no_call():
    # The server that no longer listens may still be at work for those it has let in.
    world = up(World())
    with_one_leased(world)
    world.failed(world.order(), Fault.REFUSED)
    assert world.aborts() == []


def test_a_refused_connect_rings_the_alarm():
    world = up(World())
    world.failed(world.order(), Fault.REFUSED)
    assert world.alarms == 1
    assert world.wishes == ["g"]


# -- session lost -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sqlstate", [None, "08006", "57P01"])
def test_a_lost_session_makes_the_endpoint_suspect_and_keeps_the_others(sqlstate: str | None):
    world = up(World(places("a", "b")))
    leased, idle = with_one_leased(world)
    assert world.topology.session_lost(leased, sqlstate, "gone", world.now)
    assert world.endpoint.health is Health.SUSPECT
    assert world.endpoint.role is Role.PRIMARY
    assert world.route() == [["a", "b"]]
    assert idle in world.lane.idle
    assert world.aborts() == []
    assert world.events() == [("endpoint-suspect", "a")]


def test_a_lost_session_has_every_socket_looked_at_and_a_probe_sent_at_once():
    world = up(World())
    leased, idle = with_one_leased(world)
    world.topology.session_lost(leased, None, "gone", world.now)
    assert idle.fresh_until <= world.now
    assert world.lane.poll_after == 0.0
    assert world.alarms == 1


def test_a_session_that_ended_for_its_own_sake_is_not_told_and_rings_no_alarm():
    world = up(World())
    leased, _ = with_one_leased(world)
    world.topology.session_lost(leased, "57P05", "idle too long", world.now)
    assert (world.events(), world.alarms) == ([], 0)


# -- crashed ----------------------------------------------------------------------------------------------------------


def test_a_crash_makes_the_endpoint_suspect_and_retires_its_connections():
    world = up(World())
    leased, idle = with_one_leased(world)
    assert not world.topology.session_lost(leased, "57P02", "crash", world.now)
    assert world.endpoint.health is Health.SUSPECT
    assert world.bury() == [(idle, "broken")]
    world.give(leased)
    assert world.bury() == [(leased, "retired")]
    assert world.events() == [("endpoint-suspect", "db1:5432")]
    assert world.alarms == 1


# -- starting, full, misconfigured ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", TURNED_AWAY)
def test_a_connect_that_is_turned_away_costs_none_of_the_open_connections(fault: Fault):
    world = up(World(places("a", "b")))
    leased, idle = with_one_leased(world)
    world.failed(world.order(), fault)
    assert world.endpoint.health is (Health.SUSPECT if fault is Fault.STARTING else Health.UP)
    assert world.route() == [["a", "b"]]
    assert idle in world.lane.idle
    world.give(leased)
    assert world.bury() == []
    assert world.aborts() == []


@pytest.mark.parametrize("fault", TURNED_AWAY)
def test_where_connects_are_turned_away_and_none_is_open_another_server_is_used(fault: Fault):
    world = up(World(places("a", "b")))
    world.failed(world.order(), fault)
    assert world.route() == [["b"]]
    assert not world.endpoint.may_connect(world.now)


@pytest.mark.parametrize("fault", TURNED_AWAY)
def test_a_probe_that_is_turned_away_is_no_missed_probe(fault: Fault):
    world = up(World())
    with_one_leased(world)
    for _ in range(5):
        world.missed(fault=fault)
    assert world.endpoint.health is not Health.DOWN
    assert world.aborts() == []
    assert world.lane.open == 2


def test_a_probe_answered_says_nothing_of_room_for_more():
    world = up(World())
    world.grow()
    world.failed(world.order(), Fault.FULL)
    world.probed()
    assert world.endpoint.fault is Fault.FULL
    world.failed(world.order(), Fault.STARTING)
    world.probed()
    assert world.endpoint.fault is None


def test_a_refused_login_is_told_to_callers_in_the_servers_words_and_tried_again_slowly():
    world = World()
    waiter = world.wait()
    world.missed(fault=Fault.MISCONFIGURED, words="password authentication failed")
    assert "password authentication failed" in str(waiter.error)
    assert world.endpoint.next_try - world.now >= 0.2  # a tenth of two seconds, at the least


# -- another role -----------------------------------------------------------------------------------------------------

WORDS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby", "prefer-primary")


@pytest.mark.parametrize(
    ("before", "after", "leaving"),
    [
        (PRIMARY, STANDBY, {"read-write", "primary"}),
        (STANDBY, PRIMARY, {"read-only", "standby"}),
        (PRIMARY, READ_ONLY_PRIMARY, {"read-write", "primary"}),
        (READ_ONLY_PRIMARY, PRIMARY, {"read-only"}),
    ],
)
def test_a_server_of_another_role_is_left_by_the_groups_it_no_longer_suits(before, after, leaving: set[str]):
    world = World(rules=[Rules(word, target_session_attrs=word) for word in WORDS])
    world.probed(report=before)
    kept = [group for group in world.groups if group.name in leaving or group.route]
    slots = {group.name: world.grow(group.lanes[0])[0] for group in kept}
    world.reported(world.endpoint, after)
    assert {slot.lane.group.name for slot, reason in world.bury() if reason == "role"} == leaving
    assert all(slot in slot.lane.idle for name, slot in slots.items() if name not in leaving)
    assert all(not world.route(group) for group in world.groups if group.name in leaving)


def test_a_change_of_role_is_told_and_has_somebody_look_at_the_plan():
    world = up(World())
    world.reported(world.endpoint, STANDBY)
    assert world.events() == [("role-changed", "db1:5432"), ("failover-started", "db1:5432")]
    assert (world.wishes, world.alarms) == (["g"], 1)


def test_the_first_role_known_is_no_change():
    world = World()
    world.probed()
    assert world.events() == [("endpoint-up", "db1:5432")]


def test_a_probe_that_finds_another_role_ends_no_call():
    # Those who read may go on; those who must leave go when they come back.
    world = up(World(rules=[Rules(target_session_attrs="primary")]))
    leased, idle = with_one_leased(world)
    assert world.probed(report=STANDBY)
    assert world.aborts() == []
    assert world.bury() == [(idle, "role")]
    world.give(leased)
    assert world.bury() == [(leased, "retired")]


# -- write refused ----------------------------------------------------------------------------------------------------


def test_a_write_refused_by_a_server_that_says_it_is_read_only_demotes_it():
    rules = [Rules(word, target_session_attrs=word) for word in WORDS]
    world = World(places("a", "b"), rules)
    world.probed(world.endpoint, READ_ONLY_PRIMARY)  # at first sight nobody knows that it ever took writes
    world.probed(world.endpoints[1], STANDBY)
    primary = world.groups[WORDS.index("primary")]
    assert world.route(primary) == [["a"]]
    world.grow(primary.lanes[0])
    world.reported(world.endpoint, READ_ONLY_PRIMARY, refused=True)
    assert world.endpoint.demoted
    assert [reason for _, reason in world.bury()] == ["role"]
    assert {group.name: world.route(group) for group in world.groups} == {
        "any": [["a", "b"]],
        "read-write": [],
        "read-only": [["a", "b"]],
        "primary": [],
        "standby": [["b"]],
        "prefer-standby": [["b"]],
        "prefer-primary": [["a", "b"]],  # one second choice is as good as the other
    }


@pytest.mark.parametrize("report", [PRIMARY, UNKNOWN])
def test_a_write_refused_by_a_server_that_takes_writes_was_its_users_own_doing(report):
    world = up(World(rules=[Rules(target_session_attrs="primary")]))
    world.grow(report=PRIMARY)
    world.reported(world.endpoint, report, refused=True)
    assert not world.endpoint.demoted
    assert world.lane.open == 1
    assert (world.events(), world.alarms) == ([], 0)


def test_a_write_refused_by_a_standby_is_a_change_of_role():
    world = up(World(rules=[Rules(target_session_attrs="primary")]))
    world.grow(report=PRIMARY)
    world.reported(world.endpoint, STANDBY, refused=True)
    assert world.endpoint.role is Role.STANDBY
    assert not world.endpoint.demoted
    assert [reason for _, reason in world.bury()] == ["role"]


def test_a_primary_that_takes_no_writes_any_more_is_demoted():
    world = up(World())
    world.probed(report=READ_ONLY_PRIMARY)
    assert world.endpoint.demoted
    assert world.events() == [("failover-started", "db1:5432")]


def test_a_primary_that_never_took_writes_is_not_demoted():
    world = World(rules=[Rules(target_session_attrs="primary")])
    world.probed(report=READ_ONLY_PRIMARY)
    assert not world.endpoint.demoted
    assert world.route() == [["db1:5432"]]


@pytest.mark.parametrize("report", [PRIMARY, STANDBY])
def test_a_demotion_is_over_when_the_server_takes_writes_again_or_has_become_a_standby(report):
    world = up(World())
    world.probed(report=READ_ONLY_PRIMARY)
    world.probed(report=report)
    assert not world.endpoint.demoted


def test_a_second_write_refused_is_no_news():
    world = up(World())
    world.reported(world.endpoint, READ_ONLY_PRIMARY, refused=True)
    world.events()
    alarms = world.alarms
    world.reported(world.endpoint, READ_ONLY_PRIMARY, refused=True)
    assert (world.events(), world.alarms) == ([], alarms)


# -- a probe not answered ---------------------------------------------------------------------------------------------


def test_one_probe_not_answered_makes_the_endpoint_suspect():
    world = up(World(places("a", "b")))
    _, idle = with_one_leased(world)
    world.missed()
    assert (world.endpoint.health, world.endpoint.role) == (Health.SUSPECT, Role.PRIMARY)
    assert world.route() == [["a", "b"]]
    assert idle in world.lane.idle
    assert idle.fresh_until <= world.now
    assert world.aborts() == []
    assert world.events() == [("endpoint-suspect", "a")]


@pytest.mark.parametrize("fall", [1, 2, 5])
def test_as_many_as_fall_in_a_row_take_it_down_and_end_the_calls_in_flight(fall: int):
    world = up(World(places("a", "b"), fall=fall))
    leased, idle = with_one_leased(world)
    for _ in range(fall - 1):
        world.missed()
        assert world.endpoint.health is Health.SUSPECT
        assert world.aborts() == []
    world.missed()
    assert (world.endpoint.health, world.endpoint.role) == (Health.DOWN, Role.UNKNOWN)
    assert world.route() == [["b"]]
    assert world.bury() == [(idle, "broken")]
    assert world.aborts() == [leased]
    world.give(leased)
    assert world.bury() == [(leased, "retired")]
    told = [("endpoint-suspect", "a")] * (fall > 1) + [("endpoint-down", "a")]
    assert world.events() == told


def test_an_answer_between_them_starts_the_count_again():
    world = up(World(fall=2))
    with_one_leased(world)
    for _ in range(5):
        world.missed()
        world.probed()
    assert world.endpoint.health is Health.UP
    assert world.aborts() == []
    assert world.events() == [("endpoint-suspect", "db1:5432"), ("endpoint-up", "db1:5432")] * 5


def test_the_calls_of_every_group_end_and_only_on_the_dead_server():
    world = up(World(places("a", "b"), [Rules("one"), Rules("two")], fall=1))
    dead, well = [], []
    for group in world.groups:
        for lane, list_of in zip(group.lanes, (dead, well), strict=True):
            world.grow(lane, report=PRIMARY)
            list_of.append(lane.idle.pop())
    world.missed()
    assert world.aborts() == dead
    assert all(slot.lane.open == 1 for slot in well)


def test_a_call_is_listed_once_however_many_probes_fail():
    world = up(World(fall=1))
    leased, _ = with_one_leased(world)
    world.missed()
    world.missed()
    assert world.aborts() == [leased]


def test_a_call_that_began_on_the_dead_server_before_it_was_found_out_ends_too():
    # Between two failed probes a connection may have been handed out.
    world = up(World(fall=2))
    _, idle = with_one_leased(world)
    world.missed()
    assert world.take() is idle
    world.missed()
    assert idle in world.aborts()


def test_a_probe_refused_takes_the_endpoint_down_at_once_and_ends_calls_at_the_second():
    world = up(World())
    leased, _ = with_one_leased(world)
    world.missed(fault=Fault.REFUSED)
    assert world.endpoint.health is Health.DOWN
    assert world.aborts() == []
    world.missed(fault=Fault.REFUSED)
    assert world.aborts() == [leased]


def test_a_name_without_an_address_says_nothing_of_open_connections():
    world = up(World())
    _, idle = with_one_leased(world)
    for _ in range(5):
        world.missed(fault=Fault.UNRESOLVED)
    assert world.endpoint.health is Health.SUSPECT
    assert world.aborts() == []
    assert idle in world.lane.idle


def test_a_down_endpoint_is_told_of_once():
    world = up(World())
    for _ in range(5):
        world.missed(fault=Fault.REFUSED)
    assert [kind for kind, _ in world.events()] == ["endpoint-down", "failover-started"]


def test_a_missed_probe_counts_towards_the_outage_of_a_group():
    world = World(rules=[Rules("short", reconnect_timeout=5), Rules("long", reconnect_timeout=60)], fall=1)
    world.missed(words="nobody there")
    assert not world.topology.outages
    world.now += 5
    world.missed(words="nobody there")
    world.missed(words="nobody there")
    assert [(group.name, *words) for group, *words in world.topology.outages] == [("short", "db1:5432", "nobody there")]


@pytest.mark.parametrize(("monitored", "health"), [(True, Health.SUSPECT), (False, Health.DOWN)])
def test_a_session_of_ours_that_gets_no_answer_is_proof_only_where_nobody_probes(monitored: bool, health: Health):
    world = up(World())
    leased, idle = with_one_leased(world)
    world.topology.monitored = monitored
    world.topology.silent(world.endpoint, "no answer to a ping", world.now)
    assert world.endpoint.health is health
    assert world.bury() == [(idle, "broken")]
    world.give(leased)
    assert world.bury() == [(leased, "retired")]
    assert world.alarms == 1


# -- a probe answered -------------------------------------------------------------------------------------------------


def test_a_probe_answered_brings_the_endpoint_up():
    world = World()
    assert world.probed(report=STANDBY, position=4711, seconds=0.25)
    endpoint = world.endpoint
    assert (endpoint.health, endpoint.role, endpoint.position, endpoint.probe_time) == (
        Health.UP,
        Role.STANDBY,
        4711,
        0.25,
    )
    assert world.events() == [("endpoint-up", "db1:5432")]


def test_a_server_that_no_longer_tells_its_position_keeps_the_last():
    world = World()
    world.probed(position=4711)
    world.probed()
    assert world.endpoint.position == 4711


def test_the_same_answer_again_is_no_news():
    world = World()
    assert world.probed()
    assert not world.probed()


def test_an_endpoint_that_speaks_to_its_sessions_is_not_taken_for_dead_whatever_becomes_of_probes():
    world = up(World())
    world.grow(count=2)
    slot = world.lease()
    for _ in range(20):
        world.missed(speaks=True)
        assert world.endpoint.health is Health.SUSPECT
    assert world.aborts() == []
    assert slot.generation == world.lane.generation
    assert world.route() == [["db1:5432"]]


def test_words_to_its_sessions_count_until_there_are_none_any_more():
    world = up(World())
    world.grow()
    slot = world.lease()
    world.missed()
    world.missed(speaks=True)
    world.missed()
    assert (world.endpoint.health, world.aborts()) == (Health.SUSPECT, [])
    world.missed()
    assert (world.endpoint.health, world.aborts()) == (Health.DOWN, [slot])


def test_where_a_connect_was_not_answered_the_next_is_not_waited_for_longer_than_that_has_been_so():
    world = up(World())
    endpoint = world.endpoint
    assert endpoint.patience(world.now) == float("inf")
    world.failed(world.order(), Fault.TIMEOUT)
    began = world.now
    assert endpoint.patience(began) == 1.0
    for seconds in (0.5, 3.0, 20.0):
        world.now = began + seconds
        world.failed(world.order(), Fault.TIMEOUT)
        assert endpoint.patience(world.now) == max(1.0, seconds)
    world.opened(world.order())
    assert endpoint.patience(world.now) == float("inf")


@pytest.mark.parametrize("fault", TURNED_AWAY)
def test_where_a_connect_was_turned_away_the_next_may_take_its_time(fault: Fault):
    world = up(World())
    world.failed(world.order(), fault)
    assert world.endpoint.patience(world.now + 1) == float("inf")


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.STARTING, Fault.FULL])
def test_the_longer_a_server_has_turned_us_away_the_less_often_it_is_asked_by_those_who_wait(fault: Fault):
    world = World()
    began = world.now
    for seconds, longest in ((0.0, 0.05), (1.0, 0.05), (4.0, 0.2), (60.0, 1.2)):
        world.now = began + seconds
        pauses = []
        for _ in range(50):
            world.failed(world.order(), fault)
            pauses.append(world.endpoint.urgent_try - world.now)
        assert longest / 3 < max(pauses) <= longest


def test_a_probe_answered_ends_the_backoff_and_the_outage():
    world = World(fall=1, rules=[Rules(reconnect_timeout=0)])
    world.missed()
    assert len(world.topology.outages) == 1
    assert not world.endpoint.may_connect(world.now)
    assert world.probed()
    assert world.endpoint.may_connect(world.now)
    world.topology.outages.clear()
    world.missed()
    assert len(world.topology.outages) == 1


def test_an_endpoint_that_comes_back_is_told_with_the_length_of_its_outage():
    world = up(World())
    world.failed(world.order(), Fault.REFUSED)
    world.now += 7.5
    world.events()
    world.probed()
    event = world.topology.events[0]
    assert (event.kind, event.seconds) == ("endpoint-up", 7.5)
    assert event.message == "db1:5432 is up again after 7.5 s"


def test_an_outage_is_counted_from_its_first_failure():
    world = up(World())
    for _ in range(4):
        world.failed(world.order(), Fault.REFUSED)
        world.now += 5
    world.events()
    world.probed()
    assert world.topology.events[0].seconds == 20


def test_an_endpoint_that_was_only_suspect_had_no_outage():
    world = up(World())
    world.missed()
    world.now += 1
    world.probed()
    assert [event.seconds for event in world.topology.events] == [None, None]


def test_the_words_of_an_error_are_told_on_one_line():
    world = up(World())
    world.failed(world.order(), Fault.REFUSED, "connection failed:\n\tIs the server running?\n")
    assert world.topology.events[0].message == "db1:5432 is down: connection failed: Is the server running?"


def test_after_close_probes_change_nothing():
    world = up(World(fall=1))
    world.topology.close()
    assert not world.probed(report=STANDBY)
    world.missed()
    assert (world.endpoint.health, world.endpoint.role) == (Health.UP, Role.PRIMARY)
    assert world.events() == []


# -- no evidence ------------------------------------------------------------------------------------------------------


def test_an_attempt_given_up_is_no_evidence():
    world = up(World())
    world.topology.cancelled(world.order())
    world.topology.given_up(world.order(), world.now)
    assert (world.endpoint.health, world.endpoint.fault) == (Health.UP, None)
    assert (world.events(), world.alarms) == ([], 0)
    assert world.endpoint.connecting == world.lane.opening == 0


def test_a_connection_that_a_check_did_not_like_is_not_replaced_at_once():
    world = up(World())
    world.wait()
    world.topology.put_off(world.lane, world.now)
    assert world.plan() == []
    assert world.now < world.topology.due(world.now) <= world.now + URGENT
    world.now += URGENT
    assert len(world.plan()) == 1


def test_an_exhausted_group_is_no_evidence():
    world = up(World(rules=[Rules(connection_count=1)]))
    world.grow(report=PRIMARY)
    world.lease()
    world.wait()
    assert world.plan() == []
    assert (world.endpoint.health, world.events(), world.alarms) == (Health.UP, [], 0)


# -- failover, as it is told ------------------------------------------------------------------------------------------


def pair() -> World:
    """A primary "a" and a standby "b"."""
    world = World(places("a", "b"), fall=1)
    world.probed(world.endpoints[0], PRIMARY)
    world.probed(world.endpoints[1], STANDBY)
    world.events()
    return world


def test_a_failover_is_told_at_its_beginning_and_end_with_its_length():
    world = pair()
    a, b = world.endpoints
    world.missed(a)
    assert world.events() == [("endpoint-down", "a"), ("failover-started", "a")]
    world.now += 2.5
    world.probed(b, PRIMARY)
    assert [(event.kind.value, event.endpoint, event.seconds) for event in world.topology.events] == [
        ("role-changed", "b", None),
        ("failover-finished", "b", 2.5),
    ]
    assert world.topology.events[-1].message == "b is the primary now, 2.5 s after a was lost"


def test_a_primary_that_comes_back_as_primary_has_recovered():
    world = pair()
    world.missed()
    world.now += 4
    world.events()
    world.probed()
    assert [(event.kind.value, event.endpoint, event.seconds) for event in world.topology.events] == [
        ("endpoint-up", "a", 4),
        ("recovered", "a", 4),
    ]


def test_a_primary_of_unknown_role_is_not_lost_while_it_is_only_suspect():
    world = pair()
    world.topology.fall = 2
    world.missed()
    assert world.events() == [("endpoint-suspect", "a")]


def test_two_primaries_at_the_same_time_are_no_failover_until_both_are_gone():
    world = World(places("a", "b"), fall=1)
    for endpoint in world.endpoints:
        world.probed(endpoint, PRIMARY)
    world.events()
    world.missed(world.endpoints[0])
    assert world.events() == [("endpoint-down", "a")]
    world.missed(world.endpoints[1])
    assert world.events() == [("endpoint-down", "b"), ("failover-started", "b")]


def test_a_handover_without_a_gap_is_told_as_finished():
    # b is seen as a primary in the same look in which a is seen to be none.
    world = pair()
    a, b = world.endpoints
    b.server.report = PRIMARY
    world.reported(a, STANDBY)
    assert world.events() == [("role-changed", "a"), ("failover-finished", "b")]


# -- looking for a role -----------------------------------------------------------------------------------------------


def test_probes_hurry_while_a_group_has_no_route():
    world = World(rules=[Rules(target_session_attrs="primary")])
    world.topology.reroute(world.now)
    assert not world.topology.searching(world.now)
    world.probed(report=STANDBY)
    assert world.topology.searching(world.now)
    world.probed(report=PRIMARY)
    assert not world.topology.searching(world.now)


def test_probes_hurry_no_more_after_a_minute_in_which_nobody_waited():
    world = World(rules=[Rules(target_session_attrs="primary")])
    world.probed(report=STANDBY)
    world.now += 61
    assert not world.topology.searching(world.now)
    world.wait()
    assert world.topology.searching(world.now)


def test_that_minute_begins_when_the_route_is_lost_whatever_happens_meanwhile():
    world = World(places("a", "b"), [Rules(target_session_attrs="primary")])
    world.probed(world.endpoints[1], STANDBY)
    world.probed(report=STANDBY)
    world.now += 50
    world.missed(fault=Fault.REFUSED)
    assert world.topology.searching(world.now)
    world.now += 11
    assert not world.topology.searching(world.now)


def test_probes_do_not_hurry_for_a_paused_group():
    world = World(rules=[Rules(target_session_attrs="primary")])
    world.probed(report=STANDBY)
    world.group.paused = True
    world.topology.reroute(world.now)
    assert not world.topology.searching(world.now)


def test_probes_do_not_hurry_for_the_second_choice():
    world = World([Place("a"), Place("b", priority=1)], [Rules(target_session_attrs="prefer-standby")])
    world.probed(report=PRIMARY)
    assert not world.topology.searching(world.now)


# -- a fork -----------------------------------------------------------------------------------------------------------


def test_a_child_rings_nobody_elses_bell_and_tells_nothing_of_before():
    world = up(World(fall=1))
    with_one_leased(world)
    world.topology.monitored = True
    world.missed()
    world.topology.reset(world.lock, world.random)
    assert (world.events(), world.aborts(), list(world.topology.outages)) == ([], [], [])
    assert not world.topology.monitored
    before = world.alarms
    world.failed(world.order(), Fault.REFUSED)
    assert world.alarms == before


def test_when_nobody_probes_any_more_open_connections_are_replaced():
    # They were made to rely on the monitor: a call on them that is never answered would never end.
    world = World()
    world.topology.monitored = True
    idle, _ = world.grow(count=2)
    leased = world.lease()
    world.topology.unwatched()
    assert not world.topology.monitored
    assert world.bury() == [(idle, "retired")]
    world.give(leased)
    assert world.bury() == [(leased, "retired")]
