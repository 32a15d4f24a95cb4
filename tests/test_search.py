"""How often servers that are gone are asked, by one process and by a thousand."""

from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from pgdbpool.core.evidence import Fault
from pgdbpool.search import Search


def attempts(search: Search, fault: Fault, until: float) -> list[float]:
    """When one endpoint that fails so from the beginning is asked."""
    now, asked = 0.0, []
    while now < until:
        asked.append(now)
        search.failed("it", fault, now)
        pause = search.pause("it", now)
        assert pause is not None
        now += pause
    return asked


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.UNREACHABLE, Fault.STARTING, Fault.UNRESOLVED, Fault.ENDED])
def test_a_thousand_processes_ask_less_than_a_thousand_times_a_second(fault: Fault):
    asked = [attempts(Search(Random(seed).random), fault, 40.0) for seed in range(1000)]
    seconds = Counter(int(at) for each in asked for at in each)
    assert max(seconds[second] for second in range(25, 40)) < 1000


def test_processes_that_began_together_do_not_go_on_together():
    asked = [attempts(Search(Random(seed).random), Fault.REFUSED, 40.0) for seed in range(1000)]
    tenths = Counter(int(at * 10) for each in asked for at in each)
    assert max(tenths[tenth] for tenth in range(250, 400)) < 200


@pytest.mark.parametrize("seed", range(20))
def test_one_that_was_not_gone_for_long_is_found_within_a_quarter_of_a_second(seed: int):
    asked = attempts(Search(Random(seed).random), Fault.REFUSED, 5.0)
    assert max(later - earlier for earlier, later in pairwise(asked)) <= 0.25


def test_a_silent_one_is_not_asked_less_often_the_longer_that_lasts():
    search = Search(Random(1).random)
    search.failed("it", Fault.TIMEOUT, 0.0)
    assert (search.pause("it", 600.0) or 1.0) <= 0.1


def test_one_that_answers_is_gone_no_more():
    search = Search(Random(1).random)
    for who in range(100):
        search.failed(who, Fault.REFUSED, 0.0)
    assert (search.pause(0, 0.0) or 0.0) > 2.0
    for who in range(1, 100):
        search.over(who)
    assert search.pause(1, 0.0) is None
    assert (search.pause(0, 0.0) or 1.0) < 0.1
