"""OpenTelemetry, exported for real: OTLP over HTTP to a collector that decodes it."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import LIMIT, config, output, python, wait_for
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.semconv._incubating.metrics import db_metrics
from support import hold, put, start, stats

from pgdbpool.integrations import otel
from pgdbpool.integrations.catalogue import LIMITS, METRICS

from .collector import Collector, Received

NEVER = 3_600_000.0  # ms


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def provide(collector: Collector) -> Iterator[Callable[..., MeterProvider]]:
    """Makes providers that export to the collector when told to."""
    providers = []

    def make(*pools: Any, **how: Any) -> MeterProvider:
        exporter = otel.with_histograms(OTLPMetricExporter(collector.url, **how), *pools)
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=NEVER)
        providers.append(MeterProvider(metric_readers=[reader], resource=Resource({"service.name": "shop"})))
        otel.instrument(*pools, meter_provider=providers[-1])
        return providers[-1]

    yield make
    for provider in providers:
        provider.shutdown()


def where(pool: Any, node: Any, **more: Any) -> dict[str, Any]:
    """The attributes of what is about the group "default" on one endpoint."""
    return {
        "db.client.connection.pool.name": pool.name,
        "pgdbpool.group": "default",
        "server.address": node.host,
        "server.port": node.port,
        **more,
    }


def value(received: Received, attributes: dict[str, Any]) -> Any:
    [point] = [point.data for point in received.points if point.attributes == attributes]
    return getattr(point, point.WhichOneof("value"))


def test_the_connections_arrive_by_the_names_of_the_semantic_conventions(pg_node, open_pool, collector, provide):
    pool = open_pool(config(pg_node, connection_count=3, min_count=2))
    pool.wait(LIMIT)
    provider = provide(pool)
    held = hold(pool, 1)
    provider.force_flush()
    received = collector.last()
    group = {"db.client.connection.pool.name": pool.name, "pgdbpool.group": "default"}
    count = received[db_metrics.DB_CLIENT_CONNECTION_COUNT]
    now = stats(pool)
    assert value(count, where(pool, pg_node, **{"db.client.connection.state": "used"})) == 1
    assert value(count, where(pool, pg_node, **{"db.client.connection.state": "idle"})) == now.idle >= 1
    assert value(received[db_metrics.DB_CLIENT_CONNECTION_MAX], group) == 3
    assert value(received[db_metrics.DB_CLIENT_CONNECTION_IDLE_MAX], group) == 3
    assert value(received[db_metrics.DB_CLIENT_CONNECTION_IDLE_MIN], group) == 2
    assert value(received[db_metrics.DB_CLIENT_CONNECTION_PENDING_REQUESTS], group) == 0
    put(pool, *held)
    resource = collector.requests[-1].resource_metrics[0].resource
    assert {each.key: each.value.string_value for each in resource.attributes}["service.name"] == "shop"


def test_units_and_kinds_are_those_of_the_conventions(pg_node, open_pool, collector, provide):
    pool = open_pool(config(pg_node))
    provide(pool).force_flush()
    received = collector.last()
    reader = InMemoryMetricReader()
    meter = MeterProvider(metric_readers=[reader]).get_meter("conventions")
    names = [name for name in dir(db_metrics) if name.startswith("DB_CLIENT_CONNECTION_")]
    assert len(names) == 9
    for name in names:
        instrument = getattr(db_metrics, "create_" + name.lower())(meter)
        ours = received[getattr(db_metrics, name)]
        assert ours.unit == instrument.unit
        assert ours.description
        theirs = type(instrument).__name__.lower()
        assert ours.kind == ("histogram" if "histogram" in theirs else "sum")
        if ours.kind == "sum":
            assert ours.monotonic == ("updown" not in theirs)


def test_everything_of_the_catalogue_arrives(pg_cluster, open_pool, collector, provide):
    pool = open_pool(config(*pg_cluster.nodes, connection_count=1))
    wait_for(lambda: any(each.lag is not None for each in pool.endpoints()))
    pool.drain()
    wait_for(lambda: stats(pool).counters.closed)
    provide(pool).force_flush()
    silent = {metric.name for metric in METRICS} - collector.last().keys()
    assert silent <= {"pgdbpool.events"}, "nothing may have happened"


def test_histograms_are_exact(pg_node, open_pool, collector, provide):
    pool = open_pool(config(pg_node, connection_count=1))
    pool.wait(LIMIT)
    for _ in range(50):
        with pool.connection(timeout=LIMIT):
            pass
    held = pool.getconn(timeout=LIMIT)
    waiting = start(pool.getconn)
    wait_for(lambda: stats(pool).longest_wait > 0.3)
    pool.putconn(held)
    pool.putconn(waiting.result(LIMIT))
    provide(pool).force_flush()
    counted = stats(pool).counters
    received = collector.last()
    for name, count, total in (
        ("use_time", counted.requests, counted.use_time),
        ("wait_time", counted.requests, counted.wait_time),
        ("create_time", counted.connects, counted.connect_time),
    ):
        metric = received[f"db.client.connection.{name}"]
        [point] = [each for each in metric.points if "server.port" in each.attributes]
        assert metric.kind == "histogram"
        assert metric.cumulative
        assert point.attributes == where(pool, pg_node)
        assert (point.data.count, point.data.sum) == (count, pytest.approx(total))
        assert tuple(point.data.explicit_bounds) == LIMITS
        assert sum(point.data.bucket_counts) == count
        assert not point.data.HasField("max")
    waits, vain = received["db.client.connection.wait_time"].points
    assert (vain.data.count, vain.data.sum) == (0, 0), "nobody went away with nothing"
    assert sum(waits.data.bucket_counts[LIMITS.index(0.25) + 1 :]) == counted.waits == 1


def test_the_histograms_of_an_exporter_that_prefers_differences_are_differences(pg_node, open_pool, collector, provide):
    pool = open_pool(config(pg_node))
    pool.wait(LIMIT)
    provider = provide(pool, preferred_temporality={Histogram: AggregationTemporality.DELTA})
    points = []
    for uses in (3, 0, 2):
        for _ in range(uses):
            with pool.connection(timeout=LIMIT):
                pass
        provider.force_flush()
        metric = collector.last()["db.client.connection.use_time"]
        assert not metric.cumulative
        [point] = metric.points
        points.append(point.data)
    assert [point.count for point in points] == [3, 0, 2]
    assert sum(point.sum for point in points) == pytest.approx(stats(pool).counters.use_time)
    assert [point.start_time_unix_nano for point in points[1:]] == [point.time_unix_nano for point in points[:-1]]


def test_time_outs_and_failures_are_counted(pg_node, open_pool, collector, provide):
    pool = open_pool(config(pg_node, connection_count=1, max_waiting=1))
    provider = provide(pool)
    held = hold(pool, 1)
    with pytest.raises(TimeoutError):
        pool.getconn(timeout=0.01)
    provider.force_flush()
    put(pool, *held)
    timeouts = collector.last()["db.client.connection.timeouts"]
    assert timeouts.monotonic
    assert value(timeouts, {"db.client.connection.pool.name": pool.name, "pgdbpool.group": "default"}) == 1


def test_popping_the_statistics_does_not_disturb(pg_node, open_pool, collector, provide):
    pool = open_pool(config(pg_node))
    provider = provide(pool)
    for _ in range(2):
        with pool.connection(timeout=LIMIT):
            pass
        pool.pop_stats()
    provider.force_flush()
    [point] = collector.last()["db.client.connection.use_time"].points
    assert point.data.count == 2


def test_what_other_scopes_collect_is_handed_on(pg_node, open_pool, collector, provide):
    pool = open_pool(config(pg_node))
    provider = provide(pool)
    provider.get_meter("shop").create_counter("orders").add(3)
    provider.force_flush()
    [orders] = collector.last("shop")["orders"].points
    assert orders.data.as_int == 3
    assert "db.client.connection.use_time" in collector.last()


def test_without_pools_all_of_the_process_are_seen_those_of_later_too(pg_node, open_pool, collector, provide):
    provider = provide()
    first = open_pool(config(pg_node))
    second = open_pool(config(pg_node))
    provider.force_flush()
    for name in ("db.client.connection.max", "db.client.connection.use_time"):
        seen = {point.attributes["db.client.connection.pool.name"] for point in collector.last()[name].points}
        assert seen >= {first.name, second.name}


def test_pools_can_be_added_and_taken_out_again(pg_node, open_pool, collector, provide):
    first, second = (open_pool(config(pg_node)) for _ in range(2))
    provider = provide(first)

    def seen() -> set[str]:
        provider.force_flush()
        points = collector.last()["db.client.connection.max"].points
        return {point.attributes["db.client.connection.pool.name"] for point in points}

    end = otel.instrument(second, meter_provider=provider)
    assert seen() == {first.name, second.name}
    end()
    assert seen() == {first.name}


def test_the_global_provider_may_be_set_later(pg_node, collector):
    program = """
        import json, sys
        from opentelemetry import metrics
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from pgdbpool import Pool
        from pgdbpool.integrations import otel
        otel.instrument()
        with Pool(json.loads(sys.argv[1])) as pool:
            exporter = otel.with_histograms(OTLPMetricExporter(sys.argv[2]))
            metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(exporter, 3_600_000)]))
            otel.instrument(pool)
            with pool.connection(timeout=20):
                pass
            metrics.get_meter_provider().force_flush()
            metrics.get_meter_provider().shutdown()
    """
    output(python(program, json.dumps(config(pg_node)), collector.url))
    first = collector.each()[0]
    assert len(first["db.client.connection.max"].points) == 1
    assert first["db.client.connection.use_time"].points[0].data.count == 1


def test_a_forked_child_counts_from_nothing(pg_node, collector):
    program = """
        import json, os, sys
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from pgdbpool import Pool
        from pgdbpool.integrations import otel
        pool = Pool(json.loads(sys.argv[1]))
        exporter = otel.with_histograms(OTLPMetricExporter(sys.argv[2]), pool)
        provider = MeterProvider([PeriodicExportingMetricReader(exporter, float("inf"))])
        otel.instrument(pool, meter_provider=provider)
        def use(times):
            for _ in range(times):
                with pool.connection(timeout=20):
                    pass
            provider.force_flush()
        use(5)
        pid = os.fork()
        if not pid:
            use(2)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        use(1)
        os._exit(0)
    """
    output(python(program, json.dumps(config(pg_node)), collector.url))
    counts = [each["db.client.connection.use_time"].points[0].data.count for each in collector.each()]
    assert counts == [5, 2, 6]


def test_a_child_forked_in_silence_while_somebody_collects_can_collect_as_well(pg_node):
    program = """
        import ctypes, json, os, sys
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from pgdbpool import Pool
        from pgdbpool.integrations import otel
        pool, reader = Pool(json.loads(sys.argv[1])), InMemoryMetricReader()
        otel.instrument(pool, meter_provider=MeterProvider([reader]))
        def use():
            with pool.connection():
                pass
        use()
        [watched] = otel._watched.values()
        watched._lock.acquire()
        pid = ctypes.CDLL(None).fork()
        if not pid:
            use()
            os._exit(reader.get_metrics_data() is None)
        assert os.waitpid(pid, 0)[1] == 0
        os._exit(0)
    """
    output(python(program, json.dumps(config(pg_node, type="non-threaded", check="ping"))))


def test_where_nobody_collects_it_costs_nothing_and_is_no_error(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    otel.instrument(pool, meter_provider=NoOpMeterProvider())()
