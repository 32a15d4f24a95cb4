"""Whose data a name leads to: the ``system_identifier`` of the servers that its new connections reach.

Two systems are two databases, and nothing tells which of them is the newer. But the name does: if it leads to another
system now, and not back, it has moved there (blue/green, a restored copy), and what is written to the old one is lost.
A name that leads to both in turn is a mistake in somebody's configuration; there sessions must not drive each other
out. So after a new connection has reached another system::

    at once                         sessions with the old one are replaced: at once if idle, else when they come back
    `SEVERAL` in a row have         primaries of the old one are of the past, and calls in flight there are ended
    one has come back before that   the name leads to both: nothing more follows until `SEVERAL` in a row have reached
                                    the same system
    one comes back after that       it has moved again; but from now on it takes twice as many

Connections that are made at the same moment are one and the same piece of evidence.
"""

from __future__ import annotations

from .evidence import Identity

SEVERAL = 8  # new connections in a row that reach the same: then its name does not lead elsewhere any more
APART = 0.1  # s, at least, between two that count


class Systems:
    """Those that one endpoint has led to, and which of them it leads to now."""

    def __init__(self) -> None:
        self.current: str | None = None
        self.alternates = False  # it has led to one, to another, and to the first again
        self._known: set[str] = set()
        self._row = 0  # connections in a row that have reached the current one
        self._needed = SEVERAL
        self._last = float("-inf")

    def met(self, system: str, since: float) -> bool:
        """A new connection, made at `since`, has reached it. Returns whether that may change which sessions stay."""
        if system != self.current:
            if system in self._known:
                if self._settled:
                    self._needed *= 2
                else:
                    self.alternates = True
            first = self.current is None
            self._known.add(system)
            self.current, self._row, self._last = system, 1, since
            return not first
        if not self.unsettled or since < self._last + APART:
            return False
        self._row += 1
        self._last = since
        if self._settled:
            self.alternates = False
        return self._settled

    @property
    def _settled(self) -> bool:
        return self._row >= self._needed

    @property
    def unsettled(self) -> bool:
        """Whether more connections would tell whether the name has moved for good."""
        return len(self._known) > 1 and not self._settled

    @property
    def urgent(self) -> bool:
        """Whether they should be made soon: a few, and never for a name that leads to several systems."""
        return self.unsettled and not self.alternates and self._row < 2 * SEVERAL

    def is_another(self, identity: Identity | None) -> bool:
        """Whether a server is known to be of another system than the one that the name leads to now."""
        return identity is not None and self.current not in (None, identity.system)

    def leads_away(self, identity: Identity | None) -> bool:
        """Whether, as far as can be told so soon, the name has moved away from the system of this server."""
        return self.is_another(identity) and not self.alternates

    def has_left(self, identity: Identity | None) -> bool:
        """Whether it has moved away from there for good."""
        return self.is_another(identity) and self._settled
