"""Adding up what several processes have written."""

import msgspec
from records import endpoint, group, lane, pool, worker

from pgdbpool import Event, EventKind, Holder
from pgdbpool.core.stats import Counters
from pgdbpool.publish import GroupSample, PoolRecord, Sample, merged


def down(at: float, label: str = "db1:5432") -> Event:
    return Event(kind=EventKind.ENDPOINT_DOWN, endpoint=label, message=f"{label} is down", at=at)


def holder(since: float) -> Holder:
    return Holder(
        group="read",
        endpoint="db1:5432",
        connection="backend 7",
        since=since,
        where="app.py:1 (view)",
        thread="MainThread",
    )


def test_nobody_is_an_empty_summary():
    summary = merged([])
    assert (summary.at, summary.workers, summary.pools) == (0.0, 0, 0)
    assert (summary.groups, summary.endpoints, summary.events, summary.samples) == ({}, (), (), ())


def test_what_the_groups_of_all_pools_have_and_count_is_added():
    one = worker(pool(group("read", 3, waiting=1, longest_wait=0.5), group("write", 1)))
    two = worker(pool(group("read", 4, waiting=2, longest_wait=2.5), group("batch")), pool(group("read", 5)), pid=2)
    summary = merged([one, two])
    read = summary.groups["read"]
    assert (summary.workers, summary.pools) == (2, 3)
    assert sorted(summary.groups) == ["batch", "read", "write"]
    assert read.configured_limit == 30
    assert (read.limit, read.least, read.open, read.idle, read.leased, read.waiting) == (30, 3, 6, 3, 3, 3)
    assert read.longest_wait == 2.5
    assert read.counters.requests == 12


def test_lanes_are_added_by_endpoint():
    one = worker(pool(group(lanes=(lane("db1:5432", 1), lane("db2:5432", 2)))))
    two = worker(pool(group(lanes=(lane("db2:5432", 4), lane("db3:5432", 8, live=False)))), pid=2)
    lanes = {each.endpoint: each for each in merged([one, two]).groups["read"].endpoints}
    assert {label: each.counters.requests for label, each in lanes.items()} == {
        "db1:5432": 1,
        "db2:5432": 6,
        "db3:5432": 8,
    }
    assert lanes["db2:5432"].open == 4
    assert not lanes["db3:5432"].live


def test_histograms_and_reasons_are_added():
    counted = Counters(use_times=(1,) * 32, closed={"idle": 2})
    one = worker(pool(group(counters=counted)))
    two = worker(pool(group(counters=Counters(use_times=(2,) * 32, closed={"idle": 1, "broken": 1}))), pid=2)
    counters = merged([one, two]).groups["read"].counters
    assert counters.use_times == (3,) * 32
    assert counters.closed == {"idle": 3, "broken": 1}


def test_a_group_is_paused_if_it_is_paused_everywhere():
    paused, running = pool(group(paused=True)), pool(group(paused=False))
    assert merged([worker(paused), worker(paused, pid=2)]).groups["read"].paused
    assert not merged([worker(paused), worker(running, pid=2)]).groups["read"].paused


def test_an_endpoint_is_what_most_processes_believe():
    up, dead = endpoint(), endpoint(health="down", down_for=3.0)
    workers = [worker(pool(endpoints=(each,)), pid=pid) for pid, each in enumerate([dead, up, dead])]
    [found] = merged(workers).endpoints
    assert found.stats.health == "down"
    assert found.views == {"primary, down": 2, "primary, up": 1}
    assert found.stats.open == 6, "what is open is added, whatever is believed"


def test_what_a_server_was_before_it_went_down_is_known_if_any_process_knows_it():
    new = endpoint(health="down", role="unknown", last_role="unknown", answered=None, down_for=1.0)
    old = endpoint(health="down", role="unknown", last_role="primary", down_for=9.0)
    for order in ([new, old], [old, new]):
        workers = [worker(pool(endpoints=(each,)), pid=pid) for pid, each in enumerate(order)]
        [found] = merged(workers).endpoints
        assert (found.stats.role, found.stats.last_role) == ("unknown", "primary")


def test_a_belief_that_was_not_renewed_does_not_count_if_there_are_newer_ones():
    stale, fresh = endpoint(health="down"), endpoint()
    old = [worker(pool(endpoints=(stale,)), pid=pid, at=900.0, by_itself=False) for pid in (1, 2)]
    [found] = merged([*old, worker(pool(endpoints=(fresh,)), pid=3)]).endpoints
    assert found.views == {"primary, up": 1}
    [found] = merged(old).endpoints
    assert found.views == {"primary, down": 2}


def test_the_last_error_is_the_latest_of_all():
    one = endpoint(last_error="long ago", last_error_age=50.0)
    two = endpoint(last_error="just now", last_error_age=1.0)
    workers = [worker(pool(endpoints=(each,)), pid=pid) for pid, each in enumerate([one, two, endpoint()])]
    [found] = merged(workers).endpoints
    assert (found.stats.last_error, found.stats.last_error_age) == ("just now", 1.0)


def test_what_several_pools_notice_at_the_same_time_happened_once():
    workers = [worker(pool(events=(down(100.0 + pid),)), pid=pid) for pid in range(3)]
    [happening] = merged(workers).events
    assert (happening.event.at, happening.pools) == (100.0, 3)


def test_what_one_pool_says_twice_happened_twice():
    events = merged([worker(pool(events=(down(100.0), down(101.0)))), worker(pool(events=(down(101.5),)))]).events
    assert [(each.event.at, each.pools) for each in events] == [(100.0, 2), (101.0, 1)]


def test_events_long_after_one_another_or_of_other_endpoints_are_others():
    workers = [
        worker(pool(events=(down(100.0), down(100.5, "db2:5432")))),
        worker(pool(events=(down(200.0),)), pid=2),
    ]
    assert [each.event.at for each in merged(workers).events] == [100.0, 100.5, 200.0]


def test_leases_held_too_long_are_each_their_own_even_at_the_same_time():
    event = Event(kind=EventKind.LEAK_SUSPECTED, endpoint="db1:5432", message="held for 5 s", at=100.0)
    workers = [worker(pool(events=(event,)), pid=pid) for pid in (1, 2)]
    assert [each.pools for each in merged(workers).events] == [1, 1]


def test_holders_are_told_with_their_process_the_longest_first():
    workers = [worker(pool(holders=(holder(1.0),)), pid=1), worker(pool(holders=(holder(5.0), holder(0.1))), pid=2)]
    held = merged(workers).holders
    assert [(each.pid, each.holder.since) for each in held] == [(2, 5.0), (1, 1.0), (2, 0.1)]


def test_holders_are_told_with_the_name_of_their_pool():
    def named(name: str, since: float) -> PoolRecord:
        record = pool(holders=(holder(since),))
        return msgspec.structs.replace(record, stats=msgspec.structs.replace(record.stats, name=name))

    held = merged([worker(named("shop", 1.0), named("batch", 2.0))]).holders
    assert [(each.pool, each.pid) for each in held] == [("batch", 1), ("shop", 1)]


def test_samples_of_the_same_time_are_added():
    def sample(at: float, requests: int, where: str) -> Sample:
        counted = GroupSample(requests, 1, 0, 0.5, 0.25, ((3, 1),), ((3, 1), (4, requests)), requests)
        return Sample(at, {"read": counted}, {where: requests})

    one = worker(pool(samples=(sample(0.0, 1, "db1:5432"), sample(2.0, 2, "db1:5432"))))
    two = worker(pool(samples=(sample(2.0, 3, "db2:5432"), sample(4.0, 4, "db2:5432"))), pid=2)
    samples = merged([one, two]).samples
    assert [each.at for each in samples] == [0.0, 2.0, 4.0]
    assert samples[1].endpoints == {"db1:5432": 2, "db2:5432": 3}
    assert samples[1].groups["read"] == GroupSample(5, 2, 0, 1.0, 0.5, ((3, 2),), ((3, 2), (4, 5)), 5)
    assert [each.at for each in merged([one, two], samples_since=2.0).samples] == [2.0, 4.0]
