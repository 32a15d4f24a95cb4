"""How often servers that are gone are asked whether they are back: one budget for the search in each process.

Callers wait for such a server, so one that has just gone is asked again soon; one that stays away must not keep a core
busy in each process, nor be met by a thousand processes at once when it comes back. The pause between two attempts at
one endpoint is the longest of::

    least      by what it said last: nothing is lighter than a connect that is refused; one to a server that is
               starting costs it a process
    time       one part in `SHARE` of the time for which nobody has answered there, at most `LONGEST`; not where the
               server is silent, since there each attempt takes long by itself
    number     so many endpoints, at `PER_SECOND` attempts for all of them together

and up to a quarter less than that, at random, so that processes that began together do not go on together. From
`SHARE * LONGEST` seconds on 1,000 processes ask less than 1,000 times a second.

Nothing in here waits or looks at a clock: the watches do, and those of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable

from .core.evidence import SILENT, Fault

HURRY = 0.1  # s between two probes of an endpoint while a wanted role is missing, and after a first failure
LEAST = {Fault.REFUSED: 0.03, Fault.UNREACHABLE: 0.05, Fault.STARTING: 0.05}  # s; HURRY for all others
SHARE = 20
LONGEST = 1.2  # s
PER_SECOND = 30.0
_JITTER = 0.25


class Search:
    """The endpoints where nobody answers, of one process. They are told apart by who asks there."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._gone: dict[object, tuple[float, Fault]] = {}  # since when, and how it failed last

    def failed(self, who: object, fault: Fault, now: float) -> None:
        """Nobody has answered there."""
        since, before = self._gone.get(who, (now, fault))
        if fault is Fault.STARTING is not before:  # it is back, nearly
            since = now
        self._gone[who] = since, fault

    def over(self, who: object) -> None:
        """Somebody has, or nobody asks there any more."""
        self._gone.pop(who, None)

    def pause(self, who: object, now: float) -> float | None:
        """Seconds, at least, between the beginnings of two attempts there. None: it is not gone."""
        if who not in self._gone:
            return None
        since, fault = self._gone[who]
        grown = 0.0 if fault in SILENT - LEAST.keys() else min((now - since) / SHARE, LONGEST)
        pause = max(LEAST.get(fault, HURRY), grown, len(self._gone) / PER_SECOND)
        return pause * (1.0 - _JITTER * self._random())
