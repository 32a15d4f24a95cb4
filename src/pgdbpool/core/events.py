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
    LEAK_SUSPECTED = "leak-suspected"  # a lease has lasted longer than the `leak_threshold` of its group
    LEAK_ENDED = "leak-ended"  # it has ended after all


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to an endpoint, or to a lease of a connection there."""

    kind: EventKind
    endpoint: str
    message: str
    """In words, with the endpoint's name."""
    seconds: float | None = None
    """How long it took: of a failover or an outage that is over. How long a lease has lasted."""
    at: float = 0.0
    """When, in seconds since the epoch."""
    group: str | None = None
    """Whose lease it is about, if it is about one."""
    details: str = ""
    """More lines, for those who look closer: of a lease the stacks of its checkout and of its holder."""
