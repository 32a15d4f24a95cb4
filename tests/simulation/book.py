"""Core as it is, and a book that is kept of all that goes in and out of it.

The book knows which slots are in somebody's hands and which orders are under way, from what it sees at the doors of
core: `take`, `give`, `retire`, a hand-over, an order given and answered. `watch` compares it with what core believes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from pgdbpool.core.endpoint import URGENT, Endpoint
from pgdbpool.core.evidence import Fault, Health, Identity, Report, Role, Sighting
from pgdbpool.core.group import Group, Route
from pgdbpool.core.lane import Lane, Slot
from pgdbpool.core.plan import Order
from pgdbpool.core.topology import Topology

from .clock import FOREVER, Clock
from .names import Promotions
from .servers import Session
from .shared import Lock, Queue, Shared, Slots, Violation

LEAST_PAUSE = 0.1 * URGENT  # s between two connects to one endpoint for callers who are in a hurry, see `backoff`
IN_VAIN = ("role", "resized", "displaced")  # closed for reasons of our own, which must not lead to new connects


class Book:
    """What is in whose hands."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lock = Lock(self.others_run)
        self.watched = False  # the world stands still, and is looked at
        self.touched = 0  # how often anybody came to the lock, or to a container that is shared
        self.hands: dict[Slot, str] = {}  # -> whose, or what for
        self.orders: list[Order] = []
        self.attempts: dict[Endpoint, deque[float]] = {}
        self.ended: dict[Endpoint, deque[float]] = {}
        self.hurried: dict[Lane, float] = {}  # when its last caller in a hurry gave up, and nothing has changed since
        self.giving: tuple[Slot | None, int] = (None, 0)  # the slot that comes back, and since which step
        self.failed_probes: dict[Endpoint, int] = {}  # in a row
        self.outages: set[tuple[str, str]] = set()  # groups that were told of it, and endpoints
        self.counts: Counter[str] = Counter()
        self.promotions = Promotions(clock)
        self.on_connect: Callable[[Endpoint], None] = lambda endpoint: None

    def others_run(self) -> None:
        """Here a thread could lose the processor, unless it holds the lock: then nobody gets far."""
        if self.watched:
            return
        self.touched += 1
        if not self.lock.held:
            self.clock.preempt()

    def who(self) -> str:
        return self.clock.running.name if self.clock.running is not None else "world"

    def say(self, what: str) -> None:
        self.clock.say(what)

    def hold(self, slot: Slot, whose: str) -> None:
        if slot in self.hands:
            raise Violation(f"{slot.conn} was given to {whose}, and is in the hands of {self.hands[slot]}")
        if slot.conn.closed:
            raise Violation(f"{slot.conn} was given to {whose}, and is closed")
        self.hands[slot] = whose

    def hands_over(self, slot: Slot) -> None:
        """A waiter is about to get it, from `give` or from the idle ones."""
        given, steps = self.giving
        if slot is given and self.clock.steps == steps:  # nobody came in between
            if not slot.lane.live:
                raise Violation(f"{slot.conn} was handed over off the route of {slot.lane.group.name}")
            if slot.generation != slot.lane.generation:
                raise Violation(f"{slot.conn} of an old generation was handed over")

    def closes(self, slot: Slot) -> None:
        """It is about to be closed, by `Sessions.bury`."""
        if slot in self.hands or slot in slot.lane.slots:
            raise Violation(f"{slot.conn} is about to be closed, and is in use by {self.hands.get(slot)}")

    def aborts(self, session: Session) -> None:
        """Calls in flight on it are about to be ended."""
        self.counts["aborts"] += 1
        if self.clock.trace:
            self.say(f"aborts {session}")

    def outage(self, group: str, endpoint: str, error: str) -> None:
        """A `reconnect_failed` callable was called."""
        self.counts["outages told"] += 1
        if self.clock.trace:
            self.say(f"reconnect_failed: {endpoint}, {error}")


class Stack(Shared):
    """The idle slots of a lane."""

    def __init__(self, book: Book) -> None:
        super().__init__(book.others_run)
        self._book = book

    def remove(self, slot: Any) -> None:
        super().remove(slot)
        if not self._book.lock.held:
            self._book.hold(slot, f"{self._book.who()}, for a closer look")


class BookedGroup(Group):
    """A group at whose doors the book is kept."""

    book: Book

    def keep(self, book: Book) -> None:
        self.book = book
        self.waiters = Queue(book.others_run, self.settings.max_waiting)
        self.closing = Closing(book)

    def lead(self, route: Route) -> None:
        if route:  # found again, by another way: whoever gave up before may have been too early
            for lane in self.lanes:
                self.book.hurried.pop(lane, None)
        super().lead(route)

    def take(self, now: float) -> Slot | None:
        book = self.book
        steps, waiting = book.clock.steps, tuple(self.waiters)
        slot = super().take(now)
        if slot is None:
            return None
        book.hold(slot, book.who())
        if book.clock.trace:
            book.say(f"takes {slot.conn} of {self.name}")
        for waiter in waiting:
            if waiter in self.waiters and not waiter.claimed:
                raise Violation(f"{book.who()} came and was served before {waiter.who}, who waits: no overtaking")
        if book.clock.steps == steps:  # nobody came in between
            lane = slot.lane
            if not lane.live or lane not in [lane for tier in self.route for lane in tier.lanes]:
                raise Violation(f"{slot.conn} was taken off the route of {self.name}")
            if slot.generation != lane.generation:
                raise Violation(f"{slot.conn} of an old generation was handed out")
            if now >= slot.expires:
                raise Violation(f"{slot.conn} was handed out after its life")
        return slot

    def give(self, slot: Slot, now: float) -> None:
        if slot in self.book.hands:
            if self.book.clock.trace:
                self.book.say(f"gives back {slot.conn} of {self.name}")
            del self.book.hands[slot]
        self.book.giving = slot, self.book.clock.steps
        super().give(slot, now)

    def retire(self, slot: Slot, reason: str) -> None:
        if slot in self.book.hands:
            if self.book.clock.trace:
                self.book.say(f"retires {slot.conn} of {self.name}: {reason}")
            del self.book.hands[slot]
        self.book.counts[f"retired: {reason}"] += 1
        super().retire(slot, reason)


class Aborts(deque[Slot]):
    """Leased slots whose calls are to be ended."""

    def __init__(self, book: Book, fall: int) -> None:
        super().__init__()
        self._book = book
        self._fall = fall

    def extend(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            endpoint = slot.lane.endpoint
            if self._book.failed_probes[endpoint] < self._fall and slot.server.fenced_by is None:
                raise Violation(f"calls on {endpoint.label} are to be ended, and it is neither dead nor fenced")
            self.append(slot)


class Outages(deque[Any]):
    """What `reconnect_failed` is to be called for."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self._book = book

    def append(self, item: Any) -> None:
        group, endpoint, _ = item
        if (group.name, endpoint) in self._book.outages:
            raise Violation(f"{group.name} is told twice of the same outage of {endpoint}")
        self._book.outages.add((group.name, endpoint))
        super().append(item)


class Closing(Shared):
    """The slots that are to be closed."""

    def __init__(self, book: Book) -> None:
        super().__init__(book.others_run)
        self._book = book

    def append(self, item: Any) -> None:
        slot, reason = item
        book = self._book
        book.counts[f"closed: {reason}"] += 1
        book.promotions.driven_out(slot.conn, slot.lane.group.settings.target_session_attrs, reason)
        if reason not in IN_VAIN:
            book.ended[slot.lane.endpoint].append(book.clock.now)
        if book.clock.trace:
            book.say(f"{slot.conn} of {slot.lane.group.name} is to be closed: {reason}")
        super().append(item)


class BookedTopology(Topology):
    """A topology at whose doors the book is kept."""

    book: Book

    def keep(self, book: Book) -> None:
        self.book = book
        self.outages = Outages(book)
        self.aborts = Aborts(book, self.fall)
        for endpoint in self.endpoints:
            book.attempts[endpoint] = deque()
            book.ended[endpoint] = deque()
            book.failed_probes[endpoint] = 0
        for group in self.groups:
            group.keep(book)  # type: ignore[attr-defined]
            for lane in group.lanes:
                lane.slots = Slots()  # type: ignore[assignment]
                lane.idle = Stack(book)

    def plan(self, now: float, only: Group | None = None, demand: int | None = None) -> list[Order]:
        orders = super().plan(now, only, demand)
        for order in orders:
            endpoint = order.lane.endpoint
            since = now - self.book.hurried.get(order.lane, -FOREVER)
            if since < LEAST_PAUSE:
                raise Violation(f"{name(order.lane)}: dialled again {since:.4f} s after a caller in a hurry gave up")
            self.book.orders.append(order)
            self.book.counts["connects"] += 1
            self.book.attempts[endpoint].append(self.book.clock.now)
            self.book.on_connect(endpoint)
        return orders

    def opened(
        self,
        order: Order,
        conn: Any,
        clean: Callable[[], bool],
        report: Report,
        now: float,
        identity: Identity | None = None,
        since: float | None = None,
        pooled: bool = False,
        address: str = "",
        given: Any = None,
    ) -> str | None:
        book = self.book
        book.orders.remove(order)
        self._reached(order.lane.endpoint)
        retired = order.generation != order.lane.generation
        if book.clock.trace:
            book.say(f"opened {conn} for {order.group.name}, {words(report)}{'' if identity is None else identity[1:]}")
        book.promotions.opened(conn)
        reason = super().opened(order, conn, clean, report, now, identity, since, pooled, address, given)
        book.counts["opened" if reason is None else f"opened in vain: {reason}"] += 1
        if retired and reason is None:
            raise Violation(f"{conn} was asked for before its lane was retired, and is kept")
        return reason

    def open_failed(self, order: Order, fault: Fault, error: str, now: float) -> None:
        self._ended(order, fault.value)
        steps = self.book.clock.steps
        super().open_failed(order, fault, error, now)
        if fault is Fault.REFUSED and self.book.clock.steps == steps:
            for lane in self.lanes(order.lane.endpoint):
                if len(lane.idle):
                    raise Violation(f"{name(lane)}: connections rest, and the server refused another")

    def setup_failed(self, order: Order, error: str, now: float) -> None:
        self._ended(order, "not made ready")
        self._reached(order.lane.endpoint)
        super().setup_failed(order, error, now)

    def cancelled(self, order: Order) -> bool:
        if order in self.book.orders:
            self._ended(order, "given up")
        return super().cancelled(order)

    def put_off(self, lane: Lane, now: float) -> None:
        super().put_off(lane, now)
        self.book.counts["put off"] += 1
        self.book.hurried[lane] = now

    def _ended(self, order: Order, how: str) -> None:
        book = self.book
        book.orders.remove(order)
        book.counts[f"connect: {how}"] += 1
        if book.clock.trace:
            book.say(f"connect to {order.lane.endpoint.label} for {order.group.name}: {how}")

    def reported(
        self, slot: Slot, report: Report, now: float, identity: Identity | None = None, *, refused: bool = False
    ) -> None:
        endpoint = slot.lane.endpoint
        self._tells("write refused" if refused else "reported", endpoint, words(report))
        steps = self.book.clock.steps
        super().reported(slot, report, now, identity, refused=refused)
        takes_none = refused and report.role is Role.PRIMARY and report.read_only
        if takes_none and slot.server.takes_writes and slot.expires > now and self.book.clock.steps == steps:
            raise Violation(f"{endpoint.label} refused a write, and is believed to take them")

    def session_lost(self, slot: Slot, sqlstate: str | None, error: str, now: float) -> bool:
        self._tells("session lost", slot.lane.endpoint, f"{slot.conn}, {sqlstate}")
        steps = self.book.clock.steps
        look = super().session_lost(slot, sqlstate, error, now)
        if look and slot.lane.endpoint.health is Health.UP and self.book.clock.steps == steps:
            raise Violation(f"a session of {slot.lane.endpoint.label} was lost, and it is believed to be well")
        return look

    def silent(self, endpoint: Endpoint, error: str, now: float) -> None:
        self._tells("silent", endpoint, "no answer to a ping")
        super().silent(endpoint, error, now)

    def probed(
        self, endpoint: Endpoint, sighting: Sighting, seconds: float, now: float, since: float | None = None
    ) -> bool:
        self.book.failed_probes[endpoint] = 0
        self._reached(endpoint)
        return super().probed(endpoint, sighting, seconds, now, since)

    def probe_failed(self, endpoint: Endpoint, fault: Fault, error: str, now: float, *, speaks: bool = False) -> bool:
        self.book.failed_probes[endpoint] += 1
        return super().probe_failed(endpoint, fault, error, now, speaks=speaks)

    def _reached(self, endpoint: Endpoint) -> None:
        """An outage is over."""
        self.book.outages = {told for told in self.book.outages if told[1] != endpoint.label}

    def _tells(self, what: str, endpoint: Endpoint, details: str) -> None:
        self.book.counts[what] += 1
        if self.book.clock.trace:
            self.book.say(f"{what}: {endpoint.label}, {details}")


def words(report: Report) -> str:
    return f"a {report.role.value}{', read only' * report.read_only}"


def name(lane: Lane) -> str:
    return f"{lane.group.name} on {lane.endpoint.label}"
