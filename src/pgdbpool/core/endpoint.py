"""An endpoint: the server that its name leads to, what is believed of it, and when it may be tried again.

::

    suspect ──connected, answered──▶ up ──session lost, one probe failed──▶ suspect
       │                             │
       └──refused, `fall` probes failed in a row──▶ down ──connected, answered──▶ up, slowly

An endpoint starts as ``suspect``: nothing is known. `fault` is the last failure to open a connection that no
later success has overcome; while there is one, connects are spaced by full-jitter exponential backoff
(M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). Unless the endpoint is ``up``, one
connect at a time is the probe whose result the others wait for. One that returns gets its share of the load back over
`slow_start` seconds (HAProxy's ``slowstart``), since its caches are cold. All methods are called with the pool's lock
held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .evidence import HOPELESS, SILENT, Fault, Health, Identity, Report, Role
from .server import Server
from .systems import Systems

MAX_CONNECTING = 2  # connects at a time to one endpoint from one process

# Fault -> (first span, longest span) of the wait before the next try, in seconds.
BACKOFF = {
    Fault.STARTING: (0.1, 0.5),
    Fault.FULL: (0.1, 1.0),
    Fault.LOCAL: (0.1, 1.0),
    Fault.MISCONFIGURED: (2.0, 30.0),
}
BACKOFF_ELSE = (0.05, 1.0)
# What fails is asked again at a pace that grows with the time for which it has failed: one part in `PACE_SHARE` of
# that, up to `PACE_LONGEST`. From then on 1,000 processes ask less than 1,000 times a second. Not where each attempt
# takes long by itself. And where many endpoints fail, all of them together are asked at most `PER_SECOND` times: what
# each attempt costs grows with their number. A monitor has a pace of its own, of the same kind: see `pgdbpool.search`.
PACE_SHARE = 20
PACE_LONGEST = 1.2
PER_SECOND = 10.0

# What says that nobody is there, or nobody that answers: until a probe is answered.
_AWAY = SILENT | {Fault.REFUSED, Fault.UNRESOLVED, Fault.STARTING}

_EXPLAINS = 10.0  # s for which words explain what else is lost

LEAST_PATIENCE = 1.0  # s for a connect where the one before was not answered

SLOW_START = 10.0  # s, unless the configuration says otherwise
_STEPS = 10  # in which the share of the load grows, the first of them at once

# While a caller waits and nothing is believed usable, an endpoint that turned us away at once is asked again after at
# most so long (s), or at that pace: a server that came back should not wait for the end of a long backoff.
URGENT = 0.05
URGENT_LONGEST = 0.5
_QUICK_TO_SAY_NO = frozenset({Fault.REFUSED, Fault.STARTING, Fault.FULL, Fault.ENDED, Fault.LOCAL})


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
    """One address or name: belief and backoff."""

    def __init__(self, settings: Address, random: Callable[[], float], slow_start: float = SLOW_START) -> None:
        self.settings = settings
        self.label = settings.label
        self.priority = settings.priority
        self.weight = settings.weight
        self.slow_start = slow_start
        self.health = Health.SUSPECT
        self.server = Server()  # what a new connection would reach, as the newest one has; the last known while down
        self.others: list[Server] = []  # those where older sessions still are, or that were reached not long ago
        self.several = False  # its name leads to several of them: it has come back to one that was there before
        self.repeats = 0  # connections in a row that have reached the same one
        self.role_before = Role.UNKNOWN  # while it is down: what it was
        self.since = float("-inf")  # when the connection was made that the belief comes from
        self.newest: dict[str, int] = {}  # system -> the highest timeline on which its name has led to a primary
        self.systems = Systems()  # whose data its name leads to
        self.spread = False  # its name has several addresses: there may be several servers
        self.doubted = False  # an older session contradicts: only a new connection can tell
        self.refused_until = float("-inf")  # until then a session there has refused a write not long ago
        self.position: int | None = None  # in the WAL, at the last probe
        self.pooled = False  # a pooler is in between, as the last answer showed: see `core.server`
        self.fault: Fault | None = None
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self._explained = False  # by `last_error`
        self.failures = 0
        self.misses = 0  # probes failed in a row
        self.waits_since: float | None = None  # a pooler lets us in there, and nothing behind it answers, since
        self.mute = False  # so long that every other endpoint is preferred
        self.probe_time: float | None = None  # s, of the last probe that was answered
        self.answered_at: float | None = None  # when a connect or probe last succeeded
        self.failing_since: float | None = None
        self._asked_since = 0.0  # the same, but for a server that has begun to start meanwhile
        self.down_since: float | None = None
        self.risen_at: float | None = None  # when it last came back
        self.told: set[str] = set()  # groups whose `reconnect_failed` knows of this outage
        self.next_try = 0.0
        self.next_look = 0.0  # when to see whether an endpoint that nobody may use has changed
        self.looks = 0  # how often that was put off since it was fenced
        self.urgent_try = 0.0  # the same while somebody waits and nothing is believed usable
        self.reset(random)

    def reset(self, random: Callable[[], float]) -> None:
        """As in a new process: nothing under way. Belief stays."""
        self._random = random
        self.connecting = 0
        self.open = 0  # connections, over all groups

    @property
    def report(self) -> Report:
        return self.server.report

    @property
    def role(self) -> Role:
        return self.server.report.role

    @property
    def identity(self) -> Identity | None:
        return self.server.identity

    @property
    def demoted(self) -> bool:
        return self.server.demoted

    @property
    def fenced_by(self) -> str | None:
        return self.server.fenced_by

    @property
    def standing(self) -> tuple[object, ...]:
        """All in here that routes depend on, and the words with which callers are sent away."""
        words = self.last_error if self.fault in HOPELESS else None
        servers = [(server.report, server.fenced_by) for server in self.servers]
        return self.health, self.fault, self.mute, self.several, words, servers

    @property
    def servers(self) -> list[Server]:
        """All that its name is known to lead to, or to have led to."""
        return [self.server, *self.others]

    def server_of(self, identity: Identity | None) -> Server | None:
        """The one of them that a look with this identity has met; None: one that is not known yet."""
        return next((server for server in self.servers if server.is_(identity)), None)

    def share(self, now: float) -> float:
        """The part of its weight that it gets now: less than 1 for a while after it came back."""
        if self.risen_at is None:
            return 1.0
        step = 1 + int((now - self.risen_at) / self.slow_start * _STEPS)
        if step >= _STEPS:
            self.risen_at = None
            return 1.0
        return step / _STEPS

    def next_step(self, now: float) -> float:
        """When `share` grows next."""
        share = self.share(now)
        return float("inf") if self.risen_at is None else self.risen_at + self.slow_start * share

    @property
    def most_connecting(self) -> int:
        """How many connects may be under way at a time."""
        return MAX_CONNECTING if self.health is Health.UP and self.fault is None else 1

    def may_connect(self, now: float, *, urgent: bool = False) -> bool:
        """Whether one more connect may be started now."""
        return self.connecting < self.most_connecting and now >= (self.urgent_try if urgent else self.next_try)

    def connected(self, now: float) -> None:
        """A connect succeeded: whatever was wrong with the way in is over."""
        self._recover()
        self._rise(now)

    def answered(self, seconds: float, now: float) -> None:
        """A probe was answered. Whether there is room for more sessions is another matter."""
        self.probe_time = seconds
        if self.fault in _AWAY:
            self._recover()
        self._rise(now)

    def _recover(self) -> None:
        self.failures = 0
        self.failing_since = None
        self.told.clear()
        self.next_try = self.urgent_try = 0.0
        self.fault = None

    def _rise(self, now: float) -> None:
        self.misses = 0
        self.waits_since = None
        self.mute = False
        self.answered_at = now
        if self.health is Health.DOWN and self.slow_start:
            self.risen_at = now
        self.health = Health.UP
        self.down_since = None

    def connect_failed(self, fault: Fault, error: str, now: float, crowd: int = 1) -> None:
        """A connect failed, here and at `crowd` endpoints in all. Sessions already open are the topology's concern."""
        first, longest = BACKOFF.get(fault, BACKOFF_ELSE)
        if self.failing_since is None:
            self.failing_since = self._asked_since = now
        elif fault is Fault.STARTING is not self.fault:  # it is back, nearly
            self._asked_since = now
        grown = 0.0 if fault in SILENT else min((now - self._asked_since) / PACE_SHARE, PACE_LONGEST)
        pace = max(grown, (crowd - 1) / PER_SECOND) * (0.75 + 0.25 * self._random())
        self.next_try = self.urgent_try = now + max(pace, backoff(first, longest, self.failures, self._random))
        if fault in _QUICK_TO_SAY_NO:
            self.urgent_try = min(self.next_try, now + max(pace, backoff(URGENT, URGENT, 0, self._random)))
        self.failures += 1
        self.server.lost = True
        before, self.fault = self.fault, fault
        self.last_error = error
        self.last_error_at = now
        self._explained = True
        unseen = fault in SILENT or fault is Fault.UNRESOLVED
        if fault is Fault.REFUSED or (unseen and not self.open):
            self.go_down(now)
        # One that lets nobody in, though its sessions are answered, is not suspected again at each attempt.
        elif self.health is Health.UP and (fault in _AWAY or (fault is Fault.ENDED and before is not fault)):
            self.health = Health.SUSPECT

    def patience(self, now: float) -> float:
        """Seconds that one more connect may take, apart from its `connect_timeout`.

        What was sent into a network that swallowed it may never be answered, though the network is well again: so
        where one was silent, the next one is not waited for longer than that has been going on.
        """
        if self.fault is not Fault.TIMEOUT or self.failing_since is None:
            return float("inf")
        return max(LEAST_PATIENCE, now - self.failing_since)

    def go_down(self, now: float) -> None:
        """Not to be used until it answers."""
        if self.health is not Health.DOWN:
            self.down_since = now
            self.role_before = self.role
        self.health = Health.DOWN
        for server in self.servers:
            server.report = Report(Role.UNKNOWN)  # it may come back as something else; its timeline stays known
            server.fenced_by = None
        self.several = False

    def silent(self, error: str, now: float, fault: Fault = Fault.TIMEOUT) -> None:
        """It was asked and gave no answer: the server or the way to it is frozen."""
        self.connect_failed(fault, error, now)
        self.go_down(now)

    def suspected(self, error: str, now: float, *, explains: bool = True) -> None:
        """A session ended in somebody's hands, or a probe was not answered.

        What does not explain anything (a connection was closed) does not take the place of what has just explained it.
        """
        if explains or not self._explained or now >= (self.last_error_at or now) + _EXPLAINS:
            self.last_error = error
            self.last_error_at = now
            self._explained = explains
        if self.health is Health.UP:
            self.health = Health.SUSPECT
