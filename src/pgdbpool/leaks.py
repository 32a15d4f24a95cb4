"""Leases held for too long: each is reported once, with the stack of its checkout and that of its holder now.

Only groups with a `leak_threshold` are watched. Whoever looks after the pool asks `Leaks.look` now and then: the keeper
thread, the event loop, in the non-threaded model a caller on its way back. A look goes over the leases and compares two
numbers of each; the stacks are searched only when there is something to report.

Where a lease is now can be found at that moment: see `pgdbpool.holders`. Where it was taken is known only to those who
noted it, and that takes a microsecond or two for each checkout. So of a watched group's checkouts one in each
millisecond is noted, by `note`: all of them where there are few, a sample where there are many. In other groups nothing
is noted, and the leases are of a class that does not even ask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NamedTuple

from .config import GroupSettings
from .core.events import Event, EventKind
from .core.group import Group
from .core.lane import Slot
from .core.topology import Topology
from .holders import Call, Holder, Noted, shown
from .seldom import say_seldom

Find = Callable[[Sequence[Slot]], list[Holder]]

NOTE_EVERY = 0.001  # s
_DEEPEST = 30  # calls of a stack that are noted
_SHORTEST = 0.05  # s between two looks


def note(slot: Slot, frame: FrameType | None, who: int | str) -> None:
    """Note where a lease was taken that has just begun. For `Group.note_at` to say when."""
    slot.lane.group.note_at = slot.taken + NOTE_EVERY
    calls: list[Call] = []
    while frame is not None and len(calls) < _DEEPEST:
        calls.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    slot.stack = Noted(slot.taken, who, tuple(calls))


class Told(NamedTuple):
    """Which lease of a slot was reported last, and whether it was seen to end."""

    taken: float
    ended: bool


class Leaks:
    """Watches the leases of one pool. For one thread at a time.

    `find` says who has them. `reclaim` is called when some were reported: nobody may have them any more, and then
    nobody need miss them either; see `pgdbpool.lost`.
    """

    def __init__(self, topology: Topology, find: Find, reclaim: Callable[[Group], object]) -> None:
        self._topology = topology
        self._find = find
        self._reclaim = reclaim
        self._groups = [group for group in topology.groups if _threshold(group)]

    def look(self, now: float) -> float:
        """Report what is to be reported. Returns when to look again."""
        due = float("inf")
        for group in self._groups:
            reported, next_look = self._look_at(group, now)
            due = min(due, next_look)
            if reported:  # and not inside, where a variable would hold what nobody holds
                self._reclaim(group)
        return due

    def _look_at(self, group: Group, now: float) -> tuple[bool, float]:
        limit = _threshold(group)
        due = now + limit  # for those that begin right now
        overdue = []
        for slot in [slot for lane in group.lanes for slot in lane.ledger.live]:
            told: Told | None = slot.told
            taken, rested = slot.taken, slot.rested
            if told is not None and not told.ended and (told.taken != taken or rested > taken):
                slot.told = told._replace(ended=True)
                self._tell_end(slot, (rested if told.taken == taken else taken) - told.taken)
            if told is not None and told.taken == taken:
                continue
            if slot.held:
                if now - taken >= limit:
                    slot.told = Told(taken, ended=False)
                    overdue.append(slot)
                else:
                    due = min(due, taken + limit)
            elif rested - taken >= limit:  # it has come back before anybody could look
                slot.told = Told(taken, ended=True)
                self._tell_late(slot, rested - taken, limit)
        for slot, holder in zip(overdue, self._holders(overdue), strict=True):
            self._tell(slot, holder, limit, now)
        return bool(overdue), max(due, now + _SHORTEST)

    def _holders(self, slots: list[Slot]) -> Sequence[Holder | None]:
        try:
            return self._find(slots)
        except Exception as error:  # a caller may be in the middle of returning a connection
            say_seldom(logging.ERROR, "cannot find out who holds connections", error=error)
            return [None] * len(slots)

    def _tell(self, slot: Slot, holder: Holder | None, limit: float, now: float) -> None:
        seconds = now - slot.taken
        words = f"a lease has lasted for {seconds:.1f} s (leak_threshold {limit:g} s)"
        details = _stack("taken at", _checkout(slot))
        if holder is not None:
            words += f": {holder}"
            details += _stack("now at", holder.stack)
        self._note(slot, EventKind.LEAK_SUSPECTED, words, seconds, details)
        self._count(slot)

    def _tell_late(self, slot: Slot, seconds: float, limit: float) -> None:
        words = f"a lease has lasted for {seconds:.1f} s (leak_threshold {limit:g} s), and is over"
        self._note(slot, EventKind.LEAK_SUSPECTED, words, seconds, _stack("taken at", _checkout(slot)))
        self._count(slot)

    def _tell_end(self, slot: Slot, seconds: float) -> None:
        words = f"a lease that was reported as too long has ended, after at most {seconds:.1f} s"
        self._note(slot, EventKind.LEAK_ENDED, words, seconds, "")

    def _count(self, slot: Slot) -> None:
        with self._topology.lock:  # the keeper that a pool had before it was opened again may do the same
            slot.lane.leaks += 1

    def _note(self, slot: Slot, kind: EventKind, words: str, seconds: float, details: str) -> None:
        group = slot.lane.group.name
        event = Event(
            kind=kind,
            endpoint=slot.lane.endpoint.label,
            message=f"group {group!r}: {words}",
            seconds=seconds,
            group=group,
            details=details.rstrip("\n"),
        )
        self._topology.note(event)


def _threshold(group: Group) -> float:
    settings: GroupSettings = group.settings  # type: ignore[assignment]
    return settings.leak_threshold


def _checkout(slot: Slot) -> Sequence[str]:
    noted: Noted | None = slot.stack
    return shown(noted.calls) if noted is not None and noted.taken == slot.taken else ()


def _stack(title: str, calls: Sequence[str]) -> str:
    return "\n  ".join([f"{title}:", *calls]) + "\n" if calls else ""
