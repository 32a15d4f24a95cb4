"""What the workers met, written down by them and read by the display and the verdict.

Answers are kept for a moment only, to say how fast the servers are now. The end of each operation is kept for the
whole run: whether it was done, and the longest time in which a group had none done, its stall.
"""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

STEP = 0.5  # s that are counted together
WINDOW = 2.0  # s of answers that "now" means


class Outcome(StrEnum):
    """How an operation ended, as far as its worker can tell."""

    DONE = "done"
    FAILED = "failed"  # and was not done
    DOUBT = "in doubt"  # may or may not have been done


@dataclass
class Tally:
    """One group, over the whole run."""

    ended: Counter[Outcome] = field(default_factory=Counter)
    last_done: float = 0.0
    stall: float = 0.0
    stalled_at: float = 0.0
    """When the longest stall began."""
    per_step: Counter[int] = field(default_factory=Counter)
    """Operations done in each `STEP` since the start."""

    def rate(self, now: float) -> float:
        """Operations done per second, in the last whole second."""
        last = int(now / STEP)
        steps = int(1 / STEP)
        return sum(self.per_step[step] for step in range(last - steps, last)) / (steps * STEP)


@dataclass(frozen=True)
class Pace:
    """One endpoint, now."""

    rate: float = 0.0
    share: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


def percentile(ordered: Sequence[float], part: float) -> float:
    """The value that `part` of the values do not exceed; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


class Measure:
    """Safe to use from many threads."""

    def __init__(self, groups: Iterable[str]) -> None:
        self._began = time.monotonic()
        self.groups = {group: Tally() for group in groups}
        self.writes: dict[int, tuple[str, Outcome]] = {}
        """Every operation's number, its group, and how it ended."""
        self.errors: Counter[str] = Counter()
        self.hung: list[str] = []
        """Workers that did not end."""
        self._answers: deque[tuple[float, int, float]] = deque()
        self._lock = threading.Lock()

    def start(self) -> None:
        """The load begins now."""
        self._began = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def answered(self, port: int, seconds: float) -> None:
        """A server has answered one statement."""
        self._answers.append((time.monotonic(), port, seconds))

    def finished(self, group: str, number: int, outcome: Outcome, error: Exception | None = None) -> None:
        """An operation has ended."""
        now = self.elapsed()
        with self._lock:
            tally = self.groups[group]
            tally.ended[outcome] += 1
            self.writes[number] = (group, outcome)
            if outcome is Outcome.DONE:
                self._stalled(tally, now)
                tally.last_done = now
                tally.per_step[int(now / STEP)] += 1
            elif error is not None:
                words = str(error).strip().splitlines() or [""]
                self.errors[f"{group}: {type(error).__name__}: {words[0]}"] += 1

    def _stalled(self, tally: Tally, now: float) -> None:
        if now - tally.last_done > tally.stall:
            tally.stall, tally.stalled_at = now - tally.last_done, tally.last_done

    def end(self) -> None:
        """The load is over: a stall that lasts until now counts too."""
        now = self.elapsed()
        with self._lock:
            for tally in self.groups.values():
                self._stalled(tally, now)

    def pace(self) -> dict[int, Pace]:
        """How fast the server at each port is now."""
        now = time.monotonic()
        answers = self._answers
        while answers and answers[0][0] < now - WINDOW:
            answers.popleft()
        times: defaultdict[int, list[float]] = defaultdict(list)
        for _, port, seconds in tuple(answers):
            times[port].append(seconds)
        span = max(0.1, min(WINDOW, self.elapsed()))
        total = sum(map(len, times.values()))
        paces = {}
        for port, values in times.items():
            values.sort()
            p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
            paces[port] = Pace(len(values) / span, len(values) / total, p50, p99)
        return paces
