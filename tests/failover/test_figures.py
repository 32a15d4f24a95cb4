"""How the figures are made of operations and of the story, without any server."""

import json
from collections import Counter
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from bench.failover.cli import ALL, worst
from bench.failover.figures import Figures, figures
from bench.failover.ops import Caller, Op
from bench.failover.report import Report
from bench.failover.stale import stale
from bench.failover.story import Possible, Story
from bench.failover.targets import CHECKS, targets

OLD, NEW, THIRD = 1, 2, 3
WRITER, READER = Caller(0, "write"), Caller(1, "read")
SERVERS = {OLD: "node1", NEW: "node2", THIRD: "node3"}


def write(number: int, began: float, ended: float, outcome: Any = "done", server: int | None = OLD) -> Op:
    return Op(WRITER.number, "write", number, began, ended, outcome, server if outcome == "done" else None)


def read(began: float, ended: float, server: int | None = NEW, outcome: Any = "done") -> Op:
    return Op(READER.number, "read", 0, began, ended, outcome, server)


def look(*ops: Op, hung: dict[int, float] | None = None, **story: Any) -> Figures:
    """Figures of a story that began at 0, had a blow from 10 to 11, was calm from 20 to 30, and was over at 40."""
    about: dict[str, Any] = {"faults": [(10.0, 11.0)], "calm": (20.0, 30.0), "over": 40.0, "writer": NEW} | story
    return figures("pgdbpool", [WRITER, READER], ops, hung or {}, Story(SERVERS, **about))


def test_failures_before_the_blow_are_counted_apart() -> None:
    found = look(write(1, 1, 2, "failed"), write(2, 9, 10.5, "failed"), read(12, 13, None, "failed"))
    assert (found.before, found.failed_writes, found.failed_reads, found.failed) == (1, 1, 1, 2)


def test_the_time_that_a_blow_takes_is_no_stall_of_the_pool() -> None:
    assert look(read(9.5, 11.25), read(10.5, 10.9), read(13, 13.125)).stall_read == 0.75
    assert look(read(10.5, 10.9)).stall_read == 0.0


def test_a_checkout_that_failed_is_told_from_a_statement_that_did() -> None:
    statement = write(1, 10, 12, "failed")._replace(error="OperationalError: the connection is lost")
    checkout = write(2, 13, 14, "failed")._replace(error="PoolTimeout: nobody there")
    assert look(statement, checkout).failed_checkouts == 1


def test_a_write_in_doubt_counts_as_failed_for_the_caller_who_was_told_so() -> None:
    assert look(write(1, 10, 12, "doubt")).failed_writes == 1


def test_in_flight_are_callers_with_an_operation_under_way_during_the_blow() -> None:
    found = look(write(1, 9, 9.9), write(2, 9.9, 10.1), write(3, 10.2, 10.3), read(11.1, 12))
    assert (found.writes_in_flight, found.reads_in_flight) == (1, 0)


def test_a_caller_is_in_flight_once_for_each_blow() -> None:
    assert look(write(1, 9, 12), write(2, 14, 16), faults=[(10.0, 11.0), (15.0, 15.5)]).writes_in_flight == 2


def test_a_caller_that_hangs_is_in_flight_and_its_operation_lasts_to_the_end() -> None:
    found = look(read(5, 6), hung={WRITER.number: 9.0})
    assert (found.hung, found.writes_in_flight) == (1, 1)
    assert (found.longest, found.longest_write, found.longest_read) == (31.0, 31.0, 0.0)


def test_the_first_write_is_that_of_the_new_primary() -> None:
    ops = (write(1, 12, 13, server=OLD), write(2, 13, 16, server=NEW))
    assert look(*ops, possible={"write": Possible(12.5, 14.0)}).first_write == 2.0


def test_a_first_write_before_the_observers_took_no_time() -> None:
    assert look(write(1, 12, 13, server=NEW), possible={"write": Possible(12.5, 14.0)}).first_write == 0.0


def test_a_write_that_never_comes_is_infinitely_late() -> None:
    assert look(possible={"write": Possible(12.5, 14.0)}).first_write == inf


def test_without_an_interruption_there_is_no_first_write() -> None:
    assert look(write(1, 12, 13, server=NEW)).first_write is None


def test_reads_by_server_are_those_of_the_calm() -> None:
    found = look(read(15, 16, OLD), read(21, 22, NEW), read(22, 23, NEW), read(23, 24, THIRD), read(30, 31, OLD))
    assert found.reads == {"node2": 2, "node3": 1}


def test_the_share_of_a_standby_is_among_the_reads_of_standbys() -> None:
    found = look(read(21, 22, NEW), read(22, 23, OLD), read(23, 24, THIRD), read(23, 24, THIRD), watched=THIRD)
    assert found.share == pytest.approx(2 / 3)


def test_a_standby_without_reads_has_no_share() -> None:
    assert look(watched=THIRD).share == 0.0
    assert look().share is None


def test_a_share_is_fair_when_it_was_so_over_a_while() -> None:
    reads = [
        read(t, t + 0.1, THIRD if t >= 25 and round(t * 10) % 2 else OLD) for t in (x / 10 for x in range(200, 300))
    ]
    found = look(*reads, watched=THIRD, returned=20.0)
    assert found.fair_after == pytest.approx(6.6, abs=0.5)


def test_a_share_that_never_becomes_fair_is_infinitely_late() -> None:
    assert look(read(21, 22, OLD), watched=THIRD, returned=20.0).fair_after == inf


def test_slow_reads_are_compared_with_those_of_the_other_standby() -> None:
    fast = [read(21, 21.001, OLD)] * 97
    slow = [read(22, 22.05, THIRD)] * 3
    found = look(*fast, *slow, watched=THIRD)
    assert found.p99_ratio == pytest.approx(50)
    assert look(*fast, watched=THIRD).p99_ratio == pytest.approx(1)


def test_an_acknowledged_write_that_is_not_there_is_lost() -> None:
    found = look(write(1, 1, 2), write(2, 2, 3), rows=Counter({1: 1}))
    assert (found.lost, found.twice, found.phantoms) == (1, 0, 0)


def test_a_write_that_is_there_twice_is_seen_whatever_its_caller_was_told() -> None:
    found = look(write(1, 1, 2), write(2, 2, 3, "doubt"), rows=Counter({1: 2, 2: 2}))
    assert (found.lost, found.twice) == (0, 2)


def test_a_failed_write_that_is_there_is_a_phantom_unless_it_was_in_doubt() -> None:
    found = look(write(1, 1, 2, "failed"), write(2, 2, 3, "doubt"), rows=Counter({1: 1, 2: 1}))
    assert (found.lost, found.phantoms) == (0, 1)


def test_figures_can_be_written_down_and_read_again() -> None:
    found = look(write(1, 12, 13), possible={"write": Possible(12.5, 14.0)})
    assert Figures.from_json(found.as_json()) == found
    assert found.as_json()["first_write"] == "never"


LET_IN = "LOG:  connection authorized: user=app database=app application_name={}"
WRITES = "LOG:  execute <unnamed>: insert into items (id, caller) values ($1, $2) returning inet_server_port()"


def logged(*lines: tuple[str, str, str]) -> str:
    return "".join(f"2026-11-25 10:00:{at} UTC [42] app={name} {words}\n" for at, name, words in lines)


def test_writes_that_reach_the_old_primary_are_stale_from_the_first_session_with_the_new_one_on() -> None:
    old = logged(("01.000", "one", WRITES), ("01.250", "one", WRITES), ("09.000", "one", "LOG:  statement: select 1"))
    new = logged(("01.100", "[unknown]", LET_IN.format("one")), ("08.000", "[unknown]", LET_IN.format("one")))
    assert stale(old, new, ["one"]) == pytest.approx(0.15)


def test_each_process_has_sessions_of_its_own() -> None:
    old = logged(("01.000", "one", WRITES), ("05.000", "two", WRITES), ("09.000", "three", WRITES))
    new = logged(("02.000", "[unknown]", LET_IN.format("one")), ("06.000", "[unknown]", LET_IN.format("two")))
    assert stale(old, new, ["one", "two"]) == 0
    assert stale(old, new, ["three"]) is None


def test_results_are_shown_that_know_nothing_of_a_newer_scenario_or_figure(tmp_path: Path) -> None:
    row = look(write(1, 12, 13)).as_json()
    del row["stale"]
    results = [{"name": name, "title": name, "rows": [row]} for name in ("kill-primary", "given up since")]
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"environment": {}, "results": results}))
    report = Report.read_json(file)
    assert [result.name for result in report.results] == ["kill-primary", "given up since"]
    assert report.verdicts()
    assert all(result.lines() for result in report.results)


def test_of_several_rounds_the_worst_counts() -> None:
    one = look(write(1, 9, 12, "failed"), write(2, 12, 15, server=NEW), possible={"write": Possible(12.5, 14.0)})
    two = look(write(1, 9, 11), write(2, 11, 19, server=NEW), possible={"write": Possible(12.5, 14.0)})
    found = worst([one, two])
    assert (found.failed_writes, found.first_write, found.longest) == (1, 5.0, 8.0)
    assert worst([one]) == one


def test_every_scenario_has_something_to_reach() -> None:
    assert set(CHECKS) == set(ALL)


def test_a_target_that_was_missed_is_said_to_be() -> None:
    found = look(read(12, 13, None, "failed"), hung={WRITER.number: 9.0})
    verdicts = {target.what: target.reached for target in targets("freeze-primary", [found])}
    assert verdicts["freeze-primary, pgdbpool: callers that hang"] is False
    assert targets("freeze-primary", [replace(found, peer="psycopg_pool")]) == []
