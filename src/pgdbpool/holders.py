"""Who holds a connection: found out when somebody asks, so that a checkout need not write it down.

A `with` block keeps its connection in a variable; so the stacks of all threads are searched for it. `getconn`, whose
connection may be anywhere by then, notes where it was called.
"""

from __future__ import annotations

import asyncio
import sys
import threading
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


def said_by_getconn(holder: tuple[CodeType, int, int]) -> tuple[str, str]:
    """Where it was called, and by which thread."""
    code, lasti, ident = holder
    lines = [line for start, end, line in code.co_lines() if start <= lasti < end and line is not None]
    line = lines[0] if lines else code.co_firstlineno
    return f"{code.co_filename}:{line} ({code.co_qualname})", _thread_names().get(ident, "a thread that has ended")


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
            seen = [said_by_getconn(slot.holder)] if slot.holder else places.get(id(slot.conn), [_NOWHERE])
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
            for value in tuple(frame.f_locals.values()):
                if isinstance(value, Leased):
                    value = value._slot and value._slot.conn
                if isinstance(value, psycopg.Connection | psycopg.AsyncConnection):
                    outermost[id(value)] = frame
            frame = frame.f_back
        for key, frame in outermost.items():
            places.setdefault(key, []).append((_where(frame), names.get(ident, f"thread {ident}")))
    return places


def task_places(loop: asyncio.AbstractEventLoop | None) -> Places:
    """The same for the tasks of an event loop: they have no stack while they wait, but a chain of coroutines."""
    places: Places = {}
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        coroutine: Any = task.get_coro()
        seen: set[int] = set()
        while (frame := getattr(coroutine, "cr_frame", None)) is not None:
            for value in tuple(frame.f_locals.values()):
                if isinstance(value, Leased):
                    value = value._slot and value._slot.conn
                if isinstance(value, psycopg.AsyncConnection) and id(value) not in seen:
                    seen.add(id(value))
                    places.setdefault(id(value), []).append((_where(frame), f"task {task.get_name()}"))
            coroutine = coroutine.cr_await
    return places
