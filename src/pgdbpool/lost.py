"""Connections in nobody's hands: found when they are missed.

A checkout pops a slot from a stack, and a few instructions later a lease has it. A signal handler that raises (Ctrl-C,
the time limit of a task queue) can do so in between, and just so on the way back: then the slot is in no place any more
and would count as leased for ever. To guard each of these instructions would cost every checkout something. Instead the
pool looks for such slots when it is short of connections.

A slot is *held* as long as anything refers to it but the pool's books, which are those of its lane, the listener, and
for `getconn` the table of what it gave out. Whoever hands a slot on has it in a variable or on the value stack of a
function, a lease and a waiter in an attribute, the idle stack in itself: the interpreter counts all of these. So the
number of references tells, in one look that nothing can come between. If it is that of the books alone the slot is lost
for good, since nobody takes a slot out of the books to hand it to somebody.

What `getconn` gave out is in the books for as long as it is out. There the question is who has the connection, and in
this order: nobody has the slot, nobody has the connection, and all the while it was one and the same checkout. Then
nobody can ever return it.

The exception itself keeps the variables of the functions it came through for as long as it is being handled, and that
is just when its handler may want a connection. So those of the pool's own functions are emptied first.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from types import FunctionType
from typing import Any, NamedTuple

from . import frames
from .core.group import Group
from .core.lane import Slot
from .drivers import Driver, Status
from .holders import said_by_getconn
from .interpreter import gil

logger = logging.getLogger("pgdbpool")


class _Books(NamedTuple):
    """The references to one slot in the pool's books.

    Those of the lane and of the listener begin when it is opened, and only get fewer: if there are as many after a look
    as before, there were as many at the look.
    """

    lane: int
    listener: int
    out: bool


class Lost:
    """Finds and retires what is lost. Called with a group it returns whether there was anything."""

    def __init__(self, out: dict[int, Slot], books: Callable[[Slot], int], driver: Driver) -> None:
        self._out = out  # what getconn has handed out, by id of the connection
        self._books = books  # how many references to a slot the keeper has in its books
        self._driver = driver

    def __call__(self, group: Group) -> bool:
        if not (RELIABLE and gil()):
            return False
        # Not with the lock held: these may run anybody's finalizers.
        frames.empty_dead()
        frames.remove_copies()
        return self.retire(group)

    def finds(self, slots: list[Slot]) -> bool:
        """Whether one of these seems to be in nobody's hands; `slots` is emptied, since it would hold them."""
        if not (RELIABLE and gil()):
            return False
        each = tuple(slots)
        slots.clear()
        return bool(self.among(each))

    def retire(self, group: Group) -> bool:
        """Retire what is lost, as far as no exception that is being handled keeps it."""
        words: list[str] = []

        def find(slots: Collection[Slot]) -> list[Slot]:
            found = self.among(slots)
            words.extend(map(self._words, found))
            return found

        group.reclaim(find)
        for each in words:
            logger.warning("group %r: %s", group.name, each)
        return bool(words)

    def among(self, slots: Collection[Slot]) -> list[Slot]:
        """Those in nobody's hands."""
        each = tuple(slots)
        checkouts = [slot.holder for slot in each]
        before = [self._in_books(slot) for slot in each]
        counts = references(each)
        after = [self._in_books(slot) for slot in each]
        return [
            slot
            for slot, checkout, books, count, still in zip(each, checkouts, before, counts, after, strict=True)
            if count == 1 + sum(books)
            and books == still
            and (not books.out or self._is_thrown_away(slot, checkout))
            and not self._in_a_statement(slot)
        ]

    def _in_a_statement(self, slot: Slot) -> bool:
        """Whether the lease was thrown away, and a thread is in a statement on the connection at this moment."""
        if self._driver.status(slot.conn) is not Status.BUSY:
            return False
        return not _in_the_slot_alone(slot)

    def _in_books(self, slot: Slot) -> _Books:
        lane = 1 + slot.lane.ledger.live.count(slot)
        return _Books(lane, self._books(slot), self._out.get(id(slot.given)) is slot)

    def _is_thrown_away(self, slot: Slot, checkout: Any) -> bool:
        """Whether nobody has the connection that `getconn` has handed out, nobody having the slot.

        `checkout` was written by that call of `getconn`, and is gone when the slot is given back.
        """
        return _in_the_slot_alone(slot) and checkout is not None and slot.holder is checkout

    def _words(self, slot: Slot) -> str:
        handed_out = self._out.pop(id(slot.given), None) is not None
        if slot.holder is None:
            how = "a signal handler raised while it was handed out or taken back, or its lease was thrown away"
        else:
            where, thread = said_by_getconn(slot.holder)
            how = "thrown away" if handed_out else "a signal handler raised while it was handed out or taken back"
            how = f"taken by getconn at {where} in {thread}, and {how}"
        backend = f"{self._driver.describe(slot.conn)} on {slot.lane.endpoint.label}"
        return f"{backend} is closed, since nobody holds it any more: {how}"


# -- counting ---------------------------------------------------------------------------------------------------------


def references(things: Sequence[object]) -> list[int]:
    """How many references there are to each of these, `things` included and not counting those of this look."""
    return [sys.getrefcount(thing) - _LOOKING for thing in things]


def _looking() -> int:
    counts = [sys.getrefcount(thing) - 1 for thing in [object()]]
    return counts[0]


_LOOKING = _looking()
_LEAST = 2 if sys.version_info < (3, 14) else 1  # what it is with no tracer at work
# Where it is otherwise nothing is ever found lost. Nor is it without a GIL, where others count at the same time.
RELIABLE = sys.implementation.name == "cpython" and _LOOKING == _LEAST


def _in_the_slot_alone(slot: Slot) -> bool:
    """Whether nothing refers to a slot's connection but the slot, nor to what a tool has put around it."""
    if slot.given is slot.conn:
        return references((slot.conn,)) == [1 + 2 + _references_from(slot.clean, slot.conn)]
    inside = gc.get_referents(slot.given)
    inside += gc.get_referents(*[each for each in inside if type(each) is dict])  # its attributes
    around = sum(each is slot.conn for each in inside)
    del inside[:]
    return references((slot.conn, slot.given)) == [2 + around + _references_from(slot.clean, slot.conn), 2]


def _references_from(look: object, thing: object) -> int:
    """How many references to `thing` a slot's `clean` has, which is a function, or an object with another in it.

    A place that is not found makes no harm: what is lost is then taken for held.
    """
    found = 0
    seen: set[int] = set()
    looks = [look]
    while looks:
        look = looks.pop()
        if not isinstance(look, FunctionType):
            looks += [look.clean] if hasattr(look, "clean") else []
            continue
        for cell in look.__closure__ or ():
            if id(cell) not in seen:
                seen.add(id(cell))
                found += cell.cell_contents is thing
                if isinstance(cell.cell_contents, FunctionType):
                    looks.append(cell.cell_contents)
    return found
