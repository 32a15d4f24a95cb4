"""One name for the primary, as a managed database, a virtual address or a load balancer gives it; and the name moves.

The name is a proxy: to the clients it is one host and one port, and what is behind it changes at one moment. Open
connections stay with the server that they have reached.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.failover.observer import Observer
from bench.failover.scenarios import Scenario
from bench.failover.stage import Stage, place
from bench.failover.stale import SETTINGS

if TYPE_CHECKING:
    from pgdbpool.testing import Node


def give_a_name(stage: Stage) -> None:
    """The clients know the name, and nothing else."""
    primary = stage.cluster.primary
    stage.proxies[primary.port] = stage.stack.enter_context(primary.proxy())
    stage.places = [place(stage.proxy_of(primary))]


def give_a_name_beside_a_standby(stage: Stage) -> None:
    """The clients know the name, and a standby that will not be promoted."""
    give_a_name(stage)
    stage.places.append(place(stage.cluster.standbys[-1]))


def move(stage: Stage, old: Node, new: Node) -> None:
    """From now on the name is that of the new primary."""
    name = stage.proxy_of(old)
    name.target = new
    stage.tell(f"the name leads to {new.name}")
    with Observer(new, "write", through=name) as observer:
        stage.possible("write", observer.answer())
    stage.moved = old, new


def switchover(stage: Stage) -> None:
    """For a moment the name leads to the old primary, which is a standby now: there its sessions are well."""
    stage.steady()
    old, (new, other) = stage.cluster.primary, stage.cluster.standbys
    name = stage.proxy_of(old)
    with stage.blow(f"{old.name}, the primary, is stopped (fast)"):
        old.stop("fast")
    stage.need(lambda: new.wal_position() >= other.wal_position(), f"{new.name} has what {other.name} has")
    stage.promote(new, known=False)
    with Observer(old, "read", through=name) as observer:
        old.rejoin(new)
        stage.tell(f"{old.name} is back as a standby, and the name still leads there")
        stage.possible("read", observer.answer())
    time.sleep(stage.effort.gap)
    move(stage, old, new)
    stage.recover()
    stage.calm()


# One for each process, of those that wait for a confirmation that will never come.
END_ONE = """
select pg_terminate_backend(pid) from (
  select distinct on (application_name) pid from pg_stat_activity where wait_event = 'SyncRep' order by application_name
) as one
"""


def old_primary_lives_on(stage: Stage) -> None:
    """The old primary is not told. Nothing it does after the promotion can be confirmed.

    One connection of each pool is ended there after the name has moved, so at the latest then each can know.
    """
    stage.steady()
    old, (new, other) = stage.cluster.primary, stage.cluster.standbys
    with stage.blow(f"{new.name} is promoted beside {old.name}, which lives on"):
        other.follow(new)
        other.configure()
        stage.need(lambda: other.name not in old.receivers(), f"{other.name} leaves {old.name}")
        stage.need(lambda: new.wal_position() >= other.wal_position(), f"{new.name} has what {other.name} has")
        stage.promote(new, known=False)
    time.sleep(stage.effort.gap)
    move(stage, old, new)
    old.execute(END_ONE)
    stage.tell(f"one connection of each process to {old.name} is ended")
    stage.recover()
    stage.calm()


MOVES: tuple[Scenario, ...] = (
    Scenario(
        "name-switchover",
        "The name moves (switchover)",
        switchover,
        give_a_name,
        settings=SETTINGS,
        kinds=("write", "read"),
    ),
    Scenario(
        "name-old-lives-on",
        "The name moves, the old primary lives on",
        old_primary_lives_on,
        give_a_name_beside_a_standby,
        settings=SETTINGS,
        kinds=("write",),
    ),
)
