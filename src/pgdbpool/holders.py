"""Who holds a connection: found out when somebody asks, so that a checkout need not write it down.

A `with` block keeps its connection in a variable; so the stacks of all threads are searched for it. `getconn`, whose
connection may be anywhere by then, notes where it was called.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Container, Iterator
from functools import partial
from time import monotonic
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from .core.group import Group
from .core.lane import Slot
from .drivers import Driver

if TYPE_CHECKING:
    import asyncio


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

Search = Callable[[Container[int]], Places]
"""Finds the places of connections, given by their ids."""


def holders(group: Group, driver: Driver, search: Search | None = None) -> list[Holder]:
    now = monotonic()
    leased = []
    for lane in group.lanes:
        idle = set(lane.idle)
        leased += [slot for slot in list(lane.slots) if slot not in idle]
    places = (search or _thread_places)({id(slot.conn) for slot in leased})
    found = []
    for slot in leased:
        seen = [said_by_getconn(slot.holder)] if slot.holder else places.get(id(slot.conn), [_NOWHERE])
        found.append(
            Holder(
                group=group.name,
                endpoint=slot.lane.endpoint.label,
                connection=driver.describe(slot.conn),
                since=now - slot.taken,
                where=" or ".join(where for where, _ in seen),
                thread=" or ".join(thread for _, thread in seen),
            )
        )
    return sorted(found, key=lambda holder: -holder.since)


_NOWHERE = ("a place on no thread's stack", "no thread")


def _thread_places(wanted: Container[int]) -> Places:
    """The outermost function of each thread that has a connection in a variable.

    A variable may have outlived its block, so there can be more than one place.
    """
    names = _thread_names()
    places: Places = {}
    for ident, top in sys._current_frames().items():
        outermost: dict[int, FrameType] = {}
        frame: FrameType | None = top
        while frame is not None:
            for key in _in_variables(frame, wanted):
                outermost[key] = frame
            frame = frame.f_back
        for key, frame in outermost.items():
            places.setdefault(key, []).append((_where(frame), names.get(ident, f"thread {ident}")))
    return places


def task_places(loop: asyncio.AbstractEventLoop | None) -> Search:
    """The same for the tasks of an event loop: they have no stack while they wait, but a chain of coroutines."""
    return partial(_task_places, loop)


def _task_places(loop: asyncio.AbstractEventLoop | None, wanted: Container[int]) -> Places:
    import asyncio  # here, so that it costs nothing where nobody uses it

    places: Places = {}
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        coroutine: Any = task.get_coro()
        seen: set[int] = set()
        while (frame := getattr(coroutine, "cr_frame", None)) is not None:
            for key in _in_variables(frame, wanted):
                if key not in seen:
                    seen.add(key)
                    places.setdefault(key, []).append((_where(frame), f"task {task.get_name()}"))
            coroutine = coroutine.cr_await
    return places


def _in_variables(frame: FrameType, wanted: Container[int]) -> Iterator[int]:
    for value in tuple(frame.f_locals.values()):
        if isinstance(value, Leased):
            value = value._slot and value._slot.conn
        if id(value) in wanted:
            yield id(value)
