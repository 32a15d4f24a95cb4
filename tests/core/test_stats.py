"""Statistics: exact, of one moment, and counted anew when asked."""

from pgdbpool.core import stats
from pgdbpool.core.evidence import Fault
from pgdbpool.core.stats import Counters, Marks

from .harness import PRIMARY, Caller, Place, Rules, World, places


def use(world: World, seconds: float) -> None:
    slot = world.lease()
    slot.taken = world.now
    world.now += seconds
    slot.uses += 1
    slot.use_time += world.now - slot.taken
    world.give(slot)


def test_since_is_the_difference_field_by_field():
    earlier = Counters(requests=2, use_time=1.5, closed={"idle": 1})
    later = Counters(requests=5, use_time=2.0, timeouts=1, closed={"idle": 1, "broken": 2})
    assert later.since(earlier) == Counters(requests=3, use_time=0.5, timeouts=1, closed={"broken": 2})


def test_adding_is_field_by_field():
    one = Counters(requests=2, wait_time=1.0, closed={"idle": 1})
    two = Counters(requests=3, rollbacks=1, closed={"idle": 1, "role": 4})
    assert one + two == Counters(requests=5, wait_time=1.0, rollbacks=1, closed={"idle": 2, "role": 4})


def test_what_a_connection_counted_outlives_it():
    world = World()
    world.grow()
    use(world, 2.0)
    slot = world.lease()
    slot.waits, slot.wait_time, slot.rollbacks = 1, 0.25, 3
    expected = Counters(
        requests=1, use_time=2.0, waits=1, wait_time=0.25, rollbacks=3, connects=1, connect_time=0.0, closed={}
    )
    assert stats.lane_counters(world.lane) == expected
    world.group.retire(slot, "broken")
    assert stats.lane_counters(world.lane).since(expected) == Counters(closed={"broken": 1})


def test_counting_anew_forgets_nothing_that_comes_later():
    world = World()
    marks: Marks = {}
    world.grow()
    use(world, 2.0)
    world.group.timeouts += 1
    world.group.rejections += 2
    first = stats.read(world.topology, world.now, marks, reset=True).groups["g"].counters
    assert (first.requests, first.timeouts, first.rejections, first.connects) == (1, 1, 2, 1)
    use(world, 1.0)
    world.group.timeouts += 1
    for _ in range(2):
        second = stats.read(world.topology, world.now, marks).groups["g"].counters
        assert second == Counters(requests=1, use_time=1.0, timeouts=1)


def test_connects_and_failures_are_counted_with_their_time():
    world = World()
    order = world.order()
    world.now += 0.5
    world.opened(order)
    world.failed(world.order(), Fault.FULL)
    world.topology.setup_failed(world.order(), "configure raised", world.now)
    world.topology.cancelled(world.order())
    counters = stats.lane_counters(world.lane)
    assert (counters.connects, counters.connect_time, counters.connect_failures) == (1, 0.5, 2)


def test_a_moment_of_a_pool():
    world = World([Place("a"), Place("b", priority=1, weight=2)], [Rules("one", connection_count=3), Rules("two")])
    a, b = world.groups[0].lanes
    world.grow(a, 2, PRIMARY)
    world.lease()
    world.failed(world.order(b), Fault.REFUSED, "connection refused")
    world.order(a)
    world.groups[1].paused = True
    world.groups[1].waiters.append(Caller(world.now - 4))
    moment = stats.read(world.topology, world.now, {})
    one, two = moment.groups["one"], moment.groups["two"]
    assert (one.limit, one.open, one.idle, one.leased, one.opening) == (6, 2, 1, 1, 1)
    assert (one.waiting, one.longest_wait, one.paused) == (0, 0.0, False)
    assert (two.waiting, two.longest_wait, two.paused) == (1, 4.0, True)
    on_a, on_b = one.endpoints
    assert (on_a.endpoint, on_a.live, on_a.limit, on_a.open, on_a.idle, on_a.leased) == ("a", True, 3, 2, 1, 1)
    assert (on_b.endpoint, on_b.live, on_b.counters.connect_failures) == ("b", False, 1)
    up, down = moment.endpoints
    assert (up.endpoint, up.role, up.read_only, up.health, up.fault) == ("a", "primary", False, "up", None)
    assert (up.open, up.leased, up.opening, up.last_error) == (2, 1, 1, None)
    assert (down.endpoint, down.health, down.fault, down.priority, down.weight) == ("b", "down", "refused", 1, 2)
    assert down.last_error == "connection refused"


def test_the_limit_of_a_group_is_at_most_total_count():
    world = World(places("a", "b"), [Rules(connection_count=3, total_count=4)])
    assert stats.read(world.topology, world.now, {}).groups["g"].limit == 4
