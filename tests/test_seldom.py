"""What happens again and again is said in the log, and does not fill it."""

import logging
import traceback

import pytest

from pgdbpool import seldom
from pgdbpool.seldom import Rate, say_seldom


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand: ``clock[0] += 1``."""
    now = [1000.0]
    monkeypatch.setattr(seldom, "monotonic", lambda: now[0])
    monkeypatch.setattr(seldom, "_rate", Rate(1, 60.0))
    return now


def test_the_same_is_said_once_a_minute_with_how_often_it_was_left_out(clock, caplog):
    for _ in range(130):
        say_seldom(logging.ERROR, "it failed")
        clock[0] += 1
    assert caplog.messages == [
        "it failed",
        "it failed (59 lines like this were left out)",
        "it failed (59 lines like this were left out)",
    ]


def test_what_is_not_the_same_is_said_all_the_same(clock, caplog):
    say_seldom(logging.ERROR, "a failed")
    say_seldom(logging.ERROR, "b failed")
    say_seldom(logging.ERROR, "c failed for the 1st time", of="c")
    say_seldom(logging.ERROR, "c failed for the 2nd time", of="c")
    assert caplog.messages == ["a failed", "b failed", "c failed for the 1st time"]


def test_an_error_of_the_pools_own_comes_with_its_words(clock, caplog):
    rate = Rate(1, 60.0)
    rate._allowance = {"key": 0}  # so that it fails in the pool's own lines
    with pytest.raises(TypeError) as caught:
        rate.admits("key", 0.0)
    say_seldom(logging.ERROR, "it failed", error=caught.value)
    assert "TypeError: cannot unpack" in caplog.text


def test_of_an_error_of_the_applications_type_and_place_are_told_and_not_its_words(clock, caplog):
    with pytest.raises(ValueError, match="4111-1111") as caught:
        raise ValueError("4111-1111")
    say_seldom(logging.ERROR, "it failed", error=caught.value)
    assert "it failed: ValueError" in caplog.text
    assert __file__ in caplog.text
    assert "4111-1111" not in caplog.text.replace('match="4111-1111"', "").replace('ValueError("4111-1111")', "")


@pytest.mark.parametrize("how", ["from", "in the course of"])
def test_of_an_error_of_the_pools_own_the_one_that_led_to_it_is_not_told(clock, caplog, how):
    rate = Rate(1, 60.0)
    rate._allowance = {"key": 0}

    def fail():
        try:
            raise ValueError("4111-1111")
        except ValueError as error:
            if how == "from":
                try:
                    rate.admits("key", 0.0)
                except TypeError as own:
                    raise own from error
            rate.admits("key", 0.0)

    with pytest.raises(TypeError) as caught:
        fail()
    assert "4111-1111" in "".join(traceback.format_exception(caught.value))
    say_seldom(logging.ERROR, "it failed", error=caught.value)
    assert "TypeError" in caplog.text
    assert "4111-1111" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_a_few_at_once_and_then_one_in_a_while():
    rate = Rate(3, 10.0)
    assert [rate.admits("key", 100.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert rate.admits("key", 110.0) == 2
    assert rate.admits("key", 110.0) is None


def test_not_everything_is_remembered_for_ever():
    rate = Rate(1, 1e9)
    for key in range(10_000):
        rate.admits(key, 0.0)
    assert len(rate._allowance) <= 1000
