"""Slow start: an endpoint that returns gets its share of the load back by and by, since its caches are cold."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdbpool.core.evidence import Fault, Health

from .harness import PRIMARY, Place, Rules, World, places, quick


def returned(**more: object) -> World:
    """a was down and is back, b was well all the time; both have idle connections."""
    world = World(places("a", "b"), [Rules(connection_count=20)], **more)
    for endpoint in world.endpoints:
        world.probed(endpoint)
    world.failed(world.order(), Fault.REFUSED)
    world.now += 5
    world.probed()
    for lane in world.group.lanes:
        world.grow(lane, 10, PRIMARY)
    return world


def shares(world: World, checkouts: int = 110) -> Counter[str]:
    """How many checkouts each endpoint gets, one at a time."""
    names = []
    for _ in range(checkouts):
        slot = world.lease()
        names.append(slot.lane.endpoint.label)
        world.give(slot)
    return Counter(names)


def test_an_endpoint_met_for_the_first_time_gets_its_whole_share_at_once():
    world = World(places("a", "b"))
    for endpoint in world.endpoints:
        world.probed(endpoint)
    assert [endpoint.share(world.now) for endpoint in world.endpoints] == [1.0, 1.0]
    assert world.topology.tend(world.now) == math.inf


def test_one_that_was_only_suspect_keeps_its_whole_share():
    world = World()
    world.probed()
    world.missed()
    world.probed()
    assert world.endpoint.share(world.now) == 1.0


@pytest.mark.parametrize("how", ["a probe", "a connect"])
def test_one_that_was_down_begins_with_a_tenth_however_it_comes_back(how: str):
    world = World()
    world.failed(world.order(), Fault.REFUSED)
    if how == "a probe":
        world.probed()
    else:
        world.grow()
    assert world.endpoint.health is Health.UP
    assert world.lane.share == world.endpoint.share(world.now) == 0.1
    assert world.lane.weight == pytest.approx(0.1)


def test_its_share_of_the_checkouts_grows_to_what_the_others_have():
    world = returned()
    first = shares(world)
    assert first == {"a": 10, "b": 100}
    seen = [first["a"]]
    for _ in range(10):
        world.now += 1
        world.topology.tend(world.now)
        seen.append(shares(world)["a"])
    assert seen == sorted(seen)
    assert seen[-1] == 55


def test_every_step_is_due_when_the_one_before_is_over():
    world = returned()
    grown = [world.lane.share]
    while (due := world.topology.tend(world.now)) < math.inf:
        assert world.now < due <= world.now + 1.001
        world.now = due + 1e-6
        world.topology.tend(world.now)
        grown.append(world.lane.share)
    assert grown == pytest.approx([0.1 * step for step in range(1, 11)])
    assert shares(world) == {"a": 55, "b": 55}


def test_between_two_steps_the_route_and_its_balancer_stay():
    world = returned()
    route = world.group.route
    world.now += 0.5
    world.topology.tend(world.now)
    assert world.group.route is route
    world.now += 0.6
    world.topology.tend(world.now)
    assert world.group.route is not route


def test_without_slow_start_it_gets_its_whole_share_at_once():
    world = returned(slow_start=0.0)
    assert shares(world) == {"a": 55, "b": 55}
    assert world.topology.tend(world.now) == math.inf


def test_the_share_is_a_part_of_its_weight():
    world = World([Place("a", weight=4), Place("b", weight=1)], [Rules(connection_count=20)])
    for endpoint in world.endpoints:
        world.probed(endpoint)
    world.failed(world.order(), Fault.REFUSED)
    world.probed()
    assert world.lane.weight == pytest.approx(0.4)
    world.now += 10
    world.topology.tend(world.now)
    assert world.lane.weight == 4


def test_one_that_goes_down_again_on_its_way_begins_anew():
    world = returned()
    world.now += 5.5
    world.topology.tend(world.now)
    assert world.lane.share == 0.6
    world.failed(world.order(), Fault.REFUSED)
    world.now += 1
    world.probed()
    assert world.lane.share == 0.1


def test_the_only_endpoint_of_a_tier_serves_whatever_its_share():
    world = World([Place("a"), Place("b", priority=1)])
    world.failed(world.order(), Fault.REFUSED)
    world.probed()
    assert world.route() == [["a"]]
    world.grow(report=PRIMARY)
    assert world.lease().lane is world.lane


def test_connections_for_those_who_wait_are_opened_by_the_share():
    world = World(places("a", "b"), [Rules(connection_count=20)])
    for endpoint in world.endpoints:
        world.probed(endpoint)
    world.failed(world.order(), Fault.REFUSED)
    world.probed()
    asked = []
    for _ in range(11):
        (order,) = world.plan(only=world.group, demand=1)
        asked.append(order.lane.endpoint.label)
        world.opened(order, PRIMARY)
    assert Counter(asked) == {"a": 1, "b": 10}


@quick
@given(slow_start=st.floats(0.01, 3600), since=st.floats(0, 1e6), at=st.floats(0, 1e5))
def test_a_share_is_between_a_tenth_and_all_and_does_not_shrink(slow_start: float, since: float, at: float):
    world = World(slow_start=slow_start, now=since)
    world.failed(world.order(), Fault.REFUSED)
    world.probed()
    share = world.endpoint.share(since)
    assert share == 0.1
    later = world.endpoint.share(since + at)
    assert share <= later <= 1.0
    if at >= slow_start:
        assert later == 1.0
        assert world.endpoint.next_step(since + at) == math.inf
    assert world.endpoint.share(since + 2 * at) >= later


@quick
@given(slow_start=st.floats(0.1, 3600), since=st.floats(0, 1e6))
def test_tending_when_told_to_ends_with_the_whole_share(slow_start: float, since: float):
    world = World(slow_start=slow_start, now=since)
    world.failed(world.order(), Fault.REFUSED)
    world.probed()
    looks = 0
    while (due := world.topology.tend(world.now)) < math.inf:
        looks += 1
        assert looks < 50
        world.now = max(due, world.now + 0.01)  # the shells sleep at least so long
    assert world.lane.share == 1.0
