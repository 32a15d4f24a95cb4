"""How long a server takes, as the balancer `latency` sees it: a peak EWMA that one long report does not fool.

Twitter's Finagle calls it *peak EWMA*: a slower sample counts at once, a faster one only by and by, so a server that
gets worse loses its share in the moment, and gets it back over `DECAY` seconds. Samples are the calls on the pool's
own connections and the probes. Of three calls in a row, and of three probes, the shortest counts: one long query among
short ones says something about the query, three about the server.

Unlike Finagle's, a slow time is also worn away by the number of faster samples. In a moment in which this process
itself had no time, all its calls take long; the hundred that follow say more about the server than a clock.

Written without a lock: two samples at the same moment may cost one of them.
"""

from __future__ import annotations

from math import exp

# s in which the memory of a slow time fades to a third. Longer, and a moment in which this process itself had no time
# would keep a fast server without work for many seconds; a slow one is found out again by its next three calls.
DECAY = 2.0
WEAR = 1 / 8  # of the memory of a slow time that each faster sample takes away, at least
UNKNOWN = 0.0001  # s, until something has been measured: as fast as any server, so that it is asked, and measured


class Latency:
    """One lane's estimate: `cost`, in seconds."""

    __slots__ = ("_at", "_calls", "_probes", "cost")

    def __init__(self) -> None:
        self.cost = UNKNOWN
        self._at: float | None = None
        # The last of each kind, the newest first.
        self._calls: tuple[float, ...] = ()
        self._probes: tuple[float, ...] = ()

    def observe_call(self, seconds: float, now: float) -> None:
        """A call of a user's took so long."""
        self._calls = seconds, *self._calls[:2]
        self._observe(min(self._calls), now)

    def observe_probe(self, seconds: float, now: float) -> None:
        """A probe took so long."""
        self._probes = seconds, *self._probes[:2]
        self._observe(min(self._probes), now)

    def _observe(self, seconds: float, now: float) -> None:
        at, self._at = self._at, now
        if at is None or seconds >= self.cost:
            self.cost = seconds
        else:
            weight = min(exp((at - now) / DECAY), 1.0 - WEAR)
            self.cost = self.cost * weight + seconds * (1.0 - weight)

    def fade(self, now: float) -> None:
        """Forget a little: where nobody probes, nothing else would send a caller there again."""
        at, self._at = self._at, now
        if at is not None and now > at:
            self.cost *= exp((at - now) / DECAY)
