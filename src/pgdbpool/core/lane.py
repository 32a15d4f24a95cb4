"""A lane: one group's way to one endpoint.

It holds the idle stack, and counts what is open, opening and closing, so that the limit is a sum of four numbers:
``idle + leased + opening + closing <= limit``. The stack is a deque whose append and pop are atomic; everything
else is written with the pool's lock held, and read without it.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from .evidence import Fault, Health

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .group import Group
    from .slot import Slot


class Lane:
    """The connections of one group to one endpoint."""

    __slots__ = (
        "closed_by",
        "closing",
        "connect_time",
        "connects",
        "endpoint",
        "failures",
        "generation",
        "group",
        "idle",
        "live",
        "next_try",
        "open",
        "opening",
        "per_weight",
        "poll_after",
        "rollbacks",
        "searches",
        "setup_error",
        "setup_failures",
        "slots",
        "use_time",
        "uses",
        "wait_time",
        "waits",
        "wished",
    )

    def __init__(self, group: Group, endpoint: Endpoint) -> None:
        self.group = group
        self.endpoint = endpoint
        self.per_weight = 1.0 / endpoint.weight
        self.reset()

    def reset(self) -> None:
        """Empty, as in a new process."""
        self.idle: deque[Slot] = deque()  # right end: used last
        self.slots: set[Slot] = set()  # idle and leased
        self.open = 0  # len(slots), as a plain number for the fast path
        self.opening = 0
        self.closing = 0
        self.generation = 0  # of this lane: a slot of another number must not be used again
        self.live = False  # on the route now
        self.wished = False  # the balancer wanted a connection here and there was none
        self.searches = 0  # connects made only to ask for the role, since the group last had a route
        self.next_try = 0.0  # paces those, and what follows a failed setup
        self.setup_error: str | None = None  # connected, but could not be made ready: `configure` raised, say
        self.setup_failures = 0
        self.poll_after = self.group.poll_after
        # Added to when a slot goes; what living slots have counted is in the slots.
        self.uses = 0
        self.use_time = 0.0
        self.waits = 0
        self.wait_time = 0.0
        self.rollbacks = 0
        self.connects = 0
        self.connect_time = 0.0
        self.failures = 0
        self.closed_by: Counter[str] = Counter()

    @property
    def leased(self) -> int:
        return self.open - len(self.idle)

    @property
    def total(self) -> int:
        """All that counts against the limit."""
        return self.open + self.opening + self.closing

    @property
    def room(self) -> bool:
        group = self.group
        return self.total < group.limit and (group.total_limit is None or group.total < group.total_limit)

    @property
    def usable(self) -> bool:
        """Whether callers may be sent here: not down, and either something is open or nothing forbids opening."""
        endpoint = self.endpoint
        if endpoint.health is Health.DOWN:
            return False
        return self.open > 0 or (endpoint.fault is None and self.setup_error is None)

    @property
    def refused(self) -> bool:
        """Whether a new connection is turned away for a reason that no retry mends."""
        return self.endpoint.fault is Fault.MISCONFIGURED or self.setup_error is not None

    def may_open(self, now: float, *, urgent: bool = False) -> bool:
        """Whether a connection may be opened here now."""
        return self.room and now >= self.next_try and self.endpoint.may_connect(now, urgent=urgent)
