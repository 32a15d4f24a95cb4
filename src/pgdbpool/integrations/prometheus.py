"""Prometheus: a collector for `prometheus_client`.

    from prometheus_client import REGISTRY
    from pgdbpool.integrations.prometheus import PoolCollector

    REGISTRY.register(PoolCollector())                      # the pools of this process
    REGISTRY.register(PoolCollector(application="shop"))    # those of all its workers

With an `application` any worker process answers for all. The workers publish what their pools do, once a second
(`pgdbpool.publish`), and a scrape adds that up. What only grows does not shrink when a worker ends: see `ledger`. What
is measured at a moment is that of the living.

`prometheus_client` has a way of its own for several processes, which writes each value to a file when it changes. That
would be at every checkout and return; and collectors, which are asked when somebody scrapes, are not part of it. This
one can be registered beside its ``MultiProcessCollector``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.core import Metric as Family
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; pip install 'pgdbpool[prometheus]'", name=error.name) from None

from .. import lifecycle
from ..core.stats import PoolStats
from ..publish import Worker, heirs, place, publish_all, read
from . import ledger
from .catalogue import LIMITS, METRICS, Histogram, Kind, Metric, Value, never_less

logger = logging.getLogger("pgdbpool")


class Seen(Protocol):
    """A pool, as far as this module knows it."""

    def stats(self, *, all_time: bool = False) -> PoolStats: ...


class PoolCollector(Collector):
    """The metrics of pools, for a ``CollectorRegistry``. Safe in any thread.

    Of `pools`, or without them of all pools of this process. With `application` of all pools of all processes on this
    host that publish under that name: those whose configuration has it as ``status.name``; the pools of this process
    that have no ``status`` of their own are published so from now on. `directory` is that of ``status.directory``.
    """

    def __init__(self, *pools: Seen, application: str | None = None, directory: str | None = None) -> None:
        if pools and application is not None:
            raise ValueError("application: expected no pools beside it, since it is about all pools that publish")
        self._pools = pools
        self._application = application
        self._directory = directory
        self._said: set[str] = set()
        self._begin()
        if application is not None:
            publish_all(application, directory)
            heirs.add(self)

    def _begin(self) -> None:
        """As in a new process, whose pools count from nothing."""
        self._pid = os.getpid()
        self._lock = Lock()
        self._before: ledger.Book = {}

    def describe(self) -> Iterable[Family]:
        """Nothing: so registering asks nobody."""
        return []

    def collect(self) -> Iterator[Family]:
        """The metrics now."""
        if self._application is not None:
            stats, counted, processes = self._of_all(self._application)
        else:
            stats, processes = [pool.stats(all_time=True) for pool in self._pools or lifecycle.pools()], 1
            counted = self._grown(ledger.counted(stats))
        momentary = _momentary(stats)
        for metric in METRICS:
            values = counted if metric.kind in (Kind.COUNTER, Kind.HISTOGRAM) else momentary
            series = {key: value for key, value in values.items() if key[0] == metric.name}
            if series:
                yield _family(metric, series)
        yield GaugeMetricFamily("pgdbpool_processes", "Processes whose pools these metrics are about.", value=processes)

    def _grown(self, book: ledger.Book) -> ledger.Book:
        if os.getpid() != self._pid:
            self._begin()
        with self._lock:
            for key, value in book.items():
                self._before[key] = never_less(self._before.get(key), value)
            return {key: self._before[key] for key in book}

    def _of_all(self, application: str) -> tuple[list[PoolStats], ledger.Book, int]:
        workers = read(application, self._directory)
        stats = [pool.stats for worker in workers for pool in worker.pools]
        counted = self._entered(application, workers)
        return stats, ledger.counted(stats) if counted is None else counted, len(workers)

    def _entered(self, application: str, workers: Sequence[Worker]) -> ledger.Book | None:
        try:
            return ledger.look(application, place.prepared(self._directory), workers)
        except OSError as error:
            self._say(f"metrics of {application!r}: what ended processes have counted cannot be kept: {error}")
            return None

    def inherit(self, worker: Worker, directory: Path) -> None:
        """Enter the last numbers of a process or pool that is about to vanish."""
        application = self._application
        if application == worker.name and directory in place.searched(self._directory):
            self._entered(application, [worker])

    def _say(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            logger.warning("%s", words)


def _momentary(pools: Sequence[PoolStats]) -> ledger.Book:
    """What is measured at a moment, over several processes."""
    how = {Kind.MOST: max, Kind.LEAST: min}
    found: dict[ledger.Key, list[float]] = {}
    kinds: dict[str, Kind] = {}
    for stats in pools:
        for metric in METRICS:
            if metric.kind not in (Kind.COUNTER, Kind.HISTOGRAM):
                kinds[metric.name] = metric.kind
                for sample in metric.read(stats):
                    key = metric.name, stats.name, tuple(sample.labels.items())
                    found.setdefault(key, []).append(sample.value)  # type: ignore[arg-type]
    return {key: how.get(kinds[key[0]], sum)(values) for key, values in found.items()}


def _family(metric: Metric, series: Mapping[ledger.Key, Value]) -> Family:
    names = ["pool", *(label for label, _ in next(iter(series))[2])]
    makes: dict[Kind, Any] = {Kind.COUNTER: CounterMetricFamily, Kind.HISTOGRAM: HistogramMetricFamily}
    family: Any = makes.get(metric.kind, GaugeMetricFamily)(metric.prometheus, metric.help, labels=names)
    for (_, pool, labels), value in series.items():
        values = [pool, *(text for _, text in labels)]
        if isinstance(value, Histogram):
            family.add_metric(values, buckets=list(_buckets(value)), sum_value=value.total)
        else:
            family.add_metric(values, value)
    return family  # type: ignore[no-any-return]


def _buckets(histogram: Histogram) -> Iterator[tuple[str, float]]:
    """Cumulative, as Prometheus has them."""
    reached = 0
    for limit, count in zip([*map(repr, LIMITS), "+Inf"], histogram.counts, strict=True):
        reached += count
        yield limit, reached
