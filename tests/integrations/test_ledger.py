"""The ledger: what processes have counted does not shrink when they end, and is not counted twice."""

import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import group, lane, pool, worker

from pgdbpool.core import times
from pgdbpool.core.stats import Counters
from pgdbpool.integrations import ledger
from pgdbpool.integrations.catalogue import LIMITS, Histogram, histogram, never_less
from pgdbpool.integrations.ledger import FORGET, Key, Ledger, entered, look, total
from pgdbpool.publish import Worker

FAILURES: Key = (
    "pgdbpool.connection.create_failures",
    "pgdbpool-1",
    (("group", "read"), ("endpoint", "db1:5432")),
)
USES: Key = ("db.client.connection.use_time", *FAILURES[1:])


def process(pid: int, failures: int = 0, uses: int = 0) -> Worker:
    """One that has counted so much."""
    seconds = times.no_times()
    for _ in range(uses):
        times.count(seconds, 0.3)
    counters = Counters(connect_failures=failures, use_times=times.in_order(seconds), use_time=0.3 * uses)
    return worker(pool(group(lanes=(lane(counters=counters),))), pid=pid)


def test_the_sum_is_that_of_all_processes():
    book = total(entered(Ledger(), [process(1, 3, 2), process(2, 4, 5)], 0.0))
    assert book[FAILURES] == 7
    uses = book[USES]
    assert isinstance(uses, Histogram)
    assert (sum(uses.counts), uses.total) == (7, pytest.approx(2.1))
    assert uses.counts[LIMITS.index(0.5)] == 7


def test_a_process_that_ended_still_counts_and_one_that_follows_it_is_added():
    first = entered(Ledger(), [process(1, 3), process(2, 4)], 0.0)
    second = entered(first, [process(1, 3), process(3, 1)], 1.0)
    assert total(second)[FAILURES] == 3 + 4 + 1


def test_long_after_its_end_its_account_is_closed_and_the_sum_is_the_same():
    first = entered(Ledger(), [process(1, 3), process(2, 4)], 0.0)
    second = entered(first, [process(2, 5)], FORGET + 1)
    assert len(second.accounts) == 1
    assert total(second)[FAILURES] == 3 + 5
    assert total(entered(second, [], 10 * FORGET))[FAILURES] == 3 + 5


def test_one_that_was_only_silent_is_not_counted_twice_when_it_comes_back():
    first = entered(Ledger(), [process(1, 3)], 0.0)
    second = entered(first, [], FORGET / 2)
    assert total(entered(second, [process(1, 4)], FORGET))[FAILURES] == 4


def test_what_a_pool_counted_that_was_closed_meanwhile_stays():
    first = entered(Ledger(), [process(1, 3)], 0.0)
    assert total(entered(first, [worker(pid=1)], 1.0))[FAILURES] == 3


def test_an_older_look_that_comes_later_takes_nothing_back():
    first = entered(Ledger(), [process(1, 5, 5)], 0.0)
    assert total(entered(first, [process(1, 3, 3)], 1.0)) == total(first)


@given(
    st.lists(
        st.tuples(
            st.floats(0.1, FORGET),
            st.dictionaries(st.integers(1, 5), st.integers(0, 3), max_size=5),
        )
    )
)
def test_no_sum_ever_shrinks_whoever_comes_and_goes(story: list[tuple[float, dict[int, int]]]):
    book, now, seen = Ledger(), 0.0, 0
    counts: dict[int, int] = {}
    number: dict[int, int] = {}
    everything = 0
    for pause, alive in story:
        now += pause
        for gone in counts.keys() - alive.keys():
            del counts[gone]  # the next of this place is another process
            number[gone] = number.get(gone, 0) + 1
        for place, more in alive.items():
            counts[place] = counts.get(place, 0) + more
            everything += more
        book = entered(book, [process(10 * number.get(n, 0) + n, count) for n, count in counts.items()], now)
        value = total(book).get(FAILURES, 0)
        assert isinstance(value, int)
        assert value == everything >= seen
        seen = value


def test_it_is_kept_in_a_file_that_only_its_owner_may_read(tmp_path: Path):
    assert look("shop", tmp_path, [process(1, 3, 2)])[FAILURES] == 3
    file = tmp_path / "shop.ledger.json"
    assert file.stat().st_mode & 0o777 == 0o600
    again = look("shop", tmp_path, [process(2, 1, 1)])
    assert again[FAILURES] == 4
    uses = again[USES]
    assert isinstance(uses, Histogram)
    assert sum(uses.counts) == 3


def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "shop.ledger.json").write_text("{")
    assert look("shop", tmp_path, [process(1, 3)])[FAILURES] == 3
    assert "begun anew" in caplog.text


def test_one_look_waits_for_another_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger, "_LOCK_LIMIT", 0.05)
    with open(tmp_path / "shop.ledger.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError):
            look("shop", tmp_path, [])
    assert look("shop", tmp_path, []) == {}
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]


@given(st.lists(st.floats(1e-7, 2000), max_size=50))
def test_an_exported_histogram_has_every_duration_in_its_place(durations: list[float]):
    seconds = times.no_times()
    for each in durations:
        times.count(seconds, each)
    exported = histogram(times.in_order(seconds), sum(durations))
    limits = (*LIMITS, float("inf"))
    expected = [0] * len(limits)
    for each in durations:
        expected[next(place for place, limit in enumerate(limits) if each < limit)] += 1
    assert list(exported.counts) == expected


def test_a_counter_that_is_one_short_for_a_moment_does_not_go_back():
    zeros = (0,) * (len(LIMITS) + 1)
    before, now = Histogram((5, *zeros[1:]), 2.0), Histogram((4, *zeros[1:]), 2.5)
    assert never_less(before, now) == Histogram((5, *zeros[1:]), 2.5)
    assert never_less(None, now) == now
    assert never_less(3, 2) == 3
