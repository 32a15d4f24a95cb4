"""A pool without I/O: core, a clock that stands still until told, and servers that are only a few attributes.

`World` does what the shells do, one step at a time, so that a test can stop between any two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings

from pgdbpool.core.balance import POLICIES
from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.evidence import Fault, Identity, Report, Role, Sighting
from pgdbpool.core.group import Group, Lock, Waiter
from pgdbpool.core.lane import Lane, Slot
from pgdbpool.core.plan import Order
from pgdbpool.core.topology import Topology

PRIMARY = Report(Role.PRIMARY)
STANDBY = Report(Role.STANDBY)
UNKNOWN = Report(Role.UNKNOWN)
READ_ONLY_PRIMARY = Report(Role.PRIMARY, read_only=True)


@dataclass(frozen=True)
class Place:
    """The settings of an endpoint, as far as core reads them."""

    label: str = "db1:5432"
    priority: int = 0
    weight: float = 1
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rules:
    """The settings of a group, as far as core reads them. Nothing is kept warm and nothing ages unless said."""

    name: str = "g"
    connection_count: int = 2
    total_count: int | None = None
    min_count: int = 0
    max_waiting: int = 0
    max_lifetime: float = 0.0
    max_idle: float = 0.0
    reconnect_timeout: float = 300.0
    target_session_attrs: str = "any"
    spill: bool = False
    tags: frozenset[str] = frozenset()
    balance: str = "least-busy"


class Caller(Waiter):
    """A waiter that keeps count of its wake-ups."""

    __slots__ = ("deadline", "group", "on_wake", "woken")

    def __init__(self, since: float = 0.0, deadline: float = float("inf")) -> None:
        super().__init__(since, self._count)
        self.deadline = deadline
        self.group: Group | None = None
        self.on_wake: Callable[[Caller], None] = lambda caller: None
        self.woken = 0

    def _count(self) -> None:
        self.woken += 1
        self.on_wake(self)


def clean(now: float) -> bool:
    return True


@dataclass(repr=False)
class World:
    """A topology with everything attached to everything, opened at time `now`."""

    places: Sequence[Place] = (Place(),)
    rules: Sequence[Rules] = (Rules(),)
    lock: Lock = field(default_factory=nullcontext)
    random: Callable[[], float] = lambda: 0.5
    now: float = 100.0
    fall: int = 2
    slow_start: float = 10.0

    def __post_init__(self) -> None:
        self.endpoints = [Endpoint(place, lambda: self.random(), self.slow_start) for place in self.places]
        self.groups = [Group(rule, POLICIES[rule.balance], self.lock, lambda: self.random()) for rule in self.rules]
        self.topology = Topology(self.endpoints, self.groups, self.lock, lambda: self.random(), self.fall)
        self.wishes: list[str] = []
        self.alarms = 0
        self.topology.alarm = self._ring
        for group in self.groups:
            group.wish = lambda group=group: self.wishes.append(group.name)
            for endpoint in self.endpoints:
                self.topology.attach(group, endpoint)
        self.topology.open()

    def _ring(self) -> None:
        self.alarms += 1

    # the first of each, since most tests have only one

    @property
    def group(self) -> Group:
        return self.groups[0]

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints[0]

    @property
    def lane(self) -> Lane:
        return self.group.lanes[0]

    # what the shells do

    def plan(self, **more: Any) -> list[Order]:
        return self.topology.plan(self.now, **more)

    def places_of(self, orders: Sequence[Order]) -> list[str]:
        return [order.lane.endpoint.label for order in orders]

    def order(self, lane: Lane | None = None) -> Order:
        """One connection to open on this lane, wherever the plan might want it."""
        lane = lane or self.lane
        group = next(group for group in self.groups if lane in group.lanes)
        return self.topology.order(group, lane, self.now)

    def opened(self, order: Order, report: Report = UNKNOWN, identity: Identity | None = None) -> str | None:
        return self.topology.opened(order, object(), clean, report, self.now, identity)

    def reported(
        self, endpoint: Endpoint, report: Report, identity: Identity | None = None, *, refused: bool = False
    ) -> None:
        """A session with the server that the endpoint leads to, and that is on its way out of the pool, says so."""
        lane = self.topology.lanes(endpoint)[0]
        slot = Slot(lane, object(), clean, lane.generation, self.now, float("inf"))
        self.topology.reported(slot, report, self.now, identity, refused=refused)

    def failed(self, order: Order, fault: Fault, words: str = "no") -> list[Group]:
        """Returns the groups whose `reconnect_failed` is to be called."""
        self.topology.open_failed(order, fault, words, self.now)
        groups = [group for group, *_ in self.topology.outages]
        self.topology.outages.clear()
        return groups

    def probed(
        self,
        endpoint: Endpoint | None = None,
        report: Report = PRIMARY,
        identity: Identity | None = None,
        position: int | None = None,
        seconds: float = 0.001,
        *,
        pooled: bool = False,
        since: float | None = None,
    ) -> bool:
        """What the monitor does when a probe is answered."""
        sighting = Sighting(report, identity, position, pooled)
        return self.topology.probed(endpoint or self.endpoint, sighting, seconds, self.now, since)

    def missed(
        self,
        endpoint: Endpoint | None = None,
        fault: Fault = Fault.TIMEOUT,
        words: str = "no answer",
        *,
        speaks: bool = False,
    ) -> None:
        """What the monitor does when a probe fails."""
        self.topology.probe_failed(endpoint or self.endpoint, fault, words, self.now, speaks=speaks)

    def events(self) -> list[tuple[str, str]]:
        """What has happened since the last time somebody asked: what, and where."""
        events = [(event.kind.value, event.endpoint) for event in self.topology.events]
        self.topology.events.clear()
        return events

    def aborts(self) -> list[Slot]:
        """Whose calls are to be ended, since the last time somebody asked."""
        slots = list(self.topology.aborts)
        self.topology.aborts.clear()
        return slots

    def grow(self, lane: Lane | None = None, count: int = 1, report: Report = UNKNOWN) -> list[Slot]:
        """Idle connections on this lane."""
        lane = lane or self.lane
        grown = []
        for _ in range(count):
            before = set(lane.slots)
            assert self.opened(self.order(lane), report) is None
            grown.extend(lane.slots - before)
        return grown

    def take(self, group: Group | None = None) -> Slot | None:
        return (group or self.group).take(self.now)

    def lease(self, group: Group | None = None) -> Slot:
        slot = self.take(group)
        assert slot is not None
        return slot

    def give(self, slot: Slot) -> None:
        slot.lane.group.give(slot, self.now)

    def wait(self, group: Group | None = None, *, first: bool = False) -> Caller:
        caller = Caller(self.now)
        (group or self.group).enqueue(caller, first=first)
        return caller

    def bury(self) -> list[tuple[Slot, str]]:
        buried = []
        for group in self.groups:
            while group.closing:
                slot, reason = group.closing.popleft()
                group.buried(slot)
                buried.append((slot, reason))
        return buried

    def route(self, group: Group | None = None) -> list[list[str]]:
        return [[lane.endpoint.label for lane in tier.lanes] for tier in (group or self.group).route]


def places(*labels: str, **more: Any) -> list[Place]:
    return [Place(label, **more) for label in labels]


# The same examples in every run: a test that fails here fails everywhere.
quick = settings(derandomize=True, deadline=None, max_examples=200)
