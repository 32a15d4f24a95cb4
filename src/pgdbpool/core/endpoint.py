"""An endpoint: what is believed of one server, and when it may be tried again.

::

    suspect ──connected──▶ up ──session lost──▶ suspect
       │                    │
       └──────refused───────┴──▶ down ──connected──▶ up

An endpoint starts as ``suspect``: nothing is known. `fault` is the last failure to open a connection that no
later success has overcome; while there is one, connects are spaced by full-jitter exponential backoff
(M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). Unless the endpoint is ``up``, one
connect at a time is the probe whose result the others wait for. All methods are called with the pool's lock held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .evidence import Fault, Health, Report, Role

if TYPE_CHECKING:
    from .lane import Lane

MAX_CONNECTING = 2  # connects at a time to one endpoint from one process

# Fault -> (first span, longest span) of the wait before the next try, in seconds.
BACKOFF = {
    Fault.STARTING: (0.1, 0.1),
    Fault.FULL: (0.1, 1.0),
    Fault.MISCONFIGURED: (2.0, 30.0),
}
BACKOFF_ELSE = (0.05, 1.0)

# While somebody waits and nothing is believed usable, an endpoint that turned us away at once is asked again after at
# most so long: it costs next to nothing, and a server that came back should not wait for the end of a long backoff.
URGENT = 0.05
_QUICK_TO_SAY_NO = frozenset({Fault.REFUSED, Fault.STARTING, Fault.FULL})


class Address(Protocol):
    """What an endpoint needs to know of its settings; see `pgdbpool.config.EndpointSettings` for the meaning."""

    @property
    def label(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def tags(self) -> frozenset[str]: ...


def backoff(first: float, longest: float, failures: int, random: Callable[[], float]) -> float:
    """Seconds to wait after so many failures: full jitter, but for a floor of a tenth.

    Without the floor a draw of nearly nothing would be a second try at the same moment.
    """
    span = min(longest, first * 2.0 ** min(failures, 20))
    return span * (0.1 + 0.9 * random())


class Endpoint:
    """One server address: belief, backoff, and the lanes that lead to it."""

    def __init__(self, settings: Address, random: Callable[[], float]) -> None:
        self.settings = settings
        self.label = settings.label
        self.priority = settings.priority
        self.weight = settings.weight
        self.lanes: list[Lane] = []
        self.health = Health.SUSPECT
        self.report = Report(Role.UNKNOWN)
        self.fault: Fault | None = None
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self.failures = 0
        self.failing_since: float | None = None
        self.told: set[str] = set()  # groups whose `reconnect_failed` knows of this outage
        self.next_try = 0.0
        self.urgent_try = 0.0  # the same while somebody waits and nothing is believed usable
        self.reset(random)

    def reset(self, random: Callable[[], float]) -> None:
        """As in a new process: nothing under way. Belief stays."""
        self._random = random
        self.connecting = 0

    @property
    def role(self) -> Role:
        return self.report.role

    @property
    def open(self) -> int:
        """Connections open to this endpoint, over all groups."""
        return sum(lane.open for lane in self.lanes)

    def may_connect(self, now: float, *, urgent: bool = False) -> bool:
        """Whether one more connect may be started now."""
        most = MAX_CONNECTING if self.health is Health.UP and self.fault is None else 1
        return self.connecting < most and now >= (self.urgent_try if urgent else self.next_try)

    def connected(self) -> None:
        """A connect succeeded: whatever was wrong with the way in is over."""
        self.failures = 0
        self.failing_since = None
        self.told.clear()
        self.next_try = self.urgent_try = 0.0
        self.fault = None
        self.health = Health.UP

    def connect_failed(self, fault: Fault, error: str, now: float) -> None:
        """A connect failed. Sessions already open are the topology's concern."""
        first, longest = BACKOFF.get(fault, BACKOFF_ELSE)
        self.next_try = self.urgent_try = now + backoff(first, longest, self.failures, self._random)
        if fault in _QUICK_TO_SAY_NO:
            self.urgent_try = min(self.next_try, now + backoff(URGENT, URGENT, 0, self._random))
        self.failures += 1
        if self.failing_since is None:
            self.failing_since = now
        self.fault = fault
        self.last_error = error
        self.last_error_at = now
        if fault is Fault.REFUSED or (fault is Fault.TIMEOUT and not self.open):
            self.health = Health.DOWN
            self.report = Report(Role.UNKNOWN)  # it may come back as something else
        elif self.health is Health.UP and fault in (Fault.TIMEOUT, Fault.STARTING):
            self.health = Health.SUSPECT

    def silent(self, error: str, now: float) -> None:
        """An open session got no answer: the server or the way to it is frozen."""
        self.connect_failed(Fault.TIMEOUT, error, now)
        self.health = Health.DOWN
        self.report = Report(Role.UNKNOWN)

    def session_lost(self, error: str, now: float) -> None:
        """A session ended in somebody's hands."""
        self.last_error = error
        self.last_error_at = now
        if self.health is Health.UP:
            self.health = Health.SUSPECT
