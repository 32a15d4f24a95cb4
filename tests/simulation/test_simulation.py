"""Some thousands of seeds, and what makes them worth something: that a run can be replayed, and reaches everything."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .mutants import MUTANTS, Mutant
from .run import Outcome, run

BLOCKS = 25
SEEDS = 100  # in each block
ROOT = Path(__file__).parents[2]

seen: Counter[str] = Counter()


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_promise_holds_whatever_happens(block: int) -> None:
    broken: list[Outcome] = []
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        outcome = run(seed)
        seen.update(outcome.counts)
        if outcome.violation is not None:
            broken.append(outcome)
    assert not broken, "\n".join(f"{outcome.violation}\n    {outcome.replay}" for outcome in broken)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_seed_is_the_same_run(seed: int) -> None:
    one, other = run(seed), run(seed)
    assert one == other
    assert one.digest == other.digest


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_applies(mutant: Mutant) -> None:
    assert (ROOT / "src" / "pgdbpool" / mutant.file).read_text().count(mutant.old) == 1


def test_another_seed_is_another_run() -> None:
    assert len({run(seed).digest for seed in range(20)}) == 20


def test_another_process_makes_the_same_run() -> None:
    """Nothing depends on addresses in memory or on the hashes of strings."""
    code = "from tests.simulation.run import run; print([run(seed).digest for seed in range(20)])"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT / 'src'}", "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hashes in ("1", "2")
    }
    assert printed == {str([run(seed).digest for seed in range(20)])}


def test_a_trace_changes_nothing() -> None:
    lines: list[str] = []
    assert run(7, lines.append).digest == run(7).digest
    assert lines


def test_everything_that_can_happen_has_happened() -> None:
    """The seeds above reach all that the simulation is about; asked alone this test runs some of them itself."""
    for seed in range(BLOCKS * SEEDS):
        if all(seen[what] for what in EXPECTED):
            break
        seen.update(run(seed).counts)
    missing = [what for what in EXPECTED if not seen[what]]
    assert not missing


EXPECTED = """
    served; waits; handed over; PoolTimeout; TooManyWaiting; PoolExhausted; DBOfflineError; OutcomeUnknown
    DBConnectionError; Lost; Refused; interrupted; interrupted with a slot; resets; aborts; outages told
    session lost; goodbyes; put off; silent; reported; write refused; opened; probes
    connect: refused; connect: timeout; connect: starting; connect: full; connect: misconfigured
    connect: not made ready; connect: given up
    probe: refused; probe: timeout; probe: starting; probe: full; probe: misconfigured
    opened in vain: role; opened in vain: retired; opened in vain: closed; opened in vain: fenced
    closed: broken; closed: lifetime; closed: idle; closed: displaced; closed: drained; closed: resized; closed: role
    closed: busy; closed: closed; closed: fenced
    event: endpoint-up; event: endpoint-suspect; event: endpoint-down; event: role-changed; event: failover-started
    event: failover-finished; event: recovered; event: fenced
    kill; crash; stop; power_off; freeze; cut_off; lag; lose_messages; fill_up; lock_out; flap; terminate_sessions
    fail_over; switch_over; demote; refuse_writes; split; lie; everything_dies
    swallow_connects; crowded
    move_name; lead_to_several; switch_over_behind_the_name; old_primary_lives_on; renewals
    owner: resize; owner: pause; owner: resume; owner: drain; owner: check; owner: unready
"""
EXPECTED = [what.strip() for line in EXPECTED.strip().splitlines() for what in line.split(";")]
