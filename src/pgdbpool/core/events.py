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
    """It let us in or answered a probe, for the first time or after it had been suspect or down."""
    ENDPOINT_SUSPECT = "endpoint-suspect"
    """Something broke there: a session was lost, or a connect or probe failed. It is still used."""
    ENDPOINT_DOWN = "endpoint-down"
    """It is not to be used until it answers."""
    OUTAGE = "outage"
    """No connection can be opened there, for a reason that the message tells: said when it begins, and about every
    minute while it lasts and somebody tries. With a `group`: none can be made ready for it."""
    OUTAGE_ENDED = "outage-ended"
    """One can be opened again."""
    ROLE_CHANGED = "role-changed"
    """A primary is a standby now, or a standby a primary."""
    FAILOVER_STARTED = "failover-started"
    """There was a primary, and now there is none that takes writes."""
    FAILOVER_FINISHED = "failover-finished"
    """Another server is the primary now: at another endpoint, or behind the name of the same one."""
    RECOVERED = "recovered"
    """The primary is back, perhaps restarted; or an endpoint is no longer fenced."""
    FENCED = "fenced"
    """A primary was overtaken by a promotion: it is not to be used."""
    LEAK_SUSPECTED = "leak-suspected"
    """A lease has lasted longer than the `leak_threshold` of its group."""
    LEAK_ENDED = "leak-ended"
    """It has ended after all."""


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
    """Whose lease or outage it is about, if it is about one group's."""
    details: str = ""
    """More lines, for those who look closer: of a lease the stacks of its checkout and of its holder."""
