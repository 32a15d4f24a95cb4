"""Asks the callable that a user gave as `pass`, by a thread of its own, so that nobody waits longer than it may.

Such a callable fetches a token from somewhere, and may hang. A thread in it cannot be ended; so of one callable only
`_AT_ONCE` calls are under way at a time, however many connects and probes ask, and whoever comes later stands in line.
Each has a call of its own, begun after it asked: a token may be good for one login, or for a minute.

A call may also hang for ever, on a connection to a service that has gone, where the next one would succeed. So while
that many hang another is begun now and then: each after it has been waited for twice as long as for the one before.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .. import forks
from ..background import Worker
from ..clock import monotonic
from ..config.keys import nature
from ..config.secret import Secret
from ..core.evidence import Fault
from . import ConnectFailed, DriverTimeout

_AT_ONCE = 4
_PATIENCE = 60.0  # s before the first call beyond that

Call = Future[Any]


class _Line:
    """The calls of one callable. All of it is read and written with `_lock` held."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.ask = ask
        self.waiting: deque[Call] = deque()
        self.workers: dict[object, Worker] = {}
        self.under_way: dict[object, float] = {}  # a token for each thread -> when its call began

    def has_room(self, now: float) -> bool:
        for token in [token for token, worker in self.workers.items() if worker.gone]:
            self.leave(token)  # its thread has died
        beyond = len(self.under_way) - _AT_ONCE
        return beyond < 0 or now - max(self.under_way.values()) > _PATIENCE * 2.0**beyond

    def leave(self, token: object) -> None:
        self.workers.pop(token, None)
        self.under_way.pop(token, None)


_lock = threading.RLock()  # as that of the pools: a signal handler may come at any moment
_lines: dict[int, _Line] = {}  # by the id of the callable, which the line keeps alive


def call(ask: Callable[[], Any]) -> Call:
    """What the callable gives. Raises RuntimeError if there is no thread to be had.

    To be cancelled by whoever waits no longer: then it is not called, unless it has been already.
    """
    mine: Call = Future()
    token = object()
    line = _Line(ask)
    try:
        with _lock:
            line = _lines.setdefault(id(ask), line)
            line.waiting = deque(each for each in line.waiting if not each.cancelled())
            line.waiting.append(mine)
            now = monotonic()
            if not line.has_room(now):
                return mine
            line.under_way[token] = now
            worker = line.workers[token] = Worker("pgdbpool password", _work, line, token)
        worker.start()
    except BaseException:  # no thread to be had, or a signal handler has raised
        with _lock:
            mine.cancel()
            _leave(line, token)
        raise
    return mine


def _work(line: _Line, token: object) -> None:
    while (mine := _next(line, token)) is not None:
        try:
            mine.set_result(line.ask())
        except BaseException:
            mine.set_exception(sys.exception())  # without a name, or it would be in this frame for a while
        del mine  # what it holds is secret, and nobody's who does not wait for it


def _next(line: _Line, token: object) -> Call | None:
    """The next one in line that is still waited for; None: there is none, and the thread ends."""
    with _lock:
        while line.waiting:
            mine = line.waiting.popleft()
            if mine.set_running_or_notify_cancel():
                line.under_way[token] = monotonic()
                return mine
        _leave(line, token)
        return None


def _leave(line: _Line, token: object) -> None:
    line.leave(token)
    if not line.under_way and _lines.get(id(line.ask)) is line:
        del _lines[id(line.ask)]


class Given(list[Any]):
    """What a callable gave, hidden: it may be a password, or something with one in it.

    A list, since making one enters no function, and leaves no variable behind.
    """

    @property
    def value(self) -> Any:
        return self[0]

    def __repr__(self) -> str:
        return "[...]"


def outcome(call: Call) -> Given:
    """What a call that is not waited for any longer has given. Raises what it raised, or DriverTimeout."""
    if call.cancelled() or not call.done():
        raise DriverTimeout("it has not returned in time")
    return Given([call.result()])


def checked(given: Given) -> Secret | None:
    """The password; None: libpq looks for one. Raises ConnectFailed for what can be none."""
    problem = _unfit(given)
    if problem:
        raise ConnectFailed(
            f"the callable given as pass returned {problem}; expected a string of text", Fault.MISCONFIGURED
        )
    return None if given.value is None else Secret(str.__str__(given.value))


def _unfit(given: Given) -> str:
    if given.value is None:
        return ""
    if not isinstance(given.value, str):
        return nature(given.value)  # not decoded or converted: nobody would notice a mistake in that
    if "\0" in given.value:
        return "a string with a NUL character in it"
    try:
        given.value.encode()
    except UnicodeEncodeError:
        return "a string that is not valid Unicode"
    return ""


def failed() -> ConnectFailed:
    """What it means that there is no password, as an exception is handled that says so.

    Not in the words of the callable, which may be secret.
    """
    kind = sys.exc_info()[0]
    words = "has not returned in time" if kind is DriverTimeout else f"raised {kind.__name__ if kind else 'nothing'}"
    return ConnectFailed(f"the callable given as pass {words}", Fault.MISCONFIGURED)


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _lines.clear()  # the threads are the parent's


forks.in_child(_after_fork)
