"""The process-wide pool: ``Connection.init(config)`` once, then ``Handler(group)`` wherever a query is needed.

from pgdbpool import pool as dbpool

dbpool.Connection.init(config)
with dbpool.Handler("read") as db:
    for row in db.query("select id, name from t where id = %s", (1,)):
        print(row[0], row["name"])
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.rows import no_result

from . import forks, outcome
from .clock import monotonic
from .config import ConfigDict, Settings, judged
from .core.lane import Slot
from .drivers import Status
from .drivers.blocking import run
from .errors import (
    ConfigError,
    DBConnectionError,
    DBOfflineError,
    DBQueryError,
    Error,
    OutcomeUnknown,
    PoolClosed,
    PoolExhausted,
    PoolTimeout,
    TooManyWaiting,
    UnconfiguredGroupError,
    WrongModelError,
)
from .holders import Leased
from .leaks import note
from .limits import seconds_of
from .sync import Pool

__all__ = [
    "ConfigError",
    "Connection",
    "DBConnectionError",
    "DBOfflineError",
    "DBQueryError",
    "Error",
    "Handler",
    "OutcomeUnknown",
    "PoolClosed",
    "PoolExhausted",
    "PoolTimeout",
    "Query",
    "Row",
    "TooManyWaiting",
    "UnconfiguredGroupError",
    "WrongModelError",
]

Params = Sequence[Any] | Mapping[str, Any] | None


class Connection:
    """The one pool of this process."""

    _pool: Pool | None = None
    _lock = threading.RLock()  # a signal handler may close it at any moment

    @classmethod
    def init(cls, config: Mapping[str, Any] | ConfigDict | Settings, *, name: str | None = None) -> Pool:
        """Make the process-wide pool; one made before is closed, once the new configuration is found good.

        `name` as for `Pool`. Safe in any thread.

        Raises:
            ConfigError: something is wrong in the configuration; then the pool that was there stays.
            WrongModelError: under gevent or eventlet.
        """
        found = judged(config)
        del config  # it may have a password in it, which no traceback is to have
        pool = Pool(found.settings(), name=name)
        with cls._lock:
            old, cls._pool = cls._pool, pool
        if old is not None:
            old.close(timeout=0.0)
        return pool

    @classmethod
    def pool(cls) -> Pool:
        """The process-wide pool.

        Raises:
            PoolClosed: before `init` and after `close`.
        """
        pool = cls._pool
        if pool is None:
            raise PoolClosed("there is no process-wide pool: call Connection.init(config) first")
        return pool

    @classmethod
    def close(cls, timeout: float = 5.0) -> None:
        """Close the process-wide pool, if there is one."""
        with cls._lock:
            old, cls._pool = cls._pool, None
        if old is not None:
            old.close(timeout)


def _after_fork() -> None:
    Connection._lock = threading.RLock()  # another thread of the parent may have held it


forks.in_child(_after_fork)


class Row(tuple[Any, ...]):
    """One row: by position, by column name, or unpacked like any tuple. Where names repeat, the first one counts.

    ``"name" in row`` asks for a column of that name; what is no string is looked for among the values. A row equals a
    tuple, and a list, of the same values.
    """

    _names: tuple[str, ...] = ()
    _index: dict[str, int] = {}
    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            try:
                return tuple.__getitem__(self, self._index[key])
            except KeyError:
                raise KeyError(f"no column {key!r}; the columns are {', '.join(self._index)}") from None
        return tuple.__getitem__(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self._index if isinstance(key, str) else tuple.__contains__(self, key)

    def __eq__(self, other: object) -> bool:
        return tuple.__eq__(self, tuple(other) if isinstance(other, list) else other)

    def __ne__(self, other: object) -> bool:
        return tuple.__ne__(self, tuple(other) if isinstance(other, list) else other)

    __hash__ = tuple.__hash__

    def get(self, name: str, default: Any = None) -> Any:
        """The column of that name, or `default`."""
        return self[name] if name in self._index else default

    def keys(self) -> list[str]:
        """The column names, in order."""
        return list(self._index)

    def as_dict(self) -> dict[str, Any]:
        """The row as a dictionary."""
        return {name: self[name] for name in self._index}

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_row, (self._names, tuple(self))


def _make_row(names: tuple[str, ...], values: Sequence[Any]) -> Row:
    return _row_type(names)(values)


@lru_cache(maxsize=1000)  # to make a type takes longer than many a statement
def _row_type(names: tuple[str, ...]) -> type[Row]:
    index: dict[str, int] = {}
    for position, name in enumerate(names):
        index.setdefault(name, position)
    return type("Row", (Row,), {"_names": names, "_index": index, "__slots__": (), "__module__": __name__})


def _row_factory(cursor: psycopg.Cursor[Any]) -> Callable[[Sequence[Any]], Any]:
    if cursor.description is None:
        return no_result
    return _row_type(tuple([column.name for column in cursor.description]))


class Query:
    """The outcome of one statement: its rows, if it has any, and how many it touched.

    An iterator, as a cursor is: ``next``, a loop, `fetchone` and `fetchall` each go on where the last of them stopped.
    All rows again and again are in `rows`, and ``query[0]`` and ``len(query)`` are of those.
    """

    __slots__ = ("_next", "columns", "rowcount", "rows", "status")

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self.rows: list[Row] = cursor.fetchall() if cursor.description is not None else []
        self.columns = [column.name for column in cursor.description or ()]
        self.rowcount: int = cursor.rowcount
        self.status = cursor.statusmessage
        self._next = 0
        cursor.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Row:
        return self.rows[position]

    def fetchone(self) -> Row | None:
        """The next row; None after the last."""
        if self._next >= len(self.rows):
            return None
        self._next += 1
        return self.rows[self._next - 1]

    def fetchall(self) -> list[Row]:
        """The rows that are left."""
        rest = self.rows[self._next :]
        self._next = len(self.rows)
        return rest


class Handler(Leased):
    """A connection of a group of the process-wide pool, for the length of a ``with`` block.

    Leaving the block normally commits what is open in an ``autocommit: false`` group; leaving it by an exception rolls
    back, never commits. Used by one thread at a time. `timeout` in seconds, default the group's `acquire_timeout`.

    Raises:
        PoolClosed: there is no process-wide pool.
        Exception: as `Pool.connection` does: some at once, some on entering the block, some on leaving it.
    """

    def __init__(self, group: str = "default", *, timeout: float | None = None) -> None:
        self._pool = Connection.pool()
        self._group = self._pool._group(group)
        self._timeout = seconds_of(timeout)
        self._slot: Slot | None = None
        self._told = False  # its user knows already that the connection was lost

    def __enter__(self) -> Self:
        if self._slot is not None:
            raise Error(f"this Handler of group {self._group.name!r} is in use already")
        now = monotonic()
        slot = self._group.take(now)
        if slot is None or now >= slot.fresh_until:
            slot = self._pool._obtain(self._group, slot, now, self._timeout)
        slot.taken = monotonic()
        self._slot = slot
        self._told = False
        if slot.taken >= self._group.note_at:
            note(slot, sys._getframe(1), threading.get_ident())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._pool._take_back(slot, error, commit=not self._told)

    @property
    def conn_ref(self) -> psycopg.Connection[Any]:
        """The driver's connection, while the block lasts."""
        return self._leased().given  # type: ignore[no-any-return]

    def query(self, statement: str, params: Params = None) -> Query:
        """Run one `statement`, with parameters in psycopg's style (``%s``, ``%(name)s``).

        Raises:
            DBQueryError: it failed; with the server's words, `sqlstate`, and the driver's exception as cause.
            Error: outside the block.
        """
        slot = self._leased()
        try:
            cursor = slot.given.cursor(row_factory=_row_factory)
            return Query(cursor.execute(statement, params))
        except psycopg.Error as error:
            raise _query_error(error) from error

    def query_prepared(self, params: Any) -> Query:
        """Call the server function ``"SQLPrepare"."ExecuteQuery"`` with `params`: a statement's name and arguments.

        Raises:
            DBQueryError, Error: as `query` does.
        """
        args = [params] if isinstance(params, str | Mapping) else list(params)
        return self.query(f'select "SQLPrepare"."ExecuteQuery"({", ".join(["%s"] * len(args))})', args)

    def commit(self) -> None:
        """Commit what is open; an autocommit group sends nothing.

        Raises:
            OutcomeUnknown: the connection died during COMMIT, or was lost in a COMMIT before.
            DBConnectionError: it was lost before COMMIT was sent, also in a statement whose error was caught: nothing
                was committed.
            DBQueryError: the server or the driver refuses, or a statement has failed before.
            Error: outside the block.
        """
        slot = self._leased()
        if self._group.settings.autocommit:  # type: ignore[attr-defined]
            return
        try:
            run(self._pool._sessions.commit(slot))
        except psycopg.Error as error:
            raise _query_error(error) from error
        except DBConnectionError:
            # One that is idle can be used: what comes now is committed when the block ends, or an error says why not.
            self._told = self._pool._driver.status(slot.conn) is not Status.IDLE
            raise

    def rollback(self) -> None:
        """Roll back what is open.

        Raises:
            DBConnectionError: the connection is lost: what had not been committed is not.
            OutcomeUnknown: it was lost in a COMMIT.
            DBQueryError: the driver refuses.
            Error: outside the block.
        """
        slot, driver = self._leased(), self._pool._driver
        try:
            slot.given.rollback()
        except psycopg.Error as error:
            status = driver.status(slot.conn)
            if status not in (Status.BROKEN, Status.CLOSED):
                raise _query_error(error) from error
            self._told = True
            raise outcome.of_block(slot, status, driver) or DBConnectionError(str(error).strip()) from error

    def _leased(self) -> Slot:
        if self._slot is None:
            raise Error("a Handler has its connection inside its with block only")
        return self._slot


def _query_error(error: psycopg.Error) -> DBQueryError:
    query_error = DBQueryError(str(error).strip(), sqlstate=error.sqlstate)
    for words in getattr(error, "__notes__", ()):
        query_error.add_note(words)
    return query_error
