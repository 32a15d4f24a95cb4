"""Who holds a connection: found out when somebody asks, so that a checkout need not write it down.

A `with` block keeps its connection in a variable; so the stacks of all threads, or tasks, are searched for it, and for
blocks that give it no name. `getconn`, whose connection may be anywhere by then, notes where it was called. What
`pgdbpool.leaks` has noted of a checkout is said as well.

Nothing here asks a server: what a session is doing is what libpq remembers of it, and how its server is what the pool
believes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType, FrameType
from typing import NamedTuple

import msgspec

from . import frames
from .clock import monotonic
from .core.group import Group
from .core.lane import Slot
from .core.snapshot import snapshot
from .drivers import Driver, Status
from .frames import Line
from .interpreter import gil
from .unnamed import holds_unnamed


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has a connection, since when, and what it is doing there."""

    group: str
    endpoint: str
    connection: str
    """Which backend of the server it is."""
    since: float
    """Seconds it has been held."""
    where: str
    """File, line and function: inside a ``with`` block the line it is at now, after `getconn` that of the call."""
    thread: str
    """Name of the thread, or of the task."""
    state: str = "unknown"
    """What the session is doing: ``active`` (in a statement), ``idle in transaction``, ``idle``, or ``lost``."""
    health: str = "suspect"
    """What is believed of its server: ``up``, ``suspect`` or ``down``."""
    answered: float | None = None
    """How many seconds ago that server last let us in or answered a probe."""
    checkout: tuple[str, ...] = ()
    """The stack of its checkout, the outermost call first, if it was noted: see ``leak_threshold``."""
    stack: tuple[str, ...] = ()
    """Where its thread or task is now, the outermost call first, if that could be found out."""

    def __str__(self) -> str:
        answered = "" if self.answered is None else f", answered {self.answered:.1f} s ago"
        return (
            f"{self.where} in {self.thread} for {self.since:.1f} s "
            f"({self.connection} on {self.endpoint}, {self.state}; server {self.health}{answered})"
        )


_STATES = {Status.BUSY: "active", Status.IN_TRANSACTION: "idle in transaction", Status.IDLE: "idle"}  # PostgreSQL's


class Leased:
    """What has a slot in its hands, for `Pool.holders` to find."""

    __slots__ = ("_slot",)
    _slot: Slot | None


Call = tuple[CodeType, int]
"""A function, and the instruction it was at."""


class Noted(NamedTuple):
    """The stack of a checkout, as `pgdbpool.leaks` has noted it."""

    taken: float
    """Of which lease it is."""
    who: int | str
    """Identity of the thread, or name of the task."""
    calls: tuple[Call, ...]
    """The innermost first."""


def said_by_getconn(holder: tuple[CodeType, int, int | str]) -> tuple[str, str]:
    """Where it was called, and by which thread or task: the identity of the one, the name of the other."""
    code, lasti, who = holder
    return frames.place(frames.line(code, lasti)), _name(who)


def _name(who: int | str) -> str:
    return who if isinstance(who, str) else frames.thread_names().get(who, "a thread that has ended")


class Place(NamedTuple):
    """A function that may have it, and its thread or task."""

    where: str
    who: str


_NOWHERE = Place("a place on no thread's stack", "no thread")
_UNKNOWN = Place("unknown", "another thread")  # without a GIL
_NOT_LOOKED_FOR = Place("somewhere", "one of very many tasks or threads, not all of which were looked at")


def holders(
    group: Group, driver: Driver, stacks: frames.Stacks | None = None, *, most: int = sys.maxsize
) -> list[Holder]:
    """Who has connections of a group, the longest first, as far as a look at so many stacks can tell."""
    leased = []
    for lane in group.lanes:
        idle = set(snapshot(lane.idle))
        leased += [slot for slot in snapshot(lane.slots) if slot not in idle and not slot.own]
    return sorted(find(leased, driver, stacks, most=most), key=lambda holder: -holder.since)


def find(
    leased: Sequence[Slot], driver: Driver, stacks: frames.Stacks | None = None, *, most: int = sys.maxsize
) -> list[Holder]:
    """Who has each of these."""
    if not leased:
        return []
    now = monotonic()
    search = _Search(stacks or frames.threads, {id(slot.given) for slot in leased if not slot.holder}, most)
    found = []
    for slot in leased:
        noted: Noted | None = slot.stack if slot.stack is not None and slot.stack.taken == slot.taken else None
        places = search.places(slot, noted)
        endpoint = slot.lane.endpoint
        answered = endpoint.answered_at
        found.append(
            Holder(
                group=slot.lane.group.name,
                endpoint=endpoint.label,
                connection=driver.describe(slot.conn),
                since=now - slot.taken,
                where=" or ".join(place.where for place in places),
                thread=" or ".join(place.who for place in places),
                state=_STATES.get(driver.status(slot.conn), "lost"),
                health=endpoint.health.value,
                answered=None if answered is None else max(0.0, now - answered),
                checkout=shown(noted.calls) if noted else (),
                stack=_words(search.stack(places[0].who)) if len(places) == 1 else (),
            )
        )
    return found


def shown(calls: Sequence[Call]) -> tuple[str, ...]:
    """A stack that was noted, the outermost call first."""
    return _words(frames.line(*call) for call in reversed(calls))


def _words(lines: Iterable[Line]) -> tuple[str, ...]:
    return tuple(frames.place(line) for line in lines if not frames.is_own_file(line.file))


class _Search:
    """All stacks at one moment, or the first so many, searched for connections by their ids."""

    def __init__(self, stacks: frames.Stacks, wanted: set[int], most: int) -> None:
        self._stacks: dict[str, list[FrameType]] = {}
        self._found: dict[int, list[Place]] = {}
        searched: list[tuple[str, list[FrameType]]] = []
        alone = not gil()  # no other thread's stack was looked at
        self._nowhere = _UNKNOWN if alone else _NOWHERE
        for who, stack in stacks():
            if len(searched) >= most:
                self._nowhere = _NOT_LOOKED_FOR
                break
            searched.append((who, stack))
            self._stacks[who] = [] if who in self._stacks else stack  # of two of the same name nobody knows which
            # The outermost function that has it in a variable. A variable may have outlived its block, so there can be
            # more than one place.
            outermost: dict[int, FrameType] = {}
            user: FrameType | None = None
            for frame in reversed(stack):
                # The pool's own functions have it for a caller, and none of its own threads holds one.
                user = user if frames.is_machinery(frame) else frame
                for key in _in_variables(frame, wanted):
                    if user is not None:
                        outermost.setdefault(key, user)
            for key, frame in outermost.items():
                self._found.setdefault(key, []).append(Place(frames.where(frame), who))
        self._unnamed: list[Place] = []
        if not wanted <= self._found.keys():  # some are in no variable: all blocks that have no name for theirs
            self._unnamed = [
                Place(frames.where(frame), who) for who, stack in searched for frame in stack if holds_unnamed(frame)
            ]
            if alone and self._unnamed:
                self._unnamed.append(_UNKNOWN)

    def places(self, slot: Slot, noted: Noted | None) -> list[Place]:
        """Where it may be; at least one."""
        if slot.holder:
            return [Place(*said_by_getconn(slot.holder))]
        found = self._found.get(id(slot.given)) or self._unnamed
        if found or noted is None:
            return found or [self._nowhere]
        # Its function is on no stack, as that of a generator between two calls: at least it is known who began it.
        outside = [frames.line(*call) for call in noted.calls]
        line = next((line for line in outside if not frames.is_own_file(line.file)), outside[0])
        return [Place(frames.place(line), _name(noted.who))]

    def stack(self, who: str) -> Iterator[Line]:
        """Where this thread or task is now, the outermost call first."""
        return (frames.here(frame) for frame in reversed(self._stacks.get(who, ())))


def _in_variables(frame: FrameType, wanted: set[int]) -> Iterator[int]:
    for value in frames.variables(frame):
        if isinstance(value, Leased):
            slot = getattr(value, "_slot", None)  # one that is just being made has none yet
            value = slot and slot.given
        if id(value) in wanted:
            yield id(value)


task_places = frames.tasks
task_name = frames.task_name
