"""``python -m tests.simulation``: replay a seed, try many, or try until stopped."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from itertools import count

from .run import Outcome, run

_BLOCK = 50  # seeds that a process takes at a time
_REPORT_EVERY = 10.0  # s


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--trace", action="store_true", help="with --seed: say what happens")
    parser.add_argument("--seeds", type=int, default=1000, help="how many to try (default 1000)")
    parser.add_argument("--first", type=int, help="the first of them (default 0; with --soak: anywhere)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    parser.add_argument("--soak", action="store_true", help="with all processors, until stopped")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return replay(arguments.seed, trace=arguments.trace)
    if arguments.soak:
        return soak(random.SystemRandom().randrange(10**9) if arguments.first is None else arguments.first)
    return many(arguments.first or 0, arguments.seeds, keep_going=arguments.keep_going)


class Tally:
    """What became of the seeds so far."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.counts: Counter[str] = Counter()
        self.seeds = self.steps = self.failed = 0
        self.slowest = 0.0

    def add(self, outcome: Outcome) -> None:
        self.counts += outcome.counts
        self.seeds += 1
        self.steps += outcome.steps
        self.slowest = max(self.slowest, outcome.recovered)
        if outcome.violation is not None:
            self.failed += 1
            print(f"{outcome.violation}\n    {outcome.replay}", flush=True)

    def __str__(self) -> str:
        seconds = time.perf_counter() - self.began
        return (
            f"{self.seeds} seeds, {self.steps} steps, {seconds:.0f} s, {self.failed} failed; "
            f"the longest way back took {self.slowest:.0%} of its bound"
        )


def replay(seed: int, *, trace: bool) -> int:
    """One seed, with all that is known of it."""
    tally = Tally()
    outcome = run(seed, print if trace else None)
    if not trace:
        for what, number in sorted(outcome.counts.items()):
            print(f"{number:9d}  {what}")
    tally.add(outcome)
    print(f"seed {seed}: {outcome.steps} steps, {outcome.seconds:.3f} s, digest {outcome.digest:08x}")
    return int(outcome.violation is not None)


def many(first: int, number: int, *, keep_going: bool) -> int:
    """Some seeds, one after the other."""
    tally = Tally()
    for seed in range(first, first + number):
        tally.add(run(seed))
        if tally.failed and not keep_going:
            break
    print(tally)
    return int(tally.failed > 0)


def soak(first: int) -> int:
    """All processors, until stopped."""
    processes = os.cpu_count() or 1
    print(f"from seed {first} on, with {processes} processes; Ctrl-C ends it", flush=True)
    tally = Tally()
    said = time.perf_counter()
    with multiprocessing.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            for begin in count(first, processes * _BLOCK):
                for outcome in pool.imap_unordered(run, range(begin, begin + processes * _BLOCK)):
                    tally.add(outcome)
                    if time.perf_counter() > said + _REPORT_EVERY:
                        said = time.perf_counter()
                        print(tally, flush=True)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            pool.terminate()
    print(tally)
    return int(tally.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
