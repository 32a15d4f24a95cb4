"""Outages: that no connection can be opened somewhere, said when it begins, every minute, and when it is over.

An endpoint that goes down, or is suspect, is an event of its own. But a wrong password, a server that starts up for an
hour or one that is full changes no health, and callers only see that they wait. So each cause is said once when it
begins, unless an event of health has just said it, and again as long as it lasts and somebody tries.

All methods are called with the pool's lock held.
"""

from __future__ import annotations

from dataclasses import dataclass

from .endpoint import Endpoint
from .events import Event, EventKind
from .news import News

# s: attempts may be 30 s apart, so this is a minute in the mean.
SAY_AGAIN = 50.0


@dataclass(slots=True)
class _Outage:
    cause: str
    since: float
    said_at: float
    noted: bool  # by us; else by an event of health, which says its end, too


class Outages:
    """Those of one pool: of endpoints, and of groups for which connections cannot be made ready there."""

    def __init__(self, news: News) -> None:
        self._news = news
        self._known: dict[tuple[Endpoint, str | None], _Outage] = {}

    def clear(self) -> None:
        """Nothing is known."""
        self._known.clear()

    def lasts(
        self,
        endpoint: Endpoint,
        cause: str,
        error: str | None,
        now: float,
        *,
        said: bool = False,
        group: str | None = None,
    ) -> None:
        """No connection can be opened there; `said`: another event has just told so."""
        key = endpoint, group
        known = self._known.get(key)
        if known is None:
            self._known[key] = _Outage(cause, now, now, not said)
        elif known.cause != cause:
            known.cause, known.said_at = cause, now
            known.noted |= not said
        elif now < known.said_at + SAY_AGAIN:
            return
        else:
            known.said_at, known.noted, said = now, True, False
        if not said:
            lasted = "" if known is None else f" for {now - known.since:.0f} s"
            self._note(EventKind.OUTAGE, endpoint, group, f"cannot be {_what(group)}{lasted} ({cause}): {error or ''}")

    def over(self, endpoint: Endpoint, now: float, *, said: bool = False, group: str | None = None) -> None:
        """One can be opened again."""
        known = self._known.pop((endpoint, group), None)
        if known is not None and known.noted and not said:
            lasted = now - known.since
            words = f"can be {_what(group)} again after {lasted:.1f} s"
            self._note(EventKind.OUTAGE_ENDED, endpoint, group, words, lasted)

    def _note(
        self, kind: EventKind, endpoint: Endpoint, group: str | None, words: str, seconds: float | None = None
    ) -> None:
        whose = "" if group is None else f"group {group!r}: "
        message = f"{whose}connections to {endpoint.label} {' '.join(words.split())}"
        self._news.record(Event(kind=kind, endpoint=endpoint.label, group=group, message=message, seconds=seconds))


def _what(group: str | None) -> str:
    return "opened" if group is None else "made ready"
