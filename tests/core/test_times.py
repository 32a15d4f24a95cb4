"""The histogram of durations: every one is counted in the bucket it belongs to."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdbpool.core import times
from pgdbpool.core.times import BOUNDS

from .harness import quick

DURATIONS = st.just(0.0) | st.floats(min_value=1e-9, max_value=1e9)


def bucket(seconds: float) -> int:
    counts = times.no_times()
    times.count(counts, seconds)
    return times.in_order(counts).index(1)


@given(DURATIONS)
@quick
def test_a_duration_is_below_the_limit_of_its_bucket_and_not_below_the_one_before(seconds: float) -> None:
    index = bucket(seconds)
    assert seconds < (*BOUNDS, inf)[index]
    assert index == 0 or seconds >= BOUNDS[index - 1]


@pytest.mark.parametrize("seconds", [0.0, 2e-10, 1e-9, 0.9e-6])
def test_what_is_shorter_than_the_first_limit_is_in_the_first_bucket(seconds: float) -> None:
    assert bucket(seconds) == 0


@pytest.mark.parametrize("seconds", [1024.0, 86_400.0, 1e9])
def test_what_is_longer_than_the_last_limit_is_in_the_last_bucket(seconds: float) -> None:
    assert bucket(seconds) == len(BOUNDS)


@given(st.lists(DURATIONS))
@quick
def test_nothing_is_lost(durations: list[float]) -> None:
    counts = times.no_times()
    for seconds in durations:
        times.count(counts, seconds)
    assert sum(times.in_order(counts)) == sum(counts) == len(durations)


def test_several_are_added_up_bucket_by_bucket() -> None:
    one, two = times.no_times(), times.no_times()
    times.count(one, 0.3)
    times.count(two, 0.3)
    times.count(two, 5.0)
    both = times.in_order(times.add([one, two]))
    assert {bound: count for bound, count in zip(BOUNDS, both, strict=False) if count} == {0.5: 2, 8.0: 1}


def test_a_quantile_is_the_limit_under_which_that_share_lies() -> None:
    counts = times.no_times()
    for seconds in [0.001] * 90 + [0.1] * 9 + [2000.0]:
        times.count(counts, seconds)
    ordered = times.in_order(counts)
    assert [times.quantile(ordered, share) for share in (0.5, 0.9, 0.95, 1.0)] == [2**-9, 2**-9, 0.125, inf]


@pytest.mark.parametrize("seconds", [1e-18, 1e12, -1.0])
def test_what_no_clock_shows_is_no_error(seconds: float) -> None:
    assert bucket(seconds) >= 0


def test_nothing_has_no_quantile() -> None:
    assert times.quantile(times.in_order(times.no_times()), 0.5) is None
