"""An endpoint is a name: which sessions stay when it leads to another server. The table in `pgdbpool.core.server`."""

import pytest

from pgdbpool.core.belief import SECOND_CHOICE
from pgdbpool.core.evidence import Fault, Identity, Sighting
from pgdbpool.core.lane import Slot
from pgdbpool.core.systems import SEVERAL

from .harness import PRIMARY, READ_ONLY_PRIMARY, STANDBY, UNKNOWN, Rules, World, places


def at(timeline: int, started: int, system: str = "7") -> Identity:
    return Identity(system, timeline, started)


def world_of(*targets: str, endpoints: str = "a") -> World:
    return World(places(*endpoints), [Rules(word, connection_count=4, target_session_attrs=word) for word in targets])


def open_one(world: World, report, identity, group: int = 0, **more: float) -> Slot | None:
    """A session of this group, idle; None where it was closed at once."""
    lane = world.groups[group].lanes[0]
    before = set(lane.slots)
    world.now += 1.0
    reason = world.topology.opened(world.order(lane), object(), lambda now: True, report, world.now, identity, **more)
    world.now += 1.0
    return None if reason is not None else (set(lane.slots) - before).pop()


def gone(world: World) -> dict[Slot, str]:
    return dict(world.bury())


# -- what a newer connection shows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["any", "primary", "read-write", "prefer-standby", "prefer-primary"])
@pytest.mark.parametrize("newer", [PRIMARY, STANDBY])
@pytest.mark.parametrize("by", ["probe", "session"])
def test_a_primary_of_an_older_timeline_is_left_by_every_group(target: str, newer, by: str):
    world = world_of(target, "any")
    idle, leased = (open_one(world, PRIMARY, at(1, 1)) for _ in range(2))
    assert world.lease() is leased
    world.events()
    if by == "probe":
        world.probed(report=newer, identity=at(2, 2))
    else:
        open_one(world, newer, at(2, 2), group=1)
    assert gone(world) == {idle: "fenced"}
    assert world.aborts() == [leased]
    assert ("fenced", "a") in world.events()
    world.give(leased)
    assert gone(world) == {leased: "fenced"}


def test_a_primary_stays_where_nothing_tells_that_the_newer_server_is_the_right_one():
    world = world_of("primary")
    slot = open_one(world, PRIMARY, at(1, 1))
    world.probed(report=PRIMARY, identity=at(1, 2))
    world.probed(report=STANDBY, identity=at(1, 2))
    assert gone(world) == {}
    assert world.lease() is slot
    assert world.aborts() == []


@pytest.mark.parametrize("target", ["standby", "any", "read-only", "prefer-standby"])
@pytest.mark.parametrize("newer", [(STANDBY, 1), (STANDBY, 2), (PRIMARY, 1), (PRIMARY, 2)])
def test_a_session_with_a_standby_stays_whatever_else_its_name_leads_to(target: str, newer):
    report, timeline = newer
    world = world_of(target)
    slot = open_one(world, STANDBY, at(1, 1))
    world.probed(report=report, identity=at(timeline, 2))
    world.probed(report=STANDBY, identity=at(1, 3))
    assert gone(world) == {}
    assert world.lease() is slot


@pytest.mark.parametrize(
    ("target", "held", "found"), [("prefer-primary", STANDBY, PRIMARY), ("prefer-standby", PRIMARY, STANDBY)]
)
def test_a_second_choice_is_replaced_once_a_new_connection_finds_the_first(target: str, held, found):
    world = world_of(target)
    idle, leased = (open_one(world, held, at(1, 1)) for _ in range(2))
    world.lease()
    world.probed(report=found, identity=at(1, 2))
    assert gone(world) == {idle: "role"}
    assert world.aborts() == []
    world.give(leased)
    assert gone(world) == {leased: "role"}


# -- never back -------------------------------------------------------------------------------------------------------


def test_a_name_that_leads_back_to_a_lower_timeline_is_not_followed():
    world = world_of("primary")
    new = open_one(world, PRIMARY, at(2, 2))
    assert open_one(world, PRIMARY, at(1, 1)) is None
    assert set(gone(world).values()) == {"fenced"}
    assert world.endpoint.identity == at(2, 2)
    assert world.endpoint.doubted
    assert world.lease() is new
    assert open_one(world, PRIMARY, at(2, 2)) is not None


def test_nor_is_it_once_the_newer_server_is_long_gone():
    world = world_of("primary")
    open_one(world, PRIMARY, at(2, 2))
    world.missed()
    world.missed()
    world.bury()
    for _ in range(3):
        world.now += 1000
        world.probed(report=PRIMARY, identity=at(1, 1))
        assert world.route() == []
    assert "a primary of an old timeline" in world.topology.unreachable(world.group)


def test_connections_that_reach_the_wrong_server_are_spaced():
    world = world_of("primary")
    open_one(world, PRIMARY, at(2, 2))
    world.lease()
    world.wait()
    began, made = world.now, 0
    while world.now < began + 10:
        for order in world.plan():
            made += 1
            assert world.opened(order, PRIMARY, at(1, 1)) == "fenced"
        world.bury()
        world.now += 1 / 64
    assert 10 <= made <= 60


def test_a_standby_that_lags_behind_in_telling_its_timeline_is_not_taken_back():
    world = world_of("standby", endpoints="ab")
    a, b = world.endpoints
    world.probed(a, STANDBY, at(2, 1))
    world.probed(a, STANDBY, at(1, 1))
    assert a.identity == at(2, 1)
    world.probed(b, PRIMARY, at(1, 2))
    assert b.fenced_by is not None


# -- who is believed --------------------------------------------------------------------------------------------------


def test_what_an_older_connection_says_does_not_count_against_a_newer_one():
    world = world_of("primary")
    world.probed(report=STANDBY, identity=at(1, 1))  # the monitor's own session, kept
    slot = open_one(world, PRIMARY, at(2, 2))
    world.events()
    for _ in range(5):
        sighting = world.endpoint.server  # as it is
        world.topology.probed(world.endpoint, Sighting(STANDBY, at(1, 1)), 0.001, world.now, 100.0)
        world.now += 1
        assert world.endpoint.server is sighting
    assert world.endpoint.doubted
    assert world.events() == []
    assert world.lease() is slot
    world.probed(report=PRIMARY, identity=at(2, 2))
    assert not world.endpoint.doubted


def test_but_what_it_says_of_the_same_server_does():
    world = world_of("primary")
    world.probed(report=STANDBY, identity=at(1, 1))
    open_one(world, STANDBY, at(1, 1))
    world.topology.probed(world.endpoint, Sighting(PRIMARY, at(2, 1)), 0.001, world.now, 100.0)
    assert world.endpoint.report == PRIMARY
    assert not world.endpoint.doubted


def test_where_servers_do_not_say_who_they_are_the_newer_connection_is_believed():
    world = world_of("primary")
    world.probed(report=STANDBY)
    open_one(world, PRIMARY, None)
    world.topology.probed(world.endpoint, Sighting(STANDBY, None), 0.001, world.now, 100.0)
    assert world.endpoint.report == PRIMARY
    assert world.endpoint.doubted


def test_a_name_that_leads_to_two_servers_in_turn_tells_of_no_failover():
    world = world_of("primary", "standby")
    world.probed(report=PRIMARY, identity=at(1, 1))
    world.probed(report=STANDBY, identity=at(1, 2))
    world.events()
    for turn in range(10):
        world.now += 60
        world.probed(report=(PRIMARY, STANDBY)[turn % 2], identity=at(1, 1 + turn % 2))
    assert world.events() == []


def test_a_session_with_another_server_that_changes_takes_its_neighbours_along():
    world = world_of("standby")
    one, two = (open_one(world, STANDBY, at(1, 1)) for _ in range(2))
    other = open_one(world, STANDBY, at(1, 2))
    world.topology.reported(one, PRIMARY, world.now, at(2, 1))
    assert gone(world) == {one: "role", two: "role"}
    assert world.lease() is other


# -- a choice that refuses what it is asked ---------------------------------------------------------------------------


def test_a_write_that_a_second_choice_refuses_has_the_monitor_look_for_a_primary():
    world = world_of("prefer-primary")
    world.topology.monitored = True
    slot = open_one(world, STANDBY, at(1, 1))
    world.probed(report=STANDBY, identity=at(1, 1))
    assert not world.topology.searching(world.now)
    alarms = world.alarms
    world.topology.reported(slot, STANDBY, world.now, refused=True)
    world.topology.reported(slot, STANDBY, world.now, refused=True)
    assert world.topology.searching(world.now)
    assert world.alarms == alarms + 1
    assert not world.topology.searching(world.now + SECOND_CHOICE)  # nobody asks any more


def refuse(world: World, slot: Slot, report=STANDBY) -> bool:
    """A write on this session is refused. Returns whether the monitor makes a new connection because of that."""
    alarms = world.alarms
    world.topology.reported(slot, report, world.now, refused=True)
    return world.alarms > alarms and world.topology.doubts(world.endpoint)


@pytest.mark.parametrize("known", [True, False], ids=["known before", "found out later"])
def test_a_session_that_refused_a_write_is_replaced_where_a_new_one_takes_it(known: bool):
    world = world_of("any")
    world.topology.monitored = True
    one, two = (open_one(world, STANDBY, at(1, 1)) for _ in range(2))
    assert world.lease() is two
    world.now += SECOND_CHOICE
    if known:
        world.probed(report=PRIMARY, identity=at(1, 2))
    assert refuse(world, two)
    if not known:
        world.now += 0.1
        world.probed(report=PRIMARY, identity=at(1, 2))
    world.give(two)
    assert gone(world) == {two: "role"}
    assert world.lease() is one  # nobody has written there: it may be a reader's


def test_a_refused_write_costs_one_look_a_second_where_a_new_session_would_be_no_better():
    world = world_of("any")
    world.topology.monitored = True
    slot = open_one(world, STANDBY, at(1, 1))
    world.probed(report=STANDBY, identity=at(1, 1))
    looks = 0
    for _ in range(100):
        world.now += 0.1
        if refuse(world, slot):
            looks += 1
            assert world.topology.urgent(world.endpoint, world.now)
            world.probed(report=STANDBY, identity=at(1, 1))
        assert not world.topology.searching(world.now)  # other endpoints are none of it
    assert 9 <= looks <= 10
    assert world.lease() is slot


def test_without_a_monitor_a_session_that_refuses_writes_is_replaced_once_a_second_at_most():
    world = world_of("any")
    slot = open_one(world, STANDBY, at(1, 1))
    slot.born = world.now
    refuse(world, slot)
    assert gone(world) == {}
    world.lease()
    world.now += 1.1
    refuse(world, slot)
    world.give(slot)
    assert gone(world) == {slot: "role"}


@pytest.mark.parametrize("target", ["any", "prefer-primary"])
def test_a_write_refused_by_a_primary_that_is_read_only_has_new_connections_asked_as_well(target: str):
    world = world_of(target)
    world.topology.monitored = True
    slot = open_one(world, READ_ONLY_PRIMARY, at(1, 1))
    assert refuse(world, slot, READ_ONLY_PRIMARY)
    assert world.topology.urgent(world.endpoint, world.now)
    world.probed(report=PRIMARY, identity=at(1, 1))
    assert gone(world) == {slot: "role"}


# -- another system ---------------------------------------------------------------------------------------------------

OTHER = "8"


@pytest.mark.parametrize("target", ["any", "primary", "read-write", "prefer-standby", "prefer-primary"])
def test_a_name_that_moved_to_another_system_takes_the_sessions_along(target: str):
    world = world_of(target)
    idle, leased = (open_one(world, PRIMARY, at(5, 1)) for _ in range(2))
    assert world.lease() is leased
    world.probed(report=PRIMARY, identity=at(1, 2, OTHER))
    assert gone(world) == {idle: "role"}
    assert world.aborts() == []
    assert world.topology.doubts(world.endpoint)
    assert world.topology.urgent(world.endpoint, world.now)
    for _ in range(SEVERAL - 2):
        world.now += 0.1
        world.probed(report=PRIMARY, identity=at(1, 2, OTHER))
    assert world.aborts() == []
    world.now += 0.1
    world.probed(report=PRIMARY, identity=at(1, 2, OTHER))
    assert world.aborts() == [leased]
    assert ("fenced", "a") in world.events()
    assert not world.topology.urgent(world.endpoint, world.now)
    assert world.endpoint.fenced_by is None
    world.give(leased)
    assert gone(world) == {leased: "fenced"}


def test_connections_that_are_made_at_the_same_moment_tell_once_that_the_name_has_moved():
    world = world_of("primary")
    open_one(world, PRIMARY, at(1, 1))
    leased = world.lease()
    for _ in range(3 * SEVERAL):
        world.now += 0.001
        world.probed(report=PRIMARY, identity=at(1, 2, OTHER))
    assert world.aborts() == []
    assert leased.expires < 0


def test_readers_go_along_to_another_system_in_peace_whichever_of_its_standbys_they_meet():
    world = world_of("standby", "primary")
    idle, leased = (open_one(world, STANDBY, at(1, 1)) for _ in range(2))
    world.lease()
    for turn in range(2 * SEVERAL):
        world.now += 1
        world.probed(report=STANDBY, identity=at(1, 2 + turn % 2, OTHER))
    assert gone(world) == {idle: "role"}
    assert world.aborts() == []
    world.give(leased)
    assert gone(world) == {leased: "role"}


def test_writers_stay_where_the_name_leads_to_a_standby_of_another_system():
    world = world_of("primary")
    slot = open_one(world, PRIMARY, at(1, 1))
    for _ in range(2 * SEVERAL):
        world.now += 1
        world.probed(report=STANDBY, identity=at(1, 2, OTHER))
    assert gone(world) == {}
    assert world.lease() is slot
    world.probed(report=PRIMARY, identity=at(2, 2, OTHER))  # promoted there
    assert world.aborts() == [slot]


def test_a_name_that_leads_to_two_systems_in_turn_does_not_have_sessions_drive_each_other_out():
    world = world_of("any", "primary")
    ones = [(PRIMARY, at(1, 1)), (PRIMARY, at(1, 2, OTHER))]
    kept = []
    for turn in range(40):
        report, identity = ones[turn % 2]
        world.now += 1
        world.probed(report=report, identity=identity)
        if turn > 2 and len(kept) < 4:
            kept.append(open_one(world, report, identity, group=turn % 2))
    assert gone(world) == {}
    assert all(slot in slot.lane.slots and slot.expires > 0 for slot in kept)
    assert world.aborts() == []
    kinds = [kind for kind, _ in world.events()]
    assert kinds.count("failover-finished") <= 1
    assert not world.topology.urgent(world.endpoint, world.now)


def test_a_name_that_comes_back_to_the_system_it_had_left_is_followed_and_takes_longer():
    world = world_of("primary")
    old = open_one(world, PRIMARY, at(1, 1))
    world.lease()
    new = None
    for _ in range(SEVERAL):
        world.now += 1
        world.probed(report=PRIMARY, identity=at(1, 2, OTHER))
    assert world.aborts() == [old]
    new = open_one(world, PRIMARY, at(1, 2, OTHER))
    assert world.lease() is new
    for _ in range(2 * SEVERAL - 1):
        world.now += 1
        world.probed(report=PRIMARY, identity=at(1, 1))
    assert world.route() == [["a"]]
    assert new.expires < 0
    assert world.aborts() == []
    world.now += 1
    world.probed(report=PRIMARY, identity=at(1, 1))
    assert world.aborts() == [new]


# -- a setting of new sessions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["any", "prefer-primary", "prefer-standby"])
def test_sessions_that_are_read_only_by_their_own_setting_are_replaced_when_it_is_lifted(target: str):
    world = world_of(target)
    slot = open_one(world, READ_ONLY_PRIMARY, at(1, 1))
    world.probed(report=PRIMARY, identity=at(1, 1))
    assert gone(world) == {slot: "role"}


def test_a_write_refused_by_such_a_session_says_nothing_against_the_server():
    world = world_of("any", "primary")
    slot = open_one(world, READ_ONLY_PRIMARY, at(1, 1))
    world.lease()
    world.probed(report=PRIMARY, identity=at(1, 1))
    world.topology.reported(slot, READ_ONLY_PRIMARY, world.now, refused=True)
    assert not world.endpoint.demoted
    assert world.route(world.groups[1]) == [["a"]]
    world.give(slot)
    assert gone(world) == {slot: "role"}


def test_a_kept_session_that_is_read_only_does_not_contradict_a_newer_one_that_is_not():
    world = world_of("primary")
    world.probed(report=PRIMARY, identity=at(1, 1))
    world.topology.probed(world.endpoint, Sighting(READ_ONLY_PRIMARY, at(1, 1)), 0.001, world.now, 50.0)
    assert world.endpoint.report == PRIMARY
    assert world.endpoint.doubted
    assert world.route() == [["a"]]


def test_a_server_that_does_not_say_its_role_changes_nothing():
    world = world_of("primary")
    slot = open_one(world, PRIMARY, at(1, 1))
    world.probed(report=UNKNOWN, identity=at(2, 2))
    assert world.lease() is slot


# -- through a pooler -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newer", [at(1, 2), at(1, 1)])
def test_through_a_pooler_all_sessions_go_by_the_newest_answer(newer: Identity):
    world = world_of("primary", "standby", "any")
    writer = open_one(world, PRIMARY, at(1, 1), pooled=True)
    anyone = open_one(world, PRIMARY, at(1, 1), group=2, pooled=True)
    world.probed(report=STANDBY, identity=newer, pooled=True)
    assert gone(world) == {writer: "role"}
    reader = open_one(world, STANDBY, newer, group=1, pooled=True)
    world.topology.reported(reader, PRIMARY, world.now, at(1, 3))
    assert gone(world) == {reader: "role"}
    assert open_one(world, PRIMARY, at(1, 3), pooled=True) is not None
    assert world.lease(world.groups[2]) is anyone
    assert world.aborts() == []


def test_the_answer_on_an_older_session_with_a_pooler_counts_as_much_as_that_on_a_new_one():
    world = world_of("primary")
    writer = open_one(world, PRIMARY, at(1, 1), pooled=True)
    world.probed(report=STANDBY, identity=at(1, 2), pooled=True, since=0.0)
    assert gone(world) == {writer: "role"}
    assert not world.endpoint.doubted


def test_through_a_pooler_too_what_is_of_the_past_is_left_and_never_taken_again():
    world = world_of("primary", "any")
    idle, leased = (open_one(world, PRIMARY, at(1, 1), pooled=True) for _ in range(2))
    assert world.lease() is leased
    world.probed(report=PRIMARY, identity=at(2, 2), pooled=True)
    assert gone(world) == {idle: "fenced"}
    assert world.aborts() == [leased]
    kept = open_one(world, PRIMARY, at(2, 2), pooled=True)
    for group in range(2):  # the pooler has a connection left that leads back
        assert open_one(world, PRIMARY, at(1, 1), group=group, pooled=True) is None
    assert world.lease() is kept


# -- a name that leads to several -------------------------------------------------------------------------------------


def test_of_several_servers_behind_a_name_the_one_that_suits_counts_for_each_group():
    world = world_of("primary", "standby")
    primary, standby = (PRIMARY, at(1, 1)), (STANDBY, at(1, 2))
    for report, identity in (primary, standby, primary):
        world.now += 60
        world.probed(report=report, identity=identity)
    assert [world.route(group) for group in world.groups] == [[["a"]], [["a"]]]
    world.wait(world.groups[1])
    for order in world.plan():
        assert world.opened(order, *primary) == "role"
    world.now += 1
    assert [order.group.name for order in world.plan()] == [world.groups[1].name]


def test_a_name_that_leads_to_one_and_the_same_again_and_again_leads_to_one():
    world = world_of("primary", "standby")
    for turn in range(3):
        world.now += 60
        world.probed(report=(PRIMARY, STANDBY)[turn % 2], identity=at(1, 1 + turn % 2))
    for _ in range(8):
        world.now += 1
        world.probed(report=PRIMARY, identity=at(1, 1))
    assert [world.route(group) for group in world.groups] == [[["a"]], []]


# -- a primary of the past at another endpoint ------------------------------------------------------------------------


def past_and_present() -> World:
    """Two endpoints: `b` has been promoted, and `a` is a primary of the past that lives on."""
    world = world_of("primary", endpoints="ab")
    a, b = world.endpoints
    world.probed(a, PRIMARY, at(1, 1))
    world.probed(b, PRIMARY, at(2, 2))
    assert a.fenced_by is not None
    assert world.route() == [["b"]]
    return world


def test_a_promotion_stays_known_while_nothing_answers_there():
    world = past_and_present()
    a, b = world.endpoints
    world.now += 1
    world.probed(b, STANDBY, at(1, 3))  # its name leads to several
    world.missed(b)
    world.missed(b)
    assert world.route() == []
    world.now += 1000
    world.probed(a, PRIMARY, at(1, 1))
    assert world.route() == []
    assert a.fenced_by is not None


@pytest.mark.parametrize("fault", [Fault.STARTING, Fault.REFUSED])
def test_a_promotion_that_was_undone_is_forgotten(fault: Fault):
    world = past_and_present()
    a, b = world.endpoints
    world.failed(world.order(world.group.lanes[1]), fault)
    world.now += 1
    world.probed(b, STANDBY, at(1, 3))  # made a standby of the other one, with its data
    assert a.fenced_by is None
    assert world.route() == [["a"]]


# -- a session's own word ---------------------------------------------------------------------------------------------


def test_a_session_that_says_itself_that_it_does_not_suit_its_group_is_not_kept():
    world = world_of("standby")
    slot = open_one(world, STANDBY, at(1, 1))
    assert world.lease() is slot
    slot.server.learn(PRIMARY, at(1, 1))  # so this is no news
    world.topology.reported(slot, PRIMARY, world.now)
    slot.server.learn(STANDBY, at(1, 1))  # and another session says otherwise
    world.give(slot)
    assert gone(world) == {slot: "role"}


# -- connections that are replaced ------------------------------------------------------------------------------------


def test_a_group_that_is_drained_goes_elsewhere_if_only_its_sessions_suited_it():
    world = world_of("standby", "any", endpoints="ab")
    world.probed(world.endpoints[1], PRIMARY, at(1, 9))
    open_one(world, STANDBY, at(1, 1))
    open_one(world, PRIMARY, at(1, 2), group=1)  # what the name of `a` leads to now
    assert world.route() == [["a"]]
    world.topology.drain(world.group, world.now)
    assert world.route() == []


# -- what is told -----------------------------------------------------------------------------------------------------


def lose(world: World) -> None:
    for _ in range(3):
        world.missed()
    told(world)


def told(world: World) -> list[tuple[str, float | None]]:
    found = [(event.kind.value, event.seconds) for event in world.topology.events]
    world.topology.events.clear()
    return [each for each in found if each[0] in ("failover-started", "failover-finished", "recovered")]


@pytest.mark.parametrize("new", [at(2, 2), at(1, 2, "8")], ids=["promoted", "another system"])
def test_another_primary_behind_the_same_name_is_a_failover(new: Identity):
    world = world_of("primary")
    open_one(world, PRIMARY, at(1, 1))
    lose(world)
    world.now += 3.0
    world.probed(report=PRIMARY, identity=new)
    ((kind, seconds),) = told(world)
    assert kind == "failover-finished"
    assert seconds is not None
    assert seconds >= 3.0


def test_so_it_is_where_the_name_moves_while_the_old_primary_lives_on():
    world = world_of("primary")
    open_one(world, PRIMARY, at(1, 1))
    told(world)
    world.probed(report=PRIMARY, identity=at(2, 2))
    assert told(world) == [("failover-finished", 0.0)]


def test_a_primary_that_was_restarted_has_recovered():
    world = world_of("primary")
    open_one(world, PRIMARY, at(1, 1))
    lose(world)
    world.now += 3.0
    world.probed(report=PRIMARY, identity=at(1, 2))
    assert [kind for kind, _ in told(world)] == ["recovered"]


def test_a_name_that_leads_to_the_primary_and_its_standby_in_turn_tells_of_no_failover():
    world = world_of("any")
    for report, started in [(PRIMARY, 1), (STANDBY, 2)] * 4:
        open_one(world, report, at(1, started))
    assert told(world) == []
