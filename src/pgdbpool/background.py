"""What a pool does in the background belongs to no request.

A thread or task inherits the context variables of whoever starts it: tasks and callbacks of an event loop always,
threads where Python 3.14 is told so and in its free-threaded build. What lives as long as the pool would then see one
request's user, language or trace, that of the request which happened to come first, and would keep all of that alive.
So whatever is begun here begins with an empty context. What is done for one request while it waits, such as its COMMIT,
stays in its own.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVar

from .clock import monotonic
from .seldom import say_seldom

T = TypeVar("T")

nobodys = Context
"""Makes an empty context, for the callbacks of an event loop: one for each, since none can be entered twice."""


class _Unawaited(threading.Event):
    """What `Thread.start` waits for until the thread has begun: for ever, if it dies before. Here it does not wait."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


def thread(target: Callable[..., object], name: str, *args: Any) -> threading.Thread:
    """A daemon thread, not started; whoever starts it does not wait until it has begun."""
    if sys.version_info >= (3, 14):
        made = threading.Thread(target=target, name=name, args=args, daemon=True, context=Context())
    else:
        made = threading.Thread(target=target, name=name, args=args, daemon=True)
    made._started = _Unawaited()  # type: ignore[attr-defined]
    return made


def task(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of the running loop."""
    return asyncio.get_running_loop().create_task(work, context=Context())


# -- threads that may die ---------------------------------------------------------------------------------------------

BIRTH = 2.0  # s in which a thread begins, or is given up


class Worker:
    """A daemon thread, and whether it can still be counted on. Safe to use from any thread.

    A thread for which there is no memory may die before its first line, and nobody hears of it. So a worker that has
    not begun within `BIRTH` is given up: should it come later all the same it does nothing.
    """

    def __init__(self, name: str, work: Callable[..., object], *args: Any) -> None:
        self._turn: list[None] = [None]  # who pops it was first: the thread that begins, or whoever gives it up
        self._work = work
        self._args = args
        self._given_up_at = monotonic() + BIRTH
        self._thread = thread(self._run, name)

    def start(self) -> None:
        """Raises RuntimeError or MemoryError if there is no thread to be had."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait until it has ended, or is over because it never begins."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        if self._take_turn():
            self._work(*self._args)

    def _take_turn(self) -> bool:
        try:
            self._turn.pop()
        except IndexError:
            return False
        return True

    @property
    def gone(self) -> bool:
        """Whether it has ended, or never begins."""
        if self._thread.is_alive():
            return False
        if not self._turn:
            return True
        return monotonic() >= self._given_up_at and self._take_turn()


class Errands:
    """Workers that do one thing each. What one leaves half done, because it died, is put right by its `undo`."""

    def __init__(self) -> None:
        self._under_way: dict[object, tuple[Worker, Callable[[], object]]] = {}

    def start(self, name: str, work: Callable[[], object], undo: Callable[[], object]) -> None:
        """Raises RuntimeError or MemoryError if there is no thread to be had; then nothing is called."""
        token = object()
        worker = Worker(name, self._run, token, work, undo)
        try:
            self._under_way[token] = worker, undo
            worker.start()
        except BaseException:
            self._under_way.pop(token, None)
            raise

    def _run(self, token: object, work: Callable[[], object], undo: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            undo()
            say(error, "a thread of the pool failed")
        finally:
            self._under_way.pop(token, None)

    def sweep(self) -> float:
        """Put right what threads that are gone have left. Returns when to look again."""
        for token, (worker, undo) in list(self._under_way.items()):
            if worker.gone and self._under_way.pop(token, None) is not None:
                undo()
        return monotonic() + BIRTH if self._under_way else float("inf")


def say(error: BaseException, words: str) -> None:
    """Log what no code of ours has foreseen, if there is memory to do so."""
    with suppress(BaseException):
        say_seldom(logging.ERROR, f"{words}, and the pool goes on", error=error)
