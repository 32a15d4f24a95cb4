"""What has happened: events for the shell to deliver, how many of each kind, and who took writes last.

All methods are called with the pool's lock held.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from .endpoint import Endpoint
from .events import Event, EventKind

_MOST = 10_000  # events kept for those who are told late; of more the oldest are forgotten


class News:
    """The news of one pool."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=_MOST)
        self.noted: Counter[EventKind] = Counter()
        self._primaries: dict[Endpoint, None] = {}  # those that take writes; a dictionary for its order
        self._failing_over: tuple[float, tuple[Endpoint, ...]] | None = None  # since when, who is missing

    def clear(self) -> None:
        """Nothing has happened; who took writes last is known still."""
        self.events.clear()
        self.noted.clear()

    def note(self, kind: EventKind, endpoint: Endpoint, message: str, seconds: float | None = None) -> None:
        """Something has happened to an endpoint."""
        self.record(Event(kind=kind, endpoint=endpoint.label, message=message, seconds=seconds))

    def record(self, event: Event) -> None:
        """Something has happened."""
        self.noted[event.kind] += 1
        self.events.append(event)

    def look_for_primaries(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """Note when the last server that takes writes is gone, and when there is one again."""
        before = self._primaries
        self._primaries = {
            endpoint: None for endpoint in endpoints if any(server.takes_writes for server in endpoint.servers)
        }
        if before and not self._primaries:
            self._failing_over = now, tuple(before)
            who = " and ".join(endpoint.label for endpoint in before)
            self.note(EventKind.FAILOVER_STARTED, next(iter(before)), f"no primary: {who} is gone or takes no writes")
        elif before and not any(endpoint in before for endpoint in self._primaries):
            self._failing_over = now, tuple(before)  # another one already
        if self._primaries and self._failing_over is not None:
            since, lost = self._failing_over
            self._failing_over = None
            back = next((endpoint for endpoint in self._primaries if endpoint in lost), None)
            if back is not None:
                words = f"{back.label} is the primary again after {now - since:.1f} s"
                self.note(EventKind.RECOVERED, back, words, now - since)
            else:
                new, old = next(iter(self._primaries)), lost[0].label
                words = f"{new.label} is the primary now, {now - since:.1f} s after {old} was lost"
                self.note(EventKind.FAILOVER_FINISHED, new, words, now - since)
