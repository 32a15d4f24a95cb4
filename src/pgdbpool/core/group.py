"""Checkout and return: the hot path, apart from all I/O.

A group has a *route*: the lanes it may use now, as tiers in order of preference, each tier with its balancer. The
route is a tuple that is swapped whole and only read here. No lane outside it is ever handed out, so pausing,
closing and failing over are all the same move: swap the route.

Fast path, without a lock; the shell for threads has both written out, see `pgdbpool.sync`::

    take:  waiters? ─no─▶ balancer names a lane ─▶ pop its newest idle slot ─▶ leased
    give:  same generation, life not over ─▶ waiters? ─no─▶ push ─▶ idle
                                                └─yes─▶ hand to the first

Slow path::

    enqueue:  join the waiters, then match() once more
    hand:     the giver pops the first waiter and *claims* it; a waiter that times out claims itself.
              Whoever wins decides: a slot is never handed to a waiter that left, and never lost.
    leave:    a claimed waiter need not wait for a giver that is held up, for however long: one of the two *settles*
              the wait. Either the slot has been handed over, or the waiter has left and the giver keeps the slot for
              the next.

The lost wake-up: a giver pushes, then looks for waiters; a waiter joins, then looks for idle slots. One of the two
always sees the other, because each publishes before it looks.

Fairness: a newcomer that sees waiters joins behind them. It can pass them only if it looked just before the first of
them joined.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

from ..errors import DBOfflineError, PoolClosed, TooManyWaiting
from . import times
from .balance import Policy
from .lane import Lane, Slot
from .snapshot import snapshot

Lock = AbstractContextManager[Any]


class Waiter:
    """A caller waiting for a slot. Its shell says what wakes it: to release a lock, say, to set a future's result."""

    __slots__ = ("_settle", "_unclaimed", "error", "since", "slot", "wake")

    def __init__(self, since: float, wake: Callable[[], object]) -> None:
        self._unclaimed = [None]
        # Whether it has gone with nothing: says what the first of giver and waiter has said, however often it is asked;
        # `dict.setdefault` is atomic. What is handed over is set before, so one that has not gone finds it.
        said: dict[None, bool] = {}
        self._settle: Callable[[None, bool], bool] = said.setdefault
        self.wake = wake
        self.slot: Slot | None = None
        self.error: Exception | None = None
        self.since = since

    def claim(self) -> bool:
        """True for exactly one caller, ever (`list.pop` is atomic)."""
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    @property
    def unclaimed(self) -> bool:
        return bool(self._unclaimed)

    def receive(self, slot: Slot) -> bool:
        """Called once, by the one that claimed the waiter. False: it has left, and the slot is still the giver's."""
        left = False
        try:
            self.slot = slot
            left = self._settle(None, False)
        finally:
            self.wake()
        if left:
            self.slot = None
        return not left

    def leave(self) -> bool:
        """End the wait. False: a slot or an error has been handed over. True: nothing was, and nothing will be.

        Called by the waiter alone, also more than once, and also where a giver that claimed it may be held up.
        """
        return self._settle(None, self.slot is None and self.error is None)

    def fail(self, error: Exception) -> None:
        """Called once, by the one that claimed the waiter."""
        try:
            self.error = error
        finally:
            self.wake()


class Tier:
    """Lanes equally preferred, and the balancer that names the one to ask first."""

    __slots__ = ("lanes", "only", "pick")

    def __init__(self, lanes: Sequence[Lane], policy: Policy) -> None:
        self.lanes = tuple(lanes)
        self.only = self.lanes[0] if len(self.lanes) == 1 else None
        if self.only is None:  # else there is no choice, and nobody is asked
            # The bound method itself: Python calls it without the detour that an object with __call__ takes.
            self.pick: Callable[[], Lane] = policy(self.lanes).__call__


Route = tuple[Tier, ...]


class Limits(Protocol):
    """What a group needs to know of its settings; see `pgdbpool.config.GroupSettings` for the meaning."""

    @property
    def name(self) -> str: ...
    @property
    def connection_count(self) -> int: ...
    @property
    def total_count(self) -> int | None: ...
    @property
    def min_count(self) -> int: ...
    @property
    def max_waiting(self) -> int: ...
    @property
    def max_lifetime(self) -> float: ...
    @property
    def max_idle(self) -> float: ...
    @property
    def reconnect_timeout(self) -> float: ...
    @property
    def target_session_attrs(self) -> str: ...
    @property
    def spill(self) -> bool: ...
    @property
    def tags(self) -> frozenset[str]: ...


# Moments in the past that `Slot.expires` is set to, to have a leased slot closed when it comes back: the earliest wins.
SURPLUS = 0.0
LEFT = -0.5  # its server does not suit the group
BROKEN = -1.0
OVERTAKEN = -1.5  # its server is a primary of the past: a call in flight is ended
DESERTED = -1.7  # nothing at its address answers: a call in flight is ended
ABORTED = -2.0  # its call was ended because its server is dead
PARTED = frozenset({LEFT, OVERTAKEN, ABORTED})  # because of its server


def outlived(slot: Slot) -> str:
    """Why a slot that may no longer be used may not: the reason it is closed for."""
    if slot.generation != slot.lane.generation:
        return "retired"
    return {SURPLUS: "resized", LEFT: "role", BROKEN: "broken", OVERTAKEN: "fenced", DESERTED: "broken"}.get(
        slot.expires, "lifetime"
    )


class Group:
    """A named set of connections with the same behaviour, on every endpoint it may use."""

    def __init__(
        self,
        settings: Limits,
        policy: Policy,
        lock: Lock,
        random: Callable[[], float],
        poll_after: float = 0.5,
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.policy = policy
        self.poll_after = poll_after  # rest after which a slot is looked at before it is handed out
        self.lanes: list[Lane] = []
        self.limit = settings.connection_count
        self.total_limit = settings.total_count
        self.min_count = settings.min_count
        self.wish: Callable[[], None] = lambda: None  # set by the shell: somebody should look at the plan
        self.tend_at = float("inf")  # when a caller on its way back should look after the pool; set by the shell
        self.note_at = float("inf")  # when the next checkout notes its stack; set by the shell, see `pgdbpool.leaks`
        self.on_empty: Callable[[], None] = lambda: None  # set by the topology; called with the lock held
        self.paused = False
        self.closed = True
        self.reset(lock, random)

    def reset(self, lock: Lock, random: Callable[[], float]) -> None:
        """Empty, as in a new process. The lanes are reset by the topology."""
        self.lock = lock
        self._random = random
        self.lead(())
        # A queue that each of them can leave in constant time. All that is done to it is one operation each, so it
        # needs no lock.
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.closing: deque[tuple[Slot, str]] = deque()  # for the shell to close
        self.refusal: str | None = None  # why waiting would not help, in the servers' words
        # How long callers waited whose deadline passed, or who got PoolExhausted.
        self.vain_time = 0.0
        self.vain_times = times.no_times()
        self.rejections = 0

    def lead(self, route: Route) -> None:
        """Send callers this way from now on."""
        self.route = route
        # How `pop` is done: where there is no choice by the idle stack itself, without a call that takes time.
        only = route[0].only if len(route) == 1 else None
        self.pop: Callable[[], Slot] = self._pop if only is None else only.idle.pop

    # -- fast path: no lock -----------------------------------------------------------------------------------

    def take(self, now: float) -> Slot | None:
        """The newest idle slot of the lane the balancer names, or of its neighbours; None: join the waiters."""
        while not self.waiters:
            try:
                slot = self.pop()
            except IndexError:
                return None
            if slot.generation == slot.lane.generation and now < slot.expires:
                return slot
            self.retire(slot, outlived(slot))
        return None

    def _pop(self) -> Slot:
        for tier in self.route:
            try:
                lane: Lane | None = tier.only or tier.pick()
            except IndexError as error:  # of a user's own; from here it would mean that nothing is idle
                raise RuntimeError(f"group {self.name!r}: its balancer raised IndexError") from error
            while lane is not None:
                try:
                    return lane.idle.pop()
                except IndexError:
                    lane = self._neighbour(tier, lane)
        raise IndexError

    def _neighbour(self, tier: Tier, lane: Lane) -> Lane | None:
        """Another lane of the tier with something idle; the one asked first gets a connection opened there."""
        for other in tier.lanes:
            if other.idle:
                self._wish_for(lane)
                return other
        # So does the best one if all that is idle is in a tier less preferred.
        if any(other.idle for each in self.route[1:] if each is not tier for other in each.lanes):
            self._wish_for(lane)
        return None

    def _wish_for(self, lane: Lane) -> None:
        if not lane.wished and lane.room:
            lane.wished = True
            self.wish()

    def give(self, slot: Slot, now: float) -> None:
        """Take back a slot whose session is idle and clean."""
        lane = slot.lane
        if slot.generation != lane.generation or now >= slot.expires:
            self.retire(slot, outlived(slot))
            return
        slot.holder = None
        slot.rested = now
        slot.fresh_until = now + lane.poll_after
        if self.waiters and lane.live and self.hand(slot):
            return
        lane.idle.append(slot)  # from here on it is somebody else's
        self.given(slot, lane)

    def given(self, slot: Slot, lane: Lane) -> None:
        """It was put on the stack: was it retired, or did somebody join the waiters, meanwhile?"""
        if slot.generation != lane.generation:
            self.sweep(lane)
        if self.waiters:
            self.match()
            if not lane.live:  # where `total_count` is used up, it may have to give way
                self.wish()

    def hand(self, slot: Slot) -> bool:
        """Give the slot to the first waiter still there. False: nobody waits."""
        while True:
            try:
                waiter, _ = self.waiters.popitem(last=False)
            except KeyError:
                return False
            if waiter.claim() and waiter.receive(slot):
                return True

    def match(self, *, locked: bool = False) -> None:
        """Bring idle slots and waiters together, until there is none of one of them."""
        while self.waiters:
            slot = self._pop_idle()
            if slot is None:
                return
            if not self.hand(slot):
                slot.lane.idle.append(slot)
                # As in `give`. With the lock held nothing can have been retired meanwhile.
                if not locked and slot.generation != slot.lane.generation:
                    self.sweep(slot.lane)

    def _pop_idle(self) -> Slot | None:
        for tier in self.route:
            for lane in tier.lanes:
                if lane.idle:  # an exception costs ten times as much as this
                    try:
                        return lane.idle.pop()
                    except IndexError:
                        continue
        return None

    # -- waiting ----------------------------------------------------------------------------------------------

    def enqueue(self, waiter: Waiter, *, first: bool = False) -> None:
        """Join the waiters, in front if the caller already had its turn and drew a dead connection.

        Such a one is not turned away by `max_waiting`: it was let in before, and the fault is ours.
        Raises PoolClosed, TooManyWaiting, or DBOfflineError where no endpoint lets us in and waiting would not help.
        """
        with self.lock:
            if self.closed:
                raise PoolClosed(f"the pool is closed, group {self.name!r} hands out no connection")
            if self.refusal is not None and not self.route and not self.paused:
                raise DBOfflineError(self.refusal)
            if first:
                self._stand_in_front(waiter)
            else:
                most = self.settings.max_waiting
                if most and len(self.waiters) >= most:
                    self.rejections += 1
                    raise TooManyWaiting(
                        f"group {self.name!r}: {most} callers wait already (max_waiting = {most})",
                        group=self.name,
                    )
                self.waiters[waiter] = None
        for lane in self.lanes:
            if lane.idle:
                self.match()
                return

    def abandon(self, waiter: Waiter) -> bool:
        """Leave the queue. False: too late, a slot or an error is being handed over; see `Waiter.leave`."""
        if not waiter.claim():
            return False
        self.waiters.pop(waiter, None)  # None: a giver has just popped it, and finds it claimed
        return True

    def _stand_in_front(self, waiter: Waiter) -> None:
        self.waiters[waiter] = None
        with suppress(KeyError):  # a giver has just popped it
            self.waiters.move_to_end(waiter, last=False)

    def rejoin(self, waiter: Waiter) -> None:
        """Stand in the queue again, should a giver have been interrupted before it claimed whom it had taken out."""
        if waiter.unclaimed and waiter not in self.waiters:
            self._stand_in_front(waiter)
            self.match()

    def timed_out(self, seconds: float) -> None:
        """A caller has waited for so long, and goes away with nothing."""
        with self.lock:
            self.vain_time += seconds
            times.count(self.vain_times, seconds)

    @property
    def timeouts(self) -> int:
        """How many callers went away with nothing."""
        return sum(self.vain_times)

    def fail_waiters(self, error: Callable[[], Exception]) -> None:
        """End every wait with an error of its own."""
        while True:
            try:
                waiter, _ = self.waiters.popitem(last=False)
            except KeyError:
                return
            if waiter.claim():
                waiter.fail(error())

    # -- opening and closing: lock ----------------------------------------------------------------------------

    @property
    def total(self) -> int:
        return sum(lane.total for lane in self.lanes)

    @property
    def opening(self) -> int:
        return sum(lane.opening for lane in self.lanes)

    @property
    def capacity(self) -> int:
        """The most connections that callers can have now: on the endpoints that they are sent to."""
        return self._most(sum(lane.eligible for lane in self.lanes))

    @property
    def configured_limit(self) -> int:
        """The most connections there could be if callers were sent to every endpoint."""
        return self._most(len(self.lanes))

    def _most(self, lanes: int) -> int:
        most = lanes * self.limit
        return most if self.total_limit is None else min(most, self.total_limit)

    def slow_to_open(self, since: float, now: float) -> list[Lane]:
        """Where a connection was to be opened and was not, in the time in which a caller has waited in vain.

        A connect that began in the second half of that time is not to blame: where connections are opened and closed
        all the time, there is always one.
        """
        late = (since + now) / 2
        return [
            lane
            for tier in self.route
            for lane in tier.lanes
            if any(place.since <= late for place in lane.places) or (lane.hindered(now) and self.room_on(lane, now))
        ]

    def may_grow(self) -> bool:
        """Whether a waiter may hope for a new connection, and not only for one that comes back."""
        if not self.route:
            return True
        for tier in self.route:
            for lane in tier.lanes:
                if lane.open + len(lane.places) + lane.closing < self.limit and self.room_on(lane):
                    return True
        return False

    def room_on(self, lane: Lane, now: float = float("inf")) -> bool:
        """Whether a connection can be opened on a live lane, if need be after something else gave way.

        That is one that rests off the route, or is being opened where that may be in vain.
        """
        if lane.total >= self.limit:
            return False
        return lane.room or any((other.idle and not other.live) or other.uncertain(now) for other in self.lanes)

    def every_slot(self) -> list[Slot]:
        """Idle, leased and closing."""
        slots = [slot for slot, _ in snapshot(self.closing)]
        for lane in self.lanes:
            slots.extend(snapshot(lane.slots))
        return slots

    def lifetime(self) -> float:
        """The life of one connection: up to 10 % shorter than `max_lifetime`, so that they do not end together."""
        most = self.settings.max_lifetime
        return most * (1.0 - 0.1 * self._random()) if most else float("inf")

    def retire(self, slot: Slot, reason: str) -> None:
        """Take a slot in nobody's hands, or in the caller's, out of the pool. The shell closes it."""
        with self.lock:
            self._retire(slot, reason)
        self.wish()

    def _retire(self, slot: Slot, reason: str) -> None:  # lock held
        lane = slot.lane
        if slot not in lane.slots:  # from before a fork
            return
        if slot.expires == ABORTED:
            reason = "aborted"
        # A signal handler may raise after any call. In this order either nothing is counted, which `buried` makes good,
        # or everything is.
        lane.closed_by[reason] += 1
        self.closing.append((slot, reason))
        self._uncount(slot)
        lane.closing += 1
        lane.slots.remove(slot)
        # This was the last, and no other can be opened now, or would suit: callers go elsewhere, or are sent away.
        if (lane.live and (lane.rank is None or not lane.usable)) or (lane.refused and not lane.open):
            self.on_empty()

    def _uncount(self, slot: Slot) -> None:  # lock held; one call in here, before anything is changed
        lane = slot.lane
        ledger = lane.ledger.without(slot)
        lane.open -= 1
        lane.endpoint.open -= 1
        lane.ledger = ledger

    def goodbye(self, slot: Slot) -> bool:
        """Its server is gone. Returns whether it was idle; a leased one goes when it comes back."""
        with self.lock:
            if slot not in slot.lane.slots:
                return False
            try:
                slot.lane.idle.remove(slot)
            except ValueError:
                slot.expires = min(slot.expires, BROKEN)
                return False
            self._retire(slot, "broken")
        self.wish()
        return True

    def buried(self, slot: Slot) -> None:
        """The shell has closed it: its place is free."""
        with self.lock:
            if slot in slot.lane.slots:  # `_retire` was interrupted
                self._uncount(slot)
                slot.lane.slots.remove(slot)
            elif slot.lane.closing:
                slot.lane.closing -= 1
        if self.waiters:
            self.wish()

    def reclaim(self, lost: Callable[[Collection[Slot]], Sequence[Slot]]) -> None:
        """Retire what is in nobody's hands, as `lost` says of the slots of a lane; see `pgdbpool.lost`."""
        with self.lock:
            for lane in self.lanes:
                for slot in lost(lane.slots):
                    self._retire(slot, "lost")
        if self.closing:
            self.wish()

    def recount(self) -> None:
        """Set the numbers right, which an interrupted caller may have left wrong.

        Only where one thread does everything, and nothing is being opened or closed at this moment.
        """
        for lane in self.lanes:
            lane.endpoint.connecting -= sum(place.connecting for place in lane.places)
            lane.places.clear()
            surplus = lane.open - len(lane.slots)
            lane.open -= surplus
            lane.endpoint.open -= surplus
            lane.closing = sum(slot.lane is lane for slot, _ in self.closing)

    def retire_lane(self, lane: Lane, reason: str) -> None:  # lock held
        """No connection of this lane may be used again: idle ones go now, leased ones when they come back."""
        lane.generation += 1
        self.drop_idle(lane, lambda slot: True, reason)

    def sweep(self, lane: Lane) -> None:
        """The lane was retired while somebody returned a slot to it: drop what came too late."""
        with self.lock:
            self.drop_idle(lane, lambda slot: slot.generation != lane.generation, "retired")
        self.wish()

    def drop_idle(self, lane: Lane, unwanted: Callable[[Slot], bool], reason: str, most: int = -1) -> int:
        """Retire idle slots, the longest rested first. Lock held. Returns how many."""
        dropped = 0
        for slot in snapshot(lane.idle):
            if dropped == most:
                break
            if unwanted(slot):
                try:
                    lane.idle.remove(slot)
                except ValueError:  # somebody took it in this very moment
                    continue
                self._retire(slot, reason)
                dropped += 1
        return dropped

    def resize(self, connection_count: int, min_count: int) -> None:
        """New limits. Surplus idle connections go now, surplus leased ones when they come back."""
        with self.lock:
            self.limit = connection_count
            self.min_count = min_count
            for lane in self.lanes:
                surplus = lane.open - connection_count
                if surplus > 0:
                    surplus -= self.drop_idle(lane, lambda slot: True, "resized", surplus)
                self._mark_surplus(lane, surplus)
        self.wish()

    def _mark_surplus(self, lane: Lane, surplus: int) -> None:  # lock held
        """Have so many leased connections closed when they come back, whatever was said before."""
        slots = tuple(lane.slots)
        stale = {slot for slot in slots if slot.generation != lane.generation}
        marked = [slot for slot in slots if slot.expires == SURPLUS and slot not in stale]
        going = stale | {slot for slot in slots if slot.expires <= SURPLUS}
        for slot in marked[: max(0, len(going) - max(0, surplus))]:
            slot.expires = slot.born + self.lifetime()
        staying = [slot for slot in slots if slot not in going]
        for slot in staying[: max(0, surplus - len(going))]:
            slot.expires = SURPLUS

    def tend(self, now: float) -> float:
        """Close what rested too long or lived too long. Returns when to look again (never later than needed)."""
        due = float("inf")
        max_idle = self.settings.max_idle
        with self.lock:
            for lane in self.lanes:
                self.drop_idle(lane, lambda slot: now >= slot.expires, "lifetime")
                if max_idle:
                    spare = lane.open - self.min_count
                    if spare > 0:
                        self.drop_idle(lane, lambda slot: now >= slot.rested + max_idle, "idle", spare)
                # What is leased now may come back at any moment, and begins to rest then.
                due = min([due, *(slot.expires for slot in tuple(lane.slots) if slot.expires > now)])
                if max_idle and lane.open > self.min_count:
                    due = min([due, now + max_idle, *(slot.rested + max_idle for slot in snapshot(lane.idle))])
        return due
