"""What happened, for those who look on: one frozen value for each change that an operator would want to know of.

Core only notes events, in the order in which they came about. The shells stamp, log and deliver them, with no lock
held.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class EventKind(StrEnum):
    """What happened."""

    ENDPOINT_UP = "endpoint-up"
    ENDPOINT_SUSPECT = "endpoint-suspect"
    ENDPOINT_DOWN = "endpoint-down"
    ROLE_CHANGED = "role-changed"
    FAILOVER_STARTED = "failover-started"  # there was a primary, and now there is none that takes writes
    FAILOVER_FINISHED = "failover-finished"  # another one does
    RECOVERED = "recovered"  # the same one does again, or an endpoint is no longer fenced
    FENCED = "fenced"  # a primary that was overtaken by a promotion: not to be used


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to an endpoint."""

    kind: EventKind
    endpoint: str
    message: str
    """In words, with the endpoint's name."""
    seconds: float | None = None
    """How long it took: of a failover or an outage that is over."""
    at: float = 0.0
    """When, in seconds since the epoch."""
