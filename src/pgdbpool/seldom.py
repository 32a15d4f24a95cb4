"""Says in the log what happens again and again, without filling it.

Of what is the same the log gets one line, or a few, at once, and after that one in a while, which says how many were
left out.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Hashable

from .clock import monotonic

logger = logging.getLogger("pgdbpool")

_MOST = 1000  # different things that are remembered


class Rate:
    """Lets through `at_once` of each key, and after that one every so many seconds. Safe to use from many threads."""

    def __init__(self, at_once: int, every: float) -> None:
        self._at_once = at_once
        self._every = every
        self._allowance: dict[Hashable, tuple[float, float, int]] = {}

    def admits(self, key: Hashable, now: float) -> int | None:
        """None: this one is left out. Else how many were left out since the last that was let through."""
        lines, since, left_out = self._allowance.get(key, (float(self._at_once), now, 0))
        lines = min(float(self._at_once), lines + (now - since) / self._every)
        if lines < 1:
            self._allowance[key] = lines, now, left_out + 1
            return None
        if len(self._allowance) >= _MOST:
            self._allowance.clear()
        self._allowance[key] = lines - 1, now, 0
        return left_out


def left_out(number: int) -> str:
    """Words for the end of a line."""
    return f" ({number} lines like this were left out)" if number else ""


_rate = Rate(1, 60.0)


def say_seldom(level: int, words: str, *, of: Hashable = None, error: BaseException | None = None) -> None:
    """Log it, with the traceback of an `error`; at most once a minute for the same words, or for the same `of`.

    Of an error that was not raised here, but by a signal handler of the application's say, type and place are told; of
    none what it was raised in the course of.
    """
    number = _rate.admits(words if of is None else of, monotonic())
    if number is None:
        return
    if error is None or _raised_here(error):
        logger.log(level, "%s%s%s", words, left_out(number), "" if error is None else f"\n{traced(error)}")
    else:
        logger.log(level, "%s%s: %s\n%s", words, left_out(number), type(error).__name__, places(error))


def traced(error: BaseException) -> str:
    """Its traceback and words, and nothing of those that it was raised from or in the course of.

    A caller may come to us while it handles an exception of its own, which may have anything in its words. So none of
    our errors is logged by `exc_info`: formatters, and tools that listen to the log, follow the whole chain.
    """
    return "".join(traceback.format_exception(error, chain=False)).rstrip()


def places(error: BaseException) -> str:
    """The lines through which an error came, without its words and variables."""
    return "".join(traceback.format_tb(error.__traceback__)).rstrip()


def _raised_here(error: BaseException) -> bool:
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return not frames or frames[-1].startswith(_HERE)


_HERE = os.path.dirname(__file__) + os.sep
