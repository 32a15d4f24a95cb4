"""Who holds a connection: found out when somebody asks, so that a checkout need not write it down.

A `with` block keeps its connection in a variable; so the stacks of all threads are searched for it, and for an
`AsyncPool` the coroutines of all tasks. `getconn`, whose connection may be anywhere by then, notes where it was called.
"""

from __future__ import annotations

import gc
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


def said_by_getconn(holder: tuple[CodeType, int, int | str]) -> tuple[str, str]:
    """Where it was called, and by which thread or task: the identity of the one, the name of the other."""
    code, lasti, who = holder
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


def _in_variables(frame: FrameType, wanted: Container[int]) -> Iterator[int]:
    """The ids of those that a function has in its variables."""
    for value in tuple(frame.f_locals.values()):
        if isinstance(value, Leased):
            value = value._slot and value._slot.conn
        if id(value) in wanted:
            yield id(value)


# -- asyncio --------------------------------------------------------------------------------------------------------


def task_name(task: asyncio.Task[Any] | None) -> str:
    """As it is shown to people."""
    return "no task" if task is None else f"task {task.get_name()}"


def task_places(loop: asyncio.AbstractEventLoop | None) -> Search:
    """The same for the tasks of an event loop: they have no stack while they wait, but a chain of coroutines.

    That of a running task ends where it runs: it is on the stack of its thread.
    """
    return partial(_task_places, loop)


def _task_places(loop: asyncio.AbstractEventLoop | None, wanted: Container[int]) -> Places:
    import asyncio  # here, so that it costs nothing where nobody uses it

    places: Places = {}
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        seen: set[int] = set()
        for frame in _frames(task.get_coro()):
            for key in _in_variables(frame, wanted):
                if key not in seen:
                    seen.add(key)
                    places.setdefault(key, []).append((_where(frame), task_name(task)))
    return {**_thread_places(wanted), **places}


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
