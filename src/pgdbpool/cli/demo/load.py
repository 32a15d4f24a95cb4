"""Workers that use the pool as an application does, one thread each.

    READ         one row, from a standby if there is one
    WRITE        one insert, autocommit
    TRANSACTION  two inserts and COMMIT
    BATCH        thirty inserts, slowly, and COMMIT

Each write has a number that is used once, and leaves as many rows as the operation has parts. The table has no unique
key: a write done twice would be seen at the end, not refused by the server. After an error a worker goes on with the
next number; nothing is ever repeated.

What an error means for the write is decided here, on the safe side: if the session died during the statement that
commits, the write is in doubt; if the server said no, or died before, it failed.
"""

import threading
import time
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg

from pgdbpool import Error, OutcomeUnknown, Pool
from pgdbpool.testing import Cluster

from .measure import Measure, Outcome

ITEMS = 10_000
PATIENCE = 15.0  # s a worker waits for a connection
AFTER_ERROR = 0.05  # s

SCHEMA = f"""
    CREATE TABLE item (id int PRIMARY KEY, name text);
    INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, {ITEMS}) AS n;
    CREATE TABLE ledger (id bigint NOT NULL, part int NOT NULL);
    GRANT SELECT ON item TO app;
    GRANT INSERT ON ledger TO app;
"""
SELECT = "SELECT name FROM item WHERE id = %s"
INSERT = "INSERT INTO ledger (id, part) VALUES (%s, %s)"


class Kind(NamedTuple):
    """What the workers of one group do."""

    group: str
    workers: int
    connections: int
    """`connection_count` of the group: on each endpoint."""
    parts: int
    """Rows that one operation writes."""
    pause: float
    """Seconds between two operations."""
    within: float = 0.0
    """Seconds between two parts."""

    @property
    def autocommit(self) -> bool:
        """One statement needs no transaction."""
        return self.parts < 2


KINDS = (
    Kind("READ", workers=9, connections=4, parts=0, pause=0.010),
    Kind("WRITE", workers=4, connections=3, parts=1, pause=0.020),
    Kind("TRANSACTION", workers=3, connections=2, parts=2, pause=0.030),
    Kind("BATCH", workers=2, connections=2, parts=30, pause=0.100, within=0.005),
)
GROUPS = tuple(kind.group for kind in KINDS)
PARTS = {kind.group: kind.parts for kind in KINDS}


def prepare(cluster: Cluster) -> None:
    """Make the tables, and wait until every standby has them."""
    for statement in filter(str.strip, SCHEMA.split(";")):
        cluster.primary.execute(statement)
    cluster.wait_for_replication()


def config(cluster: Cluster) -> dict[str, Any]:
    """The pool's configuration, as an application would write it."""
    return {
        "type": "threaded",
        "db": cluster.endpoints(ssl="disable", connect_timeout=2),
        "groups": {
            kind.group: {
                "connection_count": kind.connections,
                "autocommit": kind.autocommit,
                "target_session_attrs": "primary" if kind.parts else "prefer-standby",
                "acquire_timeout": PATIENCE,
            }
            for kind in KINDS
        },
    }


class Load:
    """All workers, for the length of a ``with`` block. Leaving it waits for what they are doing."""

    def __init__(self, pool: Pool, measure: Measure) -> None:
        self._pool = pool
        self._measure = measure
        self._numbers = count(1)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(kind, first), name=f"{kind.group} {first}", daemon=True)
            for kind in KINDS
            for first in range(kind.workers)
        ]

    def __enter__(self) -> Self:
        self._measure.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if error is not None:
            return  # nobody counts any more, and the threads are daemons
        deadline = time.monotonic() + PATIENCE + 5
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._measure.hung.append(thread.name)

    def _work(self, kind: Kind, first: int) -> None:
        operation: Callable[[Kind, int], None] = self._write if kind.parts else self._read
        self._stop.wait(kind.pause * first / kind.workers)
        while not self._stop.is_set():
            number = next(self._numbers)
            try:
                operation(kind, number)
            except (Error, psycopg.Error) as error:
                outcome = Outcome.DOUBT if kind.parts and in_doubt(kind, error) else Outcome.FAILED
                self._measure.finished(kind.group, number, outcome, error)
                self._stop.wait(AFTER_ERROR)
            else:
                self._measure.finished(kind.group, number, Outcome.DONE)
                self._stop.wait(kind.pause)

    def _read(self, kind: Kind, number: int) -> None:
        with self._pool.connection(kind.group) as conn:
            self._ask(conn, SELECT, (number % ITEMS + 1,))

    def _write(self, kind: Kind, number: int) -> None:
        with self._pool.connection(kind.group) as conn:
            for part in range(kind.parts):
                self._ask(conn, INSERT, (number, part))
                time.sleep(kind.within)

    def _ask(self, conn: Any, sql: str, params: tuple[Any, ...]) -> None:
        began = time.monotonic()
        conn.execute(sql, params)
        self._measure.answered(conn.info.port, time.monotonic() - began)


def in_doubt(kind: Kind, error: Exception) -> bool:
    """Whether the write may have happened although it ended with this error."""
    if isinstance(error, OutcomeUnknown):
        return True
    if isinstance(error, Error) or not kind.autocommit:
        return False  # no connection was had, or the session ended before COMMIT was sent
    # The server's own words in class 57P mean that it ended the session, perhaps after the commit.
    return isinstance(error, psycopg.Error) and (error.sqlstate is None or error.sqlstate.startswith("57P"))
