"""What to open, when, and when to look again."""

from itertools import pairwise

import pytest

from pgdbpool.core.endpoint import BACKOFF, BACKOFF_ELSE, URGENT, Endpoint, backoff
from pgdbpool.core.evidence import Fault, Health, Role
from pgdbpool.core.plan import LOOK_EVERY, SEARCH_EVERY, SEARCH_LONGEST
from pgdbpool.core.topology import SETUP_LOSSES
from pgdbpool.errors import DBOfflineError

from .harness import PRIMARY, STANDBY, UNKNOWN, Place, Rules, World, places

INF = float("inf")


def proven(world: World) -> World:
    """Every endpoint was reached once, and nothing is open."""
    for endpoint in world.endpoints:
        endpoint.connected(world.now)
    world.topology.reroute(world.now)
    return world


# -- demand -----------------------------------------------------------------------------------------------------


def test_nobody_waits_and_nothing_is_kept_warm_so_nothing_is_opened():
    assert World().plan() == []


def test_one_order_for_each_waiter_up_to_two_at_a_time():
    world = proven(World(rules=[Rules(connection_count=9)]))
    for _ in range(5):
        world.wait()
    assert len(world.plan()) == 2
    assert world.plan() == []


def test_an_endpoint_that_is_not_up_gets_one_connect_at_a_time():
    world = World(rules=[Rules(connection_count=9)])
    for _ in range(5):
        world.wait()
    assert len(world.plan()) == 1


def test_an_up_endpoint_with_a_fault_gets_one_connect_at_a_time():
    world = World(rules=[Rules(connection_count=9)])
    world.grow()
    world.failed(world.order(), Fault.FULL)
    world.lease()
    for _ in range(5):
        world.wait()
    world.now += 5
    assert len(world.plan()) == 1


def test_what_is_being_opened_already_counts_for_the_waiters():
    world = proven(World())
    world.wait()
    assert len(world.plan()) == 1
    assert world.plan() == []
    world.wait()
    assert len(world.plan()) == 1


def test_no_more_is_opened_than_connection_count_allows():
    world = proven(World(rules=[Rules(connection_count=1)]))
    world.wait()
    world.wait()
    assert len(world.plan()) == 1


def test_no_more_is_opened_than_total_count_allows():
    world = proven(World(places("a", "b"), [Rules(connection_count=2, total_count=3)]))
    for _ in range(9):
        world.wait()
    assert len(world.plan()) == 3


def test_a_closing_connection_keeps_its_place_until_it_is_closed():
    world = proven(World(rules=[Rules(connection_count=1)]))
    (slot,) = world.grow()
    leased = world.lease()
    assert leased is slot
    world.wait()
    world.group.retire(slot, "broken")
    assert world.plan() == []
    assert world.bury() == [(slot, "broken")]
    assert len(world.plan()) == 1


def test_new_connections_go_where_there_are_fewest_by_weight():
    world = proven(World([Place("a", weight=1), Place("b", weight=3)], [Rules(connection_count=9)]))
    asked = []
    for _ in range(8):
        (order,) = world.plan(only=world.group, demand=1)
        asked.append(order.lane.endpoint.label)
        world.opened(order)
    assert asked.count("a") == 2


def test_groups_take_turns_where_connects_are_scarce():
    world = World(rules=[Rules("one"), Rules("two")])
    for group in world.groups:
        world.wait(group)
    firsts = []
    for _ in range(4):
        (order,) = world.plan()
        firsts.append(order.lane.group.name)
        world.topology.cancelled(order)
    assert sorted(firsts[:2]) == ["one", "two"]
    assert firsts[:2] == firsts[2:]


def test_a_closed_topology_plans_nothing():
    world = proven(World(rules=[Rules(min_count=1)]))
    world.topology.close()
    assert world.plan() == []


def test_a_paused_group_opens_nothing_for_its_waiters():
    world = proven(World())
    world.group.paused = True
    world.topology.reroute(world.now)
    world.wait()
    assert world.plan() == []


def test_a_plan_for_one_group_serves_only_that_group():
    world = proven(World(rules=[Rules("one", min_count=1), Rules("two", min_count=1)]))
    (order,) = world.plan(only=world.groups[1], demand=1)
    assert order.lane.group.name == "two"


def test_a_plan_for_one_group_without_demand_opens_nothing():
    world = proven(World(rules=[Rules("one", min_count=1)]))
    assert world.plan(only=world.group) == []


# -- what the balancer wished for -------------------------------------------------------------------------------


def two_lanes_one_empty() -> World:
    """Both endpoints up; connections at "a" only; "b" is the one with fewer leased."""
    world = proven(World(places("a", "b"), [Rules(connection_count=2)]))
    world.grow(world.group.lanes[0], 2)
    while not world.group.lanes[1].wished:
        world.lease()
    return world


def test_a_checkout_that_finds_the_named_lane_empty_takes_a_neighbours_slot_and_wishes():
    world = two_lanes_one_empty()
    assert world.wishes == ["g"]
    assert world.places_of(world.plan()) == ["b"]


def test_a_wish_is_made_once():
    world = proven(World(places("a", "b"), [Rules(connection_count=4, balance="round-robin")]))
    world.grow(world.group.lanes[0], 4)
    while world.take() is not None:
        pass
    assert world.wishes == ["g"]


def test_a_wish_is_granted_once():
    world = two_lanes_one_empty()
    world.plan()
    assert world.plan() == []


def test_a_wish_for_a_lane_that_left_the_route_is_dropped():
    world = two_lanes_one_empty()
    world.failed(world.order(world.group.lanes[1]), Fault.REFUSED)
    assert world.plan() == []
    assert not world.group.lanes[1].wished


def test_a_wish_for_a_lane_whose_role_does_not_suit_any_more_is_dropped():
    world = proven(World(places("a", "b"), [Rules(target_session_attrs="standby")]))
    lane_a, lane_b = world.group.lanes
    world.grow(lane_a, 2, STANDBY)
    lane_b.endpoint.connected(world.now)
    world.reported(lane_b.endpoint, STANDBY)
    while not lane_b.wished:
        world.lease()
    world.reported(lane_b.endpoint, PRIMARY)
    assert world.plan() == []


def test_a_lane_without_room_is_not_wished_for():
    world = proven(World(places("a", "b"), [Rules(connection_count=1)]))
    lane_a, lane_b = world.group.lanes
    world.grow(lane_a)
    world.order(lane_b)
    for _ in range(3):
        world.give(world.lease())
    assert world.wishes == []


def test_with_spill_a_preferred_endpoint_that_came_back_does_not_stay_empty():
    world = proven(World([Place("a"), Place("b", priority=1)], [Rules(spill=True)]))
    lane_a, lane_b = world.group.lanes
    (spare,) = world.grow(lane_b)
    assert world.take() is spare
    assert world.wishes == ["g"]
    assert world.places_of(world.plan()) == ["a"]
    world.give(spare)
    world.grow(lane_a)
    assert world.lease().lane is lane_a


def test_with_spill_a_preferred_endpoint_without_room_is_not_wished_for():
    world = proven(World([Place("a"), Place("b", priority=1)], [Rules(connection_count=1, spill=True)]))
    lane_a, lane_b = world.group.lanes
    world.grow(lane_a)
    world.lease()
    (spare,) = world.grow(lane_b)
    assert world.take() is spare
    assert world.wishes == []


def test_with_spill_an_endpoint_is_not_wished_for_where_nothing_is_idle():
    world = proven(World([Place("a"), Place("b", priority=1)], [Rules(spill=True)]))
    assert world.take() is None
    assert world.wishes == []


# -- keeping warm -----------------------------------------------------------------------------------------------


def test_min_count_is_kept_warm_on_every_endpoint_that_fits():
    world = World(places("a", "b"), [Rules(min_count=1)])
    assert world.places_of(world.plan()) == ["a", "b"]


def test_a_preferred_role_keeps_the_second_choice_warm_too():
    world = World(places("a", "b"), [Rules(min_count=1, target_session_attrs="prefer-standby")])
    world.grow(report=PRIMARY)
    assert world.places_of(world.plan()) == ["b"]
    assert world.lane.open == 1


def test_nothing_is_kept_warm_on_an_endpoint_whose_role_does_not_fit():
    world = World(rules=[Rules(min_count=1, target_session_attrs="standby")])
    world.reported(world.endpoint, PRIMARY)
    assert world.plan() == []


def test_an_endpoint_that_failed_is_tried_again_once_though_nothing_is_to_be_kept_warm():
    world = World(rules=[Rules("one"), Rules("two")])
    world.failed(world.order(), Fault.REFUSED)
    assert world.plan() == []
    world.now += 5
    assert len(world.plan()) == 1


def test_a_lost_session_has_the_endpoint_proven_again():
    world = World()
    slot, _ = world.grow(count=2)
    world.group.limit = 3
    world.topology.session_lost(slot, "57P01", "terminated", world.now)
    assert len(world.plan()) == 1


# -- searching for a role ---------------------------------------------------------------------------------------


def searching() -> World:
    """Two standbys, and somebody who wants a primary."""
    world = World(places("a", "b"), [Rules(target_session_attrs="primary")])
    for endpoint in world.endpoints:
        endpoint.connected(world.now)
        world.reported(endpoint, STANDBY)
    world.wait()
    return world


def test_a_missing_role_is_looked_for_where_it_was_not():
    world = searching()
    assert world.route() == []
    (order,) = world.plan()
    assert order.lane.endpoint.label == "a"


def test_a_search_asks_the_endpoints_in_turn_and_each_at_its_own_pace():
    world = searching()
    asked = []
    while world.now < 103:
        for order in world.plan():
            asked.append((world.now, order.lane.endpoint.label))
            assert world.opened(order, STANDBY) == "role"
            world.bury()
        world.now += 1 / 64
    for label in "ab":
        times = [at for at, where in asked if where == label]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert len(times) > 5
        assert 0.05 <= gaps[0] <= 0.1
        assert max(gaps[:10]) <= 1.5 * SEARCH_EVERY


def test_a_search_that_goes_on_for_long_slows_down():
    world = searching()
    asked = []
    while world.now < 200:
        for order in world.plan():
            asked.append(world.now)
            assert world.opened(order, STANDBY) == "role"
            world.bury()
        world.now += 1 / 64
    began = asked[0]
    first = sum(at < began + 1 for at in asked)
    last = sum(at >= 199 for at in asked)
    assert last < first / 3
    assert max(later - earlier for earlier, later in pairwise(asked)) <= SEARCH_LONGEST + 1 / 64


def test_nobody_waits_so_nobody_searches():
    world = World(rules=[Rules(target_session_attrs="primary", min_count=1)])
    world.reported(world.endpoint, STANDBY)
    assert world.plan() == []


def test_the_role_found_serves_the_waiter():
    world = searching()
    caller = next(iter(world.group.waiters))
    (order,) = world.plan()
    assert world.opened(order, PRIMARY) is None
    assert caller.slot is not None
    assert caller.slot.lane is order.lane


def test_a_search_ends_where_every_lane_is_being_asked():
    world = searching()
    world.wait()
    world.wait()
    assert world.places_of(world.plan()) == ["a", "b"]
    assert world.plan() == []


def test_a_lane_found_by_other_means_while_its_search_rests_may_be_opened_at_once():
    world = searching()
    (order, *_) = world.plan()
    world.opened(order, STANDBY)
    world.bury()
    world.reported(order.lane.endpoint, PRIMARY)
    assert world.route() == [["a"]]
    assert len(world.plan()) == 1


# -- backoff ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [0, 1, 2, 5, 60])
def test_backoff_doubles_with_jitter_between_a_tenth_and_the_whole_up_to_its_cap(failures: int):
    span = min(1.0, 0.05 * 2**failures)
    assert backoff(0.05, 1.0, failures, lambda: 0.0) == pytest.approx(0.1 * span)
    assert backoff(0.05, 1.0, failures, lambda: 1.0) == pytest.approx(span)


@pytest.mark.parametrize("fault", list(Fault))
def test_every_kind_of_fault_has_its_own_pace(fault: Fault):
    first, longest = BACKOFF.get(fault, BACKOFF_ELSE)
    endpoint = Endpoint(Place(), lambda: 1.0)
    waits = []
    for _ in range(20):
        endpoint.connect_failed(fault, "no", 50.0)
        waits.append(endpoint.next_try - 50.0)
    assert waits[0] == pytest.approx(first)
    assert waits[-1] == pytest.approx(longest)
    assert waits == sorted(waits)


def test_one_success_ends_the_backoff():
    endpoint = Endpoint(Place(), lambda: 1.0)
    for _ in range(5):
        endpoint.connect_failed(Fault.REFUSED, "no", 50.0)
    assert not endpoint.may_connect(50.1)
    endpoint.connected(50.05)
    assert endpoint.may_connect(50.1)
    assert endpoint.health is Health.UP
    endpoint.connect_failed(Fault.REFUSED, "no", 60.0)
    assert endpoint.next_try == pytest.approx(60.05)


def test_an_endpoint_is_not_tried_before_its_backoff_ends():
    world = World()
    world.wait()
    world.failed(world.order(), Fault.REFUSED)
    due = world.topology.due(world.now)
    assert due > world.now
    assert world.plan() == []
    world.now = due
    assert len(world.plan()) == 1


# -- when to look again -----------------------------------------------------------------------------------------


def test_nothing_is_due_where_nothing_is_wrong():
    world = World()
    world.grow()
    assert world.topology.due(world.now) == INF


def test_a_search_for_a_waiter_is_due_when_its_rest_ends():
    world = searching()
    for order in world.plan():
        world.opened(order, STANDBY)
        world.bury()
    first = min(lane.next_try for lane in world.group.lanes)
    assert world.topology.due(world.now) == first


def test_nothing_is_due_before_the_answer_of_a_connect_under_way():
    world = World()
    world.failed(world.order(), Fault.REFUSED)
    world.order()
    assert world.topology.due(world.now) == INF


def test_due_of_one_group_looks_at_that_group_as_if_somebody_waited():
    world = World(rules=[Rules("one"), Rules("two", target_session_attrs="standby")])
    world.grow(report=PRIMARY)
    world.groups[1].lanes[0].next_try = world.now + 3
    assert world.topology.due(world.now) == INF
    assert world.topology.due(world.now, world.groups[1]) == world.now + 3


def keepers_rounds(world: World, seconds: float) -> int:
    """How often a keeper would look in so many seconds in which nothing happens but failed connects."""
    until = world.now + seconds
    rounds = 0
    while world.now < until:
        rounds += 1
        for order in world.plan():
            world.topology.setup_failed(order, "configure raised", world.now)
        world.now = max(world.now + 0.01, world.topology.due(world.now))
    return rounds


def test_a_paused_group_with_waiters_gives_no_cause_to_look_again():
    world = World()
    world.grow()
    world.group.paused = True
    world.topology.reroute(world.now)
    world.wait()
    assert keepers_rounds(world, 600) == 1


def test_an_up_endpoint_that_was_full_once_is_looked_at_seldom():
    world = World()
    world.grow()
    world.failed(world.order(), Fault.FULL)
    assert keepers_rounds(world, 600) < 60


def test_a_failed_setup_is_looked_at_seldom():
    world = World()
    world.grow()
    world.topology.setup_failed(world.order(), "configure raised", world.now)
    assert keepers_rounds(world, 600) < 60


def test_a_connection_lost_while_it_is_made_ready_is_tried_again_soon_and_after_some_more_the_setup_is_at_fault():
    world = World()
    waiter = world.wait()
    for lost in range(1, SETUP_LOSSES + 2):
        [order] = world.plan()
        world.topology.lost_in_setup(order, "closed unexpectedly", world.now)
        assert (world.group.refusal is not None) is (lost > SETUP_LOSSES)
        assert world.plan() == []
        world.now += URGENT
    assert "closed unexpectedly" in str(waiter.error)


def test_one_that_succeeds_makes_up_for_those_that_were_lost():
    world = World()
    for _ in range(2 * SETUP_LOSSES):
        world.topology.lost_in_setup(world.order(), "closed unexpectedly", world.now)
        world.opened(world.order())
    assert world.group.refusal is None
    assert world.group.lanes[0].setup_error is None


def test_an_endpoint_of_a_role_nobody_wants_gives_no_cause_to_look_again():
    world = World(rules=[Rules(target_session_attrs="primary")])
    world.reported(world.endpoint, STANDBY)
    world.failed(world.order(), Fault.FULL)
    world.topology.monitored = True
    assert keepers_rounds(world, 600) == 1


def test_without_a_monitor_an_endpoint_of_a_role_nobody_wants_is_looked_at_again_once_in_a_while():
    world = World(rules=[Rules(target_session_attrs="primary")])
    world.reported(world.endpoint, STANDBY)
    assert 30 <= keepers_rounds(world, 600) <= 120


def test_a_connect_that_hangs_gives_no_cause_to_look_at_the_others_in_vain():
    world = searching()
    assert world.places_of(world.plan()) == ["a"]  # which lets us wait
    world.now += 5
    assert world.plan() or world.topology.due(world.now) > world.now


def test_an_order_is_wanted_until_its_endpoint_is_known_to_be_down():
    world = proven(World(rules=[Rules(connection_count=3)]))
    order, other = world.order(), world.order()
    assert order.wanted
    world.failed(other, Fault.REFUSED)
    assert not order.wanted


def test_an_order_is_wanted_until_its_group_has_to_leave_the_endpoint():
    world = proven(World(rules=[Rules("w", target_session_attrs="primary"), Rules("any")]))
    orders = [world.order(group.lanes[0]) for group in world.groups]
    world.reported(world.endpoint, STANDBY)
    assert [order.wanted for order in orders] == [False, True]


# -- with a monitor ---------------------------------------------------------------------------------------------


def monitored(world: World) -> World:
    world.topology.monitored = True
    return world


def test_with_a_monitor_nobody_searches_by_connecting():
    world = monitored(searching())
    assert world.plan() == []
    world.now += 60
    assert world.plan() == []
    assert world.topology.due(world.now) == INF


def test_with_a_monitor_the_role_found_by_a_probe_is_connected_to_for_the_waiter():
    world = monitored(searching())
    world.probed(world.endpoints[1], PRIMARY)
    assert world.places_of(world.plan()) == ["b"]


def test_with_a_monitor_a_down_endpoint_is_left_to_its_probes():
    world = monitored(proven(World(rules=[Rules(min_count=1)])))
    world.failed(world.order(), Fault.REFUSED)
    world.now += 60
    assert (world.plan(), world.topology.due(world.now)) == ([], INF)
    world.probed()
    assert world.places_of(world.plan()) == ["db1:5432"]


def test_with_a_monitor_a_suspect_endpoint_is_left_to_its_probes():
    world = monitored(proven(World(rules=[Rules(min_count=1)])))
    world.grow()
    world.missed()
    world.now += 60
    assert world.plan() == []


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.MISCONFIGURED])
def test_what_no_probe_can_tell_is_tried_again_though_there_is_a_monitor(fault: Fault):
    world = monitored(World())
    world.probed()
    world.failed(world.order(), fault)
    world.now += BACKOFF[fault][1]
    (order,) = world.plan()
    world.opened(order, PRIMARY)
    assert world.endpoint.fault is None


def test_with_a_monitor_a_failed_setup_is_repeated():
    world = monitored(World())
    world.probed()
    world.topology.setup_failed(world.order(), "configure raised", world.now)
    world.now += 60
    assert len(world.plan()) == 1


def test_with_a_monitor_one_who_waits_beside_a_suspect_endpoint_is_served_when_its_backoff_ends():
    world = monitored(World())
    world.probed()
    world.grow()
    world.lease()
    world.failed(world.order(), Fault.STARTING)
    world.wait()
    assert world.plan() == []
    due = world.topology.due(world.now)
    assert due == world.endpoint.next_try
    world.now = due
    assert len(world.plan()) == 1


# -- without a monitor: who is looked at again ------------------------------------------------------------------


def looks(world: World, seconds: float) -> dict[str, list[float]]:
    """When which endpoint is connected to, in so many seconds in which nobody waits and nothing changes."""
    until, seen = world.now + seconds, {endpoint.label: [] for endpoint in world.endpoints}
    while world.now < until:
        for order in world.plan():
            label = order.lane.endpoint.label
            seen[label].append(world.now)
            world.opened(order, order.lane.endpoint.report)
            world.bury()
        world.now = max(world.now + 0.01, world.topology.due(world.now))
    return seen


def one_used_one_not() -> World:
    """A group that wants a primary, has one at "a", and a standby at "b" that nobody uses."""
    world = proven(World(places("a", "b"), [Rules(target_session_attrs="primary", min_count=1)]))
    world.reported(world.endpoints[0], PRIMARY)
    world.reported(world.endpoints[1], STANDBY)
    return world


def test_an_endpoint_that_nobody_uses_is_looked_at_again_once_in_a_while_at_an_even_pace():
    seen = looks(one_used_one_not(), 600)
    assert len(seen["a"]) == 1  # to keep warm
    gaps = [later - earlier for earlier, later in pairwise([100.0, *seen["b"]])]
    assert all(LOOK_EVERY <= gap <= 2 * LOOK_EVERY + 0.2 for gap in gaps)
    assert len(gaps) >= 600 / (2 * LOOK_EVERY) - 2


def test_a_look_finds_out_that_a_standby_was_promoted():
    world = one_used_one_not()
    b = world.endpoints[1]
    while b.role is Role.STANDBY:
        for order in world.plan():
            world.opened(order, PRIMARY)
        assert world.now <= 100 + 2 * LOOK_EVERY + 0.2
        world.now = max(world.now + 0.01, world.topology.due(world.now))
    assert world.route() == [["a", "b"]]


def test_with_a_monitor_nobody_looks_again():
    world = monitored(one_used_one_not())
    assert looks(world, 600)["b"] == []


def test_a_look_is_not_taken_where_another_group_has_a_connection():
    world = World(rules=[Rules("w", target_session_attrs="primary"), Rules("r", target_session_attrs="standby")])
    world.grow(world.groups[1].lanes[0], report=STANDBY)
    assert looks(world, 600) == {"db1:5432": []}


# -- when to look again -----------------------------------------------------------------------------------------


def test_while_the_only_connect_there_may_be_is_under_way_nothing_is_due():
    world = World(rules=[Rules(connection_count=2)])
    world.wait()
    world.wait()
    assert len(world.plan()) == 1
    world.now += 5
    assert world.plan() == []
    assert world.topology.due(world.now) == float("inf")


# -- refusals ---------------------------------------------------------------------------------------------------


def test_a_refusal_by_every_endpoint_fails_those_who_wait_with_the_servers_words():
    world = World(places("a", "b"))
    caller = world.wait()
    world.failed(world.order(world.group.lanes[0]), Fault.MISCONFIGURED, "no such role")
    assert caller.error is None
    world.failed(world.order(world.group.lanes[1]), Fault.MISCONFIGURED, "wrong password")
    assert isinstance(caller.error, DBOfflineError)
    assert "a: no such role; b: wrong password" in str(caller.error)


def test_a_refusal_fails_newcomers_at_once():
    world = World()
    world.failed(world.order(), Fault.MISCONFIGURED, "wrong password")
    with pytest.raises(DBOfflineError, match="wrong password"):
        world.wait()


def test_a_session_still_open_is_no_refusal():
    world = World()
    world.grow()
    world.lease()
    world.failed(world.order(), Fault.MISCONFIGURED, "wrong password")
    assert world.group.refusal is None
    assert world.wait().error is None


def test_a_refusal_ends_with_the_first_success():
    world = World(rules=[Rules(min_count=1)])
    world.failed(world.order(), Fault.MISCONFIGURED, "wrong password")
    assert world.plan() == []
    world.now += 2
    (order,) = world.plan()
    assert world.opened(order) is None
    assert world.group.refusal is None
    assert world.take() is not None


def test_a_failed_setup_refuses_only_its_own_group():
    world = World(rules=[Rules("one"), Rules("two")])
    caller = world.wait(world.groups[0])
    world.topology.setup_failed(world.order(world.groups[0].lanes[0]), "configure raised", world.now)
    assert isinstance(caller.error, DBOfflineError)
    assert "configure raised" in str(caller.error)
    assert world.groups[1].refusal is None
    assert world.endpoint.health is Health.UP


def test_a_failed_setup_is_repeated_slowly():
    world = World(rules=[Rules(min_count=1)], random=lambda: 1.0)
    waits = []
    for _ in range(7):
        (order,) = world.plan()
        world.topology.setup_failed(order, "configure raised", world.now)
        assert world.plan() == []
        due = world.topology.due(world.now)
        waits.append(due - world.now)
        world.now = due
    assert waits == pytest.approx([2, 4, 8, 16, 30, 30, 30])


def test_a_paused_group_refuses_nobody():
    world = World()
    world.group.paused = True
    world.topology.reroute(world.now)
    world.failed(world.order(), Fault.MISCONFIGURED, "wrong password")
    caller = world.wait()
    assert caller.error is None


def test_who_waits_for_a_paused_group_is_refused_nothing():
    world = World()
    caller = world.wait()
    world.group.paused = True
    world.topology.reroute(world.now)
    world.failed(world.order(), Fault.MISCONFIGURED, "wrong password")
    assert caller.error is None
    world.group.paused = False
    world.topology.reroute(world.now)
    assert isinstance(caller.error, DBOfflineError)


def test_a_setup_that_succeeds_makes_the_next_failure_a_first_one():
    world = World(rules=[Rules(min_count=1)], random=lambda: 1.0)
    for _ in range(5):
        world.topology.setup_failed(world.order(), "configure raised", world.now)
    world.now += 60
    world.grow()
    world.topology.setup_failed(world.order(), "configure raised", world.now)
    assert world.lane.next_try == world.now + 2


def test_a_failed_setup_is_repeated_though_nothing_is_kept_warm():
    world = World()
    world.topology.setup_failed(world.order(), "configure raised", world.now)
    assert world.group.refusal is not None
    world.now += 3600
    assert len(world.plan()) == 1


def test_an_up_endpoint_that_refuses_is_tried_again_though_nothing_is_kept_warm():
    world = proven(World())
    world.failed(world.order(), Fault.MISCONFIGURED, "wrong password")
    assert world.group.refusal is not None
    world.now += 3600
    assert len(world.plan()) == 1


# -- total_count ------------------------------------------------------------------------------------------------


def test_keeping_warm_a_second_choice_does_not_use_up_total_count():
    world = World([Place("far", priority=1), Place("near")], [Rules(min_count=1, total_count=1)])
    for _ in range(5):
        for order in world.plan():
            world.opened(order)
    assert world.route() == [["near"]]
    caller = world.wait()
    for _ in range(100):
        for order in world.plan():
            world.opened(order)
        world.group.tend(world.now)
        world.bury()
        world.now += 1
    assert caller.slot is not None


def test_where_total_count_is_scarce_the_preferred_endpoint_is_kept_warm():
    for rules in (
        Rules(min_count=1, total_count=1),
        Rules(min_count=1, total_count=1, target_session_attrs="prefer-standby"),
    ):
        world = World([Place("far", priority=1), Place("near")], [rules])
        assert world.places_of(world.plan()) == ["near"]


def test_connections_left_behind_by_a_failback_make_room_under_total_count():
    world = World([Place("near"), Place("far", priority=1)], [Rules("g", total_count=2), Rules("other")])
    near, far = world.group.lanes
    world.failed(world.order(near), Fault.REFUSED)
    world.grow(far, 2)
    world.now += 5
    world.grow(world.groups[1].lanes[0])
    assert world.route() == [["near"]]
    caller = world.wait()
    for _ in range(100):
        for order in world.plan():
            world.opened(order)
        world.group.tend(world.now)
        world.bury()
        world.now += 1
    assert caller.slot is not None


# -- unreachable, in words --------------------------------------------------------------------------------------


def test_the_words_for_an_unreachable_group_name_each_endpoint_and_why():
    world = World(places("a", "b", "c", "d"), [Rules(target_session_attrs="read-write")])
    a, b, c, _ = world.endpoints
    world.reported(a, STANDBY)
    world.reported(b, PRIMARY._replace(read_only=True))
    world.failed(world.order(world.topology.lanes(c)[0]), Fault.REFUSED, "connection refused")
    assert world.topology.unreachable(world.group) == (
        "a: is a standby, not read-write; b: takes no writes, not read-write; c: connection refused; d: not tried yet"
    )


def test_an_unfit_endpoint_that_also_fails_is_described_by_its_failure():
    world = World(rules=[Rules(target_session_attrs="primary")])
    world.reported(world.endpoint, STANDBY)
    world.failed(world.order(), Fault.REFUSED, "connection refused")
    assert world.topology.unreachable(world.group) == "db1:5432: connection refused"


# -- telling reconnect_failed -----------------------------------------------------------------------------------


def test_a_group_is_told_once_in_an_outage_when_it_has_lasted_long_enough():
    world = World(rules=[Rules("one", reconnect_timeout=10), Rules("two", reconnect_timeout=20)])
    one, two = world.groups
    assert world.failed(world.order(), Fault.REFUSED) == []
    world.now += 10
    assert world.failed(world.order(), Fault.REFUSED) == [one]
    world.now += 10
    assert world.failed(world.order(), Fault.REFUSED) == [two]
    assert world.failed(world.order(), Fault.REFUSED) == []


def test_a_success_starts_a_new_outage():
    world = World(rules=[Rules(reconnect_timeout=0)])
    assert world.failed(world.order(), Fault.REFUSED) == [world.group]
    world.opened(world.order(), UNKNOWN)
    assert world.failed(world.order(), Fault.REFUSED) == [world.group]


# -- room under total_count -------------------------------------------------------------------------------------


def left_behind() -> World:
    """Three connections idle at "far", all that total_count allows; "near" is back and preferred."""
    world = proven(World([Place("near"), Place("far", priority=1)], [Rules(connection_count=3, total_count=3)]))
    world.grow(world.group.lanes[1], 3)
    return world


def test_no_more_connections_off_the_route_are_closed_than_are_wanted():
    world = left_behind()
    world.wait()
    assert world.plan() == []
    assert len(world.bury()) == 1
    assert world.wishes
    assert world.places_of(world.plan()) == ["near"]


def test_one_that_comes_back_off_the_route_gives_way_at_once_to_those_who_wait():
    world = proven(World([Place("near"), Place("far", priority=1)], [Rules(connection_count=1, total_count=1)]))
    world.grow(world.group.lanes[1])
    slot = world.group.lanes[1].idle.pop()  # taken while "near" was away
    world.wait()
    assert world.plan() == []
    world.wishes.clear()
    world.give(slot)
    assert world.wishes == ["g"]
    world.plan()
    assert world.bury() == [(slot, "displaced")]
    assert world.places_of(world.plan()) == ["near"]


def test_nobody_waits_so_connections_off_the_route_stay():
    world = left_behind()
    assert world.plan() == []
    assert world.bury() == []


def test_a_second_look_before_room_is_made_closes_no_more():
    world = left_behind()
    world.wait()
    world.plan()
    world.plan()
    assert len(world.bury()) == 1


# -- the pace at which what is gone is asked --------------------------------------------------------------------------


def attempts(world: World, fault: Fault, seconds: float) -> list[tuple[float, str]]:
    """When which endpoint is connected to while a caller waits in each group, and all that is tried fails at once."""
    for group in world.groups:
        world.wait(group)
    began, made = world.now, []
    while world.now < began + seconds:
        for order in world.plan():
            made.append((world.now - began, order.lane.endpoint.label))
            world.failed(order, fault)
        world.now += 0.005
    return made


def after(made: list[tuple[float, str]], since: float) -> int:
    return sum(at >= since for at, _ in made)


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.STARTING, Fault.FULL])
@pytest.mark.parametrize("groups", [1, 4])
def test_of_many_that_fail_ten_a_second_are_asked_whatever_their_number(groups: int, fault: Fault):
    names = [f"n{number}" for number in range(40)]
    made = attempts(World(places(*names), [Rules(f"g{number}") for number in range(groups)]), fault, 12.0)
    assert 20 <= after(made, 2.0) <= 140
    assert {name for _, name in made} == set(names)


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.STARTING, Fault.FULL])
def test_a_thousand_processes_ask_one_that_has_failed_for_long_less_than_a_thousand_times_a_second(fault: Fault):
    made = attempts(World(), fault, 124.0)
    assert 40 <= after(made, 24.0) <= 115


def test_one_that_has_just_failed_is_asked_again_within_a_quarter_of_a_second():
    made = [at for at, _ in attempts(World(places("a", "b")), Fault.REFUSED, 4.0)]
    assert max(after - before for before, after in pairwise(made)) < 0.25


def test_one_that_is_back_and_starts_is_asked_as_one_that_has_just_failed():
    world = World()
    attempts(world, Fault.REFUSED, 60.0)
    made = [at for at, _ in attempts(world, Fault.STARTING, 6.0)]
    assert max(after - before for before, after in pairwise(made[1:])) < 0.5


def test_a_server_that_starts_is_left_to_the_monitor_where_nobody_waits():
    world = World(rules=[Rules(min_count=1)])
    world.topology.monitored = True
    world.grow()
    world.failed(world.order(), Fault.STARTING)
    world.topology.drain(world.group, world.now)
    world.now += 60
    assert world.plan() == []
