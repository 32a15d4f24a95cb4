"""Plays the scenarios of `bench.failover` for tests: each once, all models of pgdbpool at work on the same servers.

What was played is kept for the session, so that each test can ask one question of it. A caller that hangs does so in a
process of its own, which is ended: no test hangs.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from bench.failover.effort import QUICK
from bench.failover.figures import Figures
from bench.failover.moves import MOVES
from bench.failover.oddities import ODDITIES
from bench.failover.ops import callers
from bench.failover.peers import Pgdbpool, PgdbpoolAsync, PgdbpoolNonThreaded
from bench.failover.run import Outcome, Part, perform
from bench.failover.scenarios import SCENARIOS, Scenario

# `recovery` and `patience` are limits that are only reached when something is wrong.
EFFORT = replace(
    QUICK, name="test", steady=0.7, outage=4.0, silence=3.0, flaps=2, recovery=20.0, calm=1.5, patience=10.0
)

MODELS = {"threaded": Pgdbpool.name, "non-threaded": PgdbpoolNonThreaded.name, "asyncio": PgdbpoolAsync.name}
CALLERS = {"threaded": 8, "non-threaded": 2, "asyncio": 8}  # non-threaded, each is a process
ALL = {scenario.name: scenario for scenario in (*SCENARIOS, *ODDITIES, *MOVES)}


@dataclass(frozen=True)
class Played:
    """What a pool of one model came through."""

    scenario: Scenario
    figures: Figures
    pools: list[dict[str, Any]]
    """What each process said of its pool in the end."""
    servers: dict[str, int]
    writer: str
    """The name of the server that has to take the writes in the end."""
    watched: str
    """The name of the standby that something happened to."""
    blows: int

    @property
    def each(self) -> int:
        """The callers of one kind."""
        return self.figures.callers // 2

    @property
    def attempts(self) -> int:
        """Connects that were tried, by the pool's own count."""
        counters = [group["counters"] for pool in self.pools for group in pool["groups"].values()]
        return sum(each["connects"] + each["connect_failures"] for each in counters)

    def endpoint(self, name: str, pool: dict[str, Any]) -> dict[str, Any]:
        """What a pool believes of a server; not where there is a proxy in front of it."""
        port = str(self.servers[name])
        return next(each for each in pool["endpoints"] if each["endpoint"].rpartition(":")[2] == port)


def play(name: str, model: str, **target: str) -> Played:
    """The scenario as one model came through it."""
    scenario, outcome = _played(name, tuple(target.items()))
    if isinstance(outcome, Exception):
        raise outcome
    place = list(MODELS).index(model)
    story = outcome.story
    return Played(
        scenario=scenario,
        figures=outcome.figures[place],
        pools=outcome.about[place],
        servers={server: port for port, server in story.servers.items()},
        writer=story.servers[story.writer or 0],
        watched=story.servers.get(story.watched or 0, ""),
        blows=len(story.faults),
    )


@cache
def _played(name: str, write: tuple[tuple[str, str], ...]) -> tuple[Scenario, Outcome | Exception]:
    scenario = ALL[name]
    options = {**scenario.options, "write": dict(write)}
    parts = [
        Part(peer, callers(CALLERS[model], 100 * number), options)
        for number, (model, peer) in enumerate(MODELS.items())
    ]
    try:
        return scenario, perform(scenario, parts, EFFORT)
    except Exception as error:  # the next test would meet it, too
        return scenario, error
