"""What happens when a user closes a connection of a pool.

It is closed, and one that `getconn` has handed out gives its place back at once; or, with `close_returns`, it goes back
to the pool as it is. In a block the connection is the block's until its end: there `close_returns` only rolls back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from .core.group import Group
from .core.lane import Slot
from .core.snapshot import snapshot
from .drivers import Status

if TYPE_CHECKING:
    from .base import Base


class GroupLessor:
    """The pool and the group, as their connections know them. It keeps no pool alive."""

    __slots__ = ("_close_returns", "_group", "_pool")

    def __init__(self, pool: Base, group: Group, close_returns: bool) -> None:
        self._pool = ref(pool)
        self._group = group
        self._close_returns = close_returns

    async def close(self, conn: Any, really: Callable[[], Any]) -> None:
        """A user has called `close`."""
        pool = self._pool()
        slot = self._slot_of(conn)
        if pool is None or slot is None:  # taken out of the pool, or not yet in it
            await _outcome(really())
        elif slot in snapshot(slot.lane.idle):  # returned before, and at the next borrower's disposal
            return
        elif not self._close_returns:
            await _outcome(really())
            await pool._closed_by_user(slot)
        elif not await pool._closed_by_user(slot) and pool._driver.status(conn) is Status.IN_TRANSACTION:
            await pool._driver.rollback(conn)

    def gave(self, pool: Base) -> bool:
        """Whether it is this pool."""
        return self._pool() is pool

    def _slot_of(self, conn: Any) -> Slot | None:
        return next((slot for lane in self._group.lanes for slot in snapshot(lane.slots) if slot.conn is conn), None)


async def _outcome(result: Any) -> None:
    if inspect.isawaitable(result):
        await result
