"""Writes the file of this process.

A process has one `Publisher` for each application that its pools belong to, which is mostly one. It has a thread of its
own, so that a disk that hangs holds up nothing else: no pool, no event loop, no request. Only where all its pools are
non-threaded there is none: then the file is written by whoever returns a connection, at most once a second, and for at
most one part in a hundred of the time.

A pool joins when it is first used in a process, so a child that never uses the pool it inherited is not seen. Nothing
here may disturb a pool: what goes wrong is logged once.

No lock is waited for: joining and leaving is one operation on a dictionary, and a publisher that is at work already is
left alone. A thread that has died is replaced by the pools' own maintenance, see `tend`.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import thread_time, time
from typing import Protocol
from weakref import ref

from .. import background, forks
from ..clock import monotonic
from ..config import StatusSettings
from ..core.events import Event
from . import heirs, place
from .alive import Identity, myself
from .chronicle import Chronicle, Subject
from .reader import sweep
from .record import Worker, encoded

logger = logging.getLogger("pgdbpool")

_SHARE = 100  # writing takes at most one part in so many of the time
_ON_THE_WAY = 1.0  # s: the shortest interval in the non-threaded model
_AFTER_FAILURE = 10.0  # s
_RETRY = 1.0  # s after which a thread is asked for again where there was none to be had
_SWEEP_EVERY = 60.0  # s
_LAST_WORDS = 1.0  # s that the end of the process waits for the thread
_FIRST_SWEEP = 10.0  # s after the first file: by then whoever is to be told of what is removed has been told of `heirs`


class Publishable(Subject, Protocol):
    """A pool, as far as this module knows it."""

    @property
    def closed(self) -> bool: ...
    def on_event(self, listener: Callable[[Event], object]) -> Callable[[], None]: ...


class Publisher:
    """Writes what some pools of this process do."""

    def __init__(self, settings: StatusSettings) -> None:
        self.settings = settings
        self._pools: dict[ref[Publishable], Chronicle] = {}
        self._said: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Begin anew, as in a new process."""
        for chronicle in self._pools.values():
            chronicle.forget()
        self._active: set[ref[Publishable]] = set()  # those that are used in this process
        self._shown: set[ref[Publishable]] = set()  # those in the file
        self._path: Path | None = None
        self._identity: Identity | None = None
        self._thread: background.Worker | None = None
        self._employing = threading.Lock()  # never waited for
        self._retry_at = float("-inf")
        self._threaded: set[ref[Publishable]] = set()  # those of the active that want a thread to do it
        self._wake = threading.Event()
        self._at_work = threading.Lock()  # never waited for
        self._next = float("-inf")
        self._sweep_at: float | None = None

    def join(self, pool: Publishable, kind: str) -> None:
        """The pool is used in this process."""
        key = ref(pool)
        if key not in self._pools:
            self._pools[key] = chronicle = Chronicle(kind)
            pool.on_event(chronicle.heard)
        self._active.add(key)
        if kind == "non-threaded":
            self._write()
        else:
            self._threaded.add(key)
            self._employ()

    def leave(self, pool: Publishable) -> None:
        """The pool was closed."""
        self._active.discard(ref(pool))
        self._threaded.discard(ref(pool))
        if self._has_thread:
            self._wake.set()
        else:
            self._write()

    def pass_by(self) -> None:
        """Write if it is time: for those who have no thread to do it."""
        if monotonic() >= self._next and not self._has_thread:
            self._write()

    def tend(self, now: float) -> None:
        """Replace a thread that has died. Called again and again, by any thread."""
        if self._threaded and now >= self._retry_at and not self._has_thread:
            self._employ()

    def end(self) -> None:
        """The process ends."""
        self._active.clear()
        if self._path is not None and self._identity is not None and self._identity.pid == os.getpid():
            heirs.tell(self._worker(self._identity, time(), *self._pools), self._path.parent)
            self._remove()
        at_work = self._thread
        if at_work is not None:
            self._wake.set()
            at_work.join(_LAST_WORDS)

    # -- the thread -------------------------------------------------------------------------------------------

    @property
    def _has_thread(self) -> bool:
        return self._thread is not None and not self._thread.gone

    def _employ(self) -> None:
        if not self._employing.acquire(blocking=False):  # another thread is about to
            return
        try:
            if not self._has_thread:
                self._thread = background.Worker("pgdbpool publisher", self._run)
                self._thread.start()
        except (RuntimeError, MemoryError):  # no more threads to be had
            self._thread = None
            self._retry_at = monotonic() + _RETRY
            self._say("cannot start a thread to publish what the pools do")
        finally:
            self._employing.release()

    def _run(self) -> None:
        while self._active:
            self._wake.clear()
            self._write()
            self._wake.wait(max(0.0, self._next - monotonic()))
        self._thread = None
        self._write()  # that there is nothing any more
        if self._active:  # since a moment ago
            self._employ()

    # -- the file ---------------------------------------------------------------------------------------------

    def _write(self) -> None:
        if not self._at_work.acquire(blocking=False):
            return
        try:
            began, clock = monotonic(), self._clock()
            spent = clock()
            try:
                self._publish(began)
                pause = self.settings.interval
                if not self._has_thread:
                    pause = max(pause, _ON_THE_WAY)
            except OSError as error:
                self._say(f"cannot publish what the pools do: {error}")
                pause = _AFTER_FAILURE
            except Exception as error:  # a mistake of ours must not disturb anybody
                self._say(f"cannot publish what the pools do: {type(error).__name__}: {error}")
                pause = _AFTER_FAILURE
            self._next = max(began + pause, monotonic() + _SHARE * (clock() - spent))
        finally:
            self._at_work.release()

    def _clock(self) -> Callable[[], float]:
        """What is spent: of a thread the processor's time, of a caller all of it."""
        return thread_time if self._has_thread else monotonic

    def _publish(self, began: float) -> None:
        now = time()
        gone = [key for key in self._shown if (pool := key()) is not None and pool.closed]
        if gone and self._path is not None and self._identity is not None:
            heirs.tell(self._worker(self._identity, now, *gone), self._path.parent)
        self._drop_closed()
        self._shown = self._active.copy()
        if not self._shown:
            self._remove()
            return
        if self._path is None or self._identity is None:
            self._identity = myself()
            name = place.file_name(self.settings.name, self._identity.pid, secrets.token_hex(4))
            self._path = place.prepared(self.settings.directory) / name
        try:
            with place.opened(self._path.parent) as here:
                here.replace(self._path.name, encoded(self._worker(self._identity, now, *self._shown)))
        except FileNotFoundError:  # somebody has removed the directory
            self._path = None
            raise
        if self._sweep_at is None:
            self._sweep_at = began + _FIRST_SWEEP
        if began >= self._sweep_at:
            self._sweep_at = began + _SWEEP_EVERY
            sweep(self._path.parent, self.settings.name)

    def _remove(self) -> None:
        if self._path is not None:
            with suppress(OSError), place.opened(self._path.parent) as here:
                here.remove(self._path.name)

    def _drop_closed(self) -> None:
        for key in list(self._pools):
            pool = key()
            if pool is None or pool.closed:
                self._active.discard(key)
                self._threaded.discard(key)
                if pool is None:
                    del self._pools[key]

    def _worker(self, identity: Identity, now: float, *keys: ref[Publishable]) -> Worker:
        """This process, and what these of its pools are doing."""
        records = [
            self._pools[key].record(pool, now)
            for key in list(self._pools)  # in the order in which they joined
            if key in keys and (pool := key()) is not None
        ]
        return Worker(
            name=self.settings.name,
            identity=identity,
            at=now,
            interval=self.settings.interval,
            by_itself=self._has_thread,
            pools=tuple(records),
        )

    def _say(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            logger.warning("%s", words)


# -- which publisher ------------------------------------------------------------------------------------------

_publishers: dict[StatusSettings, Publisher] = {}
_everybody: StatusSettings | None = None  # where pools go that have no `status` of their own
_used: dict[ref[Publishable], str] = {}  # pools that are used in this process and have no `status`, and their kinds


def publish_all(name: str = "default", directory: str | None = None, interval: float = 1.0) -> None:
    """Publish all pools of this process that have no `status` in their configuration, now and later.

    This is what mounting a status page does. It holds for children of this process, too. Safe in any thread.
    """
    global _everybody
    _everybody = StatusSettings(name=name, directory=directory, interval=interval)
    for key, kind in list(_used.items()):
        pool = key()
        if pool is not None and not pool.closed:
            appear(pool, kind, None)


def applications() -> list[StatusSettings]:
    """What the pools of this process are published as."""
    return list(_publishers)


def appear(pool: Publishable, kind: str, own: StatusSettings | None) -> None:
    """The pool is used in this process from now on. `own` is its `status`."""
    settings = own or _everybody
    if own is None:
        _used[ref(pool, _forget)] = kind
    if settings is not None:
        publisher = _publishers.get(settings) or _publishers.setdefault(settings, Publisher(settings))
        publisher.join(pool, kind)


def _forget(key: ref[Publishable]) -> None:
    _used.pop(key, None)


def disappear(pool: Publishable) -> None:
    """The pool was closed."""
    _used.pop(ref(pool), None)
    for publisher in list(_publishers.values()):
        publisher.leave(pool)


def pass_by() -> None:
    """Somebody returns a connection of a non-threaded pool."""
    for publisher in list(_publishers.values()):
        publisher.pass_by()


def tend(now: float) -> None:
    """The maintenance of a pool that is not non-threaded: see to it that those who publish are still there."""
    for publisher in list(_publishers.values()):
        publisher.tend(now)


def _after_fork() -> None:
    _used.clear()
    for publisher in _publishers.values():
        publisher.begin()


def _at_exit() -> None:
    for publisher in _publishers.values():
        publisher.end()


forks.in_child(_after_fork)
atexit.register(_at_exit)
