"""No weaker, and nowhere else, than libpq's environment and services say: on real servers, in each model."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from conftest import LIMIT, config

from pgdbpool import AsyncPool, DBOfflineError, Pool
from pgdbpool.testing import Cluster, Node

SHORT = 3.0


def by_threads(given: dict[str, Any]) -> tuple[Any, ...]:
    with Pool(given) as pool, pool.connection() as conn:
        return asked(conn, conn.execute(QUESTION).fetchone())


def by_one_thread(given: dict[str, Any]) -> tuple[Any, ...]:
    return by_threads({**given, "type": "non-threaded"})


def by_tasks(given: dict[str, Any]) -> tuple[Any, ...]:
    async def ask() -> tuple[Any, ...]:
        async with AsyncPool(given) as pool, pool.connection() as conn:
            return asked(conn, await (await conn.execute(QUESTION)).fetchone())

    return asyncio.run(ask())


QUESTION = "select current_setting('search_path'), current_setting('statement_timeout'), current_setting('TimeZone')"


def asked(conn: Any, row: Any) -> tuple[Any, ...]:
    return conn.info.port, *row


MODELS = pytest.mark.parametrize("ask", [by_threads, by_one_thread, by_tasks])
Ask = Callable[[dict[str, Any]], tuple[Any, ...]]


def refused(ask: Ask, given: dict[str, Any]) -> str:
    with pytest.raises(DBOfflineError) as caught:
        ask(given)
    return str(caught.value)


@pytest.fixture
def service(tmp_path: Any, monkeypatch: Any) -> Callable[..., None]:
    def write(**params: object) -> None:
        lines = "".join(f"{key}={value}\n" for key, value in params.items())
        (tmp_path / "services").write_text(f"[app]\n{lines}")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

    return write


@MODELS
def test_a_server_without_tls_is_refused_where_the_environment_wants_it(
    pg_node: Node, ask: Ask, monkeypatch: Any
) -> None:
    given = config(pg_node.endpoint(), acquire_timeout=SHORT)
    assert ask(given)[0] == pg_node.port
    monkeypatch.setenv("PGSSLMODE", "require")
    with pytest.raises(psycopg.OperationalError, match="SSL was required"):
        psycopg.connect(pg_node.dsn)
    assert "SSL was required" in refused(ask, given)
    assert ask(config(pg_node.endpoint(ssl="disable")))[0] == pg_node.port  # said by the configuration


@MODELS
@pytest.mark.parametrize("by", ["PGSERVICE", "params"])
def test_and_where_a_service_wants_it(pg_node: Node, ask: Ask, service: Any, monkeypatch: Any, by: str) -> None:
    service(sslmode="verify-full")
    if by == "PGSERVICE":
        monkeypatch.setenv("PGSERVICE", "app")
    given = config(pg_node.endpoint(params={"service": "app"} if by == "params" else {}), acquire_timeout=SHORT)
    words = refused(ask, given)
    assert "SSL was required" in words or "root certificate" in words


@MODELS
@pytest.mark.parametrize("by", ["environment", "service"])
def test_where_no_server_is_named_it_is_libpqs(
    pg_node: Node, ask: Ask, service: Any, monkeypatch: Any, by: str
) -> None:
    entry = pg_node.endpoint()
    host, port = entry.pop("host"), entry.pop("port")
    if by == "environment":
        monkeypatch.setenv("PGHOST", host)
        monkeypatch.setenv("PGPORT", str(port))
    else:
        service(host=host, port=port)
        entry["params"] = {"service": "app"}
    assert ask(config(entry))[0] == pg_node.port


def test_several_servers_of_the_environment_share_the_load(pg_cluster: Cluster, monkeypatch: Any) -> None:
    nodes = pg_cluster.nodes
    monkeypatch.setenv("PGHOST", ",".join(node.host for node in nodes))
    monkeypatch.setenv("PGPORT", ",".join(str(node.port) for node in nodes))
    entry = nodes[0].endpoint()
    del entry["host"], entry["port"]
    with Pool(config(entry)) as pool:
        pool.wait(LIMIT)
        assert {each.endpoint for each in pool.stats().endpoints} == {f"{node.host}:{node.port}" for node in nodes}


def test_the_role_that_the_environment_wants(pg_cluster: Cluster, monkeypatch: Any) -> None:
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    for _ in range(5):
        assert by_threads(config(*pg_cluster.nodes))[0] == pg_cluster.primary.port


@MODELS
def test_options_and_time_zone_of_the_environment_hold_beside_ours(pg_node: Node, ask: Ask, monkeypatch: Any) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c search_path=shop")
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    assert ask(config(pg_node)) == (pg_node.port, "shop", "0", "Asia/Tokyo")
    assert ask(config(pg_node, query_timeout=7000)) == (pg_node.port, "shop", "7s", "Asia/Tokyo")
