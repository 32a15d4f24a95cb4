"""What has happened: events for the shell to deliver, how many of each kind, and who took writes last.

All methods are called with the pool's lock held.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from .endpoint import Endpoint
from .events import Event, EventKind
from .evidence import Identity

_MOST = 10_000  # events kept for those who are told late; of more the oldest are forgotten


class News:
    """The news of one pool."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=_MOST)
        self.noted: Counter[EventKind] = Counter()
        self._primaries: dict[Endpoint, Identity | None] = {}  # those that take writes, and which server that is
        self._failing_over: tuple[float, dict[Endpoint, Identity | None]] | None = None  # since when, who is missing

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
        """Note when the last server that takes writes is gone, and when there is one again.

        An endpoint is a name: behind the same one, too, the next primary may be another server.
        """
        before = self._primaries
        self._primaries = primaries = {
            endpoint: server.identity or before.get(endpoint)
            for endpoint in endpoints
            for server in [next((server for server in endpoint.servers if server.takes_writes), None)]
            if server is not None
        }
        if before and not primaries:
            self._failing_over = now, before
            who = " and ".join(endpoint.label for endpoint in before)
            self.note(EventKind.FAILOVER_STARTED, next(iter(before)), f"no primary: {who} is gone or takes no writes")
        elif before and not _same(before, primaries):
            self._failing_over = now, before  # another one already
        if primaries and self._failing_over is not None:
            since, lost = self._failing_over
            self._failing_over = None
            back = next(iter(_same(lost, primaries)), None)
            new, old = next(iter(primaries)), next(iter(lost))
            if back is not None:
                words = f"{back.label} is the primary again after {now - since:.1f} s"
                self.note(EventKind.RECOVERED, back, words, now - since)
            elif new in lost:
                words = f"{new.label} leads to a new primary, {now - since:.1f} s after the old one was lost"
                self.note(EventKind.FAILOVER_FINISHED, new, words, now - since)
            else:
                words = f"{new.label} is the primary now, {now - since:.1f} s after {old.label} was lost"
                self.note(EventKind.FAILOVER_FINISHED, new, words, now - since)


def _same(before: dict[Endpoint, Identity | None], now: dict[Endpoint, Identity | None]) -> list[Endpoint]:
    """The endpoints of which the primary is the one that it was, as far as can be told; it may have been restarted."""
    return [
        each for each in now if each in before and (each.systems.alternates or not _is_newer(now[each], before[each]))
    ]


def _is_newer(new: Identity | None, old: Identity | None) -> bool:
    """Whether another primary has taken over from the one known: a promotion begins a timeline."""
    if new is None or old is None:
        return False
    return new.system != old.system or new.timeline > old.timeline
