"""The pools that are compared, each set up and used as its own documentation advises.

One adapter per way to use a pool, all with one interface, so that no measure knows whom it measures.
Nothing of an adapter runs between the clock readings but what an application would have written there
itself. All connections are in autocommit mode, so no pool pays for transactions, and all pools are given
the same limits.
"""

from __future__ import annotations

import functools
import importlib
import operator
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pgdbpool.testing import Node

OURS = "pgdbpool"


@dataclass(frozen=True)
class Limits:
    """How many connections a pool keeps open, how many it may open, and how long (s) a checkout may take."""

    least: int
    most: int
    timeout: float = 30.0


class Peer(ABC):
    """An open pool. Making one connects to the first of ``nodes``, or to all if the pool can do that."""

    name: ClassVar[str]
    module: ClassVar[str]
    """What has to be installed."""
    package: ClassVar[str]
    """Its name in the package index."""
    driver: ClassVar[str] = "psycopg"
    settings: ClassVar[str]
    """How it is set up and used; goes into the report."""
    blind: ClassVar[str] = ""
    """Why it has no part in the measure of lost connections, if it has none."""
    no_with: ClassVar[str] = ""
    """Why there is no checkout as a context manager, if there is none."""

    connection: Callable[[], AbstractContextManager[Any]]
    """A checkout as a context manager."""
    get: Callable[[], Any]
    put: Callable[[Any], Any]

    @abstractmethod
    def __init__(self, nodes: Sequence[Node], limits: Limits) -> None: ...

    @staticmethod
    def run(connection: Any, sql: str) -> Any:
        """One statement and its only row."""
        return connection.execute(sql).fetchone()

    @abstractmethod
    def close(self) -> None: ...

    def with_blocks(self, loops: int) -> float:
        """The time of so many empty ``with`` blocks, in seconds."""
        connection = self.connection
        start = perf_counter()
        for _ in repeat(None, loops):
            with connection():
                pass
        return perf_counter() - start

    def get_and_put(self, loops: int) -> float:
        """The time of so many checkouts and returns by two calls, in seconds."""
        get, put = self.get, self.put
        start = perf_counter()
        for _ in repeat(None, loops):
            put(get())
        return perf_counter() - start

    def queries(self, sql: str, loops: int) -> float:
        """The time of so many statements, each with a checkout of its own, in seconds."""
        connection, run = self.connection, self.run
        start = perf_counter()
        for _ in repeat(None, loops):
            with connection() as it:
                run(it, sql)
        return perf_counter() - start

    def warm(self, count: int) -> None:
        """Have ``count`` connections open at the same time and use each."""
        connections = [self.get() for _ in range(count)]
        for connection in connections:
            for _ in range(10):  # psycopg prepares a statement after the fifth time
                self.run(connection, "select 1")
        for connection in connections:
            self.put(connection)


class Pgdbpool(Peer):
    name = OURS
    module = "pgdbpool"
    package = "pgdbpool"
    settings = 'Pool(config), one group: autocommit, min_count and connection_count; pool.connection("read")'

    def __init__(self, nodes: Sequence[Node], limits: Limits) -> None:
        from pgdbpool import Pool

        group = {
            "autocommit": True,
            "min_count": limits.least,
            "connection_count": limits.most,
            "acquire_timeout": limits.timeout,
        }
        config = {"type": "threaded", "db": [node.endpoint() for node in nodes], "groups": {"read": group}}
        self.use(Pool(config))

    def use(self, pool: Any) -> None:
        """Use this pool."""
        self.pool = pool
        pool.wait(timeout=30)
        self.connection = functools.partial(pool.connection, "read")
        self.get = functools.partial(pool.getconn, "read")
        self.put = pool.putconn

    def with_blocks(self, loops: int) -> float:
        connection = self.pool.connection
        start = perf_counter()
        for _ in repeat(None, loops):
            with connection("read"):
                pass
        return perf_counter() - start

    def get_and_put(self, loops: int) -> float:
        get, put = self.pool.getconn, self.pool.putconn
        start = perf_counter()
        for _ in repeat(None, loops):
            put(get("read"))
        return perf_counter() - start

    def queries(self, sql: str, loops: int) -> float:
        connection, run = self.pool.connection, self.run
        start = perf_counter()
        for _ in repeat(None, loops):
            with connection("read") as it:
                run(it, sql)
        return perf_counter() - start

    def close(self) -> None:
        self.pool.close()


class PsycopgPool(Peer):
    name = "psycopg_pool"
    module = "psycopg_pool"
    package = "psycopg-pool"
    settings = "ConnectionPool(min_size, max_size), autocommit; pool.connection()"
    checks: ClassVar[bool] = False

    def __init__(self, nodes: Sequence[Node], limits: Limits) -> None:
        from psycopg_pool import ConnectionPool

        self._pool = ConnectionPool(
            nodes[0].dsn,
            kwargs={"autocommit": True},
            min_size=limits.least,
            max_size=limits.most,
            timeout=limits.timeout,
            check=ConnectionPool.check_connection if self.checks else None,
            open=False,
        )
        self._pool.open(wait=True)
        self.connection = self._pool.connection
        self.get = self._pool.getconn
        self.put = self._pool.putconn

    def close(self) -> None:
        self._pool.close()


class PsycopgPoolCheck(PsycopgPool):
    name = "psycopg_pool, check"
    settings = "the same with check=ConnectionPool.check_connection"
    checks = True


class SQLAlchemyRaw(Peer):
    """The pool of SQLAlchemy, with as little of SQLAlchemy around it as possible."""

    name = "SQLAlchemy"
    module = "sqlalchemy"
    package = "SQLAlchemy"
    settings = (
        "create_engine(postgresql+psycopg) with QueuePool(pool_size, max_overflow=0), AUTOCOMMIT, "
        "skip_autocommit_rollback; engine.raw_connection(), queries on its driver_connection"
    )
    blind = "queries on the driver's connection hide their errors from SQLAlchemy; see connect()"
    more: ClassVar[dict[str, Any]] = {}

    def __init__(self, nodes: Sequence[Node], limits: Limits) -> None:
        from sqlalchemy import QueuePool, create_engine

        self._engine = create_engine(
            nodes[0].dsn.replace("postgresql:", "postgresql+psycopg:", 1),
            poolclass=QueuePool,
            pool_size=limits.most,  # opened when needed; there is no least number
            max_overflow=0,
            pool_timeout=limits.timeout,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            **self.more,
        )
        self.connection = self.get = self._engine.raw_connection
        self.put = operator.methodcaller("close")
        self.warm(limits.least)

    @staticmethod
    def run(connection: Any, sql: str) -> Any:
        return connection.driver_connection.execute(sql).fetchone()

    def close(self) -> None:
        self._engine.dispose()


class SQLAlchemyPrePing(SQLAlchemyRaw):
    name = "SQLAlchemy, pre_ping"
    settings = "the same with pool_pre_ping"
    blind = ""
    more = {"pool_pre_ping": True}


class SQLAlchemyConnect(SQLAlchemyRaw):
    """SQLAlchemy as its users use it: its own connection object knows a lost connection by the error."""

    name = "SQLAlchemy, connect()"
    blind = ""
    settings = "the same engine as the first; engine.connect(), queries by exec_driver_sql"

    def __init__(self, nodes: Sequence[Node], limits: Limits) -> None:
        super().__init__(nodes, Limits(0, limits.most, limits.timeout))
        self.connection = self.get = self._engine.connect
        self.warm(limits.least)

    @staticmethod
    def run(connection: Any, sql: str) -> Any:
        return connection.exec_driver_sql(sql).fetchone()


class Psycopg2(Peer):
    name = "psycopg2"
    module = "psycopg2"
    package = "psycopg2-binary"
    driver = "psycopg2"
    settings = (
        "ThreadedConnectionPool(minconn, maxconn), autocommit; getconn() and putconn(). It does not wait: "
        "where there are more threads than connections a semaphore around it does"
    )
    no_with = "it has no context manager"

    def __init__(self, nodes: Sequence[Node], limits: Limits) -> None:
        from psycopg2.extensions import connection
        from psycopg2.pool import ThreadedConnectionPool

        class Autocommit(connection):
            def __init__(self, *arguments: Any, **more: Any) -> None:
                super().__init__(*arguments, **more)
                self.autocommit = True

        self._pool = ThreadedConnectionPool(limits.least, limits.most, nodes[0].dsn, connection_factory=Autocommit)
        self._free = threading.BoundedSemaphore(limits.most)
        self._timeout = limits.timeout
        self.connection = self._bounded
        self.get = self._pool.getconn
        self.put = self._pool.putconn

    @contextmanager
    def _bounded(self) -> Iterator[Any]:
        if not self._free.acquire(timeout=self._timeout):
            raise TimeoutError(f"no free connection after {self._timeout:g} s")
        try:
            connection = self._pool.getconn()
            try:
                yield connection
            finally:
                self._pool.putconn(connection)
        finally:
            self._free.release()

    @staticmethod
    def run(connection: Any, sql: str) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()

    def close(self) -> None:
        self._pool.closeall()


class DBUtils(Peer):
    name = "DBUtils"
    module = "dbutils"
    package = "DBUtils"
    settings = (
        "PooledDB(psycopg, mincached, maxcached, maxconnections, blocking, reset=False), autocommit; "
        "pool.connection(). When a statement fails because the connection is lost, it connects again and "
        "sends the statement once more"
    )

    def __init__(self, nodes: Sequence[Node], limits: Limits) -> None:
        import psycopg
        from dbutils.pooled_db import PooledDB

        self._pool = PooledDB(
            psycopg,
            mincached=limits.least,
            maxcached=limits.most,
            maxconnections=limits.most,
            blocking=True,
            reset=False,  # in autocommit mode there is nothing to roll back
            conninfo=nodes[0].dsn,
            autocommit=True,
        )
        self.connection = self.get = self._pool.connection
        self.put = operator.methodcaller("close")

    @staticmethod
    def run(connection: Any, sql: str) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()

    def close(self) -> None:
        self._pool.close()


class NoPool(Peer):
    """As many threads as connections, and each thread keeps one: what there is to be had without a pool."""

    name = "no pool"
    module = package = "psycopg"
    settings = "psycopg.connect() in each thread"

    def __init__(self, nodes: Sequence[Node], limits: Limits) -> None:
        self._open = [bare("psycopg", nodes[0].dsn) for _ in range(limits.most)]
        self._free = list(self._open)
        self._own = threading.local()
        self.connection = self._keep
        self.get = self._free.pop
        self.put = self._free.append

    def _keep(self) -> Kept:
        kept: Kept | None = getattr(self._own, "connection", None)
        if kept is None:
            kept = self._own.connection = Kept(self._free)
        return kept

    def close(self) -> None:
        for connection in self._open:
            connection.close()


class Kept(nullcontext[Any]):
    """A connection that goes back when its thread ends."""

    def __init__(self, free: list[Any]) -> None:
        super().__init__(free.pop())
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.enter_result)


PEERS: tuple[type[Peer], ...] = (
    Pgdbpool,
    PsycopgPool,
    PsycopgPoolCheck,
    SQLAlchemyRaw,
    SQLAlchemyPrePing,
    SQLAlchemyConnect,
    Psycopg2,
    DBUtils,
)


def bare(driver: str, dsn: str) -> Any:
    """A connection without any pool."""
    connection = importlib.import_module(driver).connect(dsn)
    connection.autocommit = True
    return connection


def why_not(peer: type[Peer]) -> str:
    """Why a peer cannot take part; empty if it can."""
    try:
        module = importlib.import_module(peer.module)
    except ImportError:
        return f"{peer.package} is not installed"
    if peer is Pgdbpool and not hasattr(module, "Pool"):
        return "pgdbpool has no Pool in this version"
    return ""
