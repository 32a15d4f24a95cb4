"""Fencing: a primary that a promotion has overtaken is not used, whatever it says of itself."""

import pytest

from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.evidence import Fault, Health, Identity, Role
from pgdbpool.core.plan import FIRST_LOOK_FENCED, LOOK_EVERY_FENCED
from pgdbpool.core.routes import overtaken

from .harness import PRIMARY, STANDBY, UNKNOWN, Rules, World, places


def identity(timeline: int, system: str = "7") -> Identity:
    return Identity(system, timeline)


def pair(**more: object) -> World:
    """A primary "a" and its standby "b", both on timeline 1, and a group for each role."""
    rules = [Rules(word, target_session_attrs=word) for word in ("primary", "any")]
    world = World(places("a", "b"), rules, **more)
    world.probed(world.endpoints[0], PRIMARY, identity(1))
    world.probed(world.endpoints[1], STANDBY, identity(1))
    world.events()
    return world


def split_brain(**more: object) -> World:
    """b was promoted, and a does not know."""
    world = pair(**more)
    world.probed(world.endpoints[1], PRIMARY, identity(2))
    return world


def fenced(world: World) -> list[str]:
    return [endpoint.label for endpoint in world.endpoints if endpoint.fenced_by is not None]


# -- who is overtaken -------------------------------------------------------------------------------------------------


def endpoints(*seen: tuple[str, Role, Identity | None]) -> list[Endpoint]:
    found = []
    for label, role, who in seen:
        (place,) = places(label)
        endpoint = Endpoint(place, lambda: 0.5)
        endpoint.server.learn(endpoint.report._replace(role=role), who)
        found.append(endpoint)
    return found


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([("a", Role.PRIMARY, identity(1))], {}),
        ([("a", Role.PRIMARY, identity(1)), ("b", Role.PRIMARY, identity(2))], {"a": "b"}),
        ([("a", Role.PRIMARY, identity(2)), ("b", Role.PRIMARY, identity(1))], {"b": "a"}),
        # Each follows its own primary: two systems, both used.
        ([("a", Role.PRIMARY, identity(1, "7")), ("b", Role.PRIMARY, identity(2, "8"))], {}),
        # A standby that follows the new primary knows of its timeline as well.
        ([("a", Role.PRIMARY, identity(1)), ("c", Role.STANDBY, identity(2))], {"a": "c"}),
        # What is down has been seen, too.
        ([("a", Role.PRIMARY, identity(1)), ("c", Role.UNKNOWN, identity(2))], {"a": "c"}),
        # A standby of an old timeline will follow, or is of use as it is.
        ([("a", Role.STANDBY, identity(1)), ("b", Role.PRIMARY, identity(2))], {}),
        # Nothing is known of it.
        ([("a", Role.PRIMARY, None), ("b", Role.PRIMARY, identity(2))], {}),
        # The same number twice: nobody can tell which is the newer.
        ([("a", Role.PRIMARY, identity(2)), ("b", Role.PRIMARY, identity(2))], {}),
        (
            [("a", Role.PRIMARY, identity(1)), ("b", Role.PRIMARY, identity(2)), ("c", Role.PRIMARY, identity(3))],
            {"a": "c", "b": "c"},
        ),
    ],
)
def test_who_is_overtaken_and_by_whom(seen, expected: dict[str, str]):
    known = endpoints(*seen)
    found = overtaken(known)
    by_label = {endpoint.label: found[endpoint.server].label for endpoint in known if endpoint.server in found}
    assert by_label == expected


# -- what follows -----------------------------------------------------------------------------------------------------


def test_a_primary_of_an_old_timeline_is_used_by_nobody():
    world = split_brain()
    assert fenced(world) == ["a"]
    assert [world.route(group) for group in world.groups] == [[["b"]], [["b"]]]


def test_its_connections_are_retired_and_its_calls_ended():
    world = pair()
    world.grow(count=2, report=PRIMARY)
    leased = world.lease()
    (idle,) = world.lane.idle
    world.probed(world.endpoints[1], PRIMARY, identity(2))
    assert world.bury() == [(idle, "fenced")]
    assert world.aborts() == [leased]
    world.give(leased)
    assert world.bury() == [(leased, "retired")]


def test_the_calls_on_the_new_primary_go_on():
    world = pair()
    (lane,) = (lane for lane in world.groups[1].lanes if lane.endpoint.label == "b")
    world.grow(lane, report=STANDBY)
    lane.idle.pop()
    world.probed(world.endpoints[1], PRIMARY, identity(2))
    assert world.aborts() == []
    assert lane.open == 1


def test_a_fence_is_told_with_its_reason_and_ends_the_failover():
    world = pair()
    world.probed(world.endpoints[1], PRIMARY, identity(2))
    messages = [event.message for event in world.topology.events]
    assert "a is fenced, a primary of an old timeline: b was promoted after it" in messages
    assert world.events() == [("role-changed", "b"), ("fenced", "a"), ("failover-finished", "b")]


def test_an_old_primary_that_comes_back_is_fenced_at_once():
    world = pair(fall=1)
    a, b = world.endpoints
    world.missed(a)
    world.probed(b, PRIMARY, identity(2))
    world.events()
    world.probed(a, PRIMARY, identity(1))
    assert fenced(world) == ["a"]
    assert world.route() == [["b"]]
    assert world.events() == [("endpoint-up", "a"), ("fenced", "a")]


def test_an_old_primary_first_met_by_a_connect_is_fenced_before_anybody_gets_the_connection():
    world = pair(fall=1)
    a, b = world.endpoints
    world.missed(a)
    world.probed(b, PRIMARY, identity(2))
    waiter = world.wait(world.groups[1])
    assert world.opened(world.order(world.groups[1].lanes[0]), PRIMARY, identity(1)) == "fenced"
    assert waiter.slot is None
    assert world.bury()


def test_a_promotion_reported_by_a_session_counts_with_the_number_that_it_tells():
    world = pair()
    _, b = world.endpoints
    world.reported(b, PRIMARY, identity(2))
    assert fenced(world) == ["a"]


def test_a_promotion_reported_without_a_number_fences_nobody_until_that_is_known():
    # In particular not the one that is promoted where this one dies before it could tell.
    world = pair(fall=1)
    a, b = world.endpoints
    world.reported(b, PRIMARY)
    assert b.identity is None
    world.missed(b)
    world.probed(a, PRIMARY, identity(3))
    assert fenced(world) == []
    assert world.route() == [["a"]]


def test_a_role_reported_for_the_first_time_is_no_promotion():
    world = World(places("a", "b"))
    a, b = world.endpoints
    world.probed(a, PRIMARY, identity(1))
    world.reported(b, PRIMARY)
    assert b.identity is None
    assert fenced(world) == []


def test_independent_primaries_are_both_used():
    world = World(places("a", "b"))
    for endpoint, system in zip(world.endpoints, "78", strict=True):
        world.probed(endpoint, PRIMARY, identity(int(system), system))
    assert fenced(world) == []
    assert world.route() == [["a", "b"]]


def test_a_server_that_does_not_tell_whose_data_it_has_is_not_fenced():
    world = World(places("a", "b"))
    world.probed(world.endpoints[0], PRIMARY)
    world.probed(world.endpoints[1], PRIMARY, identity(2))
    assert fenced(world) == []


# -- its end ----------------------------------------------------------------------------------------------------------


def test_an_old_primary_that_follows_the_new_one_is_used_again_as_a_standby():
    world = split_brain()
    a, _ = world.endpoints
    world.events()
    world.probed(a, STANDBY, identity(2))
    assert fenced(world) == []
    assert [world.route(group) for group in world.groups] == [[["b"]], [["a", "b"]]]
    assert world.events() == [("role-changed", "a"), ("recovered", "a")]


def test_one_that_becomes_a_standby_before_it_has_followed_is_no_longer_fenced():
    world = split_brain()
    world.probed(world.endpoints[0], STANDBY, identity(1))
    assert fenced(world) == []


def test_the_fence_of_one_rebuilt_as_another_system_falls():
    world = split_brain()
    world.probed(world.endpoints[0], PRIMARY, identity(1, "8"))
    assert fenced(world) == []


def test_the_fence_stays_though_the_new_primary_dies():
    # a has not what b acknowledged.
    world = split_brain(fall=1)
    world.missed(world.endpoints[1])
    assert fenced(world) == ["a"]
    assert world.route() == []
    assert "a primary of an old timeline" in world.topology.unreachable(world.group)


def test_a_fenced_endpoint_that_goes_down_is_not_told_to_have_recovered():
    world = split_brain(fall=1)
    a, b = world.endpoints
    world.missed(a)
    world.events()
    world.probed(b, PRIMARY, identity(3))
    assert "recovered" not in [kind for kind, _ in world.events()]
    world.probed(a, PRIMARY, identity(1))
    assert fenced(world) == ["a"]
    assert world.route() == [["b"]]


def test_a_fenced_endpoint_that_is_down_is_asked_again_where_nobody_probes():
    # It is stopped to be rebuilt, and comes back as a standby: only a connect can tell.
    world = split_brain()
    a, _ = world.endpoints
    lane = world.groups[1].lanes[0]
    world.failed(world.order(lane), Fault.REFUSED)
    assert a.health is Health.DOWN
    world.groups[1].min_count = 1
    world.grow(world.groups[1].lanes[1], report=PRIMARY)
    world.now += 60
    assert world.topology.due(world.now) <= world.now
    asked = [order for order in world.plan() if order.lane.endpoint is a]
    assert asked
    for order in asked:
        world.opened(order, STANDBY, identity(2))
    assert fenced(world) == []
    assert world.route(world.groups[1]) == [["a", "b"]]


def test_a_fenced_endpoint_is_looked_at_again_every_few_seconds_where_nobody_probes():
    world = split_brain()
    a, _ = world.endpoints
    asked = []
    while world.now < 130:
        for order in world.plan():
            if order.lane.endpoint is a:
                asked.append(world.now)
                assert world.opened(order, PRIMARY, identity(1)) == "fenced"
                world.bury()
            else:
                world.topology.cancelled(order)
        world.now += 0.25
    late = [when for when in asked if when >= 104]
    assert len(late) >= 26 / (2 * LOOK_EVERY_FENCED) - 1
    assert len(late) <= 26 / LOOK_EVERY_FENCED + 1


def test_one_that_was_fenced_just_now_is_looked_at_again_soon_and_anew_each_time():
    # In a planned switchover the old primary is back as a standby before long.
    world = split_brain()
    a, _ = world.endpoints
    for time in range(2, 12):
        latest = world.now + 2 * FIRST_LOOK_FENCED
        while fenced(world):
            assert world.now <= latest
            for order in world.plan():
                if order.lane.endpoint is a:
                    world.opened(order, STANDBY, identity(time))
                else:
                    world.topology.cancelled(order)
            world.now = max(world.now + 0.01, min(latest, world.topology.due(world.now)))
        world.now += 60
        world.reported(a, PRIMARY)
        world.probed(a, PRIMARY, identity(time))
        world.probed(world.endpoints[1], PRIMARY, identity(time + 1))
        assert fenced(world) == ["a"]
        world.bury()


def test_a_role_told_late_by_an_old_session_does_not_keep_a_down_endpoint_from_being_asked():
    world = split_brain()
    a, _ = world.endpoints
    world.groups[0].min_count = 1
    world.failed(world.order(), Fault.REFUSED)
    world.reported(a, STANDBY)
    world.now += 60
    assert "a" in world.places_of(world.plan())


def test_a_server_that_does_not_say_its_role_ends_no_fence():
    world = split_brain()
    world.probed(world.endpoints[0], UNKNOWN, identity(1))
    assert fenced(world) == ["a"]
