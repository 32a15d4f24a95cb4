"""Why the pool has ended a call: words for its caller, who would else hear only that the connection is gone.

They say what is the matter, for how long there was no answer, and which setting has decided.
"""

from __future__ import annotations

from .clock import monotonic
from .config import EndpointSettings, GroupSettings, MonitorSettings
from .core.lane import Slot

GRACE = 1.0  # s beyond its query_timeout after which a call is ended on this side: the server cannot do it any more


def by_query_timeout(where: EndpointSettings, how: GroupSettings) -> str:
    """Which `query_timeout` holds for a call, and what it is. Empty: none."""
    timeout = where.query_timeout if how.query_timeout is None else how.query_timeout
    if not timeout:
        return ""
    whose = where.label if how.query_timeout is None else f"group {how.name!r}"
    return f"query_timeout of {whose} is {timeout} ms"


def by_look(monitor: MonitorSettings) -> str:
    """Without a monitor: when a call takes its server for dead."""
    return f"{monitor.fall} attempts to reach it failed {_decided(monitor)}"


def by_pool(slot: Slot, monitor: MonitorSettings) -> str:
    """For a call in flight on a server that is dead, or of the past."""
    endpoint = slot.lane.endpoint
    if slot.server.fenced_by is not None:
        return f"{endpoint.label} is {slot.server.fenced_by}"
    words = f"{endpoint.label} is lost"
    if endpoint.last_error:
        words += f": {endpoint.last_error}"
    if endpoint.answered_at is not None:
        words += f"; it last answered {monotonic() - endpoint.answered_at:.1f} s before"
    if endpoint.misses >= monitor.fall:
        words += f", and {monitor.fall} probes in a row failed {_decided(monitor)}"
    return words


def _decided(monitor: MonitorSettings) -> str:
    return f"(monitor.fall; monitor.timeout is {monitor.timeout:g} s)"
