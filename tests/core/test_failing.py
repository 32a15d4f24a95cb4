"""What one more failure costs where nothing is new, and that nothing is missed for it."""

from __future__ import annotations

from random import Random

import pytest

from pgdbpool.core import routes
from pgdbpool.core.evidence import Fault, Health
from pgdbpool.core.group import Group
from pgdbpool.core.lane import Lane

from .harness import PRIMARY, STANDBY, UNKNOWN, Caller, Place, Rules, World

FAULTS = [Fault.REFUSED, Fault.UNREACHABLE, Fault.TIMEOUT, Fault.STARTING, Fault.ENDED, Fault.FULL]
TARGETS = ["primary", "any", "prefer-standby"]


def several(groups: int, endpoints: int) -> World:
    return World(
        places=[Place(f"db{n}:5432", priority=n % 2) for n in range(endpoints)],
        rules=[Rules(f"g{n}", target_session_attrs=TARGETS[n % len(TARGETS)]) for n in range(groups)],
    )


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    """The groups whose routes were computed, one entry for each time."""
    done: list[Group] = []

    def tiers(group: Group) -> list[list[Lane]]:
        done.append(group)
        return whole(group)

    whole = routes.tiers
    monkeypatch.setattr(routes, "tiers", tiers)
    return done


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_that_says_nothing_new_computes_no_route(fault: Fault, computed: list[Group]):
    world = several(10, 10)
    for _ in range(world.fall):
        for endpoint in world.endpoints:
            world.missed(endpoint, fault)
    computed.clear()
    for _ in range(60):
        world.now += 0.1
        for endpoint in world.endpoints:
            world.missed(endpoint, fault)
            world.failed(world.order(world.topology.lanes(endpoint)[0]), fault)
    assert len(computed) == 0


def test_a_failure_that_says_nothing_new_wakes_nobody():
    world = several(3, 3)
    endpoint = world.endpoints[0]
    said = [world.topology.probe_failed(endpoint, Fault.REFUSED, "no", world.now + n / 10) for n in range(50)]
    assert said[0]
    assert not any(said[world.fall :])
    world.topology.probe_failed(endpoint, Fault.STARTING, "starting", world.now + 6)
    assert world.topology.probe_failed(endpoint, Fault.REFUSED, "no", world.now + 6.1)
    assert world.topology.probe_failed(endpoint, Fault.REFUSED, "no", world.now + 400)  # the groups have to be told


def test_callers_are_sent_away_once_the_last_session_is_gone():
    """It did not suit the group and was on no route; while it was open, the way in was not closed for good."""
    world = World(rules=(Rules(target_session_attrs="primary"),))
    world.opened(world.order(), PRIMARY)
    slot = world.group.take(world.now)
    assert slot is not None
    world.reported(world.endpoint, STANDBY)
    world.missed(fault=Fault.MISCONFIGURED, words="no such role")
    assert world.group.refusal is None
    world.group.retire(slot, "role")
    world.missed(fault=Fault.MISCONFIGURED, words="no such role")
    assert world.group.refusal is not None


def picture(world: World) -> list[object]:
    return [
        (group.name, [[lane.endpoint.label for lane in tier.lanes] for tier in group.route], group.refusal)
        for group in world.groups
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_routes_are_always_those_that_would_be_computed(seed: int):
    random = Random(seed)
    world = several(4, 3)
    held = []
    for _ in range(120):
        world.now += random.choice([0.01, 0.1, 1.0])
        endpoint = random.choice(world.endpoints)
        lane = random.choice(world.topology.lanes(endpoint))
        fault = random.choice([*FAULTS, Fault.MISCONFIGURED, Fault.CRASHED])
        match random.randrange(7):
            case 0 if lane.room:
                world.opened(world.order(lane), random.choice([PRIMARY, STANDBY, UNKNOWN]))
            case 1:
                world.missed(endpoint, fault, random.choice(["no", "never"]))
            case 2 if lane.room:
                world.failed(world.order(lane), fault, random.choice(["no", "never"]))
            case 3:
                world.topology.setup_failed(world.order(lane), "no right", world.now)
            case 4:
                slot = random.choice(world.groups).take(world.now)
                if slot is not None:
                    held.append(slot)
            case 5 if held:
                slot = held.pop(random.randrange(len(held)))
                if random.random() < 0.5:
                    slot.lane.group.give(slot, world.now)
                else:
                    slot.lane.group.retire(slot, "broken")
            case 6 if endpoint.health is not Health.UP:
                world.probed(endpoint, random.choice([PRIMARY, STANDBY]))
        world.bury()
        found = picture(world)
        world.topology.reroute(world.now)
        assert found == picture(world)


def test_a_waiter_is_told_the_new_words():
    world = World()
    world.missed(fault=Fault.MISCONFIGURED, words="wrong password")
    world.missed(fault=Fault.MISCONFIGURED, words="no such role")
    with pytest.raises(Exception, match="no such role"):
        world.group.enqueue(Caller())
