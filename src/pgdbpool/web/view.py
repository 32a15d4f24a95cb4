"""What there is to see: the files of all processes, added up, as the page wants them.

Several open pages ask for the same at nearly the same time; they are given the same answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import time

import msgspec

from ..clock import monotonic
from ..publish import HISTORY, STEP, Summary, merged, names, read
from ..publish.writer import applications, pass_by

_FRESH = 0.5  # s that an answer may be given again
_MOST_ANSWERS = 32


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page is told at once."""

    name: str
    """Of the application that is shown."""
    names: tuple[str, ...]
    """Of all that could be."""
    now: float
    """In seconds since the epoch, on this machine: the browser's clock may be wrong."""
    step: float
    history: int
    summary: Summary


class View:
    """Looks at the applications that `choices` names. Safe in any thread."""

    def __init__(self, choices: Callable[[], Sequence[str]], directory: str | None) -> None:
        self._choices = choices
        self._directory = directory
        self._lock = threading.Lock()  # guards the answers; held while one is made, so that it is made once
        self._answers: dict[tuple[str, float], tuple[float, bytes]] = {}

    def answer(self, wanted: str, since: float) -> bytes:
        """JSON of an `Answer` about the application `wanted` (or the first), with the samples from `since` on."""
        with self._lock:
            now = monotonic()
            key = wanted, since
            made_at, body = self._answers.get(key, (float("-inf"), b""))
            if now - made_at >= _FRESH:
                body = msgspec.json.encode(self._look(wanted, since))
                self._answers = {
                    each: old for each, old in list(self._answers.items())[-_MOST_ANSWERS:] if now - old[0] < _FRESH
                }
                self._answers[key] = now, body
            return body

    def _look(self, wanted: str, since: float) -> Answer:
        pass_by()
        choices = self._choices()
        name = wanted if wanted in choices else choices[0]
        return Answer(
            name=name,
            names=tuple(choices),
            now=time(),
            step=STEP,
            history=HISTORY,
            summary=merged(read(name, self._directory), samples_since=since),
        )


def everything(directory: str | None) -> Callable[[], Sequence[str]]:
    """All applications of this user."""
    return lambda: names(directory) or ["default"]


def ours(name: str | None) -> Callable[[], Sequence[str]]:
    """The application `name`; without it, those that the pools of this process belong to."""
    if name is not None:
        return lambda: [name]
    return lambda: sorted({each.name for each in applications()}) or ["default"]
