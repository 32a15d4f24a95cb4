"""What the example applications do with the pool, whatever the framework.

Each function is one request: it takes a connection of the group that suits it, for as short as possible, and answers
with what is to be sent as JSON. `failure` says what a client is told when the database lets us down.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import psycopg

from pgdbpool import Error, OutcomeUnknown, Pool

logger = logging.getLogger("notes")

MOST_ROWS = 100_000

TABLE = "create table if not exists notes (id bigserial primary key, key text not null, worker int not null)"
INSERT = "insert into notes (key, worker) values (%s, %s)"

Answer = dict[str, Any]


def open_pool() -> Pool:
    """The pool that the environment asks for: made once in each process, when the application is loaded.

    It may be made before the server forks its workers, and may even be in use by then: a child starts empty.
    """
    pool = Pool.from_toml(os.environ["PGDBPOOL_CONFIG"])
    if os.environ.get("NOTES_WAIT"):
        pool.wait(timeout=30)
    return pool


def read(pool: Pool) -> Answer:
    with pool.connection("read") as conn:
        row = conn.execute("select pg_backend_pid(), count(*) from notes").fetchone()
        assert row is not None
        return {"server": server(conn), "backend": row[0], "worker": os.getpid(), "count": row[1]}


def write(pool: Pool, key: str) -> Answer:
    """One row; committed by the statement itself, since the group has `autocommit`."""
    with pool.connection("write") as conn:
        conn.execute(INSERT, (key, os.getpid()))
        return written(conn, key, 1)


def transaction(pool: Pool, key: str) -> Answer:
    """Two rows, both or none: leaving the block commits, leaving it by an exception rolls back."""
    with pool.connection("transaction") as conn:
        conn.execute(INSERT, (key, os.getpid()))
        conn.execute(INSERT, (key, os.getpid()))
        return written(conn, key, 2)  # only after the commit: that is on the way out of the block


def batch(pool: Pool, key: str, rows: int) -> Answer:
    """An import: all rows or none."""
    with pool.connection("batch") as conn:
        with conn.cursor() as cursor, cursor.copy("copy notes (key, worker) from stdin") as copy:
            for _ in range(rows):
                copy.write_row((key, os.getpid()))
        return written(conn, key, rows)


def written(conn: psycopg.Connection[Any], key: str, rows: int) -> Answer:
    return {
        "key": key,
        "rows": rows,
        "server": server(conn),
        "backend": conn.info.backend_pid,
        "worker": os.getpid(),
    }


def server(conn: psycopg.Connection[Any]) -> str:
    return f"{conn.info.host}:{conn.info.port}"


def rows_wanted(text: str) -> int:
    """How many rows a batch has. Raises ValueError."""
    rows = int(text)
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"rows: expected 1 to {MOST_ROWS}, got {rows}")
    return rows


FAILURES = (Error, psycopg.Error)


def failure(error: Exception) -> tuple[int, Answer]:
    """The status and the answer for one of FAILURES. What the database said is for the log, not for the client."""
    logger.warning("%s: %s", type(error).__name__, error)
    if isinstance(error, OutcomeUnknown):  # the connection was lost during COMMIT: the client has to look
        return 500, {"error": "outcome-unknown"}
    if isinstance(error, psycopg.Error):  # lost in the middle of a statement, or refused
        return 502, {"error": type(error).__name__}
    return 503, {"error": type(error).__name__}  # no connection to be had: PoolTimeout, DBOfflineError
