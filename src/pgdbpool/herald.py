"""Delivers events: one line each to the log, and to whoever asked to be told.

A server that comes and goes every second is one piece of news, not a thousand: of each kind of event, endpoint and
group the log gets a few at once and after that one every ten seconds, which says how many were left out. Callables are
told of every event.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

import msgspec

from .clock import monotonic
from .core.events import Event, EventKind
from .seldom import Rate, left_out
from .wording import log_raised

logger = logging.getLogger("pgdbpool")

_AT_ONCE = 3  # lines
_EVERY = 10.0  # s

_LEVELS = {
    EventKind.ENDPOINT_UP: logging.INFO,
    EventKind.ENDPOINT_SUSPECT: logging.INFO,
    EventKind.ROLE_CHANGED: logging.INFO,
    EventKind.RECOVERED: logging.INFO,
    EventKind.LEAK_ENDED: logging.INFO,
    EventKind.OUTAGE_ENDED: logging.INFO,
}


class Herald:
    """Delivers the events of one pool. `deliver` is for one thread at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._listeners: list[Callable[[Event], object]] = []
        self._rate = Rate(_AT_ONCE, _EVERY)

    def tell(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """From now on call this for every event. Returns what ends it."""
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    @property
    def has_listeners(self) -> bool:
        """Whether anybody but the log is told."""
        return bool(self._listeners)

    def deliver(self, events: deque[Event]) -> None:
        """Log and tell all that has been noted. Never raises an `Exception`."""
        while events:
            try:
                event = events.popleft()
            except IndexError:  # a second caller
                return
            event = msgspec.structs.replace(event, at=time.time())
            self._log(event)
            for listener in tuple(self._listeners):
                try:
                    listener(event)
                except Exception as error:
                    log_raised(f"{self._name}: a callable given to on_event", error)

    def _log(self, event: Event) -> None:
        number = self._rate.admits((event.kind, event.endpoint, event.group), monotonic())
        if number is None:
            return
        details = event.details and f"\n{event.details}"
        level = _LEVELS.get(event.kind, logging.WARNING)
        logger.log(level, "%s: %s%s%s", self._name, event.message, left_out(number), details)
