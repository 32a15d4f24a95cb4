"""Stands in for the module `psycopg_pool`: its classes and exceptions, as a thin layer over `Pool` and `AsyncPool`.

It maps arguments and names, and adds nothing that a pool would have to do: what it cannot map is a difference that
people who change over meet, too, and has its line in ``differences.toml`` and in docs/migrating.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Self, TypeVar
from weakref import ref

import psycopg
from psycopg.conninfo import conninfo_to_dict

import pgdbpool
from pgdbpool import PoolClosed, PoolTimeout
from pgdbpool import TooManyWaiting as TooManyRequests

__all__ = ["AsyncConnectionPool", "ConnectionPool", "PoolClosed", "PoolTimeout", "TooManyRequests"]

GROUP = "default"
C = TypeVar("C")


def _entry(conninfo: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A conninfo, and what else is told libpq, as an entry of ``db``."""
    given = conninfo_to_dict(conninfo, **kwargs)
    entry: dict[str, Any] = {"host": given.pop("host", None), "hostaddr": given.pop("hostaddr", None)}
    entry |= {"port": int(given.pop("port", None) or 5432), "name": given.pop("dbname", None)}
    entry |= {"user": given.pop("user", None), "pass": given.pop("password", None), "ssl": given.pop("sslmode", None)}
    entry["connect_timeout"] = float(given.pop("connect_timeout", None) or 10)
    return {key: value for key, value in entry.items() if value is not None} | ({"params": given} if given else {})


def _value(of: Any) -> Any:
    return of() if callable(of) else of


_FACTORIES = ("row_factory", "cursor_factory", "prepare_threshold")


def _set_up(conn: Any, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        setattr(conn, key, value)


class _Common(Generic[C]):
    """What both have in common."""

    _kind: type[Any]

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        connection_class: Any = None,
        kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,
        configure: Any = None,
        check: Any = None,
        reset: Any = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        reconnect_timeout: float = 300.0,
        reconnect_failed: Any = None,
        num_workers: int = 3,
    ) -> None:
        most = min_size if max_size is None else max_size
        if min_size < 0 or most < max(1, min_size):
            raise ValueError(f"min_size {min_size}, max_size {max_size}")
        if num_workers < 1:
            raise ValueError(f"num_workers {num_workers}")
        self.min_size, self.max_size, self.timeout, self.max_waiting = min_size, most, timeout, max_waiting
        self.max_lifetime, self.max_idle, self.reconnect_timeout = max_lifetime, max_idle, reconnect_timeout
        self.num_workers = num_workers
        self.conninfo, self.kwargs = conninfo, kwargs
        given = dict(_value(kwargs) or {})
        group: dict[str, Any] = {"autocommit": given.pop("autocommit", False)}
        settings = {key: given.pop(key) for key in _FACTORIES if key in given}
        group |= {
            "min_count": min_size,
            "connection_count": most,
            "acquire_timeout": timeout,
            "max_waiting": max_waiting,
        }
        group |= {"max_lifetime": max_lifetime, "max_idle": max_idle, "reconnect_timeout": reconnect_timeout}
        group["configure"] = self._configured(configure, settings)
        if reset is not None:
            group["reset"] = reset
        if check is not None:
            group["check"] = "ping"
        if reconnect_failed is not None:
            me = ref(self)  # a pool is collected though its callables are known
            group["reconnect_failed"] = lambda endpoint, error: reconnect_failed(me())
        config = {"db": _entry(_value(conninfo), given), "groups": {GROUP: group}, "monitor": False}
        self._pool_of_ours = self._kind(config, open=False, name=name)
        self.name = self._pool_of_ours.name
        if open is not False:
            self._open_now()

    @staticmethod
    def _configured(configure: Any, settings: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def _open_now(self) -> None:
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        return bool(self._pool_of_ours.closed)

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        most = min_size if max_size is None else max_size
        if min_size < 0 or most < max(1, min_size):
            raise ValueError(f"min_size {min_size}, max_size {max_size}")
        self._pool_of_ours.resize(GROUP, most, min_size)
        self.min_size, self.max_size = min_size, most

    def drain(self) -> None:
        self._pool_of_ours.drain()

    def get_stats(self) -> dict[str, int]:
        return self._as_dict(self._pool_of_ours.stats())

    def pop_stats(self) -> dict[str, int]:
        return self._as_dict(self._pool_of_ours.pop_stats())

    def _as_dict(self, stats: Any) -> dict[str, int]:
        group = stats.groups[GROUP]
        counted = group.counters
        return {
            "pool_min": self.min_size,
            "pool_max": self.max_size,
            "pool_size": group.open,
            "pool_available": group.idle,
            "requests_waiting": group.waiting,
            "requests_num": counted.requests + group.leased + counted.timeouts + counted.rejections,
            "requests_queued": counted.waits,
            "requests_wait_ms": int(counted.wait_time * 1000),
            "requests_errors": counted.timeouts + counted.rejections,
            "usage_ms": int(counted.use_time * 1000),
            "returns_bad": counted.closed.get("broken", 0),
            "connections_num": counted.connects + counted.connect_failures,
            "connections_ms": int(counted.connect_time * 1000),
            "connections_errors": counted.connect_failures,
            "connections_lost": counted.closed.get("broken", 0),
        }


class ConnectionPool(_Common[C]):
    """The blocking one."""

    _kind = pgdbpool.Pool

    @staticmethod
    def _configured(configure: Any, settings: Mapping[str, Any]) -> Any:
        def configured(conn: Any) -> None:
            _set_up(conn, settings)
            if configure is not None:
                configure(conn)

        return configured

    def _open_now(self) -> None:
        self._pool_of_ours.open()

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        self._pool_of_ours.open()
        if wait:
            self._pool_of_ours.wait(timeout)

    def close(self, timeout: float = 5.0) -> None:
        self._pool_of_ours.close(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        self._pool_of_ours.wait(timeout)

    def check(self) -> None:
        self._pool_of_ours.check()

    def connection(self, timeout: float | None = None) -> Any:
        return self._pool_of_ours.connection(GROUP, timeout)

    def getconn(self, timeout: float | None = None) -> Any:
        return self._pool_of_ours.getconn(GROUP, timeout)

    def putconn(self, conn: Any) -> None:
        self._pool_of_ours.putconn(conn)

    @staticmethod
    def check_connection(conn: Any) -> None:
        """As `check: "ping"` does."""
        try:
            conn.execute("")
            if not conn.autocommit:
                conn.rollback()
        except psycopg.Error:
            conn.close()
            raise

    def __enter__(self) -> Self:
        self._pool_of_ours.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool_of_ours.close()


class AsyncConnectionPool(_Common[C]):
    """That for asyncio."""

    _kind = pgdbpool.AsyncPool

    @staticmethod
    def _configured(configure: Any, settings: Mapping[str, Any]) -> Any:
        async def configured(conn: Any) -> None:
            _set_up(conn, settings)
            if configure is not None:
                await configure(conn)

        return configured

    def _open_now(self) -> None:
        self._pool_of_ours._unlock()  # as the constructor of `AsyncPool` does

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        await self._pool_of_ours.open()
        if wait:
            await self._pool_of_ours.wait(timeout)

    async def close(self, timeout: float = 5.0) -> None:
        await self._pool_of_ours.close(timeout)

    async def wait(self, timeout: float = 30.0) -> None:
        await self._pool_of_ours.wait(timeout)

    async def check(self) -> None:
        await self._pool_of_ours.check()

    async def resize(self, min_size: int, max_size: int | None = None) -> None:  # type: ignore[override]
        super().resize(min_size, max_size)

    async def drain(self) -> None:  # type: ignore[override]
        super().drain()

    def connection(self, timeout: float | None = None) -> Any:
        return self._pool_of_ours.connection(GROUP, timeout)

    async def getconn(self, timeout: float | None = None) -> Any:
        return await self._pool_of_ours.getconn(GROUP, timeout)

    async def putconn(self, conn: Any) -> None:
        await self._pool_of_ours.putconn(conn)

    @staticmethod
    async def check_connection(conn: Any) -> None:
        """As `check: "ping"` does."""
        try:
            await conn.execute("")
            if not conn.autocommit:
                await conn.rollback()
        except psycopg.Error:
            await conn.close()
            raise

    async def __aenter__(self) -> Self:
        await self._pool_of_ours.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._pool_of_ours.close()
