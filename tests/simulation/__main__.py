"""``python -m tests.simulation``: replay a seed, try many, or try for ever."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from .run import Outcome, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="The pool in a made-up world.")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--trace", action="store_true", help="say what happens")
    parser.add_argument("--seeds", type=int, default=1000, help="how many to try (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return replay(arguments.seed, arguments.trace)
    return many(arguments.first, arguments.seeds, arguments.keep_going)


def replay(seed: int, trace: bool) -> int:
    outcome = run(seed, print if trace else None)
    print(outcome)
    report(outcome)
    return int(outcome.violation is not None)


def report(outcome: Outcome) -> None:
    if outcome.violation is not None:
        print(f"{outcome.violation}\n    {outcome.replay}", flush=True)


def many(first: int, count: int, keep_going: bool) -> int:
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    failed = steps = 0
    slowest = 0.0
    seed = first
    for seed in range(first, first + count):
        outcome = run(seed)
        counts += outcome.counts
        steps += outcome.steps
        slowest = max(slowest, outcome.recovered)
        if outcome.violation is not None:
            failed += 1
            report(outcome)
            if not keep_going:
                break
    seconds = time.perf_counter() - began
    for what, number in sorted(counts.items()):
        print(f"{number:9d}  {what}")
    print(f"{seed + 1 - first} seeds, {steps} steps, {seconds:.1f} s, {failed} failed, longest way back {slowest:.0%}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
