"""Who holds a connection: found out when somebody asks, so that a checkout need not write it down.

A `with` block keeps its connection in a variable; so the stacks of all threads, or tasks, are searched for it, and for
blocks that give it no name. `getconn`, whose connection may be anywhere by then, notes where it was called.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from types import CodeType, FrameType
from typing import NamedTuple

from . import frames
from .core.group import Group
from .core.lane import Slot
from .drivers import Driver
from .unnamed import holds_unnamed


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
    name = who if isinstance(who, str) else frames.thread_names().get(who, "a thread that has ended")
    return f"{code.co_filename}:{line} ({code.co_qualname})", name


Place = tuple[str, str]
"""File, line and function; and the thread or task."""

_NOWHERE = ("a place on no thread's stack", "no thread")


def holders(group: Group, driver: Driver, stacks: frames.Stacks | None = None) -> list[Holder]:
    now = monotonic()
    leased = []
    for lane in group.lanes:
        idle = set(lane.idle)
        leased += [slot for slot in list(lane.slots) if slot not in idle]
    places, unnamed = _search(stacks or frames.threads, {id(slot.conn) for slot in leased if not slot.holder})
    found = []
    for slot in leased:
        seen = [said_by_getconn(slot.holder)] if slot.holder else places.get(id(slot.conn), unnamed or [_NOWHERE])
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


def _search(stacks: frames.Stacks, wanted: set[int]) -> tuple[dict[int, list[Place]], list[Place]]:
    """Where these connections are, by their ids: each time the outermost function that has it in a variable.

    A variable may have outlived its block, so there can be more than one place. If some are in no variable, also the
    places of all blocks that have no name for theirs.
    """
    places: dict[int, list[Place]] = {}
    searched = list(stacks()) if wanted else []
    for who, stack in searched:
        outermost: dict[int, FrameType] = {}
        for frame in stack:
            outermost |= dict.fromkeys(_in_variables(frame, wanted), frame)
        for key, frame in outermost.items():
            places.setdefault(key, []).append((frames.where(frame), who))
    if wanted <= places.keys():
        return places, []
    return places, [(frames.where(frame), who) for who, stack in searched for frame in stack if holds_unnamed(frame)]


def _in_variables(frame: FrameType, wanted: set[int]) -> Iterator[int]:
    for value in frames.variables(frame):
        if isinstance(value, Leased):
            value = value._slot and value._slot.conn
        if id(value) in wanted:
            yield id(value)


task_places = frames.tasks
task_name = frames.task_name
