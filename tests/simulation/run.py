"""One seed, from the first event to the last."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import msgspec

from pgdbpool import session
from pgdbpool.config import GroupSettings
from pgdbpool.core.balance import POLICIES, Policy
from pgdbpool.core.balance import Random as RandomBalancer
from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.group import Group
from pgdbpool.errors import PoolClosed
from pgdbpool.renewal import LIFE
from pgdbpool.session import Sessions

from .book import Book, BookedGroup, BookedTopology
from .callers import Caller, Crowd, Owner, Pool
from .clock import Clock
from .driver import SimulatedDriver
from .keepers import Inline, Keeper, Threaded
from .monitor import Monitor
from .names import Names
from .recovery import Recovery
from .scenario import POLL_AFTER, Scenario, attached, draw
from .servers import Server
from .shared import Violation
from .watch import Watch
from .weather import Weather

HOME = 90.0  # s in which all callers have gone home, and a pool that was closed is empty
SERVANTS = ("keeper", "opener", "monitor", "probe")  # tasks that nobody waits for


@dataclass(frozen=True)
class Outcome:
    """How it went."""

    seed: int
    steps: int
    digest: int
    seconds: float  # of simulated time
    violation: str | None
    counts: Counter[str] = field(repr=False)
    recovered: float  # the longest way back, as a part of its bound

    @property
    def replay(self) -> str:
        return f"python -m tests.simulation --seed {self.seed} --trace"


class World:
    """Everything that a seed decides, put together."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        random = Random(seed)
        self.scenario = scenario = draw(random)
        draws = [Random(random.random()) for _ in range(6)]
        self.clock = clock = Clock(draws[0], scenario.preemption, trace)
        self.book = book = Book(clock)
        self.servers = [
            Server(f"db{number + 1}", clock, Random(random.random()), latency, truth)
            for number, (latency, truth) in enumerate(zip(scenario.latencies, scenario.truths, strict=True))
        ]
        by_host = {server.label: server for server in self.servers[: len(scenario.places)]}
        self.names = Names(by_host, clock, Random(random.random()))
        driver = SimulatedDriver(clock, self.names, book.promotions, draws[1], book.others_run)
        self.topology = topology = self._topology(scenario, draws[2].random)
        topology.keep(book)
        driver.on_abort = book.aborts
        self.sessions = Sessions(driver, topology)
        self.sessions.closing = book.closes
        self.keeper: Keeper
        if scenario.threaded:
            monitor = Monitor(clock, book, topology, driver, draws[3]) if scenario.monitored else None
            self.keeper = Threaded(clock, book, topology, self.sessions, scenario.listens, monitor)
        else:
            self.keeper = Inline(clock, book, topology, self.sessions)
        self.watch = Watch(book, topology, self.keeper, self.servers, self.names, monitored=scenario.monitored)
        book.on_connect = self.watch.connects
        self.pool = Pool(clock, book, topology, self.sessions, driver, self.keeper, self.watch)
        self.weather = Weather(clock, self.servers, self.names if scenario.names_move else None, draws[4])
        self.weather.on_lie = partial(setattr, book.promotions, "lied", True)
        self.callers = [Caller(self.pool, plan, Random(random.random())) for plan in scenario.callers]
        self.owner = Owner(self.pool, draws[5])
        self.recovery: Recovery | None = None

    def _topology(self, scenario: Scenario, draws: Callable[[], float]) -> BookedTopology:
        endpoints = [Endpoint(place, draws) for place in scenario.places]
        groups: list[Group] = []
        for plan, resets in zip(scenario.groups, scenario.resets, strict=True):
            policy: Policy = POLICIES[str(plan.balance)]
            if plan.balance == "random":
                policy = partial(RandomBalancer, random=draws)
            group = BookedGroup(
                self._settings(plan, resets), policy, self.book.lock, draws, POLL_AFTER[str(plan.check)]
            )
            groups.append(group)
        topology = BookedTopology(endpoints, groups, self.book.lock, draws)
        for group, plan in zip(groups, scenario.groups, strict=True):
            for endpoint, place in zip(endpoints, scenario.places, strict=True):
                if attached(plan, place):
                    topology.attach(group, endpoint)
        return topology

    def _settings(self, plan: GroupSettings, resets: bool) -> GroupSettings:
        def configure(conn: Any) -> None:
            if plan.name in self.owner.unready:
                raise RuntimeError("configure raises")

        def reset(conn: Any) -> None:
            self.book.counts["resets"] += 1

        return msgspec.structs.replace(
            plan,
            configure=configure,
            reset=reset if resets else None,
            reconnect_failed=partial(self.book.outage, plan.name),
        )

    # -- what happens ---------------------------------------------------------------------------------------------

    def live(self) -> None:
        clock, scenario = self.clock, self.scenario
        end = clock.now + scenario.trouble
        self.book.counts["crowded"] += scenario.crowded
        self.topology.open()
        self.keeper.start()
        if scenario.threaded:
            for group in self.topology.groups:
                group.wish()
        self.weather.schedule(scenario.strikes, end, silence=scenario.crowded)
        for number, caller in enumerate(self.callers):
            clock.spawn(f"caller {number + 1}", caller.run())
        clock.on_preempt = Crowd(self.callers).come
        if scenario.owner and scenario.threaded:
            clock.spawn("owner", self.owner.run(end, 6))
        self._until(lambda: False, end)
        self._get_well()
        self._close()

    def _until(self, condition: Callable[[], bool], until: float) -> bool:
        while not condition():
            if not self.clock.step(until):
                return condition()
            self.watch.look()
            if self.recovery is not None:
                self.recovery.overdue()
        return True

    def _get_well(self) -> None:
        clock = self.clock
        if clock.trace:
            clock.say("all is well from now on")
        self.weather.clear_up()
        self.names.settle()
        self.owner.make_good()
        for caller in self.callers:
            caller.go_home()
        if not self._until(self._all_home, clock.now + HOME):
            raise Violation(f"still busy {HOME} s after the servers got well: {self._busy()}")
        by_endpoint = {
            endpoint: self.names.reached(place.host)
            for endpoint, place in zip(self.topology.endpoints, self.scenario.places, strict=True)
        }
        self.recovery = recovery = Recovery(self.pool, by_endpoint, self.scenario)
        recovery.begin(clock.spawn)
        self._until(lambda: not recovery.waiting and self._all_home(), clock.now + 4 * HOME)
        recovery.overdue()
        if self.scenario.threaded:
            self._until(lambda: False, clock.now + recovery.settling + (LIFE if self.names.moved else 0.0))
            recovery.beliefs()
            recovery.begin_to_share(clock.spawn)
            self._until(self._all_home, clock.now + HOME)

    def _busy(self) -> list[str]:
        return [task.name for task in self.clock.tasks if task.name not in SERVANTS]

    def _all_home(self) -> bool:
        return not self._busy()

    def _close(self) -> None:
        """Everything goes."""
        self.topology.close()
        for group in self.topology.groups:
            group.fail_waiters(partial(PoolClosed, "closed"))
        self.keeper.stop()
        self._until(lambda: not self.clock.tasks, self.clock.now + HOME)
        for group in self.topology.groups:
            self.sessions.bury(group)
            if group.total or group.waiters or group.closing:
                raise Violation(f"{group.name} was closed, and still has {group.total} connections")
        if self.book.hands or self.book.orders:
            raise Violation(f"closed, and in somebody's hands: {list(self.book.hands.values())}")
        for server in self.servers:
            if server.sessions:
                raise Violation(f"closed, and open on {server.label}: {len(server.sessions)}")


@contextmanager
def simulated(clock: Clock) -> Iterator[None]:
    """`pgdbpool.session` looks at the simulated clock, and logs nothing."""
    monotonic, session.monotonic = session.monotonic, lambda: clock.now  # type: ignore[assignment]
    logger = logging.getLogger("pgdbpool")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        session.monotonic = monotonic
        logger.disabled = disabled


def run(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """Live through a seed. A broken promise is part of the outcome; nothing is raised."""
    world = World(seed, trace)
    clock = world.clock
    violation = None
    with simulated(clock):
        try:
            world.live()
        except Violation as broken:
            violation = str(broken)
        except Exception as error:
            violation = f"{type(error).__name__} at {_place(error)}: {error}"
        finally:
            clock.abandon()
    if violation is not None:
        violation = f"seed {seed}, step {clock.steps}, at {clock.now:.6f}: {violation}"
    return Outcome(
        seed=seed,
        steps=clock.steps,
        digest=clock.digest,
        seconds=clock.now - clock.began,
        violation=violation,
        counts=world.book.counts + world.weather.counts,
        recovered=world.recovery.took if world.recovery is not None else 0.0,
    )


def _place(error: BaseException) -> str:
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    return f"{where.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{where.tb_lineno}" if where else "?"
