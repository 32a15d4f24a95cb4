"""The pools that are compared, each set up as its own documentation advises, with its own defaults.

Those that know nothing of primaries and standbys get two pools, for writes and for reads, whose connection strings name
all servers and say in libpq's words which of them will do. A connection string with several hosts needs a
``connect_timeout`` to get past a silent one; it is the only setting that is not a default.

An adapter does what an application would: one transaction around a write, nothing around a read, no retry.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote

OURS = "pgdbpool"
CONNECT_TIMEOUT = 2  # s, for the peers that need one
WRITES = f"target_session_attrs=read-write&connect_timeout={CONNECT_TIMEOUT}"
READS = f"target_session_attrs=prefer-standby&load_balance_hosts=random&connect_timeout={CONNECT_TIMEOUT}"


@dataclass(frozen=True)
class Place:
    """A server as the clients are told of it."""

    host: str
    port: int
    database: str = "app"
    user: str = "app"
    password: str | None = None


def dsn(places: Sequence[Place], parameters: str = "") -> str:
    """A URL that names all of them."""
    first = places[0]
    password = "" if first.password is None else ":" + quote(first.password, safe="")
    hosts = ",".join(f"{place.host}:{place.port}" for place in places)
    return f"postgresql://{first.user}{password}@{hosts}/{first.database}?{parameters}"


class Peer(ABC):
    """A pool, or the pools, of one process."""

    name: ClassVar[str]
    module: ClassVar[str]
    """What has to be installed."""
    package: ClassVar[str]
    """Its name in the package index."""
    settings: ClassVar[str]
    """How it is set up and used; goes into the report."""
    single: ClassVar[bool] = False
    """Each caller is a process of its own."""

    @abstractmethod
    def __init__(self, places: Sequence[Place], options: dict[str, Any]) -> None: ...

    def in_doubt(self, error: Exception) -> bool:
        """Whether a write that ended with this error may have happened."""
        return lost_connection(error)

    def about(self) -> dict[str, Any]:
        """What the pool believes and has counted, if it tells. Asked where the pool is used: in its event loop."""
        return {}


class SyncPeer(Peer):
    """Called from threads."""

    @abstractmethod
    def write(self, sql: str, values: tuple[Any, ...]) -> Any:
        """One statement in a transaction of its own; its row."""

    @abstractmethod
    def read(self, sql: str, values: tuple[Any, ...]) -> Any: ...


class AsyncPeer(Peer):
    """Called from one event loop."""

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def write(self, sql: str, values: tuple[Any, ...]) -> Any: ...

    @abstractmethod
    async def read(self, sql: str, values: tuple[Any, ...]) -> Any: ...


def lost_connection(error: BaseException) -> bool:
    """Whether psycopg says that the connection is gone, perhaps after the server had received COMMIT."""
    import psycopg

    error = getattr(error, "orig", None) or error  # SQLAlchemy wraps it
    if not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith("57P")


class Ours(Peer):
    """What the models of pgdbpool have in common."""

    module = package = "pgdbpool"
    model: ClassVar[str] = "threaded"
    _pool: Any

    def __init__(self, places: Sequence[Place], options: dict[str, Any]) -> None:
        self._config = self.config(places, options)
        self._events: list[dict[str, str]] = []

    def config(self, places: Sequence[Place], options: dict[str, Any]) -> dict[str, Any]:
        """The configuration; ``options`` has further keys for it, for each ``endpoint``, and for the groups."""
        write = {"autocommit": False, "target_session_attrs": "read-write"} | options.get("write", {})
        read = {"target_session_attrs": "prefer-standby"} | options.get("read", {})
        db = [self.endpoint(place) | options.get("endpoint", {}) for place in places]
        config = {"type": self.model, "db": db, "groups": {"write": write, "read": read}}
        config.update(options.get("top", {}))
        return config

    @staticmethod
    def endpoint(place: Place) -> dict[str, Any]:
        entry: dict[str, Any] = {"host": place.host, "port": place.port, "name": place.database, "user": place.user}
        return entry if place.password is None else entry | {"pass": place.password}

    def heard(self, event: Any) -> None:
        self._events.append({key: str(getattr(event, key)) for key in ("kind", "endpoint", "message")})

    def in_doubt(self, error: Exception) -> bool:
        from pgdbpool import OutcomeUnknown

        return isinstance(error, OutcomeUnknown)

    def about(self) -> dict[str, Any]:
        import msgspec

        stats = msgspec.to_builtins(self._pool.stats())
        return {"endpoints": stats["endpoints"], "groups": stats["groups"], "events": list(self._events)}


class Pgdbpool(Ours, SyncPeer):
    name = OURS
    settings = (
        "Pool(config), two groups: write with target_session_attrs read-write and autocommit false, read with "
        "prefer-standby. In the scenario slow-standby the read group has balance latency"
    )

    def __init__(self, places: Sequence[Place], options: dict[str, Any]) -> None:
        from pgdbpool import Pool

        super().__init__(places, options)
        self._pool = Pool(self._config, open=False)
        self._pool.on_event(self.heard)
        self._pool.open()
        self._pool.wait(timeout=30)

    def write(self, sql: str, values: tuple[Any, ...]) -> Any:
        with self._pool.connection("write") as connection:
            return connection.execute(sql, values).fetchone()

    def read(self, sql: str, values: tuple[Any, ...]) -> Any:
        with self._pool.connection("read") as connection:
            return connection.execute(sql, values).fetchone()


class PgdbpoolNonThreaded(Pgdbpool):
    name = "pgdbpool, non-threaded"
    settings = 'the same with type "non-threaded": each caller is a process with a pool of its own'
    model = "non-threaded"
    single = True


class PgdbpoolAsync(Ours, AsyncPeer):
    name = "pgdbpool, asyncio"
    settings = "AsyncPool(config), the same configuration as the first; the callers are tasks of one event loop"

    async def open(self) -> None:
        from pgdbpool import AsyncPool

        self._pool = AsyncPool(self._config, open=False)
        self._pool.on_event(self.heard)
        await self._pool.open()
        await self._pool.wait(timeout=30)

    async def write(self, sql: str, values: tuple[Any, ...]) -> Any:
        async with self._pool.connection("write") as connection:
            return await (await connection.execute(sql, values)).fetchone()

    async def read(self, sql: str, values: tuple[Any, ...]) -> Any:
        async with self._pool.connection("read") as connection:
            return await (await connection.execute(sql, values)).fetchone()


class PsycopgPool(SyncPeer):
    name = "psycopg_pool"
    module = "psycopg_pool"
    package = "psycopg-pool"
    settings = (
        "two ConnectionPool(dsn, check=ConnectionPool.check_connection): the DSN for writes has all hosts and "
        f"{WRITES}, the one for reads {READS}"
    )

    def __init__(self, places: Sequence[Place], options: dict[str, Any]) -> None:
        from psycopg_pool import ConnectionPool

        check = ConnectionPool.check_connection
        self._writes = ConnectionPool(dsn(places, WRITES), check=check, open=False)
        self._reads = ConnectionPool(dsn(places, READS), check=check, kwargs={"autocommit": True}, open=False)
        for pool in (self._writes, self._reads):
            pool.open(wait=True)

    def write(self, sql: str, values: tuple[Any, ...]) -> Any:
        with self._writes.connection() as connection:
            return connection.execute(sql, values).fetchone()

    def read(self, sql: str, values: tuple[Any, ...]) -> Any:
        with self._reads.connection() as connection:
            return connection.execute(sql, values).fetchone()


class SQLAlchemy(SyncPeer):
    name = "SQLAlchemy"
    module = "sqlalchemy"
    package = "SQLAlchemy"
    settings = (
        "two create_engine(postgresql+psycopg, pool_pre_ping=True), the same DSNs; engine.begin() for writes, "
        "engine.connect() with AUTOCOMMIT for reads"
    )

    def __init__(self, places: Sequence[Place], options: dict[str, Any]) -> None:
        from sqlalchemy import create_engine

        self._writes = create_engine(self.url(places, WRITES), pool_pre_ping=True)
        self._reads = create_engine(self.url(places, READS), pool_pre_ping=True, isolation_level="AUTOCOMMIT")
        for engine in (self._writes, self._reads):
            with engine.connect():
                pass

    @staticmethod
    def url(places: Sequence[Place], parameters: str) -> str:
        first = places[0]
        password = "" if first.password is None else ":" + quote(first.password, safe="")
        hosts = "&".join(f"host={place.host}:{place.port}" for place in places)
        return f"postgresql+psycopg://{first.user}{password}@/{first.database}?{hosts}&{parameters}"

    def write(self, sql: str, values: tuple[Any, ...]) -> Any:
        with self._writes.begin() as connection:
            return connection.exec_driver_sql(sql, values).fetchone()

    def read(self, sql: str, values: tuple[Any, ...]) -> Any:
        with self._reads.connect() as connection:
            return connection.exec_driver_sql(sql, values).fetchone()


class Hasql(AsyncPeer):
    name = "hasql"
    module = package = "hasql"
    settings = (
        "hasql.driver.psycopg3.PoolManager(dsn, fallback_master=True), asyncio; acquire_master() and a transaction "
        "for writes, acquire_replica() for reads"
    )

    def __init__(self, places: Sequence[Place], options: dict[str, Any]) -> None:
        self._dsn = dsn(places, f"connect_timeout={CONNECT_TIMEOUT}")

    async def open(self) -> None:
        from hasql.driver.psycopg3 import PoolManager

        more = {"kwargs": {"autocommit": True}}
        self._manager = PoolManager(self._dsn, fallback_master=True, pool_factory_kwargs=more)
        await self._manager.ready(masters_count=1, replicas_count=0, timeout=30)

    async def write(self, sql: str, values: tuple[Any, ...]) -> Any:
        async with self._manager.acquire_master() as connection, connection.transaction():
            return await (await connection.execute(sql, values)).fetchone()

    async def read(self, sql: str, values: tuple[Any, ...]) -> Any:
        async with self._manager.acquire_replica() as connection:
            return await (await connection.execute(sql, values)).fetchone()


PEERS: tuple[type[Peer], ...] = (Pgdbpool, PgdbpoolNonThreaded, PgdbpoolAsync, PsycopgPool, SQLAlchemy, Hasql)


def by_name(name: str) -> type[Peer]:
    return next(peer for peer in PEERS if peer.name == name)


def why_not(peer: type[Peer]) -> str:
    """Why a peer cannot take part; empty if it can."""
    try:
        importlib.import_module(peer.module)
    except ImportError:
        return f"{peer.package} is not installed"
    return ""
