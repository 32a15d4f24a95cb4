"""What the tests of psycopg find in their own conftest: a server, a go-between, connection classes, marks."""

from __future__ import annotations

import asyncio
import gc as collector
import inspect
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgdbpool.testing import Proxy

MARKS = ("anyio", "asyncio", "crdb", "crdb_skip", "loadbalance", "opentelemetry", "slow", "subprocess", "timing")


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of psycopg's own tests")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests that are coroutines each have a loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def dsn(pg_node_session: Any) -> str:
    # In the default schema the tests make tables.
    return str(pg_node_session.conninfo(sslmode="disable"))


@pytest.fixture
def conn_cls() -> type[Any]:
    return psycopg.Connection


@pytest.fixture
def aconn_cls() -> type[Any]:
    return psycopg.AsyncConnection


@pytest.fixture
def gc() -> Any:
    return collector


class GoBetween:
    """Lets nothing through until it is started."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.client_dsn = proxy.conninfo(sslmode="disable")
        proxy.refuse()

    def start(self) -> None:
        self._proxy.refuse(False)

    def stop(self) -> None:
        self._proxy.refuse()
        self._proxy.reset()


@pytest.fixture
def proxy(pg_node_session: Any) -> Iterator[GoBetween]:
    with Proxy(pg_node_session) as made:
        yield GoBetween(made)


@pytest.fixture
def gc_collect() -> Any:
    return collector.collect
