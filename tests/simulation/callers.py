"""Those who use the pool, and its owner who changes it while they do.

A caller does what `pgdbpool.sync` does for one: checkout, use, return, with a deadline that must hold. It may be
interrupted at any moment; what it held then goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil
from random import Random

from pgdbpool.core.group import Group
from pgdbpool.core.lane import Slot
from pgdbpool.core.topology import Topology
from pgdbpool.errors import (
    DBConnectionError,
    DBOfflineError,
    OutcomeUnknown,
    PoolClosed,
    PoolTimeout,
    TooManyWaiting,
)
from pgdbpool.session import Sessions

from .book import Book
from .clock import FOREVER, Bell, Clock, Interrupted, hear, sleep
from .driver import Lost, Refused, SimulatedDriver
from .keepers import Keeper
from .scenario import CallerPlan
from .shared import Violation
from .watch import Watch

VISITS = 100  # at most, that are untimely
LATE = 0.1  # s that a checkout may take beyond its deadline: a few turns of losing the processor


class Pool:
    """Checkout and return, as callers see them."""

    def __init__(
        self,
        clock: Clock,
        book: Book,
        topology: Topology,
        sessions: Sessions,
        driver: SimulatedDriver,
        keeper: Keeper,
        watch: Watch,
    ) -> None:
        self.clock = clock
        self.book = book
        self.topology = topology
        self.sessions = sessions
        self.driver = driver
        self.keeper = keeper
        self.watch = watch
        self.groups: list[Group] = topology.groups

    async def checkout(self, group: Group, patience: float) -> Slot:
        """Raises what the pool raises, and Violation if that takes too long."""
        clock, began = self.clock, self.clock.now
        try:
            slot = group.take(began)
            if slot is None or began >= slot.fresh_until:
                slot = await self._obtain(group, slot, began, began + patience)
            else:
                self.watch.looked_at(slot)
        finally:
            late = clock.now - (began + patience)
            if late > LATE:
                raise Violation(f"{self.book.who()}: a checkout of {group.name} ended {late:.3f} s after its deadline")
        slot.taken = clock.now
        self.watch.lent(slot, group)
        return slot

    async def _obtain(self, group: Group, slot: Slot | None, began: float, deadline: float) -> Slot:
        clock = self.clock
        waited = first = False
        while True:
            if slot is None:
                waited = True
                slot = await self.keeper.wait(group, began, deadline, first)
            if await self.sessions.verify(slot, deadline):
                break
            slot, first = None, True
            await clock.breath()
            if not group.waiters:
                slot = group.take(clock.now)
        if waited:
            slot.waited(clock.now - began)
        return slot

    async def give_back(self, slot: Slot, error: BaseException | None, *, commit: bool = True) -> None:
        clock, group = self.clock, slot.lane.group
        now = clock.now
        slot.used(now)
        try:
            if error is None and slot.clean(now):
                group.give(slot, now)
            else:
                await self.sessions.settle(slot, error, commit=commit)
        finally:
            if self.book.hands.get(slot) == self.book.who():
                raise Violation(f"{self.book.who()} gave back {slot.conn}, and still has it")
        if now >= group.tend_at:
            await self.keeper.tend()


class Caller:
    """One thread of the application."""

    def __init__(self, pool: Pool, plan: CallerPlan, random: Random) -> None:
        self.pool = pool
        self.plan = plan
        self.random = random
        self.working = True
        self._call = Bell()
        self._visits = 0

    def go_home(self) -> None:
        """As soon as what is under way is done."""
        self.working = False
        self._call.ring()

    def come(self) -> bool:
        """Do not wait for the next visit. False: it is under way."""
        resting = self._call.task is not None
        if resting:
            self._call.ring()
        return resting

    async def run(self) -> None:
        clock = self.pool.clock
        while self.working:
            await hear(self._call, self._next_visit())
            if not self.working:
                return
            try:
                for _ in range(1 + self.plan.insists):
                    if await self.visit(self.plan.nested) or not self.working:
                        break
            except Interrupted:
                self.pool.book.counts["interrupted"] += 1
                if clock.trace:
                    clock.say("was interrupted")

    def _next_visit(self) -> float:
        at = self.pool.clock.now + self.plan.think * self.random.expovariate(1.0)
        wave = self.plan.wave
        return wave * ceil(at / wave) if wave else at

    async def visit(self, nested: int) -> bool:
        """One checkout, and perhaps others within it. False: it took too long."""
        random, counts = self.random, self.pool.book.counts
        group = self.pool.groups[random.choice(self.plan.groups)]
        patience = random.choice(self.plan.patience)
        if random.random() < self.plan.cancelled:
            self._plan_interrupt(random.expovariate(1.0) * (self.plan.use + min(patience, 0.3)))
        try:
            slot = await self.pool.checkout(group, patience)
        except (PoolTimeout, DBOfflineError, PoolClosed) as refusal:
            self._refused(group, refusal)
            return not isinstance(refusal, PoolTimeout)
        counts["served"] += 1
        error: BaseException | None = None
        try:
            await self._use(slot, writes=random.random() < 0.5)
            if nested > 1:
                await self.visit(nested - 1)
        except Interrupted as interrupted:
            error = interrupted
            raise
        except (Lost, Refused) as failure:
            counts[type(failure).__name__] += 1
            error = failure
        finally:
            try:
                await self.pool.give_back(slot, error)
            except OutcomeUnknown:
                counts["OutcomeUnknown"] += 1
            except DBConnectionError:
                counts["DBConnectionError"] += 1
        return True

    def _plan_interrupt(self, seconds: float) -> None:
        task = self.pool.clock.running
        self._visits += 1
        visit = self._visits

        def interrupt() -> None:
            if self._visits == visit and self.working and task is not None:
                task.interrupt()

        self.pool.clock.after(seconds, interrupt)

    def _refused(self, group: Group, error: Exception) -> None:
        book = self.pool.book
        book.counts[type(error).__name__] += 1
        if book.clock.trace:
            book.say(f"gets nothing of {group.name}: {type(error).__name__}")
        if isinstance(error, PoolClosed) and not group.closed:
            raise Violation(f"{group.name} is said to be closed")
        if isinstance(error, TooManyWaiting) and not group.settings.max_waiting:
            raise Violation(f"{group.name} has no max_waiting, and turned somebody away")

    async def _use(self, slot: Slot, *, writes: bool) -> None:
        random, session, driver = self.random, slot.conn, self.pool.driver
        pieces = random.choice([1, 1, 2, 3])
        seconds = self.plan.use * min(random.expovariate(1.0), 2.0)
        for _ in range(pieces):
            work = seconds / pieces
            spent = work * random.random()  # of it with the application, the rest with the server
            await sleep(spent)
            session.in_transaction = random.random() < self.plan.leaves_open
            session.altered |= random.random() < 0.05
            await driver.execute(session, work - spent, writes=writes)
        if random.random() < 0.3:  # its server may end the session while nobody looks
            await sleep(seconds * random.random())


class Crowd:
    """The callers that come when it is least convenient: while another has lost the processor inside core.

    Left to chance that would hardly ever be so, since there a thread stands for microseconds.
    """

    def __init__(self, callers: Sequence[Caller]) -> None:
        self._untimely = deque(caller for caller in callers if caller.plan.untimely)
        self._left = VISITS

    def come(self) -> None:
        """One of them, the one that has come least often first."""
        if self._left:
            for caller in self._untimely:
                if caller.come():
                    self._untimely.remove(caller)
                    self._untimely.append(caller)
                    self._left -= 1
                    break


class Owner:
    """Changes the pool while it is in use."""

    def __init__(self, pool: Pool, random: Random) -> None:
        self.pool = pool
        self.random = random
        self.unready: dict[str, None] = {}  # groups whose `configure` raises at present
        self.limits = [(group.limit, group.min_count) for group in pool.groups]

    async def run(self, until: float, actions: int) -> None:
        clock, random = self.pool.clock, self.random
        for _ in range(actions):
            await sleep((until - clock.now) / actions * random.expovariate(1.0))
            if clock.now >= until:
                break
            await self.act(random.choice(self.pool.groups))
        self.make_good()

    async def act(self, group: Group) -> None:
        random, book = self.random, self.pool.book
        action = random.choice(["resize", "resize", "pause", "resume", "drain", "check", "unready", "ready"])
        book.counts[f"owner: {action}"] += 1
        if book.clock.trace:
            book.say(f"{action} {group.name}")
        if action == "resize":
            size = random.randint(1, 4)
            least = min(group.min_count, size)
            self._resize(group, size, least)
        elif action in ("pause", "resume"):
            self._pause(group, action == "pause")
        elif action == "drain":
            self.pool.topology.drain(group, book.clock.now)
            group.wish()
        elif action == "check":
            await self._check(group)
        elif action == "unready":
            self.unready[group.name] = None
        else:
            self.unready.pop(group.name, None)

    def _resize(self, group: Group, size: int, least: int) -> None:
        self.pool.watch.about_to_shrink(group)
        group.resize(size, least)
        self.pool.topology.reroute(self.pool.clock.now)

    def _pause(self, group: Group, on: bool) -> None:
        group.paused = on
        self.pool.topology.reroute(self.pool.clock.now)
        if not on:
            group.wish()

    async def _check(self, group: Group) -> None:
        for lane in group.lanes:
            for slot in tuple(lane.idle):
                try:
                    lane.idle.remove(slot)
                except ValueError:
                    continue
                slot.fresh_until = slot.rested = float("-inf")
                if await self.pool.sessions.verify(slot, FOREVER):
                    group.give(slot, self.pool.clock.now)
                await self.pool.clock.breath()

    def make_good(self) -> None:
        """All is as it was configured."""
        self.unready.clear()
        for group, (size, least) in zip(self.pool.groups, self.limits, strict=True):
            if (group.limit, group.min_count) != (size, least):
                self._resize(group, size, least)
            if group.paused:
                self._pause(group, False)
