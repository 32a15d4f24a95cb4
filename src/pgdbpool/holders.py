"""Who holds a connection: found out when somebody asks, so that a checkout need not write it down.

A `with` block keeps its connection in a variable; so the stacks of all threads are searched for it. `getconn`, whose
connection may be anywhere by then, notes where it was called.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic
from types import CodeType, FrameType
from typing import NamedTuple

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


def _said_by_getconn(code: CodeType, lasti: int, ident: int) -> tuple[str, str]:
    lines = [line for start, end, line in code.co_lines() if start <= lasti < end and line is not None]
    line = lines[0] if lines else code.co_firstlineno
    return f"{code.co_filename}:{line} ({code.co_qualname})", _thread_names().get(ident, "a thread that has ended")


def _thread_names() -> dict[int | None, str]:
    return {thread.ident: thread.name for thread in threading.enumerate()}


def _where(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_qualname})"


def holders(group: Group, driver: Driver) -> list[Holder]:
    now = monotonic()
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


def _places() -> dict[int, list[tuple[str, str]]]:
    """Where connections are now, by their id: the outermost function of each thread that has one in a variable.

    Found out when somebody asks, so that a checkout need not write it down. A variable may have outlived its block,
    so there can be more than one place.
    """
    names = _thread_names()
    places: dict[int, list[tuple[str, str]]] = {}
    for ident, top in sys._current_frames().items():
        outermost: dict[int, FrameType] = {}
        frame: FrameType | None = top
        while frame is not None:
            for value in tuple(frame.f_locals.values()):
                if isinstance(value, Leased):
                    value = value._slot and value._slot.conn
                if isinstance(value, psycopg.Connection):
                    outermost[id(value)] = frame
            frame = frame.f_back
        for key, frame in outermost.items():
            places.setdefault(key, []).append((_where(frame), names.get(ident, f"thread {ident}")))
    return places
