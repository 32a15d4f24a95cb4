"""Tools that trace psycopg see the connections of a pool as any others: the same spans, and nothing without them."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from conftest import LIMIT, config
from ways import Face, way

HOW = "needs {0}: pip install {0}"
instrumentation = pytest.importorskip(
    "opentelemetry.instrumentation.psycopg", reason=HOW.format("opentelemetry-instrumentation-psycopg")
)
sentry_sdk = pytest.importorskip("sentry_sdk", reason=HOW.format("sentry-sdk"))

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

__all__ = ["way"]


@pytest.fixture
def spans() -> Iterator[Callable[[], list[ReadableSpan]]]:
    """Has psycopg instrumented for as long as the test lasts; call it for the spans since the last call."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.PsycopgInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)

    def since() -> list[ReadableSpan]:
        found = list(exporter.get_finished_spans())
        exporter.clear()
        return found

    yield since
    instrumentor.uninstrument()
    provider.shutdown()


def told(spans: list[ReadableSpan]) -> list[tuple[str, dict[str, Any]]]:
    """What they say, apart from the time."""
    return [(span.name, dict(span.attributes or {})) for span in spans]


def bare(conn: Any) -> Any:
    return getattr(conn, "inner", conn)


async def statements(conn: Any) -> None:
    await conn.execute("select 1")
    await conn.execute("select %s::int", (2,))
    cursor = conn.cursor()
    await cursor.execute("select 3")
    await cursor.executemany("select %s::int", [(1,), (2,)])
    with pytest.raises(psycopg.errors.UndefinedTable):
        await conn.execute("table no_such")


# -- OpenTelemetry ----------------------------------------------------------------------------------------------------


def test_opentelemetry_sees_what_it_sees_of_a_connection_of_psycopgs(pg_node, way, spans):
    async def plain() -> None:
        async with await psycopg.AsyncConnection.connect(pg_node.dsn, autocommit=True) as conn:
            await statements(conn)

    with asyncio.Runner() as runner:
        runner.run(plain())
    expected = told(spans())
    assert len(expected) == 5

    async def story(pool: Face) -> None:
        for _ in range(2):  # the second is traced as the first: what was put around it is put back
            async with pool.block() as conn:
                await statements(conn)
                seen = told(spans())
            assert seen == expected
        conn = await pool.getconn()
        await conn.execute("select 1")
        await pool.putconn(conn)
        assert told(spans()) == expected[:1]

    endpoint = pg_node.endpoint(ssl="disable") | reached(pg_node)
    way(story, config(endpoint, connection_count=1))


def reached(node: Any) -> dict[str, Any]:
    """Where its dsn leads, as an endpoint: by the same address, name and user."""
    params = psycopg.conninfo.conninfo_to_dict(node.dsn)
    known = {"host": "host", "port": "port", "dbname": "name", "user": "user", "password": "pass"}
    found = {known[key]: value for key, value in params.items() if key in known}
    return found | {"port": int(found["port"])}


def test_the_cursors_of_the_group_are_traced_and_stay_its_own(pg_node, way, spans):
    class Sync(psycopg.ClientCursor[Any]):
        pass

    class Later(psycopg.AsyncClientCursor[Any]):
        pass

    own = Later if way.name == "asyncio" else Sync

    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            cursor = await conn.execute("select 1")
            assert isinstance(bare(cursor), own)
        assert [span.name for span in spans()] == ["select"]

    way(story, config(pg_node, cursor_factory=own))


def test_a_cursor_factory_of_the_users_is_put_back_to_the_traced_one(pg_node, way, spans):
    async def story(pool: Face) -> None:
        async with pool.block() as conn:
            bare(conn).cursor_factory = psycopg.AsyncCursor if way.name == "asyncio" else psycopg.Cursor
            await conn.execute("select 1")
        assert not spans()
        async with pool.block() as conn:
            await conn.execute("select 1")
        assert len(spans()) == 1

    way(story, config(pg_node, connection_count=1))


def test_what_the_pool_asks_by_itself_makes_no_spans(pg_node, open_pool, spans):
    pool = open_pool(config(pg_node, min_count=1, check="ping"))
    pool.wait(LIMIT)
    with pool.connection(timeout=LIMIT):
        pass
    pool.check()
    assert not spans()


def test_connections_opened_before_are_traced_after_a_drain(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    pool.wait(LIMIT)
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.PsycopgInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    try:
        pool.drain()
        with pool.connection(timeout=LIMIT) as conn:
            conn.execute("select 1")
        assert len(exporter.get_finished_spans()) == 1
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
    pool.drain()
    with pool.connection(timeout=LIMIT) as conn:
        conn.execute("select 1")
        assert conn.cursor_factory is psycopg.Cursor
    assert len(exporter.get_finished_spans()) == 1


# -- Sentry, which sees psycopg by OpenTelemetry ----------------------------------------------------------------------


@pytest.fixture
def requests() -> Iterator[tuple[TracerProvider, list[dict[str, Any]]]]:
    """A provider whose spans go to Sentry, and the transactions that were sent there."""
    from sentry_sdk.integrations.opentelemetry import SentrySpanProcessor

    sent: list[dict[str, Any]] = []

    class Transport(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope: Any) -> None:
            sent.extend(item.payload.json for item in envelope.items if item.type == "transaction")

    sentry_sdk.init(
        "https://key@sentry.invalid/1",
        transport=Transport,
        traces_sample_rate=1.0,
        instrumenter="otel",
        default_integrations=False,
        auto_enabling_integrations=False,
    )
    provider = TracerProvider()
    provider.add_span_processor(SentrySpanProcessor())
    instrumentor = instrumentation.PsycopgInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    yield provider, sent
    instrumentor.uninstrument()
    provider.shutdown()
    sentry_sdk.get_client().close(timeout=0.0)
    sentry_sdk.init()


def test_sentry_has_the_statements_of_a_request(pg_node, way, requests):
    provider, sent = requests

    async def story(pool: Face) -> None:
        with provider.get_tracer("shop").start_as_current_span("GET /"):
            async with pool.block() as conn:
                await conn.execute("select 1")
                await conn.cursor().execute("select 2")

    way(story, config(pg_node))
    [request] = [each for each in sent if each["transaction"] == "GET /"]
    assert [(span["op"], span["description"]) for span in request["spans"]] == [("db", "select 1"), ("db", "select 2")]
