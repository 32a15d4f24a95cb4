"""One seed, from the first event to the last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from pgdbpool.core.balance import POLICIES
from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.group import Group
from pgdbpool.core.topology import Topology
from pgdbpool.errors import PoolClosed

from .callers import Caller, Owner, Pool
from .clock import Clock
from .keepers import Inline, Keeper, Threaded
from .recovery import Recovery
from .scenario import POLL_AFTER, Scenario, draw
from .servers import Server
from .shared import Lock, Queue, Shared, Slots, Violation
from .shell import Shell
from .watch import Watch
from .weather import Weather

MONITOR = hasattr(Topology, "probed")
HOME = 60.0  # s in which all callers have gone home, and a pool that was closed is empty


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
        self.seed = seed
        self.scenario = scenario = draw(random, monitor=MONITOR)
        self.clock = clock = Clock(Random(random.random()), scenario.preemption, trace)
        self.servers = [
            Server(place.label, clock, Random(random.random()), latency, truth)
            for place, latency, truth in zip(scenario.places, scenario.latencies, scenario.truths, strict=True)
        ]
        self.lock = Lock(clock.preempt)
        self.topology = self._topology(scenario, Random(random.random()).random)
        by_endpoint = dict(zip(self.topology.endpoints, self.servers, strict=True))
        self.shell = Shell(clock, self.topology, self.lock, by_endpoint, Random(random.random()))
        self._share_containers()
        self.keeper: Keeper = Threaded(self.shell, scenario.listens) if scenario.threaded else Inline(self.shell)
        self.watch = Watch(self.shell, self.keeper)
        self.shell.on_connect = self.watch.connects
        self.pool = Pool(self.shell, self.keeper, self.watch)
        self.weather = Weather(clock, self.servers, Random(random.random()))
        self.callers = [Caller(self.pool, plan, Random(random.random())) for plan in scenario.callers]
        self.owner = Owner(self.pool, Random(random.random()))
        self.recovery: Recovery | None = None

    def _topology(self, scenario: Scenario, draws: Callable[[], float]) -> Topology:
        endpoints = [Endpoint(place, draws) for place in scenario.places]
        groups = [
            Group(plan, POLICIES[plan.balance], self.lock, draws, POLL_AFTER[plan.check]) for plan in scenario.groups
        ]
        topology = Topology(endpoints, groups, self.lock, draws)
        for group, plan in zip(groups, scenario.groups, strict=True):
            for endpoint, place in zip(endpoints, scenario.places, strict=True):
                if plan.wants(place):
                    topology.attach(group, endpoint)
        return topology

    def _share_containers(self) -> None:
        for group in self.topology.groups:
            group.waiters = Queue(self.shell.others_run, group.settings.max_waiting)
            if self.scenario.preemption:
                group.closing = Shared(self.shell.others_run)
            for lane in group.lanes:
                lane.slots = Slots()  # type: ignore[assignment]
                if self.scenario.preemption:
                    lane.idle = Shared(self.shell.others_run)

    # -- what happens ---------------------------------------------------------------------------------------------

    def live(self) -> None:
        clock, scenario = self.clock, self.scenario
        end = clock.now + scenario.trouble
        self.topology.open()
        self.keeper.start()
        if scenario.threaded:
            for group in self.topology.groups:
                group.wish()
        self.weather.schedule(scenario.strikes, end)
        for number, caller in enumerate(self.callers):
            clock.spawn(f"caller {number + 1}", caller.run())
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
        self.owner.make_good()
        for caller in self.callers:
            caller.go_home()
        if not self._until(self._all_home, clock.now + HOME):
            raise Violation(f"still busy {HOME} s after the servers got well: {self._busy()}")
        self.recovery = Recovery(self.pool, self.shell.servers, self.scenario.threaded)
        self.recovery.begin(clock.spawn)
        self._until(lambda: not self.recovery.waiting and self._all_home(), clock.now + 4 * HOME)  # type: ignore[union-attr]
        self.recovery.overdue()
        if self.scenario.threaded:
            self._until(lambda: False, clock.now + 2 * self.recovery.backoff + 1.0)
            self.recovery.beliefs()

    def _busy(self) -> list[str]:
        return [task.name for task in self.clock.tasks if task.name not in ("keeper", "opener", "monitor")]

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
            self.shell.bury(group)
            if group.total or group.waiters or group.closing:
                raise Violation(f"{group.name} was closed, and still has {group.total} connections")
        if self.shell.hands or self.shell.orders:
            raise Violation(f"closed, and in somebody's hands: {list(self.shell.hands.values())}")
        for server in self.servers:
            if server.sessions:
                raise Violation(f"closed, and open on {server.label}: {len(server.sessions)}")


def run(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """Live through a seed. A broken promise is part of the outcome; nothing is raised."""
    world = World(seed, trace)
    violation = None
    try:
        world.live()
    except Violation as broken:
        violation = str(broken)
    except Exception as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        at = f"{where.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{where.tb_lineno}" if where else "?"
        violation = f"{type(error).__name__} at {at}: {error}"
    clock = world.clock
    if violation is not None:
        violation = f"seed {seed}, step {clock.steps}, at {clock.now:.6f}: {violation}"
    return Outcome(
        seed=seed,
        steps=clock.steps,
        digest=clock.digest,
        seconds=clock.now - 100.0,
        violation=violation,
        counts=world.shell.counts + world.weather.counts,
        recovered=world.recovery.took if world.recovery is not None else 0.0,
    )
