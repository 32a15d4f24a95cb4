"""Connections that nobody refers to any more are looked for also while no caller waits for one.

What `getconn` gave and its user forgot may be in the middle of a transaction, and keeps its locks: no caller of this
pool need wait for a connection, but others wait for the locks. So what looks after the pool (the keeper thread, the
event loop) asks `Forgotten.look` now and then, about every connection that has been out for a while. Nothing is added
to a checkout or a return: the look counts references, as `pgdbpool.lost` does, which retires what it finds.

What a reference cycle keeps alive is found once the garbage collector has been there. In the non-threaded model the
look is taken when a connection comes back, or a caller finds none at rest: there is no other moment.
"""

from __future__ import annotations

from collections.abc import Sequence

from .core.group import Group
from .lost import Lost

LOOK_EVERY = 1.0  # s


class Forgotten:
    """Looks after the connections of one pool. For one thread at a time."""

    def __init__(self, groups: Sequence[Group], lost: Lost) -> None:
        self._groups = groups
        self._lost = lost
        self._look_at = float("-inf")

    def look(self, now: float) -> float:
        """Retire what nobody refers to, of what has been out for a second. Returns when to look again."""
        if now < self._look_at:
            return self._look_at
        self._look_at = now + LOOK_EVERY
        out = False
        for group in self._groups:
            out |= any(slot.held for lane in group.lanes for slot in lane.ledger.live)
            if self._finds(group, now):  # and not here, where a variable would hold what nobody holds
                self._lost.retire(group)
        return self._look_at if out else float("inf")

    def _finds(self, group: Group, now: float) -> bool:
        """A first look, without the lock."""
        slots = [slot for lane in group.lanes for slot in lane.ledger.live]
        slots = [slot for slot in slots if slot.held and now - slot.taken >= LOOK_EVERY]
        return bool(slots) and self._lost.finds(slots)
