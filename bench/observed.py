"""What it costs to be looked at: the statistics shown to others, leases watched, metrics collected.

Counting is always on. What can be switched on is measured against a pool in which it is off, in the same process:

status          the pool is published once a second, and a status page asks for its data once a second
leak_threshold  of the checkouts one in each millisecond is noted
OpenTelemetry   all metrics and histograms are collected once a second
Prometheus      all metrics are scraped once a second
all             everything at once

Only one pool is open at a time, since what works in the background of one would slow the others down too. Each takes
its turn, with new connections, for longer than a second, so that everything comes up in it. How fast many threads are
differs by a fifth from one set of connections to the next, so there are many rounds of those where it is of interest,
each compared with two pools in which all is off. And the processor time of those threads that publish, ask and collect
is measured for itself: more than that they cannot take away.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import clock_gettime, perf_counter, pthread_getcpuclockid, time
from typing import TYPE_CHECKING, Any, TypeVar

from bench.contended import storm
from bench.effort import Effort
from bench.peers import OURS, Limits, Pgdbpool
from bench.results import Column, Table
from bench.setting import Setting, summary
from bench.turns import calibrate, rotated, settle

if TYPE_CHECKING:
    from pgdbpool.testing import Node

T = TypeVar("T")

NAME = "observed"
OFF = "all off"
CONNECTIONS = 4
THREADS = 16
EVERY = 1.0  # s
BLOCKS = 25
"""Blocks of checkouts on each pool in each round."""
CHECKOUT = [
    Column("us", "us", "{:.2f}"),
    Column("added", "added us", "{:+.3f}"),
    Column("lowest", "lowest round", "{:+.3f}"),
    Column("highest", "highest round", "{:+.3f}"),
]
THROUGHPUT = [
    Column("throughput", "operations/s", "{:,.0f}"),
    Column("ratio", "of the one with all off", "{:.3f}x"),
    Column("lowest", "lowest round", "{:.3f}x"),
    Column("highest", "highest round", "{:.3f}x"),
    Column("watching", "watching, processor ms/s", "{:.1f}"),
]
WATCHER = "watcher"
WATCHING = (WATCHER, "pgdbpool publisher")
"""Names of the threads that do nothing but look, or show."""


@dataclass(frozen=True)
class Way:
    """A way to be looked at."""

    name: str
    group: dict[str, Any]
    """More settings of the group."""
    published: bool = False
    watchers: tuple[Callable[[Any, str], Callable[[], None]], ...] = ()
    """Each begins to watch a pool that is published in that directory. Gives what looks once."""
    storms: bool = False
    """Whether the throughput is measured."""


def page(pool: Any, directory: str) -> Callable[[], None]:
    """As a browser does that shows the status page."""
    from pgdbpool.web.site import Request, Site
    from pgdbpool.web.view import View

    site = Site(View(lambda: ["bench"], directory), None)

    def look() -> None:
        query = f"app=bench&since={time() - 6}"
        request = Request("GET", "", "/data", query, {}, "", "1.1", secure=False, body=b"")
        if site.respond(request).status != 200:
            raise RuntimeError("the status page does not answer")

    return look


def opentelemetry(pool: Any, directory: str) -> Callable[[], None]:
    """As a periodic reader does."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from pgdbpool.integrations import otel

    reader = InMemoryMetricReader()
    otel.instrument(pool, meter_provider=MeterProvider(metric_readers=[reader]))
    return reader.get_metrics_data


def prometheus(pool: Any, directory: str) -> Callable[[], None]:
    """As a scrape does."""
    from prometheus_client import CollectorRegistry, generate_latest

    from pgdbpool.integrations.prometheus import PoolCollector

    registry = CollectorRegistry()
    registry.register(PoolCollector(pool))

    def look() -> None:
        generate_latest(registry)

    return look


LEAKS = {"leak_threshold": 60.0}
AGAIN = "all off, again"
WAYS = (
    Way(OFF, {}, storms=True),
    Way(AGAIN, {}, storms=True),
    Way("status", {}, True, (page,), storms=True),
    Way("leak_threshold", LEAKS),
    Way("OpenTelemetry", {}, watchers=(opentelemetry,)),
    Way("Prometheus", {}, watchers=(prometheus,)),
    Way("all on", LEAKS, True, (page, opentelemetry, prometheus), storms=True),
)


class Observed(Pgdbpool):
    """A pool with a way to be looked at, and who looks."""

    def __init__(self, nodes: list[Node], limits: Limits, way: Way, directory: str) -> None:
        from pgdbpool import Pool

        group = {"min_count": limits.least, "connection_count": limits.most} | way.group
        config = {
            "db": [node.endpoint() for node in nodes],
            "groups": {"read": group},
            "status": {"name": "bench", "directory": directory} if way.published else False,
        }
        self.use(Pool(config))


@contextmanager
def watched(node: Node, way: Way) -> Iterator[Pgdbpool]:
    """A warm pool that is looked at in this way all the time."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        pool = Observed([node], Limits(CONNECTIONS, CONNECTIONS), way, directory)
        stack.callback(pool.close)
        pool.warm(CONNECTIONS)
        looks = [watcher(pool.pool, directory) for watcher in way.watchers]
        for look in looks:
            look()
        stop = threading.Event()
        failures: list[BaseException] = []

        def go_on() -> None:
            try:
                while not stop.wait(EVERY):
                    for look in looks:
                        look()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=go_on, name=WATCHER, daemon=True)
        if looks:
            thread.start()
        try:
            yield pool
        finally:
            stop.set()
            if looks:
                thread.join(30)
        if failures:
            raise failures[0]


def measure(setting: Setting) -> list[Table]:
    checkout = Table(
        "observed_checkout", "Statistics and what looks at them: a checkout and return, uncontended", CHECKOUT
    )
    throughput = Table(
        "observed_throughput",
        f"Statistics and what looks at them: {THREADS} threads on {CONNECTIONS} connections, select 1",
        THROUGHPUT,
    )
    tables = [checkout, throughput]
    if OURS not in [peer.name for peer in setting.peers]:
        for table in tables:
            table.missing[OURS] = setting.absent.get(OURS, "it was not asked for")
        return tables
    effort = setting.effort
    checkout.notes = [
        f"The median of {BLOCKS} short blocks of each pool in each of {effort.observed_rounds} rounds.",
        "Added: against the pool with all off in the same round. The second with all off shows the resolution.",
    ]
    throughput.notes = [
        f"{effort.observed_storms} rounds of {effort.observed_storm:g} s in turn, each with new connections.",
        "The median of them, compared with the two that have all off. Only one pool is open at a time.",
        "status: published and its page asked once a second. OpenTelemetry, Prometheus: collected once a second.",
        "Everything works in the process that is measured, and takes its processor time from it.",
        "Watching: what the threads that publish, ask and collect take of one processor, 10 ms/s being 1 %.",
    ]
    take_turns(setting, checkout, effort.observed_rounds, WAYS, lambda pool: one_checkout(pool, effort.block), compared)
    stormy = [way for way in WAYS if way.storms]
    take_turns(setting, throughput, effort.observed_storms, stormy, lambda pool: one_storm(pool, effort), rated)
    return tables


def take_turns(
    setting: Setting,
    table: Table,
    rounds: int,
    ways: Sequence[Way],
    measured: Callable[[Pgdbpool], T],
    row: Callable[[str, Mapping[str, list[T]]], dict[str, Any]],
) -> None:
    """Fill a table: so many rounds in which each way has its turn."""
    found: dict[str, list[T]] = {way.name: [] for way in ways}
    for number in range(rounds):
        setting.say(f"{table.title}, round {number + 1} of {rounds}")
        for way in rotated(ways, number):
            if way.name not in table.missing:
                try:
                    with watched(setting.cluster.nodes[0], way) as pool:
                        found[way.name].append(measured(pool))
                except Exception as error:
                    table.missing[way.name] = summary(error)
    table.rows += [row(way.name, found) for way in ways if way.name not in table.missing]


def one_checkout(pool: Pgdbpool, block: float) -> float:
    """Seconds that a checkout and its return take."""
    settle()
    loops = calibrate(pool.with_blocks, block)
    return median(pool.with_blocks(loops) / loops for _ in range(BLOCKS))


def compared(name: str, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    added = [(this - that) * 1e6 for this, that in zip(seconds[name], seconds[OFF], strict=True)]
    return {
        "peer": name,
        "us": median(seconds[name]) * 1e6,
        "added": median(added),
        "lowest": min(added),
        "highest": max(added),
    }


@dataclass(frozen=True)
class Watched:
    """What a storm on a pool that is watched came to."""

    throughput: float
    watching: float
    """Seconds of processor time per second, of those who only watch."""


def one_storm(pool: Pgdbpool, effort: Effort) -> Watched:
    began, before = perf_counter(), watching()
    throughput = storm(pool, THREADS, "select 1", effort.observed_storm).throughput
    return Watched(throughput, (watching() - before) / (perf_counter() - began))


def watching() -> float:
    """Seconds of processor time that the threads that only watch have had."""
    threads = [thread.ident for thread in threading.enumerate() if thread.name in WATCHING]
    return sum(clock_gettime(pthread_getcpuclockid(ident)) for ident in threads if ident is not None)


def rated(name: str, storms: Mapping[str, list[Watched]]) -> dict[str, Any]:
    these = [one.throughput for one in storms[name]]
    off = [[one.throughput for one in storms[each]] for each in (OFF, AGAIN) if each != name and storms[each]]
    those = [sum(each) / len(each) for each in zip(*off, strict=True)]
    ratios = [this / that for this, that in zip(these, those, strict=True)]
    return {
        "peer": name,
        "throughput": median(these),
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "watching": median(one.watching for one in storms[name]) * 1e3,
    }
