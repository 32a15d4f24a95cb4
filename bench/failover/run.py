"""One scenario with one peer, or with several at the same time, from an empty folder to the figures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.failover.client import Client
from bench.failover.effort import Effort
from bench.failover.figures import Figures, figures
from bench.failover.ops import Caller, callers
from bench.failover.peers import OURS
from bench.failover.scenarios import Scenario
from bench.failover.stage import Stage
from bench.failover.stale import stale
from bench.failover.story import Story
from bench.failover.worker import Task

CALLERS = 8
SETTINGS: dict[str, Any] = {"log_connections": True, "max_connections": 60}


@dataclass(frozen=True)
class Part:
    """A peer, and who works with it."""

    peer: str
    callers: Sequence[Caller]
    options: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one scenario."""

    story: Story
    figures: list[Figures]
    """In the order of the parts."""
    about: list[list[dict[str, Any]]]
    """What each client's pools believed in the end, where they tell."""
    logs: dict[str, str]
    """What each server has logged."""


def part(peer: str, scenario: Scenario, count: int = CALLERS) -> Part:
    """A peer with so many callers, and the settings that the scenario is about."""
    options = dict(scenario.options) if peer.startswith(OURS) else {}
    return Part(peer, callers(count), options)


def perform(scenario: Scenario, parts: Sequence[Part], effort: Effort) -> Outcome:
    """Play a scenario. Raises `client.ClientError` if a peer cannot be started."""
    from pgdbpool.testing import Cluster

    with ExitStack() as stack:
        settings = {**SETTINGS, **scenario.settings}
        cluster = stack.enter_context(Cluster(standbys=2, synchronous=1, settings=settings))
        stage = Stage(cluster, effort, stack)
        scenario.prepare(stage)
        clients = []
        for each in parts:
            task = Task(each.peer, stage.places, list(each.callers), effort.pause, each.options)
            clients.append(stack.enter_context(Client(task, stage.prefix)))
        for client in clients:
            client.start()
        stage.work(clients)
        scenario.play(stage)
        stage.end()
        logs = {node.name: node.log() for node in cluster.nodes}
        old, new = (logs[node.name] for node in stage.moved) if stage.moved else ("", "")
        return Outcome(
            story=stage.story,
            figures=[
                figures(
                    each.peer, each.callers, client.ops, client.hung, stage.story, stale(old, new, client.processes)
                )
                for each, client in zip(parts, clients, strict=True)
            ],
            about=[client.about() for client in clients],
            logs=logs,
        )
