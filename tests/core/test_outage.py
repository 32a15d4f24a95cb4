"""That no connection can be opened is said when it begins, every minute, and when it is over; each once."""

import pytest

from pgdbpool.core.evidence import Fault, Health

from .harness import PRIMARY, World


def messages(world: World) -> list[str]:
    """What has been told since the last look, of outages alone."""
    told = [event.message for event in world.topology.events if event.kind.value.startswith("outage")]
    world.topology.events.clear()
    return told


def tried_for(world: World, seconds: float, fault: Fault, words: str = "no") -> list[str]:
    """So many seconds of attempts, 10 s apart."""
    told = []
    for _ in range(int(seconds / 10)):
        world.failed(world.order(), fault, words)
        told += messages(world)
        world.now += 10
    return told


@pytest.mark.parametrize("fault", [Fault.MISCONFIGURED, Fault.STARTING, Fault.FULL, Fault.LOCAL, Fault.ENDED])
def test_a_cause_that_changes_no_health_is_said_at_once_every_minute_and_at_the_end(fault: Fault) -> None:
    world = World()
    told = tried_for(world, 180, fault, "in the server's\nwords")
    assert told[0] == f"connections to {world.endpoint.label} cannot be opened ({fault.value}): in the server's words"
    assert 3 <= len(told) <= 4
    assert "cannot be opened for 50 s" in told[1]
    world.opened(world.order(), PRIMARY)
    assert messages(world) == [f"connections to {world.endpoint.label} can be opened again after 180.0 s"]
    world.opened(world.order(), PRIMARY)
    assert messages(world) == []


def test_what_an_event_of_health_has_said_is_not_said_twice() -> None:
    world = World()
    world.failed(world.order(), Fault.REFUSED)
    assert (world.endpoint.health, messages(world)) == (Health.DOWN, [])
    world.opened(world.order(), PRIMARY)
    assert messages(world) == []


def test_an_endpoint_that_stays_down_is_said_every_minute_and_its_end_once() -> None:
    world = World()
    assert 2 <= len(tried_for(world, 180, Fault.REFUSED)) <= 3
    world.opened(world.order(), PRIMARY)
    assert messages(world) == []  # endpoint-up has said it


def test_another_cause_is_said_at_once() -> None:
    world = World()
    tried_for(world, 20, Fault.STARTING)
    (words,) = tried_for(world, 20, Fault.MISCONFIGURED, "wrong password")
    assert "(misconfigured): wrong password" in words


def test_a_connection_that_cannot_be_made_ready_is_an_outage_of_its_group() -> None:
    world = World()
    for _ in range(12):
        world.topology.setup_failed(world.order(), "no such table", world.now)
        world.now += 10
    begin, again, _ = messages(world)
    label = world.endpoint.label
    assert begin == f"group 'g': connections to {label} cannot be made ready (setup): no such table"
    assert "for 50 s" in again
    world.opened(world.order(), PRIMARY)
    assert messages(world) == [f"group 'g': connections to {label} can be made ready again after 120.0 s"]
