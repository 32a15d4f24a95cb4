"""What happens to the servers: the losses, the silences, and the returns. `oddities` has the rest.

A scenario is a function that plays on a `Stage`, from the moment all callers work to the moment all is well again, or
as well as it will be. What has to be prepared before the clients start is a second function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.failover.effort import Effort
from bench.failover.observer import Observer, first
from bench.failover.ops import Kind
from bench.failover.stage import Stage

if TYPE_CHECKING:
    from pgdbpool.testing import Node


def nothing(stage: Stage) -> None:
    """No preparation."""


def available() -> str:
    """Why the scenario cannot be played here; empty if it can."""
    return ""


@dataclass(frozen=True)
class Scenario:
    """A story, and what it needs."""

    name: str
    title: str
    play: Callable[[Stage], None]
    prepare: Callable[[Stage], None] = nothing
    why_not: Callable[[], str] = available
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Server settings."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of pgdbpool that the scenario is about (`peers.Pgdbpool.config`)."""
    kinds: tuple[Kind, ...] = ()
    """The operations that are impossible for a time."""
    apart: Callable[[Effort], float] | None = None
    """Seconds between the beginnings of two peers, each on servers of its own, where most of it is waiting and they do
    not disturb each other. None: one after the other."""


def new_primary(stage: Stage) -> Node:
    """The standby to promote."""
    return stage.cluster.most_advanced_standby()


def kill_primary(stage: Stage) -> None:
    stage.steady()
    old = stage.cluster.primary
    with stage.blow(f"{old.name}, the primary, is killed"):
        old.kill()
    time.sleep(stage.effort.gap)
    stage.promote(new_primary(stage))
    stage.recover()
    stage.calm()


def freeze_primary(stage: Stage) -> None:
    stage.steady()
    old = stage.cluster.primary
    with stage.blow(f"{old.name}, the primary, is frozen"):
        old.freeze()
    time.sleep(stage.effort.gap)
    stage.promote(new_primary(stage))
    stage.recover()
    stage.calm()


def refuse_writes(stage: Stage) -> None:
    """Its sessions stay open, and it goes on to say that it is not in recovery."""
    stage.steady()
    old = stage.cluster.primary
    with stage.blow(f"{old.name}, the primary, refuses writes"):
        old.refuse_writes()
        wait_for_writers_to_end(stage, old)
    stage.promote(new_primary(stage))
    stage.recover()
    stage.calm()


def wait_for_writers_to_end(stage: Stage, node: Node) -> None:
    """Until no transaction that has written is open, twice in a row: one may just have been about to begin."""
    sql = "select count(*) from pg_stat_activity where backend_type = 'client backend' and backend_xid is not null"
    looks = 0
    deadline = time.monotonic() + 10
    while looks < 2:
        looks = 0 if node.execute(sql)[0][0] else looks + 1
        if time.monotonic() > deadline:
            raise TimeoutError(f"transactions that write go on on {node.name}")
        time.sleep(0.01)


def switchover(stage: Stage) -> None:
    """Planned: the old primary is stopped, and comes back as a standby."""
    stage.steady()
    old = stage.cluster.primary
    with stage.blow(f"{old.name}, the primary, is stopped (fast)"):
        old.stop("fast")
    new = new_primary(stage)
    stage.promote(new)
    stage.recover()
    old.rejoin(new)
    stage.tell(f"{old.name} is back as a standby")
    stage.settle()
    stage.calm()


def restart_primary(stage: Stage) -> None:
    """Not promoted: what was lost comes back, with connections that are all stale."""
    stage.steady()
    primary = stage.cluster.primary
    with stage.blow(f"{primary.name}, the primary, is stopped (immediate)"):
        primary.stop("immediate")
    time.sleep(stage.effort.restart)
    with Observer(primary, "write") as observer:
        primary.start(wait=False)
        stage.tell(f"{primary.name} is started")
        stage.possible("write", observer.answer())
    stage.recover()
    stage.calm()


def kill_standby(stage: Stage) -> None:
    """It stays away."""
    _lose_standby(stage, "killed", lambda standby: standby.kill())


def freeze_standby(stage: Stage) -> None:
    """It stays frozen."""
    _lose_standby(stage, "frozen", lambda standby: standby.freeze())


def _lose_standby(stage: Stage, words: str, lose: Callable[[Node], None]) -> None:
    stage.steady()
    standby = stage.standby()
    with stage.blow(f"{standby.name}, a standby, is {words}"):
        lose(standby)
    time.sleep(stage.effort.silence)
    stage.calm()


def standby_returns(stage: Stage) -> None:
    stage.steady()
    standby = stage.standby()
    with stage.blow(f"{standby.name}, a standby, is killed"):
        standby.kill()
    time.sleep(stage.effort.down)
    standby.start()
    stage.returned(f"{standby.name} accepts connections")
    time.sleep(stage.effort.returned - stage.effort.calm)
    stage.calm()


def network(stage: Stage) -> None:
    """The way to the primary and to one standby swallows everything, in both directions; then it is well again.

    What was open stays dead: a connection that has lost data is never of use again.
    """
    stage.steady()
    standby = stage.standby()
    cut = [stage.proxy_of(stage.cluster.primary), stage.proxy_of(standby)]
    with stage.blow(f"the network to {stage.cluster.primary.name} and {standby.name} swallows all packets"):
        for proxy in cut:
            proxy.drop()
        time.sleep(0.05)  # nobody can know yet: who was at rest meets it like those whose question is under way
    time.sleep(stage.effort.silence)
    for proxy in cut:
        proxy.drop(False)
    stage.returned("the network is well again")
    with Observer(stage.cluster.primary, "write", through=cut[0]) as observer:
        stage.possible("write", observer.answer())
    stage.recover()
    stage.settle()
    stage.calm()


def all_down(stage: Stage) -> None:
    stage.steady()
    nodes = stage.cluster.nodes
    with stage.blow("all servers are killed"):
        for node in nodes:
            node.kill()
    time.sleep(stage.effort.outage)
    with ExitStack() as stack:
        writes = stack.enter_context(Observer(stage.cluster.primary, "write"))
        reads = [stack.enter_context(Observer(node, "read")) for node in nodes]
        for node in nodes:
            node.start(wait=False)
        stage.tell("all servers are started")
        stage.possible("read", first(reads))
        stage.possible("write", writes.answer())
    stage.recover(stage.effort.outage)  # some pools wait longer and longer between two tries
    stage.settle()
    stage.calm()


def slow_standby(stage: Stage) -> None:
    """One standby is 50 ms further away than the other."""
    stage.steady()
    standby = stage.standby()
    with stage.blow(f"{standby.name}, a standby, is 50 ms slower"):
        stage.proxy_of(standby).latency(0.05)
    time.sleep(stage.effort.silence)
    stage.calm()


LATENCY = {"read": {"balance": "latency"}}

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("kill-primary", "The primary is killed, a standby promoted 1 s later", kill_primary, kinds=("write",)),
    Scenario("freeze-primary", "The primary is frozen, a standby promoted 1 s later", freeze_primary, kinds=("write",)),
    Scenario(
        "refuse-writes",
        "The primary refuses writes (25006), its sessions stay open, a standby is promoted",
        refuse_writes,
        kinds=("write",),
    ),
    Scenario("switchover", "Planned switchover: fast stop, promotion", switchover, kinds=("write",)),
    Scenario("restart-primary", "The primary restarts: 0.5 s down", restart_primary, kinds=("write",)),
    Scenario("kill-standby", "A standby is killed", kill_standby),
    Scenario("freeze-standby", "A standby is frozen", freeze_standby),
    Scenario(
        "standby-returns",
        "A standby is killed and comes back after 2 s",
        standby_returns,
        apart=lambda effort: effort.returned * 2 / 3,  # two at a time, at most
    ),
    Scenario(
        "network",
        "The network to the primary and a standby swallows packets, then heals",
        network,
        Stage.use_proxies,
        kinds=("write",),
    ),
    Scenario(
        "all-down",
        "All servers are down, then come back",
        all_down,
        kinds=("read", "write"),
        apart=lambda effort: effort.outage * 2 / 5,  # while one comes back the others are down
    ),
    Scenario("slow-standby", "A standby is 50 ms slower", slow_standby, Stage.use_proxies, options=LATENCY),
)
