"""Balancers: shares by weight, evenly spread, and least busy first."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdbpool.core.balance import POLICIES, FastestServer, LeastBusy, Random, RoundRobin, weighted_cycle
from pgdbpool.core.group import Tier
from pgdbpool.core.lane import Lane

from .harness import Place, Rules, World, places, quick


@pytest.mark.parametrize(
    ("weights", "cycle"),
    [
        ([1], (0,)),
        ([1, 1], (0, 1)),
        ([2, 1], (0, 1, 0)),
        ([5, 1, 1], (0, 0, 1, 0, 2, 0, 0)),
        ([0.5, 0.25], (0, 1, 0)),
        ([1.5, 1], (0, 1, 0, 1, 0)),
        ([100, 100, 100], (0, 1, 2)),
    ],
)
def test_cycles_known_from_elsewhere(weights: list[float], cycle: tuple[int, ...]):
    assert weighted_cycle(weights) == cycle


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_in_a_cycle_each_appears_exactly_in_proportion_to_small_whole_weights(weights: list[int]):
    cycle = weighted_cycle(weights)
    if len(cycle) <= 64:
        counts = Counter(cycle)
        for i, weight in enumerate(weights):
            assert counts[i] / len(cycle) == pytest.approx(weight / sum(weights), rel=0.02)


@quick
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_in_a_cycle_each_appears_about_in_proportion_to_any_weights(weights: list[float]):
    cycle = weighted_cycle(weights)
    counts = Counter(cycle)
    assert set(counts) == set(range(len(weights)))
    shares = [min(weight / min(weights), 256) for weight in weights]
    for i, share in enumerate(shares):
        assert abs(counts[i] - share * len(cycle) / sum(shares)) < 1.0 + len(weights) / 2


@quick
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_a_cycle_is_evenly_spread(weights: list[float]):
    cycle = weighted_cycle(weights)
    counts = Counter(cycle)
    seen: Counter[int] = Counter()
    for length, index in enumerate(cycle, 1):
        seen[index] += 1
        for i, count in counts.items():
            assert abs(seen[i] - count * length / len(cycle)) < max(1.0, len(weights) / 2)


@quick
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=8))
def test_a_cycle_is_short(weights: list[float]):
    assert len(weighted_cycle(weights)) <= 256 * len(weights)


def test_the_largest_share_is_bounded():
    assert Counter(weighted_cycle([10_000, 1])) == {0: 256, 1: 1}


def test_round_robin_gives_each_lane_its_turns_by_weight():
    world = World([Place("a", weight=3), Place("b", weight=1)])
    pick = RoundRobin(world.group.lanes)
    names = [pick().endpoint.label for _ in range(400)]
    assert Counter(names) == {"a": 300, "b": 100}


def test_least_busy_takes_turns_while_nothing_is_leased():
    world = World(places("a", "b", "c"))
    pick = LeastBusy(world.group.lanes)
    assert Counter(pick().endpoint.label for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_least_busy_names_the_lane_with_the_fewest_leased():
    world = World(places("a", "b"), [Rules(connection_count=4)])
    a, b = world.group.lanes
    for lane, leased in ((a, 3), (b, 1)):
        world.grow(lane, 4)
        for _ in range(leased):
            lane.idle.pop()
    pick = LeastBusy([a, b])
    assert {pick() for _ in range(10)} == {b}


def test_least_busy_counts_by_weight():
    world = World([Place("a", weight=4), Place("b", weight=1)], [Rules(connection_count=4)])
    a, b = world.group.lanes
    for lane, leased in ((a, 3), (b, 1)):
        world.grow(lane, 4)
        for _ in range(leased):
            lane.idle.pop()
    pick = LeastBusy([a, b])
    assert {pick() for _ in range(10)} == {a}


def test_equally_busy_lanes_take_turns():
    world = World(places("a", "b"), [Rules(connection_count=4)])
    for lane in world.group.lanes:
        world.grow(lane, 1)
        lane.idle.pop()
    pick = LeastBusy(world.group.lanes)
    assert Counter(pick().endpoint.label for _ in range(10)) == {"a": 5, "b": 5}


def test_leases_spread_over_lanes_by_weight():
    world = World([Place("a", weight=2), Place("b", weight=1)], [Rules(connection_count=9)])
    for lane in world.group.lanes:
        world.grow(lane, 9)
    for _ in range(9):
        world.lease()
    assert [lane.leased for lane in world.group.lanes] == [6, 3]


def test_random_names_each_lane_by_weight():
    world = World([Place("a", weight=1), Place("b", weight=2), Place("c", weight=1)])
    draws = iter([0.0, 0.24, 0.25, 0.5, 0.74, 0.75, 0.9999999999999999])
    pick = Random(world.group.lanes, lambda: next(draws))
    assert [pick().endpoint.label for _ in range(7)] == ["a", "a", "b", "b", "b", "c", "c"]


@quick
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
def test_random_always_names_a_lane(weights: list[float], draw: float):
    world = World([Place(str(number), weight=weight) for number, weight in enumerate(weights)])
    assert Random(world.group.lanes, lambda: draw)() in world.group.lanes


def test_random_spreads_by_itself_about_evenly():
    world = World(places("a", "b"))
    pick = Random(world.group.lanes)
    counts = Counter(pick().endpoint.label for _ in range(2000))
    assert 800 < counts["a"] < 1200  # nine standard deviations


@pytest.mark.parametrize("policy", POLICIES.values())
def test_every_balancer_heeds_a_share_that_grows(policy):
    world = World(places("a", "b"))
    a, b = world.group.lanes
    a.set_share(0.1)
    pick = policy([a, b])
    few = sum(pick() is a for _ in range(1100))
    a.set_share(1.0)
    pick = policy([a, b])
    many = sum(pick() is a for _ in range(1100))
    assert few < 200 < 400 < many  # expected: 100 and 550


def test_a_balancer_of_ones_own_that_raises_fails_the_checkout_and_is_not_taken_for_an_empty_pool():
    world = World(places("a", "b"))
    world.grow(count=2)
    mistake: list[Lane] = []
    world.group.policy = lambda lanes: lambda: mistake[0]
    world.group.lead(tuple(Tier(tier.lanes, world.group.policy) for tier in world.group.route))
    with pytest.raises(RuntimeError, match="group 'g': its balancer raised IndexError"):
        world.take()
    assert len(world.lane.idle) == 2


def test_a_tier_of_one_needs_no_balancer():
    world = World()

    def policy(lanes: object) -> LeastBusy:
        raise AssertionError

    assert Tier([world.lane], policy).only is world.lane


def test_the_policies_by_name():
    assert {
        "least-busy": LeastBusy,
        "round-robin": RoundRobin,
        "random": Random,
        "latency": FastestServer,
    } == POLICIES
