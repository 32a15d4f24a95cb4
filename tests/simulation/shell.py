"""What the pool does with one connection: open it, look at it, take it back, close it.

The same as `pgdbpool.session`, line by line, as steps of a task: where that one blocks this one yields, and where a
thread could lose the processor in between it takes a breath. On the way it keeps book of what core must agree with:
which orders are under way, which slots are in somebody's hands, and which are being closed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from random import Random

from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.evidence import Fault, Role
from pgdbpool.core.group import Group, outlived
from pgdbpool.core.slot import Slot
from pgdbpool.core.topology import Order, Topology

from .clock import FOREVER, Clock, Interrupted, Steps
from .network import ConnectFailed, Lost, NoAnswer, ask, connect
from .scenario import GroupPlan, PlacePlan
from .servers import Server, Session
from .shared import Lock, Violation

PING_AFTER = 30.0
PING_LIMIT = 2.0
LEAST_PATIENCE = 0.5
IN_VAIN = ("role", "resized", "displaced")  # reasons of our own, that must not be the cause of new connects
WRITERS = ("primary", "prefer-primary", "read-write", "read-only")


class SetupFailed(Exception):
    """`configure` raised."""


class Shell:
    """Opens, checks, settles and closes the connections of one pool, and keeps book."""

    def __init__(
        self, clock: Clock, topology: Topology, lock: Lock, servers: dict[Endpoint, Server], random: Random
    ) -> None:
        self.clock = clock
        self.topology = topology
        self.lock = lock
        self.servers = servers
        self.random = random
        self.orders: list[Order] = []
        self.hands: dict[Slot, str] = {}  # slot -> whose, or what for
        self.burying: dict[Slot, None] = {}
        self.unready: dict[Group, None] = {}  # whose `configure` raises at present
        self.heard: deque[Slot] = deque()  # the listener has heard something there
        self.on_heard: Callable[[], None] | None = None  # None: there is no listener
        self.attempts: dict[Endpoint, deque[float]] = {endpoint: deque() for endpoint in topology.endpoints}
        self.ended: dict[Endpoint, deque[float]] = {endpoint: deque() for endpoint in topology.endpoints}
        self.on_connect: Callable[[Endpoint], None] = lambda endpoint: None
        self.counts: Counter[str] = Counter()
        topology.born = self.born

    def plan(self, only: Group | None = None, demand: int | None = None) -> list[Order]:
        orders = self.topology.plan(self.clock.now, only, demand)
        self.orders += orders
        return orders

    def cancel(self, orders: Iterable[Order]) -> None:
        for order in orders:
            self.orders.remove(order)
            self.topology.cancelled(order)

    def others_run(self) -> None:
        """Here a thread could lose the processor, unless it holds the lock: then nobody gets far."""
        if not self.lock.held:
            self.clock.preempt()

    def must_be_unlocked(self, what: str) -> None:
        if self.lock.held:
            raise Violation(f"{what} with the pool's lock held")

    def who(self) -> str:
        return self.clock.running.name if self.clock.running is not None else "world"

    # -- hands ------------------------------------------------------------------------------------------------

    def hold(self, slot: Slot, whose: str) -> None:
        if slot in self.hands:
            raise Violation(f"{slot.conn} was given to {whose}, and is in the hands of {self.hands[slot]}")
        if slot.conn.closed:
            raise Violation(f"{slot.conn} was given to {whose}, and is closed")
        self.hands[slot] = whose

    def take(self, group: Group) -> Slot | None:
        steps = self.clock.steps
        waiting = bool(group.waiters)
        slot = group.take(self.clock.now)
        if slot is None:
            return None
        self.hold(slot, self.who())
        if self.clock.trace:
            self.clock.say(f"takes {slot.conn} of {group.name}")
        if self.clock.steps == steps:  # nobody came in between
            lane = slot.lane
            if waiting:
                raise Violation("a newcomer was served before those who wait")
            if not lane.live or lane not in [lane for tier in group.route for lane in tier.lanes]:
                raise Violation(f"{slot.conn} was taken off the route of {group.name}")
            if slot.generation != lane.generation:
                raise Violation(f"{slot.conn} of an old generation was handed out")
            if self.clock.now >= slot.expires:
                raise Violation(f"{slot.conn} was handed out after its life")
        return slot

    def give(self, slot: Slot) -> None:
        if self.clock.trace:
            self.clock.say(f"gives back {slot.conn} of {slot.lane.group.name}")
        del self.hands[slot]
        slot.lane.group.give(slot, self.clock.now)

    def retire(self, slot: Slot, reason: str) -> None:
        if self.clock.trace:
            self.clock.say(f"retires {slot.conn} of {slot.lane.group.name}: {reason}")
        del self.hands[slot]
        self.counts[f"retired: {reason}"] += 1
        slot.lane.group.retire(slot, reason)

    # -- opening ----------------------------------------------------------------------------------------------

    def open(self, order: Order, deadline: float = FOREVER) -> Steps:
        clock, lane = self.clock, order.lane
        group, endpoint = lane.group, lane.endpoint
        where: PlacePlan = endpoint.settings  # type: ignore[assignment]
        began = clock.now
        hurried = deadline < began + min(where.connect_timeout, LEAST_PATIENCE)
        deadline = min(deadline, began + where.connect_timeout)
        self.attempts[endpoint].append(began)
        self.on_connect(endpoint)
        self.counts["connects"] += 1
        try:
            session: Session = yield from connect(clock, self.servers[endpoint], deadline, self.random.random())
        except ConnectFailed as error:
            if clock.trace:
                clock.say(f"connect to {endpoint.label} for {group.name}: {error}{', in a hurry' if hurried else ''}")
            self.orders.remove(order)
            if error.fault is Fault.TIMEOUT and hurried:
                self.attempts[endpoint].remove(began)  # how often is up to those in a hurry
                self.topology.cancelled(order)
            else:
                self.counts[f"connect failed: {error}"] += 1
                self.topology.open_failed(order, error.fault, str(error), clock.now)
            return
        except Interrupted:
            self.orders.remove(order)
            self.topology.cancelled(order)
            raise
        report = session.heard
        if group in self.unready:
            session.close()
            if clock.trace:
                clock.say(f"connect to {endpoint.label} for {group.name}: configure raises")
            self.orders.remove(order)
            self.counts["setup failed"] += 1
            self.topology.setup_failed(order, "configure raised", clock.now)
            return
        self.orders.remove(order)
        if clock.trace:
            clock.say(f"opened {session} for {group.name}, a {report.role.value}{' read only' * report.read_only}")
        reason = self.topology.opened(order, session, self.watch(session, group), report, clock.now)
        self.counts["opened" if reason is None else f"opened in vain: {reason}"] += 1
        self.bury(group)

    def watch(self, session: Session, group: Group) -> Callable[[], bool]:
        said = session.heard
        writes = group.settings.target_session_attrs in WRITERS

        def clean() -> bool:
            heard = session.heard
            same = heard == said if writes else (heard.role is Role.STANDBY) == (said.role is Role.STANDBY)
            return same and not session.in_transaction and not session.broken

        return clean

    def born(self, slot: Slot) -> None:
        """Listen to it."""
        if self.on_heard is not None:
            wake = self.on_heard

            def goodbye() -> None:
                self.heard.append(slot)
                wake()

            slot.conn.on_goodbye = goodbye
            if slot.conn.told:  # epoll tells of what was there before
                goodbye()

    # -- before a checkout --------------------------------------------------------------------------------------

    def verify(self, slot: Slot, deadline: float) -> Steps:
        """Whether it can be handed out. If not it is out of the pool."""
        clock, group, session = self.clock, slot.lane.group, slot.conn
        now = clock.now
        if slot.generation != slot.lane.generation or now >= slot.expires:
            self.retire(slot, outlived(slot))
            return False
        if now < slot.fresh_until:
            return True
        how: GroupPlan = group.settings  # type: ignore[assignment]
        try:
            if how.check != "auto" or now - slot.rested >= PING_AFTER or session.told:
                self.counts["pings"] += 1
                yield from ask(clock, session, min(deadline, now + PING_LIMIT), self.random.random())
        except BaseException as error:
            if isinstance(error, Lost | NoAnswer | Interrupted):
                try:
                    if not isinstance(error, NoAnswer) or deadline >= now + LEAST_PATIENCE:
                        yield from self.lost(slot, error)
                finally:
                    self.retire(slot, "broken")
            if not isinstance(error, Exception):
                raise
            return False
        if not slot.clean():
            return self._catch_up(slot)
        return True

    def _catch_up(self, slot: Slot) -> bool:
        group, session = slot.lane.group, slot.conn
        report = session.heard
        if report != slot.lane.endpoint.report:
            if self.clock.trace:
                self.clock.say(f"{session} says it is a {report.role.value}{' read only' * report.read_only}")
            self.counts["reported"] += 1
            self.topology.reported(slot.lane.endpoint, report)
        slot.clean = self.watch(session, group)
        if slot.generation != slot.lane.generation:
            self.retire(slot, "role")
            return False
        return True

    # -- after use ----------------------------------------------------------------------------------------------

    def settle(self, slot: Slot, error: BaseException | None) -> Steps:
        """Take back what cannot simply be put on the stack."""
        session: Session = slot.conn
        try:
            if session.in_transaction and not session.broken:
                slot.rollbacks += 1
                yield from ask(self.clock, session, FOREVER, self.random.random())
                session.in_transaction = False
        except BaseException as failure:
            error = error or failure
            if isinstance(failure, Interrupted):
                self.retire(slot, "busy")
                raise
            if not isinstance(failure, Lost):
                raise
        if session.broken:
            try:
                yield from self.lost(slot, error)
            finally:
                self.retire(slot, "broken")
        elif slot.clean() or self._catch_up(slot):
            self.give(slot)

    def lost(self, slot: Slot, error: BaseException | None) -> Steps:
        """A session is gone: have a look at those that rest beside it."""
        clock, endpoint = self.clock, slot.lane.endpoint
        if clock.trace:
            clock.say(f"loses {slot.conn}: {error!r}")
        if isinstance(error, NoAnswer):
            self.counts["silent"] += 1
            self.topology.silent(endpoint, "no answer", clock.now)
            return
        self.counts["lost"] += 1
        if not self.topology.session_lost(slot, getattr(error, "sqlstate", None), "lost", clock.now):
            return
        for lane in endpoint.lanes:
            for other in tuple(lane.idle):
                if other.conn.told:
                    yield from self._look_closer(other)

    def _look_closer(self, slot: Slot) -> Steps:
        lane = slot.lane
        try:
            lane.idle.remove(slot)
        except ValueError:
            return
        self.hold(slot, f"{self.who()}, for a closer look")
        try:
            yield from ask(self.clock, slot.conn, self.clock.now + PING_LIMIT, self.random.random())
        except (Lost, NoAnswer):
            self.retire(slot, "broken")
        except Interrupted:  # here the real one relies on its caller, too
            self.retire(slot, "broken")
            raise
        else:
            self.give(slot)

    def heard_of(self, slot: Slot) -> None:
        """The listener has heard something."""
        if slot.conn.told and not slot.conn.closed:
            group = slot.lane.group
            if group.goodbye(slot):
                self.counts["goodbyes"] += 1
                if self.clock.trace:
                    self.clock.say(f"hears the goodbye of {slot.conn}")
                self.topology.session_lost(slot, None, "the server closed the connection", self.clock.now)
                group.wish()

    # -- closing ------------------------------------------------------------------------------------------------

    def bury(self, group: Group) -> None:
        while True:
            try:
                slot, reason = group.closing.popleft()
            except IndexError:
                return
            self.burying[slot] = None
            self.counts[f"closed: {reason}"] += 1
            if reason not in IN_VAIN:
                self.ended[slot.lane.endpoint].append(self.clock.now)
            if self.clock.trace:
                self.clock.say(f"closes {slot.conn} of {group.name}: {reason}")
            slot.conn.close()
            self.others_run()
            del self.burying[slot]
            group.buried(slot)
