"""Who holds a connection: found out when somebody asks, so that a checkout need not write it down.

A `with` block keeps its connection in a variable; so the stacks of all threads are searched for it, and for an
`AsyncPool` the coroutines of all tasks. `getconn`, whose connection may be anywhere by then, notes where it was called.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator
from time import monotonic
from types import CodeType, FrameType
from typing import Any, NamedTuple

import psycopg

from .core.group import Group
from .core.lane import Slot
from .drivers import Driver


class Holder(NamedTuple):
    """Who has a connection, and since when."""

    group: str
    endpoint: str
    connection: str
    """Which backend of the server it is."""
    since: float
    """Seconds it has been held."""
    where: str
    """File, line and function: inside a ``with`` block the line it is at now, after `getconn` that of the call."""
    thread: str

    def __str__(self) -> str:
        return f"{self.where} in {self.thread} for {self.since:.1f} s ({self.connection} on {self.endpoint})"


class Leased:
    """What has a slot in its hands, for `Pool.holders` to find."""

    __slots__ = ("_slot",)
    _slot: Slot | None


def _said_by_getconn(code: CodeType, lasti: int, who: int | str) -> tuple[str, str]:
    """`who`: a thread's identity, or the name of a task."""
    lines = [line for start, end, line in code.co_lines() if start <= lasti < end and line is not None]
    line = lines[0] if lines else code.co_firstlineno
    name = who if isinstance(who, str) else _thread_names().get(who, "a thread that has ended")
    return f"{code.co_filename}:{line} ({code.co_qualname})", name


def _thread_names() -> dict[int | None, str]:
    return {thread.ident: thread.name for thread in threading.enumerate()}


def _where(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_qualname})"


Places = dict[int, list[tuple[str, str]]]
"""Where connections are now, by their id: place and thread or task."""


def holders(group: Group, driver: Driver, places: Places | None = None) -> list[Holder]:
    now = monotonic()
    if places is None:
        places = _places()
    found = []
    for lane in group.lanes:
        idle = set(lane.idle)
        for slot in list(lane.slots):
            if slot in idle:
                continue
            seen = [_said_by_getconn(*slot.holder)] if slot.holder else places.get(id(slot.conn), [_NOWHERE])
            found.append(
                Holder(
                    group=group.name,
                    endpoint=lane.endpoint.label,
                    connection=driver.describe(slot.conn),
                    since=now - slot.taken,
                    where=" or ".join(where for where, _ in seen),
                    thread=" or ".join(thread for _, thread in seen),
                )
            )
    return sorted(found, key=lambda holder: -holder.since)


_NOWHERE = ("a place on no thread's stack", "no thread")


def _places() -> Places:
    """Where connections are now, by their id: the outermost function of each thread that has one in a variable.

    Found out when somebody asks, so that a checkout need not write it down. A variable may have outlived its block,
    so there can be more than one place.
    """
    names = _thread_names()
    places: Places = {}
    for ident, top in sys._current_frames().items():
        outermost: dict[int, FrameType] = {}
        frame: FrameType | None = top
        while frame is not None:
            for key in _connections(frame):
                outermost[key] = frame
            frame = frame.f_back
        for key, frame in outermost.items():
            places.setdefault(key, []).append((_where(frame), names.get(ident, f"thread {ident}")))
    return places


def _connections(frame: FrameType) -> Iterator[int]:
    """The ids of those that a function has in its variables."""
    for value in tuple(frame.f_locals.values()):
        if isinstance(value, Leased):
            value = value._slot and value._slot.conn
        if isinstance(value, psycopg.Connection | psycopg.AsyncConnection):
            yield id(value)


# -- asyncio --------------------------------------------------------------------------------------------------------


def task_name(task: asyncio.Task[Any] | None) -> str:
    """As it is shown to people."""
    return "no task" if task is None else f"task {task.get_name()}"


def task_places(loop: asyncio.AbstractEventLoop | None) -> Places:
    """The same for the tasks of an event loop: they have no stack while they wait, but a chain of coroutines.

    That of a running task ends where it runs: it is on the stack of its thread.
    """
    places: Places = {}
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        seen: set[int] = set()
        for frame in _frames(task.get_coro()):
            for key in _connections(frame):
                if key not in seen:
                    seen.add(key)
                    places.setdefault(key, []).append((_where(frame), task_name(task)))
    return {**_places(), **places}


def _frames(waits: Any) -> Iterator[FrameType]:
    """Those of a coroutine, of what it awaits, and so on."""
    while waits is not None:
        for kind in "cr", "ag", "gi":  # coroutine, asynchronous generator, generator
            frame = getattr(waits, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                waits = getattr(waits, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            # What `async for` awaits only leads to its generator, and does not say so.
            leads = gc.get_referents(waits) if type(waits).__name__.startswith("async_generator") else ()
            waits = next((each for each in leads if hasattr(each, "ag_frame")), None)
