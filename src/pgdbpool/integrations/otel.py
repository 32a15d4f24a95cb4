"""OpenTelemetry: the connection pool metrics of its semantic conventions, and what they have no name for.

    from pgdbpool.integrations import otel

    exporter = otel.with_histograms(OTLPMetricExporter())
    provider = MeterProvider(metric_readers=[PeriodicExportingMetricReader(exporter)])
    otel.instrument(meter_provider=provider)

Two halves, since OpenTelemetry has two sorts of metrics:

* What is a number at the moment of looking, `instrument` makes observable instruments of. That takes the API alone, and
  costs nothing until somebody collects.
* A histogram is no such number. The API knows only histograms that are told of every single value, at the moment it
  comes about: some microseconds for each checkout, and the pool has counted it already. The specification has a place
  for finished data (``MetricProducer``), which the SDK for Python does not. The place it does have is the exporter,
  which is given everything that was collected: `with_histograms` wraps one, and adds the pools' histograms on the way.
  They are exact: each lease, wait and connect is in them, in buckets that are powers of two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from time import time_ns
from typing import Any, Protocol
from weakref import WeakSet

try:
    from opentelemetry import metrics as api
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.sdk import metrics as sdk
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        HistogramDataPoint,
        MetricExporter,
        MetricExportResult,
        MetricsData,
        ResourceMetrics,
        ScopeMetrics,
    )
    from opentelemetry.sdk.metrics.export import Histogram as ExportedHistogram
    from opentelemetry.sdk.metrics.export import Metric as ExportedMetric
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; pip install 'pgdbpool[otel]'", name=error.name) from None

from .. import __version__, forks, lifecycle
from ..clock import monotonic
from ..core.stats import PoolStats
from .catalogue import LIMITS, METRICS, Histogram, Kind, Labels, Metric, Sample, never_less

SCOPE = "pgdbpool"
_SAME_MOMENT = 0.1  # s for which one look at a pool will do: a collection asks for each metric by itself

_ATTRIBUTES = {
    "group": "pgdbpool.group",
    "state": "db.client.connection.state",
    "reason": "pgdbpool.close.reason",
    "kind": "pgdbpool.event.kind",
    "health": "pgdbpool.endpoint.health",
    "role": "pgdbpool.endpoint.role",
}

Attributes = dict[str, str | int]


class Seen(Protocol):
    """A pool, as far as this module knows it."""

    @property
    def name(self) -> str: ...
    def stats(self, *, all_time: bool = False) -> PoolStats: ...


def attributes(pool: str, labels: Labels) -> Attributes:
    """As OpenTelemetry calls them."""
    found: Attributes = {"db.client.connection.pool.name": pool}
    for label, value in labels.items():
        if label == "endpoint":
            if not value:  # of callers that got no connection
                continue
            host, _, port = value.rpartition(":")
            found["server.address"] = host.removeprefix("[").removesuffix("]")
            found["server.port"] = int(port)
        else:
            found[_ATTRIBUTES[label]] = value
    return found


class Watched:
    """Some pools: those named, or all of this process. Safe in any thread."""

    def __init__(self) -> None:
        self.everybody = False
        self._pools: WeakSet[Any] = WeakSet()
        self._lock = Lock()
        self._looked = float("-inf")
        self._seen: list[PoolStats] = []

    def add(self, pools: Iterable[Seen]) -> None:
        with self._lock:
            self._pools.update(pools)
            self._looked = float("-inf")

    def discard(self, pools: Iterable[Seen]) -> None:
        with self._lock:
            self._pools.difference_update(pools)
            self._looked = float("-inf")

    def stats(self, *, again: bool = True) -> list[PoolStats]:
        """What each of them has counted since it was made; with `again` false what was found a moment ago will do."""
        with self._lock:
            now = monotonic()
            if again or now - self._looked >= _SAME_MOMENT:
                pools = lifecycle.pools() if self.everybody else self._pools
                self._seen = sorted((pool.stats(all_time=True) for pool in pools), key=lambda stats: stats.name)
                self._looked = now
            return self._seen


_watched: dict[MeterProvider | None, Watched] = {}  # None: the global one, whatever it is now
_lock = Lock()


def _after_fork() -> None:
    """A thread of the parent may have held a lock."""
    global _lock
    _lock = Lock()
    for watched in _watched.values():
        watched._lock = Lock()
        watched._looked = float("-inf")


forks.in_child(_after_fork)


# -- numbers ----------------------------------------------------------------------------------------------------


def instrument(*pools: Seen, meter_provider: MeterProvider | None = None) -> Callable[[], None]:
    """Have the pools' metrics collected, but for the histograms: see `with_histograms`.

    Without `pools` all of this process are, those of later included. `meter_provider` is the global one unless given.
    May be called more than once. Returns a callable that ends it for these pools. Safe in any thread.
    """
    with _lock:
        watched = _watched.get(meter_provider)
        if watched is None:
            watched = _watched[meter_provider] = Watched()
            meter = api.get_meter(SCOPE, __version__, meter_provider)
            for metric in METRICS:
                _create(meter, metric, watched)
    watched.add(pools)
    if not pools:
        watched.everybody = True

    def end() -> None:
        watched.discard(pools)
        if not pools:
            watched.everybody = False

    return end


def _create(meter: api.Meter, metric: Metric, watched: Watched) -> None:
    create: dict[Kind, Callable[..., object]] = {
        Kind.COUNTER: meter.create_observable_counter,
        Kind.SUM: meter.create_observable_up_down_counter,
        Kind.MOST: meter.create_observable_gauge,
        Kind.LEAST: meter.create_observable_gauge,
    }

    def observe(options: CallbackOptions) -> Iterator[Observation]:
        for stats in watched.stats(again=metric is METRICS[0]):  # which is the first that a collection asks for
            for sample in metric.read(stats):
                yield Observation(sample.value, attributes(stats.name, sample.labels))  # type: ignore[arg-type]

    if metric.kind is not Kind.HISTOGRAM:
        create[metric.kind](metric.name, callbacks=[observe], unit=metric.unit, description=metric.help)


# -- histograms -------------------------------------------------------------------------------------------------


def with_histograms(exporter: MetricExporter, *pools: Seen) -> MetricExporter:
    """An exporter that also exports ``db.client.connection.create_time``, ``wait_time`` and ``use_time``.

    Of `pools`, or without them of all pools of this process. Give it to a ``PeriodicExportingMetricReader`` in the
    place of `exporter`. What is collected is handed on to that as it is, with the histograms added; their temporality
    is the one that `exporter` prefers. Nothing is exported before there is an instrument: call `instrument` as well.
    """
    return _WithHistograms(exporter, pools)


_Key = tuple[str, tuple[tuple[str, str | int], ...]]


class _WithHistograms(MetricExporter):
    def __init__(self, exporter: MetricExporter, pools: tuple[Seen, ...]) -> None:
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self._watched = Watched()
        self._watched.add(pools)
        self._watched.everybody = not pools
        preferred = (exporter._preferred_temporality or {}).get(sdk.Histogram, AggregationTemporality.CUMULATIVE)
        self._temporality = preferred
        self._begin()

    def _begin(self) -> None:
        """As in a new process, whose pools count from nothing."""
        self._pid = os.getpid()
        self._began = time_ns()
        self._before: dict[_Key, Histogram] = {}

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        return self._exporter.export(self._added_to(metrics_data), timeout_millis=timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown(timeout_millis, **kwargs)

    def _added_to(self, data: MetricsData) -> MetricsData:
        mine = self._metrics()
        if not mine:
            return data
        first, *others = data.resource_metrics or [ResourceMetrics(Resource.create(), [], "")]
        scopes = list(first.scope_metrics)
        for place, each in enumerate(scopes):
            if each.scope.name == SCOPE:
                scopes[place] = ScopeMetrics(each.scope, [*each.metrics, *mine], each.schema_url)
                break
        else:
            scopes.append(ScopeMetrics(InstrumentationScope(SCOPE, __version__), mine, ""))
        return MetricsData([ResourceMetrics(first.resource, scopes, first.schema_url), *others])

    def _metrics(self) -> list[ExportedMetric]:
        if os.getpid() != self._pid:
            self._begin()
        now = time_ns()
        seen = self._watched.stats()
        found = []
        for metric in METRICS:
            if metric.kind is Kind.HISTOGRAM:
                points = [
                    self._point(metric, stats.name, sample, now) for stats in seen for sample in metric.read(stats)
                ]
                data = ExportedHistogram(points, self._temporality)
                found.append(ExportedMetric(metric.name, metric.help, metric.unit, data))
        if self._temporality is AggregationTemporality.DELTA:
            self._began = now
        return found if seen else []

    def _point(self, metric: Metric, pool: str, sample: Sample, now: int) -> HistogramDataPoint:
        said = attributes(pool, sample.labels)
        key = metric.name, tuple(said.items())
        before = self._before.get(key)
        value = never_less(before, sample.value)
        assert isinstance(value, Histogram)
        self._before[key] = value
        if before is not None and self._temporality is AggregationTemporality.DELTA:
            value = value.since(before)
        return HistogramDataPoint(
            attributes=said,
            start_time_unix_nano=self._began,
            time_unix_nano=now,
            count=sum(value.counts),
            sum=value.total,
            bucket_counts=value.counts,
            explicit_bounds=LIMITS,
            min=None,  # type: ignore[arg-type]  # nobody knows, which the protocol allows
            max=None,  # type: ignore[arg-type]
        )
