"""Words for a caller that got nothing: why, and who has what it wanted.

Knows no pool, so that the keeper of a pool does not keep it alive.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from .clock import monotonic
from .core.group import Group
from .core.lane import Lane
from .core.snapshot import snapshot
from .core.topology import Topology
from .errors import PoolTimeout
from .holders import Holder
from .seldom import say_seldom
from .wording import connections

_SHOWN_HOLDERS = 10
_SAY_AGAIN = 0.25  # s for which the same words will do
_SAY_AGAIN_SHARE = 50  # ... and for so many times as long as it took to find them


class Reasons:
    """Makes the errors of one pool. `look` finds the holders of a group."""

    def __init__(self, topology: Topology, look: Callable[[Group], list[Holder]]) -> None:
        self._topology = topology
        self._look = look
        self._said: dict[str, tuple[float, str]] = {}  # until when they will do, and the words

    def __call__(self, group: Group, began: float) -> PoolTimeout:
        now = monotonic()
        waited = now - began
        head = f"group {group.name!r}: no connection after {waited:.1f} s: "
        if group.paused:
            return PoolTimeout(head + "the pool is paused", group=group.name, waited=waited, reason="paused")
        if not group.route or not any(lane.open for lane in group.lanes):
            words = "no endpoint can be used: " + self._topology.unreachable(group)
            return PoolTimeout(head + words, group=group.name, waited=waited, reason="unreachable")
        # Those that the pool itself has taken are not used by a caller: `wait` asks for several, one after the other.
        own = sum(slot.own for lane in group.lanes for slot in snapshot(lane.slots))
        used = sum(lane.leased for lane in group.lanes) - own
        crowd = f"{len(group.waiters)} others waiting"
        slow = group.slow_to_open(began, now)
        if slow:
            words = f"no further connection could be opened in time: {'; '.join(_slow(lane, now) for lane in slow)}; "
            words += f"{used} of {group.capacity} connections in use, {crowd}"
            return PoolTimeout(head + words, group=group.name, waited=waited, reason="connecting")
        words = f"{connections(used)} in use, {crowd}; held by {self.holders(group)}"
        return PoolTimeout(head + words, group=group.name, waited=waited, reason="exhausted")

    def holders(self, group: Group) -> str:
        """In words. An overloaded pool has better things to do than to look at every stack for every caller."""
        began = monotonic()
        until, words = self._said.get(group.name, (float("-inf"), ""))
        if began >= until:
            words = self.look_for_holders(group)
            ended = monotonic()
            self._said[group.name] = ended + max(_SAY_AGAIN, _SAY_AGAIN_SHARE * (ended - began)), words
        return words

    def look_for_holders(self, group: Group) -> str:
        try:
            found = self._look(group)
        except Exception as error:  # the caller is to be told that it waited in vain, and not what failed here
            words = f"cannot find out who holds the connections of group {group.name!r}"
            say_seldom(logging.ERROR, words, error=error)
            return "somebody who cannot be told"
        shown = "; ".join(str(holder) for holder in found[:_SHOWN_HOLDERS])
        more = len(found) - _SHOWN_HOLDERS
        return (shown or "nobody any more") + (f"; and {more} more" if more > 0 else "")


def _slow(lane: Lane, now: float) -> str:
    """Why there is no further connection on this lane."""
    parts = []
    since = min((place.since for place in snapshot(lane.places)), default=None)
    if since is not None:
        parts.append(f"connecting for {now - since:.1f} s")
    if lane.setup_error is not None:
        parts.append(lane.setup_error)
    elif lane.endpoint.fault is not None and lane.endpoint.last_error:
        parts.append(lane.endpoint.last_error)
    return f"{lane.endpoint.label}: {', '.join(parts) or 'not tried again yet'}"


def closed_words(group: str) -> str:
    """Why those who wait get PoolClosed."""
    return f"the pool was closed while the caller waited for group {group!r}"
