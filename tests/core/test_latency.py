"""How long a server takes, as the balancer `latency` sees it."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdbpool.core.balance import FastestServer
from pgdbpool.core.latency import DECAY, UNKNOWN, WEAR, Latency

from .harness import Place, Rules, World, places, quick


def after(*seconds: float, every: float = 1.0) -> Latency:
    """What is believed after calls that took so long."""
    latency = Latency()
    for number, each in enumerate(seconds):
        latency.observe_call(each, number * every)
    return latency


# -- the estimate -----------------------------------------------------------------------------------------------------


def test_nothing_has_been_measured_yet():
    assert Latency().cost == UNKNOWN


def test_the_first_measurement_counts():
    assert after(0.2).cost == 0.2


def test_a_server_that_gets_slower_is_found_out_with_the_third_slow_call():
    assert after(0.01, 0.01, 0.01, 0.5, 0.5).cost == pytest.approx(0.01)
    assert after(0.01, 0.01, 0.01, 0.5, 0.5, 0.5).cost == 0.5


def test_one_long_call_among_short_ones_says_nothing_of_the_server():
    assert after(0.01, 0.01, 0.01, 30.0, 0.01, 0.01).cost == pytest.approx(0.01)


def test_a_server_that_gets_faster_is_believed_by_and_by():
    latency = after(1.0)
    latency.observe_call(0.0, DECAY)
    assert latency.cost == pytest.approx(exp(-1))
    latency.observe_call(0.0, 2 * DECAY)
    assert latency.cost == pytest.approx(exp(-2))


def test_faster_samples_wear_a_slow_time_away_however_soon_they_come():
    # A moment in which the process had no time made three calls slow. Fifty fast ones follow, in less than a second.
    latency = after(0.05, 0.05, 0.05, every=0.01)
    costs = []
    for number in range(50):
        latency.observe_call(0.001, 0.03 + number / 100)
        costs.append(latency.cost)
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 0.04  # it takes more than one
    assert costs[-1] < 0.0012


def test_a_clock_that_two_threads_read_in_the_other_order_does_no_harm():
    latency = Latency()
    latency.observe_call(1.0, 10.0)
    latency.observe_call(0.1, 9.9)
    cost = latency.cost
    assert cost == pytest.approx(1.0 - WEAR * 0.9)
    latency.fade(9.0)
    assert latency.cost == cost


def test_calls_and_probes_are_looked_at_each_among_their_own_kind():
    # Else three probes between two calls would hide each slow call.
    latency = Latency()
    for at in range(3):
        latency.observe_probe(0.001, at)
        latency.observe_call(0.4, at)
    assert latency.cost == 0.4
    for at in range(3):
        latency.observe_probe(0.8, at)
    assert latency.cost == 0.8


def test_one_long_probe_says_nothing_of_the_server():
    latency = Latency()
    for at, seconds in enumerate((0.01, 0.01, 0.01, 0.9, 0.01)):
        latency.observe_probe(seconds, at)
        assert latency.cost == pytest.approx(0.01)


@quick
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=30))
def test_the_estimate_stays_between_the_shortest_and_the_longest(samples: list[tuple[bool, float, float]]):
    latency, now = Latency(), 0.0
    seen = []
    for probe, seconds, pause in samples:
        now += pause
        (latency.observe_probe if probe else latency.observe_call)(seconds, now)
        seen.append(seconds)
        assert min(seen) * (1 - 1e-9) <= latency.cost <= max(seen) * (1 + 1e-9)


# -- fading -----------------------------------------------------------------------------------------------------------


def test_what_is_not_measured_any_more_fades():
    latency = after(1.0)
    latency.fade(DECAY)
    assert latency.cost == pytest.approx(exp(-1))


def test_fading_often_is_fading_once():
    often, once = after(1.0), after(1.0)
    for step in range(1, 101):
        often.fade(step / 10)
    once.fade(10.0)
    assert often.cost == pytest.approx(once.cost)


def slow_and_fast() -> World:
    """a is slow and b is fast, as a few calls have shown."""
    world = World(places("a", "b"), [Rules(balance="latency", connection_count=9)])
    for lane, seconds in zip(world.group.lanes, (0.05, 0.001), strict=True):
        world.grow(lane, 9)
        for _ in range(3):
            lane.latency.observe_call(seconds, world.now)
    return world


def next_lane(world: World) -> str:
    slot = world.lease()
    world.give(slot)
    return slot.lane.endpoint.label


def test_the_fast_server_gets_the_callers():
    world = slow_and_fast()
    assert {next_lane(world) for _ in range(20)} == {"b"}


def test_where_nobody_probes_a_slow_server_is_tried_again_after_a_while():
    world = slow_and_fast()
    a, b = world.group.lanes
    tried = []
    while world.now < 400:
        world.now += 1
        world.topology.tend(world.now)
        where = next_lane(world)
        lane = a if where == "a" else b
        lane.latency.observe_call(0.05 if lane is a else 0.001, world.now)
        if lane is a:
            tried.append(world.now)
    assert 3 <= len(tried) <= 60  # again and again, but seldom


def test_a_server_that_is_fast_again_gets_its_callers_back():
    world = slow_and_fast()
    a, _ = world.group.lanes
    served = []
    while world.now < 400:
        world.now += 1
        world.topology.tend(world.now)
        served.append(next_lane(world))
        (lane,) = (lane for lane in world.group.lanes if lane.endpoint.label == served[-1])
        lane.latency.observe_call(0.001, world.now)
    assert 40 <= served[-100:].count("a") <= 60
    assert 0.0005 <= a.latency.cost <= 0.001


def test_where_there_are_probes_nothing_fades_by_itself():
    world = slow_and_fast()
    world.topology.monitored = True
    world.topology.tend(world.now + 60)
    assert world.lane.latency.cost == 0.05


def test_a_probe_tells_every_group_how_long_the_server_takes():
    world = World(places("a", "b"), [Rules("one"), Rules("two")])
    world.probed(world.endpoints[1], seconds=0.3)
    assert [lane.latency.cost for group in world.groups for lane in group.lanes] == [UNKNOWN, 0.3] * 2


# -- the balancer -----------------------------------------------------------------------------------------------------


def test_a_server_not_yet_measured_is_asked_before_one_that_takes_a_while():
    world = World(places("a", "b"), [Rules(connection_count=9)])
    a, b = world.group.lanes
    a.latency.observe_call(0.001, world.now)
    pick = FastestServer([a, b])
    assert {pick() for _ in range(10)} == {b}


def test_callers_count_as_time():
    # With four callers already, b would serve a fifth in 5 ms: a takes 4.
    world = World(places("a", "b"), [Rules(connection_count=9)])
    a, b = world.group.lanes
    for lane, seconds in ((a, 0.004), (b, 0.001)):
        lane.latency.observe_call(seconds, world.now)
        world.grow(lane, 9)
    pick = FastestServer([a, b])
    for _ in range(3):
        assert pick() is b
        b.idle.pop()
    b.idle.pop()
    assert {pick() for _ in range(10)} == {a}


def test_a_greater_weight_counts_as_speed():
    world = World([Place("a", weight=3), Place("b", weight=1)], [Rules(connection_count=9)])
    a, b = world.group.lanes
    for lane, seconds in ((a, 0.002), (b, 0.001)):
        lane.latency.observe_call(seconds, world.now)
    pick = FastestServer([a, b])
    assert {pick() for _ in range(10)} == {a}


def test_equally_fast_servers_take_turns_by_weight():
    world = World(places("a", "b", "c"))
    pick = FastestServer(world.group.lanes)
    names = [pick().endpoint.label for _ in range(30)]
    assert {name: names.count(name) for name in "abc"} == {"a": 10, "b": 10, "c": 10}
