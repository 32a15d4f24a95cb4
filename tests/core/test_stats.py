"""Statistics: exact, read without the lock, and counted anew when asked."""

import json
import random
import sys
import threading
from contextlib import nullcontext

import msgspec
import pytest

from pgdbpool.core import stats, times
from pgdbpool.core.events import Event, EventKind
from pgdbpool.core.evidence import Fault, Identity, Sighting
from pgdbpool.core.stats import Books, Counters, EndpointStats, GroupStats, PoolStats
from pgdbpool.core.times import BOUNDS

from .harness import PRIMARY, STANDBY, Caller, Place, Rules, World, places


def books(world: World) -> Books:
    return Books("pool", world.topology, nullcontext())


def read(world: World) -> PoolStats:
    return books(world).read(world.now)


def group(world: World) -> GroupStats:
    return read(world).groups["g"]


def endpoint(world: World, label: str) -> EndpointStats:
    return next(each for each in read(world).endpoints if each.endpoint == label)


def use(world: World, seconds: float) -> None:
    slot = world.lease()
    slot.taken = world.now
    world.now += seconds
    slot.used(world.now)
    world.give(slot)


def spread(counts: stats.Times) -> dict[float, int]:
    """The buckets that have something in them, by their upper limit."""
    return {bound: count for bound, count in zip((*BOUNDS, float("inf")), counts, strict=True) if count}


def counters(**values: object) -> Counters:
    """With durations given as they were, not as counts."""
    for name in ("use_times", "wait_times", "connect_times"):
        counted = times.no_times()
        for seconds in values.get(name, ()):  # type: ignore[attr-defined]
            times.count(counted, seconds)
        values[name] = times.in_order(counted)
    return Counters(**values)


# -- sums and differences --


def test_since_is_the_difference_field_by_field() -> None:
    earlier = counters(requests=2, use_time=1.5, use_times=[0.5, 1.0], closed={"idle": 1})
    later = counters(requests=3, use_time=2.0, use_times=[0.5, 1.0, 0.5], timeouts=1, closed={"idle": 1, "broken": 2})
    assert later.since(earlier) == counters(requests=1, use_time=0.5, use_times=[0.5], timeouts=1, closed={"broken": 2})


def test_adding_is_field_by_field() -> None:
    one = counters(requests=2, wait_time=1.0, wait_times=[1.0], closed={"idle": 1})
    two = counters(requests=3, rollbacks=1, wait_time=3.0, wait_times=[1.0, 2.0], closed={"idle": 1, "role": 4})
    assert one + two == counters(
        requests=5, wait_time=4.0, wait_times=[1.0, 1.0, 2.0], rollbacks=1, closed={"idle": 2, "role": 4}
    )


# -- what is counted --


def test_what_a_connection_counted_outlives_it() -> None:
    world = World()
    world.grow()
    slot = world.lease()
    slot.waited(0.25)
    world.give(slot)
    use(world, 2.0)
    slot.rollbacks = 3
    expected = counters(
        requests=1, use_time=2.0, use_times=[2.0], waits=1, wait_time=0.25, wait_times=[0.25], rollbacks=3,
        connects=1, connect_times=[0.0],
    )  # fmt: skip
    assert stats.lane_counters(world.lane) == expected
    world.group.retire(world.lease(), "broken")
    assert stats.lane_counters(world.lane).since(expected) == Counters(closed={"broken": 1})


def test_each_use_is_counted_by_how_long_it_took() -> None:
    world = World()
    world.grow(count=2)
    for seconds in (0.001, 0.0015, 0.3, 5000.0):
        use(world, seconds)
    counted = group(world).counters
    assert spread(counted.use_times) == {2**-9: 2, 0.5: 1, float("inf"): 1}
    assert counted.use_time == pytest.approx(5000.3025)
    assert counted.requests == 4


def test_each_wait_is_counted_by_how_long_it_took() -> None:
    world = World()
    world.grow()
    for seconds in (0.001, 0.3):
        world.lease().waited(seconds)
        world.give(next(iter(world.lane.slots)))
    counted = group(world).counters
    assert (counted.waits, counted.wait_time, spread(counted.wait_times)) == (2, 0.301, {2**-9: 1, 0.5: 1})


def test_leases_are_prompt_or_were_waited_for_and_never_both() -> None:
    world = World()
    world.grow()
    use(world, 1.0)
    slot = world.lease()
    slot.waited(0.5)
    counted = group(world).counters
    assert (counted.requests, counted.prompt, counted.waits) == (1, 1, 1), "it has not ended"
    slot.used(world.now)
    world.give(slot)
    counted = group(world).counters
    assert (counted.requests, counted.prompt, counted.waits) == (2, 1, 1)


def test_a_lease_that_was_waited_for_and_never_ended_takes_nothing_from_the_prompt_ones() -> None:
    world = World()
    world.grow()
    use(world, 1.0)
    slot = world.lease()
    slot.waited(0.5)
    world.group.retire(slot, "lost")
    assert group(world).counters.prompt == 1


def test_connects_and_failures_are_counted_with_their_time() -> None:
    world = World()
    order = world.order()
    world.now += 0.5
    world.opened(order)
    world.failed(world.order(), Fault.FULL)
    world.topology.setup_failed(world.order(), "configure raised", world.now)
    world.topology.cancelled(world.order())
    counted = stats.lane_counters(world.lane)
    assert (counted.connects, counted.connect_time, counted.connect_failures) == (1, 0.5, 2)
    assert spread(counted.connect_times) == {1.0: 1}


def test_a_new_process_counts_from_nothing() -> None:
    world = World()
    world.grow()
    use(world, 2.0)
    one = books(world)
    one.pop(world.now)
    world.topology.reset(nullcontext(), lambda: 0.5)
    one.reset(nullcontext())
    assert one.read(world.now).groups["g"].counters == Counters()


# -- counting anew --


def test_counting_anew_forgets_nothing_that_comes_later() -> None:
    world = World()
    one = books(world)
    world.grow()
    use(world, 2.0)
    world.group.timed_out(0.5)
    world.group.rejections += 2
    first = one.pop(world.now).groups["g"].counters
    assert (first.requests, first.timeouts, first.rejections, first.connects) == (1, 1, 2, 1)
    use(world, 1.0)
    world.group.timed_out(0.5)
    for _ in range(2):
        second = one.read(world.now).groups["g"].counters
        assert second == counters(
            requests=1, prompt=1, use_time=1.0, use_times=[1.0], timeouts=1, waits=1, wait_time=0.5, wait_times=[0.5]
        )


def test_all_time_does_not_heed_what_was_popped() -> None:
    world = World()
    one = books(world)
    world.grow()
    use(world, 2.0)
    one.pop(world.now)
    use(world, 1.0)
    assert one.read(world.now).groups["g"].counters.requests == 1
    assert one.read(world.now, all_time=True).groups["g"].counters.requests == 2


# -- a moment --


def test_a_moment_of_a_pool() -> None:
    world = World([Place("a"), Place("b", priority=1, weight=2)], [Rules("one", connection_count=3), Rules("two")])
    a, b = world.groups[0].lanes
    world.grow(a, 2, PRIMARY)
    world.lease()
    world.failed(world.order(b), Fault.REFUSED, "connection refused")
    world.order(a)
    world.groups[1].paused = True
    world.groups[1].waiters[Caller(world.now - 4)] = None
    moment = read(world)
    one, two = moment.groups["one"], moment.groups["two"]
    assert (one.limit, one.configured_limit, one.open) == (3, 6, 2), "b is down"
    assert (one.idle, one.leased, one.opening, one.closing) == (1, 1, 1, 0)
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


def test_the_limit_of_a_group_is_at_most_total_count() -> None:
    world = World(places("a", "b"), [Rules(connection_count=3, total_count=4)])
    assert group(world).limit == 4


def test_the_limit_counts_the_endpoints_that_callers_are_sent_to() -> None:
    rules = [
        Rules("any"),
        Rules("read", target_session_attrs="standby"),
        Rules("write", target_session_attrs="primary"),
        Rules("prefer", target_session_attrs="prefer-standby"),
        Rules("spill", target_session_attrs="prefer-standby", spill=True),
        Rules("few", target_session_attrs="standby", total_count=3),
    ]
    world = World(places("a", "b", "c"), rules)

    def limits() -> dict[str, int]:
        return {name: each.limit for name, each in read(world).groups.items()}

    assert set(limits().values()) == {6, 3}, "nothing is known yet: each endpoint may be tried"
    for which, report in enumerate([PRIMARY, STANDBY, STANDBY]):
        probed(world, which, report, 1)
    assert limits() == {"any": 6, "read": 4, "write": 2, "prefer": 4, "spill": 6, "few": 3}
    world.failed(world.order(world.groups[0].lanes[1]), Fault.REFUSED)
    assert limits() == {"any": 4, "read": 2, "write": 2, "prefer": 2, "spill": 4, "few": 2}
    assert {each.configured_limit for each in read(world).groups.values()} == {6, 3}


def test_a_pause_or_the_end_changes_no_limit() -> None:
    world = World(places("a", "b"), [Rules(target_session_attrs="standby")])
    probed(world, 0, PRIMARY, 1)
    probed(world, 1, STANDBY, 1)
    world.group.paused = True
    world.topology.reroute(world.now)
    assert (group(world).limit, [lane.live for lane in group(world).endpoints]) == (2, [False, False])
    world.topology.close()
    assert group(world).limit == 2


def test_the_longest_use_is_that_of_the_oldest_lease() -> None:
    world = World()
    world.grow(count=2)
    assert group(world).longest_use == 0.0
    for seconds in (3.0, 4.0):
        world.now += 1.0
        world.lease().taken = world.now
        world.now += seconds
    assert group(world).longest_use == 8.0


def test_a_connection_that_the_pool_itself_looks_at_is_in_nobodys_use() -> None:
    world = World()
    (slot,) = world.grow()
    use(world, 1.0)
    world.now += 100.0
    assert world.take() is slot
    assert group(world).longest_use == 0.0


def test_a_connection_being_closed_is_counted_as_such() -> None:
    world = World()
    world.grow()
    world.group.retire(world.lease(), "broken")
    assert (group(world).open, group(world).closing) == (0, 1)
    world.bury()
    assert group(world).closing == 0


def test_a_connection_that_the_pool_itself_has_taken_is_held_by_no_caller() -> None:
    world = World()
    world.grow()
    slot = world.lease()
    assert not slot.own
    slot.rested = float("-inf")
    assert slot.own
    world.give(slot)
    assert not slot.own


def test_callers_who_got_nothing_are_among_the_waits_of_the_group_and_of_no_endpoint() -> None:
    world = World()
    world.grow()
    use(world, 1.0)
    world.group.timed_out(0.3)
    counted = group(world).counters
    assert (counted.requests, counted.prompt, counted.waits, counted.timeouts) == (1, 1, 1, 1)
    assert (counted.wait_time, spread(counted.wait_times)) == (0.3, {0.5: 1})
    assert group(world).endpoints[0].counters.waits == 0


# -- what is slow --


def test_a_connect_that_has_lasted_for_most_of_the_wait_is_to_blame() -> None:
    world = World([Place("a"), Place("b")], [Rules(connection_count=1)])
    world.grow(world.lane)
    world.lease()
    world.order(world.group.lanes[1])
    began, world.now = world.now, world.now + 3.0
    assert [lane.endpoint.label for lane in world.group.slow_to_open(began, world.now)] == ["b"]


def test_a_connect_that_has_just_begun_is_not_to_blame() -> None:
    world = World([Place("a"), Place("b")], [Rules(connection_count=1)])
    world.grow(world.lane)
    world.lease()
    began, world.now = world.now, world.now + 3.0
    world.order(world.group.lanes[1])
    assert world.group.slow_to_open(began, world.now) == []


def test_connects_that_fail_are_to_blame_where_there_is_room() -> None:
    world = World([Place("a"), Place("b")], [Rules(connection_count=2)])
    world.grow(world.lane)
    world.grow(world.group.lanes[1])
    world.lease()
    world.failed(world.order(world.lane), Fault.FULL, "too many clients")
    assert [lane.endpoint.label for lane in world.group.slow_to_open(world.now - 3.0, world.now)] == ["a"]
    world.group.limit = 1
    assert world.group.slow_to_open(world.now - 3.0, world.now) == []


# -- endpoints --


def probed(world: World, which: int, report: object, position: int, timeline: int = 1, system: str = "s") -> None:
    sighting = Sighting(report, Identity(system, timeline), position)  # type: ignore[arg-type]
    world.topology.probed(world.endpoints[which], sighting, 0.002, world.now)


def test_a_standbys_lag_is_what_its_primary_has_written_and_it_has_not_replayed() -> None:
    world = World(places("a", "b", "c"))
    probed(world, 0, PRIMARY, 5000)
    probed(world, 1, STANDBY, 4200)
    probed(world, 2, STANDBY, 5100)  # probed later than its primary
    a, b, c = read(world).endpoints
    assert (a.position, a.lag) == (5000, None)
    assert (b.position, b.lag) == (4200, 800)
    assert (c.position, c.lag) == (5100, 0)


def test_the_lag_behind_a_primary_of_another_system_is_not_known() -> None:
    world = World(places("a", "b"))
    probed(world, 0, PRIMARY, 5000, system="one")
    probed(world, 1, STANDBY, 4200, system="another")
    assert endpoint(world, "b").lag is None


def test_the_lag_behind_a_primary_that_is_gone_is_not_known() -> None:
    world = World(places("a", "b"))
    probed(world, 0, PRIMARY, 5000)
    probed(world, 1, STANDBY, 4200)
    world.failed(world.order(world.lane), Fault.REFUSED)
    assert endpoint(world, "b").lag is None


def test_a_fenced_primary_says_why() -> None:
    world = World(places("a", "b"))
    probed(world, 0, PRIMARY, 5000, timeline=1)
    probed(world, 1, PRIMARY, 6000, timeline=2)
    assert endpoint(world, "a").fenced == "a primary of an old timeline: b was promoted after it"
    assert endpoint(world, "b").fenced is None


def test_ages_are_counted_from_what_happened() -> None:
    world = World(places("a", "b"))
    assert (endpoint(world, "b").down_for, endpoint(world, "b").answered) == (None, None)
    probed(world, 1, STANDBY, 1)
    world.now += 2.0
    world.failed(world.order(world.groups[0].lanes[1]), Fault.REFUSED, "connection refused")
    world.now += 3.0
    b = endpoint(world, "b")
    assert (b.down_for, b.answered, b.last_error, b.last_error_age) == (3.0, 5.0, "connection refused", 3.0)
    assert (b.probe_time, b.health) == (0.002, "down")


def test_an_endpoint_that_came_back_has_part_of_its_share() -> None:
    world = World(places("a", "b"))
    world.failed(world.order(world.lane), Fault.REFUSED)
    probed(world, 0, STANDBY, 1)
    assert endpoint(world, "a").share == 0.1
    world.now += 60.0
    world.topology.tend(world.now)
    assert endpoint(world, "a").share == 1.0


def test_an_endpoint_that_is_down_has_no_share_and_says_what_it_was() -> None:
    world = World(places("a", "b"))
    probed(world, 0, PRIMARY, 1)
    a = endpoint(world, "a")
    assert (a.role, a.last_role, a.share) == ("primary", "primary", 1.0)
    for _ in range(2):
        world.failed(world.order(world.lane), Fault.REFUSED)
        a = endpoint(world, "a")
        assert (a.role, a.last_role, a.share) == ("unknown", "primary", 0.0)
    probed(world, 0, STANDBY, 1)
    a = endpoint(world, "a")
    assert (a.role, a.last_role) == ("standby", "standby")


def test_what_is_noted_by_others_is_counted_and_delivered_too() -> None:
    world = World()
    event = Event(kind=EventKind.LEAK_SUSPECTED, endpoint="db1:5432", message="too long", group="g")
    world.topology.note(event)
    assert world.topology.events[-1] is event
    assert books(world).read(world.now).events == {"leak-suspected": 1}


def test_failovers_and_other_events_are_counted() -> None:
    world = World(places("a", "b"))
    one = books(world)
    probed(world, 0, PRIMARY, 1)
    probed(world, 1, STANDBY, 1)
    assert (one.read(world.now).failovers, one.read(world.now).events.get("failover-started")) == (0, None)
    world.failed(world.order(world.lane), Fault.REFUSED)
    probed(world, 1, PRIMARY, 2, timeline=2)
    popped = one.pop(world.now)
    assert (popped.failovers, popped.events["failover-started"], popped.events["endpoint-down"]) == (1, 1, 1)
    assert (one.read(world.now).failovers, one.read(world.now).events) == (0, {})
    assert one.read(world.now, all_time=True).failovers == 1
    assert set(popped.events) <= set(EventKind)


def test_json_has_every_field_and_can_be_read_back() -> None:
    world = World(places("a", "b"))
    world.grow()
    use(world, 2.0)
    world.failed(world.order(world.groups[0].lanes[1]), Fault.REFUSED, "refused")
    moment = books(world).read(world.now, at=1e9)
    text = moment.to_json()
    assert json.loads(text)["groups"]["g"]["counters"]["requests"] == 1
    assert msgspec.json.decode(text, type=PoolStats) == moment


# -- as it is shown --


def busy_world() -> World:
    world = World(places("a", "b", "c"), [Rules(target_session_attrs="standby")])
    for which, report in enumerate([PRIMARY, STANDBY, STANDBY]):
        probed(world, which, report, 1)
    world.grow(world.group.lanes[1], 2, STANDBY)
    use(world, 0.3)
    world.lease()
    world.failed(world.order(world.lane), Fault.REFUSED, "connection refused: <b>no</b>")
    return world


def test_a_moment_is_a_few_lines_to_read() -> None:
    text = repr(books(busy_world()).read(100.0, at=1e9))
    lines = text.splitlines()
    assert len(lines) == 7
    assert lines[0] == "<PoolStats of pool at 2001-09-09 01:46:40 UTC, 0 failovers>"
    assert lines[1].split()[:2] == ["group", "in"]
    assert lines[2].split()[:7] == ["g", "1", "of", "4", "1", "0", "1"]
    assert "500 ms" in lines[2]
    assert lines[4].split()[:4] == ["a", "was", "primary", "down"]
    assert lines[5].split()[:5] == ["b", "standby", "up", "2", "1"]
    assert max(map(len, lines)) < 100


def test_its_parts_are_one_line_each() -> None:
    moment = read(busy_world())
    one = moment.groups["g"]
    assert repr(one) == "<GroupStats g: 1 of 4 in use, 1 idle, 0 waiting, 1 leases, 0 timeouts>"
    assert repr(one.endpoints[1]) == "<LaneStats b: 1 of 2 in use, 1 idle>"
    assert repr(one.endpoints[0]) == "<LaneStats a: 0 of 2 in use, 0 idle, not used now>"
    assert repr(moment.endpoints[1]) == "<EndpointStats b: standby, up, 1 of 2 open in use>"
    assert repr(counters(requests=2, use_time=1.5, use_times=[0.25, 1.5], closed={"idle": 1})) == (
        "Counters(requests=2, use_time=1.5, use_times={0.5: 1, 2.0: 1}, closed={'idle': 1})"
    )


def test_a_notebook_is_given_tables_in_which_nothing_is_markup() -> None:
    world = busy_world()
    name = "<script>alert(1)</script>"
    world.group.name = name
    html = books(world).read(world.now)._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 2
    assert html.count("<tr>") == 1 + 1 + 1 + 3
    assert name not in html
    assert "&lt;script&gt;" in html
    assert "connection refused: &lt;b&gt;no&lt;/b&gt;" in html


def test_nothing_in_it_reaches_the_terminal_as_an_order() -> None:
    world = busy_world()
    world.group.name = "g\x1b[2J\n"
    assert "\x1b" not in repr(read(world))
    assert len(repr(read(world)).splitlines()) == 7


def test_a_quantile_is_the_time_within_which_a_share_was_done() -> None:
    counted = counters(use_times=[0.001] * 98 + [0.3] * 2, prompt=95, wait_times=[0.001] * 4 + [0.3])
    assert [counted.quantile("use", share) for share in (0.5, 0.98, 0.99, 1.0)] == [2**-9, 2**-9, 0.5, 0.5]
    assert [counted.quantile("wait", share) for share in (0.5, 0.95, 0.99, 1.0)] == [0.0, 0.0, 2**-9, 0.5]
    assert counted.quantile("connect", 0.5) is None
    with pytest.raises(ValueError, match="expected 'wait', 'use' or 'connect', got 'idle'"):
        counted.quantile("idle", 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1, got 99"):
        counted.quantile("use", 99)


def test_json_has_the_median_and_the_99th_percentile_of_each_histogram() -> None:
    world = busy_world()
    world.group.name = "use_times"  # a group may be called as a field is
    moment = read(world)
    found = json.loads(moment.to_json())["groups"]["use_times"]
    for counted in (found["counters"], found["endpoints"][1]["counters"]):
        assert (counted["use_p50"], counted["use_p99"]) == (0.5, 0.5)
        assert (counted["wait_p50"], counted["wait_p99"]) == (0.0, 0.0)
        assert counted["connect_p99"] is not None
    assert json.loads(Counters().to_json())["use_p99"] is None
    for part in (moment.groups["use_times"], moment.endpoints[0], moment.groups["use_times"].endpoints[0]):
        assert json.loads(part.to_json())


# -- without the lock --


class Forbidden:
    """A lock that nobody may take."""

    def __enter__(self) -> None:
        raise AssertionError("reading takes the lock")

    def __exit__(self, *exc: object) -> None: ...


def test_reading_takes_no_lock() -> None:
    world = World(places("a", "b"))
    world.grow(count=2)
    world.wait()
    one = books(world)
    world.topology._lock = world.group.lock = Forbidden()
    assert one.read(world.now).groups["g"].open == 2
    assert one.pop(world.now).groups["g"].counters.connects == 2


def test_no_count_goes_back_or_is_missed_while_connections_come_and_go() -> None:
    """Reading beside those who count, with a change of thread at any instruction."""
    world = World(rules=[Rules(connection_count=8)], lock=threading.Lock())
    one = books(world)
    leases, over = 4000, threading.Event()

    def work(me: int) -> None:
        dice = random.Random(me)
        for _ in range(leases):
            slot = world.take()
            if slot is None:
                world.grow()
                slot = world.take()
            if slot is None:
                world.now += 0.001
                continue
            slot.taken = world.now
            slot.used(world.now)
            done[me] += 1
            if dice.random() < 0.3:
                world.group.retire(slot, "broken")
                world.group.closing.popleft()
                world.group.buried(slot)
            else:
                world.give(slot)

    done = [0] * 3
    seen: list[int] = []
    popped: list[int] = []

    def watch() -> None:
        while not over.is_set():
            least = sum(done)
            seen.append(one.read(world.now, all_time=True).groups["g"].counters.requests)
            assert least <= seen[-1] <= sum(done) + len(done), "counted twice, or missed"
            popped.append(one.pop(world.now).groups["g"].counters.requests)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    errors: list[BaseException] = []

    def guarded(function: object, *args: object) -> None:
        try:
            function(*args)  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    try:
        watcher = threading.Thread(target=guarded, args=(watch,), daemon=True)
        workers = [threading.Thread(target=guarded, args=(work, me), daemon=True) for me in range(len(done))]
        for thread in [watcher, *workers]:
            thread.start()
        for thread in workers:
            thread.join(60.0)
        over.set()
        watcher.join(60.0)
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert not any(thread.is_alive() for thread in [watcher, *workers])
    assert seen == sorted(seen), "a count went back"
    assert len(seen) > 10
    popped.append(one.pop(world.now).groups["g"].counters.requests)
    assert min(popped) >= 0
    assert sum(popped) == sum(done) == one.read(world.now, all_time=True).groups["g"].counters.requests
    assert world.lane.ledger.gone.uses > 100, "connections went while they were counted"
