"""The load: threads that take a connection of each group in turn, ask ``select 1`` and give it back.

Nothing is written. Each thread has samples of its own, which nobody else touches until it has ended. What fails is
counted, and followed by a short pause, so that a server that refuses everything is not hammered.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Sequence
from time import monotonic, perf_counter

import psycopg

from pgdbpool.errors import Error
from pgdbpool.sync import Pool

PAUSE = 0.05  # s, after a failure
PATIENCE = 5.0  # s: how long a thread waits for a connection at most


class Samples:
    """What one thread has seen of one group. Times are seconds."""

    def __init__(self) -> None:
        self.waits = array("d")
        self.uses = array("d")
        self.failures: Counter[str] = Counter()

    def add(self, other: Samples) -> None:
        self.waits += other.waits
        self.uses += other.uses
        self.failures += other.failures


class Load:
    """The load on `groups` of a pool for so many seconds. `run` returns at the end, or after `stop`."""

    def __init__(self, pool: Pool, groups: Sequence[str], threads: int, seconds: float) -> None:
        self._pool = pool
        self._groups = groups
        self._threads = threads
        self._stop = threading.Event()
        self._per_thread = [{name: Samples() for name in groups} for _ in range(threads)]
        self.seconds = seconds
        self.began = monotonic()
        self.lasted = 0.0
        """How long it really was."""

    def run(self) -> None:
        """All of it. With one thread it runs in the caller's own, as the non-threaded model wants it."""
        self.began = monotonic()
        try:
            if self._threads == 1:
                self._work(0)
                return
            threads = [
                threading.Thread(target=self._work, args=(number,), name=f"bench {number}", daemon=True)
                for number in range(self._threads)
            ]
            for thread in threads:
                thread.start()
            try:
                self._stop.wait(self.seconds)
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join(2 * PATIENCE)
        finally:
            self._stop.set()
            self.lasted = monotonic() - self.began

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.lasted or min(self.seconds, monotonic() - self.began)

    def done(self) -> int:
        """Operations so far."""
        return sum(len(samples.uses) for each in self._per_thread for samples in each.values())

    def samples(self) -> dict[str, Samples]:
        """What all threads have seen, by group."""
        total = {name: Samples() for name in self._groups}
        for each in self._per_thread:
            for name, samples in each.items():
                total[name].add(samples)
        return total

    def _work(self, number: int) -> None:
        mine = self._per_thread[number]
        order = [*self._groups[number % len(self._groups) :], *self._groups[: number % len(self._groups)]]
        end = self.began + self.seconds
        while True:
            for name in order:
                left = end - monotonic()
                if left <= 0 or self._stop.is_set():
                    return
                self._operation(name, mine[name])

    def _operation(self, name: str, samples: Samples) -> None:
        asked = perf_counter()
        try:
            with self._pool.connection(name, timeout=PATIENCE) as conn:
                got = perf_counter()
                conn.execute("select 1").fetchone()
            ended = perf_counter()
        except (Error, psycopg.Error) as error:
            samples.failures[_words(error)] += 1
            self._stop.wait(PAUSE)
        else:
            samples.waits.append(got - asked)
            samples.uses.append(ended - got)


def _words(error: Exception) -> str:
    """The kind of an error and its first line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"
