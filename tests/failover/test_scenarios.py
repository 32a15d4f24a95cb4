"""What callers notice when servers fail. Each scenario is played once (`playing`), each test asks one question of it.

Limits are those of patience, not of speed: `make bench-failover` measures that.
"""

from math import inf

import pytest

from .playing import ALL, MODELS, Played, play

UNDISTURBED = {"full-standby", "wrong-password", "slow-standby"}  # nobody should notice anything
WRITES_STOP = [name for name, scenario in ALL.items() if "write" in scenario.kinds]
READS_STOP = [name for name, scenario in ALL.items() if "read" in scenario.kinds]
KILLED_TOGETHER = {"all-down": 3}  # so many servers at one blow
MOVED = ("name-switchover", "name-old-lives-on")
STALE = 1.0  # s: far longer than it takes, and far shorter than a session would stay with the old primary
STORM = 50  # connects per second to one server, of one pool, that are still no storm
SERVERS = 3


def cases(*names: str) -> pytest.MarkDecorator:
    """These scenarios (by default all) for all models."""
    found = [pytest.param(name, model, id=f"{name}-{model}") for name in names or ALL for model in MODELS]
    return pytest.mark.parametrize(("name", "model"), found)


def played(name: str, model: str) -> Played:
    """The scenario; skipped where it cannot be played."""
    if reason := ALL[name].why_not():
        pytest.skip(reason)
    return play(name, model)


# -- what holds in every scenario ------------------------------------------------------------------------------------


@cases()
def test_no_acknowledged_write_is_lost(name: str, model: str) -> None:
    assert played(name, model).figures.lost == 0


@cases()
def test_no_write_is_done_twice(name: str, model: str) -> None:
    assert played(name, model).figures.twice == 0


@cases()
def test_no_write_is_done_whose_caller_was_told_that_it_failed(name: str, model: str) -> None:
    assert played(name, model).figures.phantoms == 0


@cases()
def test_nothing_fails_while_all_is_well(name: str, model: str) -> None:
    found = played(name, model)
    assert found.figures.before == 0
    assert found.figures.operations > 10 * found.figures.callers


@cases()
def test_nobody_hangs(name: str, model: str) -> None:
    assert played(name, model).figures.hung == 0


@cases()
def test_a_caller_fails_at_most_once_for_each_blow(name: str, model: str) -> None:
    found = played(name, model)
    blows = 0 if name in UNDISTURBED else found.blows * KILLED_TOGETHER.get(name, 1)
    assert found.figures.failed_writes <= blows * found.each, found.figures.errors
    assert found.figures.failed_reads <= blows * found.each, found.figures.errors


@cases()
def test_connects_do_not_become_a_storm(name: str, model: str) -> None:
    found = played(name, model)
    assert found.pools
    assert found.attempts <= STORM * SERVERS * len(found.pools) * found.figures.seconds


@cases(*WRITES_STOP)
def test_writes_go_on_once_they_are_possible(name: str, model: str) -> None:
    found = played(name, model)
    assert found.figures.first_write is not None
    assert found.figures.first_write < inf


@cases(*READS_STOP)
def test_reads_go_on_once_they_are_possible(name: str, model: str) -> None:
    found = played(name, model)
    assert found.figures.first_read is not None
    assert found.figures.first_read < inf


@cases()
def test_in_the_end_all_writes_are_done_by_the_primary(name: str, model: str) -> None:
    found = played(name, model)
    assert set(found.figures.writes) == {found.writer}


@cases(*(name for name in ALL if name not in ("name", "name-switchover")))
def test_in_the_end_all_reads_are_done_by_standbys(name: str, model: str) -> None:
    found = played(name, model)
    assert found.figures.reads
    assert found.writer not in found.figures.reads


@cases(*MOVED)
def test_once_the_new_primary_has_let_the_pool_in_no_write_is_sent_to_the_old_one(name: str, model: str) -> None:
    found = played(name, model)
    assert found.figures.stale is not None
    assert found.figures.stale < STALE


# -- what one scenario is about --------------------------------------------------------------------------------------


@cases("kill-primary", "freeze-primary")
def test_the_lost_primary_gets_no_reads(name: str, model: str) -> None:
    found = played(name, model)
    assert len(found.figures.reads) == 1


@cases("switchover")
def test_the_old_primary_takes_its_share_of_reads_when_it_is_back_as_a_standby(name: str, model: str) -> None:
    found = played(name, model)
    assert len(found.figures.reads) == 2


@cases(
    "kill-standby", "flapping", "standby-returns", "freeze-standby", "full-standby", "wrong-password", "slow-standby"
)
def test_what_happens_to_a_standby_makes_no_checkout_fail(name: str, model: str) -> None:
    assert played(name, model).figures.failed_checkouts == 0


@cases(
    "restart-primary",
    "kill-primary",
    "freeze-primary",
    "refuse-writes",
    "switchover",
    "all-down",
    "network",
    "name",
    "name-switchover",
    "name-old-lives-on",
)
def test_callers_wait_for_what_is_lost_and_are_not_turned_away(name: str, model: str) -> None:
    assert played(name, model).figures.failed_checkouts == 0


@cases("kill-standby", "freeze-standby", "wrong-password")
def test_reads_leave_a_standby_that_is_of_no_use(name: str, model: str) -> None:
    found = played(name, model)
    assert found.figures.reads
    assert found.watched not in found.figures.reads


@cases("network")
def test_reads_return_to_a_standby_whose_network_is_well_again(name: str, model: str) -> None:
    found = played(name, model)
    assert set(found.figures.reads) == set(found.servers) - {found.writer}


@cases("standby-returns", "full-standby")
def test_a_standby_that_comes_back_gets_its_share_again(name: str, model: str) -> None:
    found = played(name, model)
    assert found.figures.share == pytest.approx(0.5, abs=0.15)


@cases("standby-returns", "full-standby")
def test_nothing_fails_when_a_standby_comes_back(name: str, model: str) -> None:
    assert played(name, model).figures.failed_on_return == 0


@cases("slow-standby")
def test_a_slow_standby_gets_few_reads(name: str, model: str) -> None:
    found = played(name, model)
    assert found.figures.share is not None
    assert found.figures.share < 0.35  # an even share is 0.5; a busy machine makes the fast one look slow, too


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("target", ["read-write", "primary"])
def test_a_primary_that_only_refuses_writes_is_left_whatever_the_group_asks_for(target: str, model: str) -> None:
    found = play("refuse-writes", model, target_session_attrs=target)
    assert set(found.figures.writes) == {found.writer}
    assert found.figures.failed_writes <= found.each, found.figures.errors


@pytest.mark.parametrize("model", MODELS)
def test_a_full_standby_is_said_to_be_full_in_the_servers_words(model: str) -> None:
    found = played("full-standby", model)
    words = [found.endpoint(found.watched, pool)["last_error"] for pool in found.pools]
    assert any("too many clients" in (each or "") or "connection slots" in (each or "") for each in words), words


@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_password_is_told_in_the_servers_words(model: str) -> None:
    found = played("wrong-password", model)
    places = [found.endpoint(found.watched, pool) for pool in found.pools]
    assert any("password authentication failed" in (each["last_error"] or "") for each in places), places
    assert all(each["fault"] in ("misconfigured", None) for each in places)


@pytest.mark.parametrize("model", MODELS)
def test_a_primary_that_starts_up_is_said_to_do_so(model: str) -> None:
    found = played("starting-up", model)
    words = [each["last_error"] or "" for pool in found.pools for each in pool["endpoints"]]
    assert any("starting up" in each for each in words), words
