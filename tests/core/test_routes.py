"""From evidence to belief, and from belief to routes."""

import pytest

from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.evidence import Fault, Health, Report, Role, connect_fault, session_fault, unusable
from pgdbpool.core.server import fit

from .harness import PRIMARY, READ_ONLY_PRIMARY, STANDBY, UNKNOWN, Caller, Place, Rules, World, places

# -- fit --------------------------------------------------------------------------------------------------------

READ_ONLY_STANDBY = Report(Role.STANDBY, read_only=True)
REPORTS = [PRIMARY, READ_ONLY_PRIMARY, STANDBY, READ_ONLY_STANDBY, UNKNOWN]
FITS = {
    "any": (0, 0, 0, 0, 0),
    "primary": (0, 0, None, None, 1),
    "standby": (None, None, 0, 0, 1),
    "read-write": (0, None, None, None, 1),
    "read-only": (None, 0, 0, 0, 1),
    "prefer-standby": (2, 2, 0, 0, 1),
    "prefer-primary": (0, 0, 2, 2, 1),
}


@pytest.mark.parametrize(
    ("target", "report", "expected"),
    [(target, report, rank) for target, row in FITS.items() for report, rank in zip(REPORTS, row, strict=True)],
)
def test_fit_of_every_word_and_every_role(target: str, report: Report, expected: int | None):
    assert fit(target, report) == expected


def test_a_word_that_validation_should_have_caught_is_a_bug():
    with pytest.raises(AssertionError, match="passed validation"):
        fit("master", PRIMARY)


# -- evidence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sqlstate", "fault"),
    [
        (None, Fault.ENDED),
        ("08006", Fault.REFUSED),
        ("08001", Fault.REFUSED),
        ("57P01", Fault.REFUSED),
        ("57P02", Fault.REFUSED),
        ("57P03", Fault.STARTING),
        ("53300", Fault.FULL),
        ("28000", Fault.MISCONFIGURED),
        ("28P01", Fault.MISCONFIGURED),
        ("3D000", Fault.MISCONFIGURED),
        ("42501", Fault.MISCONFIGURED),
        ("42704", Fault.MISCONFIGURED),
        ("22023", Fault.MISCONFIGURED),
        ("55000", Fault.MISCONFIGURED),
        ("57P04", Fault.MISCONFIGURED),
        ("53200", Fault.FULL),
        ("57014", Fault.FULL),
        ("XX000", Fault.FULL),
    ],
)
def test_what_a_failed_connect_means(sqlstate: str | None, fault: Fault):
    assert connect_fault(sqlstate) is fault


def test_a_connect_that_timed_out_is_a_timeout_whatever_else_is_known():
    assert connect_fault(None, timed_out=True) is Fault.TIMEOUT
    assert connect_fault("28P01", timed_out=True) is Fault.TIMEOUT


@pytest.mark.parametrize(
    ("sqlstate", "fault"),
    [
        (None, Fault.ENDED),
        ("08006", Fault.ENDED),
        ("57P01", Fault.ENDED),
        ("57P02", Fault.CRASHED),
        ("57P04", None),
        ("57P05", None),
        ("25P03", None),
        ("25P04", None),
    ],
)
def test_what_a_broken_session_means(sqlstate: str | None, fault: Fault | None):
    assert session_fault(sqlstate) is fault


@pytest.mark.parametrize("sqlstate", [None, "08006", "08P01", "28000", "3D000", "53300", "57P01", "57P03", "58000"])
def test_an_answer_by_which_nobody_can_use_the_server(sqlstate: str | None):
    assert unusable(sqlstate)


@pytest.mark.parametrize("sqlstate", ["57014", "42501", "42883", "0A000", "53200", "XX000", "25P02"])
def test_an_answer_that_is_only_none_to_this_question(sqlstate: str):
    assert not unusable(sqlstate)


# -- health -----------------------------------------------------------------------------------------------------


def test_nothing_is_known_of_a_new_endpoint():
    endpoint = Endpoint(Place("a", 3, 2.5), lambda: 0.5)
    assert (endpoint.label, endpoint.priority, endpoint.weight) == ("a", 3, 2.5)
    assert (endpoint.health, endpoint.role, endpoint.fault) == (Health.SUSPECT, Role.UNKNOWN, None)
    assert endpoint.may_connect(0.0)


@pytest.mark.parametrize(
    ("fault", "nothing_known", "up", "up_with_sessions"),
    [
        (Fault.REFUSED, Health.DOWN, Health.DOWN, Health.DOWN),
        (Fault.TIMEOUT, Health.DOWN, Health.DOWN, Health.SUSPECT),
        (Fault.UNREACHABLE, Health.DOWN, Health.DOWN, Health.SUSPECT),
        (Fault.ENDED, Health.SUSPECT, Health.SUSPECT, Health.SUSPECT),
        (Fault.LOCAL, Health.SUSPECT, Health.UP, Health.UP),
        (Fault.STARTING, Health.SUSPECT, Health.SUSPECT, Health.SUSPECT),
        (Fault.FULL, Health.SUSPECT, Health.UP, Health.UP),
        (Fault.MISCONFIGURED, Health.SUSPECT, Health.UP, Health.UP),
    ],
)
def test_what_a_failed_connect_does_to_health(
    fault: Fault, nothing_known: Health, up: Health, up_with_sessions: Health
):
    world = World()
    world.failed(world.order(), fault, "the words")
    assert world.endpoint.health is nothing_known
    assert (world.endpoint.fault, world.endpoint.last_error) == (fault, "the words")
    assert world.endpoint.last_error_at == world.now
    world.endpoint.connected(world.now)
    world.failed(world.order(), fault)
    assert world.endpoint.health is up
    world.endpoint.connected(world.now)
    world.topology.reroute(world.now)
    world.grow()
    world.failed(world.order(), fault)
    assert world.endpoint.health is up_with_sessions


def test_a_success_brings_a_down_endpoint_back():
    world = World()
    world.failed(world.order(), Fault.REFUSED)
    assert world.route() == []
    world.grow()
    assert world.endpoint.health is Health.UP
    assert world.route() == [["db1:5432"]]


# -- evidence from sessions -------------------------------------------------------------------------------------


def test_a_refused_connect_closes_idle_sessions_and_those_that_come_back():
    world = World(rules=[Rules(connection_count=3)])
    world.grow(count=2)
    leased = world.lease()
    world.failed(world.order(), Fault.REFUSED)
    assert [reason for _, reason in world.bury()] == ["broken"]
    world.give(leased)
    assert world.bury() == [(leased, "retired")]


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.STARTING, Fault.MISCONFIGURED, Fault.TIMEOUT])
def test_other_failed_connects_leave_open_sessions_alone(fault: Fault):
    world = World()
    (slot,) = world.grow()
    world.failed(world.order(), fault)
    assert world.take() is slot


def test_a_lost_session_makes_its_endpoint_suspect_and_has_the_others_looked_at():
    world = World()
    world.grow(count=2)
    slot = world.lease()
    assert world.topology.session_lost(slot, "57P01", "terminated", world.now)
    assert world.endpoint.health is Health.SUSPECT
    assert world.endpoint.last_error == "terminated"
    assert world.lane.open == 2


def test_a_second_loss_on_a_suspect_endpoint_leaves_it_suspect():
    world = World()
    world.grow(count=2)
    slots = [world.lease(), world.lease()]
    for slot in slots:
        assert world.topology.session_lost(slot, None, "gone", world.now)
    assert world.endpoint.health is Health.SUSPECT


def test_a_crash_ends_every_session_of_the_endpoint_in_every_group():
    world = World(rules=[Rules("one"), Rules("two")])
    world.grow(world.groups[0].lanes[0])
    world.grow(world.groups[1].lanes[0])
    slot = world.lease()
    assert not world.topology.session_lost(slot, "57P02", "crash", world.now)
    assert world.groups[1].total == 1
    assert [reason for _, reason in world.bury()] == ["broken"]
    world.give(slot)
    assert world.bury() == [(slot, "retired")]


def test_a_session_that_ended_for_its_own_sake_says_nothing_of_its_endpoint():
    world = World()
    world.grow()
    slot = world.lease()
    assert not world.topology.session_lost(slot, "25P03", "idle in transaction", world.now)
    assert world.endpoint.health is Health.UP
    assert world.endpoint.last_error is None


def test_a_lost_session_of_an_old_generation_is_no_news():
    world = World()
    world.grow()
    slot = world.lease()
    world.group.retire_lane(world.lane, "drained")
    assert not world.topology.session_lost(slot, None, "gone", world.now)
    assert world.endpoint.health is Health.UP


def test_silence_takes_the_endpoint_down_with_all_its_sessions():
    world = World(places("a", "b"))
    world.grow(world.group.lanes[0], 2)
    world.topology.silent(world.endpoint, "no answer", world.now)
    assert world.endpoint.health is Health.DOWN
    assert world.route() == [["b"]]
    assert [reason for _, reason in world.bury()] == ["broken", "broken"]


def test_where_something_broke_every_socket_is_looked_at_before_use():
    world = World()
    world.grow(count=2)
    slot = world.lease()
    world.give(slot)
    assert slot.fresh_until == world.now + world.group.poll_after
    world.topology.session_lost(slot, None, "gone", world.now)
    assert slot.fresh_until == 0.0
    slot = world.lease()
    world.give(slot)
    assert slot.fresh_until == world.now
    world.opened(world.order())
    slot = world.lease()
    world.give(slot)
    assert slot.fresh_until == world.now + world.group.poll_after


def test_a_group_that_never_looks_does_not_look_where_something_broke_either():
    world = World()
    world.group.poll_after = float("inf")
    (slot,) = world.grow()
    world.give(world.lease())
    world.topology.session_lost(slot, None, "gone", world.now)
    assert slot.fresh_until == float("inf")
    world.give(world.lease())
    assert slot.fresh_until == float("inf")


# -- roles ------------------------------------------------------------------------------------------------------


def test_a_demotion_makes_only_those_groups_leave_that_must():
    world = World(rules=[Rules("w", target_session_attrs="primary"), Rules("any")])
    for group in world.groups:
        world.grow(group.lanes[0], report=PRIMARY)
    world.reported(world.endpoint, STANDBY)
    assert world.route(world.groups[0]) == []
    assert [(slot.lane.group.name, reason) for slot, reason in world.bury()] == [("w", "role")]
    assert world.take(world.groups[1]) is not None


def test_a_session_leased_on_a_demoted_primary_goes_when_it_comes_back():
    world = World(rules=[Rules(target_session_attrs="read-write")])
    world.grow(report=PRIMARY)
    slot = world.lease()
    world.reported(world.endpoint, READ_ONLY_PRIMARY)
    world.give(slot)
    assert world.bury() == [(slot, "retired")]


def test_the_same_report_again_changes_nothing():
    world = World()
    world.grow(report=PRIMARY)
    route = world.group.route
    world.reported(world.endpoint, PRIMARY)
    assert world.group.route is route


def test_a_server_that_does_not_say_its_role_does_not_undo_what_is_known():
    world = World()
    world.grow(report=PRIMARY)
    world.reported(world.endpoint, UNKNOWN)
    assert world.endpoint.role is Role.PRIMARY


def test_a_server_of_unknown_role_is_used_when_there_is_no_better():
    world = World(rules=[Rules(target_session_attrs="primary")])
    assert world.opened(world.order(), UNKNOWN) is None
    assert world.take() is not None


def test_a_known_role_comes_before_an_unknown_one():
    world = World(places("a", "b"), [Rules(target_session_attrs="standby")])
    world.grow(world.group.lanes[1], report=STANDBY)
    assert world.route() == [["b"]]


def test_a_connection_to_a_server_of_the_wrong_role_is_closed_at_once():
    world = World(rules=[Rules(target_session_attrs="standby")])
    assert world.opened(world.order(), PRIMARY) == "role"
    assert [reason for _, reason in world.bury()] == ["role"]
    assert world.lane.total == 0
    assert world.route() == []


def test_a_connection_begun_before_a_change_of_generation_is_closed_at_once():
    world = World()
    order = world.order()
    world.group.retire_lane(world.lane, "drained")
    assert world.opened(order) == "retired"


def test_a_connection_that_arrives_after_close_is_closed_at_once():
    world = World()
    order = world.order()
    world.topology.close()
    assert world.opened(order) == "closed"
    assert [reason for _, reason in world.bury()] == ["closed"]


def test_a_connection_that_arrives_after_a_resize_without_place_for_it_is_closed_at_once():
    world = World()
    order = world.order()
    world.grow()
    world.group.resize(1, 0)
    assert world.opened(order) == "resized"
    assert world.lane.open == 1


def test_the_shell_hears_of_a_connection_before_anybody_gets_it():
    world = World()
    caller = world.wait()
    heard = []
    world.topology.born = lambda slot: heard.append((slot, caller.slot))
    world.opened(world.order())
    assert heard == [(caller.slot, None)]


# -- tiers ------------------------------------------------------------------------------------------------------


def test_the_route_is_the_first_tier():
    world = World([Place("a", priority=1), Place("b"), Place("c")])
    assert world.route() == [["b", "c"]]


def test_with_spill_the_route_is_every_tier_in_order():
    world = World([Place("a", priority=1), Place("b"), Place("c", priority=5)], [Rules(spill=True)])
    assert world.route() == [["b"], ["a"], ["c"]]


def test_role_comes_before_priority():
    world = World([Place("a"), Place("b", priority=9)], [Rules(target_session_attrs="prefer-standby", spill=True)])
    world.reported(world.endpoints[0], PRIMARY)
    world.reported(world.endpoints[1], STANDBY)
    assert world.route() == [["b"], ["a"]]


def test_a_busy_tier_is_waited_for():
    world = World([Place("a"), Place("b", priority=1)], [Rules(connection_count=1)])
    a, b = world.group.lanes
    world.grow(a)
    world.grow(b)
    world.lease()
    assert world.take() is None


def test_with_spill_a_busy_tier_is_passed_by():
    world = World([Place("a"), Place("b", priority=1)], [Rules(connection_count=1, spill=True)])
    a, b = world.group.lanes
    world.grow(a)
    (spare,) = world.grow(b)
    world.lease()
    assert world.take() is spare


def test_with_spill_new_connections_go_to_the_first_tier_that_has_room():
    world = World([Place("a"), Place("b", priority=1)], [Rules(connection_count=1, spill=True)])
    world.grow(world.group.lanes[0])
    world.lease()
    world.wait()
    assert world.places_of(world.plan()) == ["b"]


def test_the_next_tier_is_used_when_the_first_has_no_usable_endpoint():
    world = World([Place("a"), Place("b", priority=1)])
    world.failed(world.order(), Fault.REFUSED)
    assert world.route() == [["b"]]
    world.now += 5
    world.grow()
    assert world.route() == [["a"]]


def test_a_full_server_is_used_while_something_is_open_there():
    world = World(places("a", "b"))
    world.grow()
    world.failed(world.order(), Fault.FULL)
    assert world.route() == [["a", "b"]]


def test_a_full_server_with_nothing_open_is_left_for_another():
    world = World(places("a", "b"))
    world.failed(world.order(), Fault.FULL)
    assert world.route() == [["b"]]


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.TIMEOUT, Fault.MISCONFIGURED, Fault.STARTING])
def test_an_endpoint_with_a_fault_is_left_when_its_last_session_goes(fault: Fault):
    world = World([Place("a"), Place("b", priority=1)])
    world.grow()
    world.failed(world.order(), fault)
    slot = world.lease()
    world.group.retire(slot, "broken")
    assert world.route() == [["b"]]


def test_a_route_that_stays_the_same_keeps_its_balancers():
    world = World(places("a", "b"))
    route = world.group.route
    world.topology.reroute(world.now)
    assert world.group.route is route


# -- opening, closing, forking ----------------------------------------------------------------------------------


def test_a_new_route_brings_idle_connections_to_those_who_wait():
    world = World()
    (slot,) = world.grow()
    world.group.paused = True
    world.topology.reroute(world.now)
    assert world.take() is None
    caller = world.wait()
    assert caller.slot is None
    world.group.paused = False
    world.topology.reroute(world.now)
    assert caller.slot is slot


def test_a_connection_that_comes_back_to_a_paused_group_rests():
    world = World()
    world.grow()
    slot = world.lease()
    world.group.paused = True
    world.topology.reroute(world.now)
    caller = world.wait()
    world.give(slot)
    assert caller.slot is None
    assert list(world.lane.idle) == [slot]


def test_close_closes_idle_connections_now_and_leased_ones_when_they_come_back():
    world = World()
    world.grow(count=2)
    slot = world.lease()
    world.topology.close()
    assert [reason for _, reason in world.bury()] == ["closed"]
    assert world.take() is None
    world.give(slot)
    assert world.bury() == [(slot, "retired")]
    assert world.group.total == 0


def test_a_closed_topology_can_be_opened_again():
    world = World()
    world.topology.close()
    world.topology.open()
    world.grow()
    assert world.take() is not None


def forked(world: World) -> None:
    """What the shell does in a child."""
    for group in world.groups:
        for slot in group.every_slot():
            slot.generation = -1
    world.topology.reset(world.lock, lambda: 0.5)


def test_a_child_starts_empty_and_keeps_what_is_believed():
    world = World(rules=[Rules(target_session_attrs="primary")])
    world.grow(count=1, report=PRIMARY)
    world.order()
    world.lease()
    world.wait()
    forked(world)
    assert (world.group.total, len(world.group.waiters), world.endpoint.connecting) == (0, 0, 0)
    assert world.endpoint.role is Role.PRIMARY
    assert world.route() == [["db1:5432"]]
    world.grow(report=PRIMARY)
    assert world.take() is not None


def test_a_child_of_a_closed_pool_has_no_route():
    world = World()
    world.topology.close()
    forked(world)
    assert world.route() == []


def test_a_connection_from_before_the_fork_goes_nowhere():
    world = World()
    world.grow()
    slot = world.lease()
    forked(world)
    world.give(slot)
    world.group.buried(slot)
    assert (world.lane.open, world.lane.closing, len(world.lane.idle)) == (0, 0, 0)
    assert world.bury() == []


def test_every_slot_is_idle_leased_or_closing():
    world = World(rules=[Rules(connection_count=3)])
    slots = world.grow(count=3)
    world.group.retire(world.lease(), "broken")
    world.lease()
    assert set(world.group.every_slot()) == set(slots)
    assert len(world.group.every_slot()) == 3


def test_a_waiter_of_the_fake_counts_its_wakeups():
    caller = Caller()
    caller.wake()
    assert caller.woken == 1
