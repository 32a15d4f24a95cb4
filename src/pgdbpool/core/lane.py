"""A lane: one group's way to one endpoint; and its slots: server connections and what the pool knows of them.

A lane holds the idle stack, and counts what is open, opening and closing, so that the limit is a sum of four numbers:
``idle + leased + opening + closing <= limit``. The stack is a deque whose append and pop are atomic; everything
else is written with the pool's lock held, and read without it.

A slot is in exactly one place at any time::

    reserved ──opened──▶ idle ◀──give── leased
                          │ └───take─────▶ │
                          └──▶ closing ◀───┘ ──▶ gone

``reserved`` is only a `Place` in `Lane.places`: there is nothing to hold yet. ``idle`` is membership in
`Lane.idle`; ``closing`` in `Group.closing`; every other slot of `Lane.slots` is ``leased``. There is no state
field to keep in step with the containers: popping from the idle stack *is* the change of state, and one atomic
operation.

Who writes what in a slot:

* the holder of the lease, alone: ``taken``, ``rested``, ``fresh_until``, ``holder``, ``stack`` and the counters;
* whoever holds the pool's lock: ``expires``, which it may pull forward ("close this one when it comes back"),
  ``server``, ``read_only`` and ``refused_write``;
* whoever looks after the pool, one at a time: ``told``.

The counters of a slot outlive it: when it goes, `Lane.ledger` is swapped for one in which they are added to those of
others that are gone. Whoever adds up the ledger it found misses nothing and counts nothing twice, without a lock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from . import times
from .endpoint import Endpoint
from .evidence import HOPELESS, Health
from .latency import Latency
from .server import Server, suits
from .times import PER_SECOND

HOPE = 0.1  # s that a waiter counts on a connection being opened, where another endpoint that is up has room for one


class Place:
    """What is reserved for a connection that is being opened."""

    __slots__ = ("connecting", "revoked", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.connecting = True  # its server has not let it in yet
        self.revoked = False  # a waiter can have it elsewhere, and sooner

    def late(self, now: float) -> bool:
        """Whether a waiter should no longer count on it alone."""
        return now >= self.since + HOPE


class Tally:
    """What was counted on one connection, or on several that are gone. Times are seconds; see `times`."""

    __slots__ = ("rollbacks", "use_time", "use_times", "wait_time", "wait_times")

    def __init__(self) -> None:
        self.rollbacks = 0
        self.use_time = 0.0
        self.use_times = times.no_times()  # one for each lease that has ended
        self.wait_time = 0.0
        self.wait_times = times.no_times()  # one for each lease that had to be waited for

    @property
    def uses(self) -> int:
        return sum(self.use_times)


class Slot(Tally):
    """One server connection plus its bookkeeping. Times are seconds of the pool's clock."""

    __slots__ = (
        "address",
        "born",
        "clean",
        "conn",
        "expires",
        "fresh_until",
        "generation",
        "given",
        "holder",
        "lane",
        "read_only",
        "refused_write",
        "rested",
        "server",
        "stack",
        "taken",
        "told",
        "waited_for",
    )

    def __init__(
        self, lane: Lane, conn: Any, clean: Callable[[float], bool], generation: int, now: float, life: float
    ) -> None:
        super().__init__()
        self.lane = lane
        self.conn = conn
        self.given = conn  # what users get: it, or what a tool has put around it
        self.server = lane.endpoint.server  # which one it has reached; set by the topology
        self.address = ""  # where its name has several, which of them
        self.read_only = False  # whether its transactions are, by a setting that it found when it was opened
        self.refused_write = False  # whether it has refused a write, and what a new connection reaches may take it
        # From the driver, given the time: True when the session is idle outside any transaction, says of its server
        # what it said before, and nothing else stands in the way of simply putting it back.
        self.clean = clean
        self.generation = generation
        self.born = now
        self.expires = now + life
        self.rested = now
        self.fresh_until = now  # up to then it may be handed out without a look at its socket
        self.taken = now
        self.holder: Any = None
        self.stack: Any = None  # where it was taken, if that was noted; see `pgdbpool.leaks`
        self.told: Any = None  # which lease was last reported as held too long; see `pgdbpool.leaks`
        self.waited_for = -1  # which of its leases, counted from 0, was the last that was waited for

    @property
    def held(self) -> bool:
        """Whether it is in a user's hands, and not only in the pool's own on the way to one."""
        return self.taken > self.rested > float("-inf")

    @property
    def own(self) -> bool:
        """Whether the pool itself has taken it, to ask it or to see whether there are enough: no caller holds it."""
        return self.rested == float("-inf")

    def fresh(self, now: float) -> bool:
        """Whether it may be handed out without a look. Written out on the fast path."""
        return now < self.fresh_until and now < self.expires and self.generation == self.lane.generation

    def used(self, now: float) -> None:
        """Its lease ends. Written out on the fast path."""
        seconds = now - self.taken
        self.use_time += seconds
        self.use_times[(seconds * PER_SECOND).__trunc__().bit_length()] += 1

    def waited(self, seconds: float) -> None:
        """Its lease begins, and was waited for."""
        self.wait_time += seconds
        self.wait_times[(seconds * PER_SECOND).__trunc__().bit_length()] += 1
        self.waited_for = sum(self.use_times)


class Ledger(NamedTuple):
    """What all slots of a lane have counted. Never changed: a slot that comes or goes makes a new one."""

    gone: Tally
    """The sum over those that are gone."""
    lost: int
    """How many of them went in the middle of a lease that had been waited for."""
    live: tuple[Slot, ...]

    def with_(self, slot: Slot) -> Ledger:
        """As it is after a slot has come."""
        return self._replace(live=(*self.live, slot))

    def without(self, slot: Slot) -> Ledger:
        """As it is after a slot has gone."""
        if slot not in self.live:
            return self
        lost = self.lost + (slot.waited_for == slot.uses)
        return Ledger(total([self.gone, slot]), lost, tuple(each for each in self.live if each is not slot))


def total(tallies: Sequence[Tally]) -> Tally:
    """The sum."""
    tally = Tally()
    tally.rollbacks = sum(each.rollbacks for each in tallies)
    tally.use_time = sum(each.use_time for each in tallies)
    tally.use_times = times.add(each.use_times for each in tallies)
    tally.wait_time = sum(each.wait_time for each in tallies)
    tally.wait_times = times.add(each.wait_times for each in tallies)
    return tally


class Owner(Protocol):
    """A group, as its lanes and slots know it; see `pgdbpool.core.group.Group` for the meaning."""

    limit: int
    total_limit: int | None
    poll_after: float
    tend_at: float
    note_at: float

    paused: bool
    closed: bool

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Any: ...
    @property
    def route(self) -> Any: ...
    @property
    def total(self) -> int: ...
    def give(self, slot: Slot, now: float) -> None: ...
    def retire(self, slot: Slot, reason: str) -> None: ...
    def retire_lane(self, lane: Lane, reason: str) -> None: ...
    def drop_idle(self, lane: Lane, unwanted: Callable[[Slot], bool], reason: str, most: int = -1) -> int: ...
    def goodbye(self, slot: Slot) -> bool: ...
    def buried(self, slot: Slot) -> None: ...
    @property
    def wish(self) -> Callable[[], None]: ...


class Lane:
    """The connections of one group to one endpoint."""

    __slots__ = (
        "closed_by",
        "closing",
        "connect_time",
        "connect_times",
        "eligible",
        "endpoint",
        "failures",
        "generation",
        "group",
        "hindrances",
        "idle",
        "latency",
        "leaks",
        "ledger",
        "live",
        "misled",
        "missed",
        "next_try",
        "open",
        "per_weight",
        "places",
        "poll_after",
        "rank",
        "searches",
        "setup_error",
        "setup_failures",
        "setup_losses",
        "share",
        "slots",
        "weight",
        "wished",
    )

    def __init__(self, group: Owner, endpoint: Endpoint) -> None:
        self.group = group
        self.endpoint = endpoint
        # How well what a new connection would reach suits the group; None: not at all, and nothing new is opened. Those
        # that are open may be with another server: see `core.server`.
        self.rank: int | None = 1
        self.latency = Latency()
        self.share = 0.0
        self.set_share(1.0)
        self.reset()

    def reset(self) -> None:
        """Empty, as in a new process."""
        self.idle: deque[Slot] = deque()  # right end: used last
        self.slots: set[Slot] = set()  # idle and leased
        self.open = 0  # len(slots), as a plain number for the fast path
        self.places: set[Place] = set()  # for connections that are being opened
        self.closing = 0
        self.generation = 0  # of this lane: a slot of another number must not be used again
        self.live = False  # on the route now
        self.eligible = True  # on the route now, or it would be if the group were not paused or closed
        self.wished = False  # the balancer wanted a connection here and there was none
        self.searches = 0  # connects made only to ask for the role, since the group last had a route
        # When a connect last found, at all addresses of the name, none as good as `found`.
        self.missed = float("-inf")
        self.misled = 0  # connects in a row that reached a server that the group cannot use
        self.next_try = 0.0  # paces those, and what follows a failed setup
        self.setup_error: str | None = None  # connected, but could not be made ready: `configure` raised, say
        self.setup_failures = 0
        self.hindrances = 0  # errors of our own in a row, while a connection was opened
        self.setup_losses = 0  # connections in a row that were lost while they were made ready
        self.poll_after = self.group.poll_after
        self.ledger = Ledger(Tally(), 0, ())
        self.connect_time = 0.0
        self.connect_times = times.no_times()
        self.failures = 0
        self.leaks = 0  # leases reported as held too long
        self.closed_by: Counter[str] = Counter()

    def set_share(self, share: float) -> bool:
        """The part of its endpoint's weight that it gets now. Returns whether that is news."""
        if share == self.share:
            return False
        self.share = share
        self.weight = self.endpoint.weight * share
        self.per_weight = 1.0 / self.weight
        return True

    @property
    def found(self) -> Server:
        """The server that a new connection of the group would reach, as far as is known.

        Where the name has several addresses a group looks for the one that suits it best; where it leads now to one
        server and now to another, it comes to that one before long.
        """
        endpoint = self.endpoint
        if not (endpoint.spread or endpoint.several):
            return endpoint.server
        target = self.group.settings.target_session_attrs
        ranked = [(suits(target, server), server) for server in endpoint.servers if server.seen > self.missed]
        able = [(rank, server) for rank, server in ranked if rank is not None]
        if able:
            return min(able, key=itemgetter(0))[1]
        if not endpoint.spread:
            return endpoint.server
        return endpoint.server if self.missed > float("-inf") else Server()  # not all may have been asked yet

    @property
    def opening(self) -> int:
        return len(self.places)

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

    def uncertain(self, now: float) -> list[Place]:
        """Those of connections that are being opened where it takes long, and may be in vain."""
        if self.endpoint.health is Health.UP:
            return []
        return [place for place in self.places if not place.revoked and place.late(now)]

    @property
    def usable(self) -> bool:
        """Whether callers may be sent here: not down, and either something is open or nothing forbids opening."""
        endpoint = self.endpoint
        if endpoint.health is Health.DOWN:
            return False
        return self.open > 0 or (endpoint.fault is None and self.setup_error is None)

    def hindered(self, now: float) -> bool:
        """Whether the last attempt to open a connection here has failed, or the next one has to wait."""
        endpoint = self.endpoint
        return endpoint.fault is not None or self.setup_error is not None or now < max(endpoint.next_try, self.next_try)

    @property
    def refused(self) -> bool:
        """Whether a new connection is turned away for a reason that no retry mends."""
        return self.endpoint.fault in HOPELESS or self.setup_error is not None

    def may_open(self, now: float, *, urgent: bool = False) -> bool:
        """Whether a connection may be opened here now."""
        return self.could_open(now, urgent=urgent) and self.room

    def could_open(self, now: float, *, urgent: bool = False) -> bool:
        """The same if what is in the way because of `total_count` gave way."""
        endpoint = self.endpoint
        return (
            now >= self.next_try
            and endpoint.may_connect(now, urgent=urgent)
            and self.opening < endpoint.most_connecting  # those included that are being made ready
            and self.total < self.group.limit
        )
