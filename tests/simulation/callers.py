"""Those who use the pool, and its owner who changes it while they do.

A caller does what `pgdbpool.sync` does for one: checkout, use, return, with a deadline that must hold. It may be
interrupted at any moment; what it held then goes back.
"""

from __future__ import annotations

from random import Random

from pgdbpool.core.group import Group
from pgdbpool.core.slot import Slot
from pgdbpool.errors import DBOfflineError, PoolClosed, PoolExhausted, PoolTimeout, TooManyWaiting

from .clock import FOREVER, Bell, Clock, Interrupted, Steps
from .keepers import Keeper
from .network import Lost, ask
from .scenario import CallerPlan
from .shared import Violation
from .shell import Shell
from .watch import Watch

LATE = 0.1  # s that a checkout may take beyond its deadline: a few turns of losing the processor


class Pool:
    """Checkout and return, as callers see them."""

    def __init__(self, shell: Shell, keeper: Keeper, watch: Watch) -> None:
        self.shell = shell
        self.keeper = keeper
        self.watch = watch
        self.clock: Clock = shell.clock
        self.groups: list[Group] = shell.topology.groups

    def checkout(self, group: Group, patience: float) -> Steps:
        """A Slot. Raises what the pool raises, and Violation if that takes too long."""
        clock, began = self.clock, self.clock.now
        try:
            slot = self.shell.take(group)
            if slot is None or clock.now >= slot.fresh_until:
                slot = yield from self._obtain(group, slot, began, began + patience)
            else:
                self.watch.looked_at(slot)
        finally:
            late = clock.now - (began + patience)
            if late > LATE:
                raise Violation(f"{self.shell.who()}: a checkout of {group.name} ended {late:.3f} s after its deadline")
        slot.taken = clock.now
        self.watch.lent(slot, group)
        return slot

    def _obtain(self, group: Group, slot: Slot | None, began: float, deadline: float) -> Steps:
        clock, shell = self.clock, self.shell
        waited = first = False
        while True:
            if slot is None:
                waited = True
                slot = yield from self.keeper.wait(group, began, deadline, first)
            if (yield from shell.verify(slot, deadline)):
                break
            slot, first = None, True
            yield from clock.breath()
            if not group.waiters:
                slot = shell.take(group)
        if waited:
            slot.waits += 1
            slot.wait_time += clock.now - began
        return slot

    def give_back(self, slot: Slot, error: BaseException | None) -> Steps:
        clock, group = self.clock, slot.lane.group
        now = clock.now
        slot.uses += 1
        slot.use_time += now - slot.taken
        if error is None and slot.clean():
            self.shell.give(slot)
        else:
            yield from self.shell.settle(slot, error)
        if now >= group.tend_at:
            yield from self.keeper.tend()


class Caller:
    """One thread of the application."""

    def __init__(self, pool: Pool, plan: CallerPlan, random: Random) -> None:
        self.pool = pool
        self.plan = plan
        self.random = random
        self.working = True
        self._closing_time = Bell()

    def go_home(self) -> None:
        """As soon as what is under way is done."""
        self.working = False
        self._closing_time.ring()

    def run(self) -> Steps:
        clock, random = self.pool.clock, self.random
        while self.working:
            yield self._closing_time, clock.now + self.plan.think * random.expovariate(1.0)
            if not self.working:
                return
            try:
                yield from self.visit(self.plan.nested)
            except Interrupted:
                self.pool.shell.counts["interrupted"] += 1
                if clock.trace:
                    clock.say("was interrupted")

    def visit(self, nested: int) -> Steps:
        """One checkout, and perhaps others within it."""
        clock, random, shell = self.pool.clock, self.random, self.pool.shell
        group = self.pool.groups[random.choice(self.plan.groups)]
        patience = random.choice(self.plan.patience)
        if random.random() < self.plan.cancelled:
            task = clock.running
            assert task is not None
            visit = self._visits = getattr(self, "_visits", 0) + 1
            clock.after(
                random.expovariate(1.0) * (self.plan.use + min(patience, 0.3)),
                lambda: task.interrupt() if self._visits == visit and self.working else None,
            )
        try:
            slot = yield from self.pool.checkout(group, patience)
        except (PoolTimeout, DBOfflineError, PoolClosed) as error:
            self._refused(group, error)
            return
        shell.counts["served"] += 1
        error: BaseException | None = None
        try:
            yield from self._use(slot)
            if nested > 1:
                yield from self.visit(nested - 1)
        except Interrupted as interrupted:
            error = interrupted
            raise
        except Lost as lost:
            error = lost
        finally:
            yield from self.pool.give_back(slot, error)

    def _refused(self, group: Group, error: Exception) -> None:
        shell = self.pool.shell
        shell.counts[type(error).__name__] += 1
        if shell.clock.trace:
            shell.clock.say(f"gets nothing of {group.name}: {type(error).__name__}")
        if isinstance(error, PoolClosed) and not group.closed:
            raise Violation(f"{group.name} is said to be closed")
        if isinstance(error, TooManyWaiting) and not group.settings.max_waiting:
            raise Violation(f"{group.name} has no max_waiting, and turned somebody away")
        if isinstance(error, DBOfflineError) and not isinstance(error, PoolExhausted) and not group.refusal:
            shell.counts["refusal over at once"] += 1

    def _use(self, slot: Slot) -> Steps:
        random, session = self.random, slot.conn
        pieces = random.choice([1, 1, 2, 3])
        seconds = self.plan.use * min(random.expovariate(1.0), 2.0)
        for _ in range(pieces):
            work = seconds / pieces
            spent = work * random.random()  # of it with the application, the rest with the server
            yield spent
            session.in_transaction = random.random() < self.plan.leaves_open
            yield from ask(self.pool.clock, session, FOREVER, random.random(), work - spent)


class Owner:
    """Changes the pool while it is in use."""

    def __init__(self, pool: Pool, random: Random) -> None:
        self.pool = pool
        self.random = random
        self.limits = [(group.limit, group.min_count) for group in pool.groups]

    def run(self, until: float, actions: int) -> Steps:
        clock, random = self.pool.clock, self.random
        for _ in range(actions):
            yield (until - clock.now) / actions * random.expovariate(1.0)
            if clock.now >= until:
                break
            yield from self.act(random.choice(self.pool.groups))
        self.make_good()

    def act(self, group: Group) -> Steps:
        random, shell = self.random, self.pool.shell
        action = random.choice(["resize", "resize", "pause", "resume", "drain", "check", "unready", "ready"])
        shell.counts[f"owner: {action}"] += 1
        if shell.clock.trace:
            shell.clock.say(f"{action} {group.name}")
        if action == "resize":
            size = random.randint(1, 4)
            least = min(group.min_count, size)
            self._resize(group, size, least)
        elif action in ("pause", "resume"):
            self._pause(group, action == "pause")
        elif action == "drain":
            with shell.lock:
                for lane in group.lanes:
                    group.retire_lane(lane, "drained")
            group.wish()
        elif action == "check":
            yield from self._check(group)
        elif action == "unready":
            shell.unready[group] = None
        else:
            shell.unready.pop(group, None)

    def _resize(self, group: Group, size: int, least: int) -> None:
        self.pool.watch.about_to_shrink(group)
        group.resize(size, least)
        self.pool.shell.topology.reroute()

    def _pause(self, group: Group, on: bool) -> None:
        group.paused = on
        self.pool.shell.topology.reroute()
        if not on:
            group.wish()

    def _check(self, group: Group) -> Steps:
        clock, shell = self.pool.clock, self.pool.shell
        for lane in group.lanes:
            for slot in tuple(lane.idle):
                try:
                    lane.idle.remove(slot)
                except ValueError:
                    continue
                shell.hold(slot, "the owner, for a check")
                slot.fresh_until = slot.rested = float("-inf")
                if (yield from shell.verify(slot, FOREVER)):
                    shell.give(slot)
                yield from clock.breath()

    def make_good(self) -> None:
        """All is as it was configured."""
        self.pool.shell.unready.clear()
        for group, (size, least) in zip(self.pool.groups, self.limits, strict=True):
            if (group.limit, group.min_count) != (size, least):
                self._resize(group, size, least)
            if group.paused:
                self._pause(group, False)
