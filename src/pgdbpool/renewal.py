"""When the session by which an endpoint is probed makes way for a new one.

An endpoint is a name, and a session stays with the server that it has reached. Only a new connection, after a new
look-up of the name, shows what the name leads to now. So the monitor's own session has a bounded life, and ends before
that::

    the name has other addresses      at once; a name whose answers differ all the time is looked up less often
    it leaves a group without what    at once, and then again and again: ten times a second at first, and less often the
    it wants, or it is doubted        longer that lasts; see the spans below

Nothing in here waits or looks at a clock: the watch does, and the simulation's.
"""

from __future__ import annotations

from collections.abc import Callable

LIFE = 60.0  # s, at most, unless the configuration says otherwise; at least half of it
LEAST = 0.1  # s between two new connections, whatever happens
# s, at most, while a caller waits, or a role was lost not long ago: then a write waits for less than a second from the
# moment at which a new connection would reach the server that takes it, what the connection takes included.
URGENT = 0.9
URGENT_SHARE = 20  # ... up to which it grows: one part in so many of the time for which that has lasted
CALM = 15.0  # s, at most, while nobody waits
CALM_SHARE = 2
FORGET = 10.0  # s without a doubt after which the next one is a new one

LOOK_UP = 5.0  # s between two look-ups of the name; doubled, up to `LIFE`, each time that the answer has changed


class Renewal:
    """The life of the sessions of one watch, one after the other."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._expires = float("inf")
        self._last = float("-inf")  # when the last one was begun
        self._not_before = float("-inf")
        self._since: float | None = None  # when the doubt began
        self._until = 0.0  # when it was last there
        self.look_up_every = LOOK_UP
        self._addresses: frozenset[str] | None = None

    def began(self, now: float) -> None:
        """A new connection is being made."""
        self._last = now

    def renewed(self, now: float, life: float) -> None:
        """A new session is in use. Many processes may have begun theirs together: their lives are to end apart."""
        self._expires = now + life * (0.5 + 0.5 * self._random())

    def put_off(self, now: float, seconds: float) -> None:
        """The server let nobody in: ask again later."""
        self._not_before = now + seconds

    def due(self, now: float, *, doubted: bool, urgent: bool) -> float:
        """When the next new connection is to be made."""
        if not doubted:
            if now > self._until + FORGET:
                self._since = None
            return max(self._expires, self._not_before)
        if self._since is None:
            self._since = now
        self._until = now
        lasted = now - self._since
        longest, share = (URGENT, URGENT_SHARE) if urgent else (CALM, CALM_SHARE)
        gap = min(max(LEAST, lasted / share), longest)
        return max(min(self._expires, self._last + gap), self._not_before)

    def resolved(self, addresses: frozenset[str], now: float, life: float) -> None:
        """The name was looked up."""
        before, self._addresses = self._addresses, addresses
        if before is None or before == addresses:
            self.look_up_every = max(LOOK_UP, self.look_up_every / 2)
        else:
            self.look_up_every = min(2 * self.look_up_every, max(LOOK_UP, life))
            self._expires = min(self._expires, now)
