"""The same requests as in `work.py`, for asyncio: what they do with a connection of the group that suits them.

The application opens the block, and answers after it: a transaction is committed on the way out.
"""

from __future__ import annotations

import os
from typing import Any

import psycopg

from notes.work import INSERT, Answer, server, written

Connection = psycopg.AsyncConnection[Any]


async def read(conn: Connection) -> Answer:
    cursor = await conn.execute("select pg_backend_pid(), count(*) from notes")
    row = await cursor.fetchone()
    assert row is not None
    return {"server": server(conn), "backend": row[0], "worker": os.getpid(), "count": row[1]}


async def write(conn: Connection, key: str) -> Answer:
    """One row; committed by the statement itself, since the group has `autocommit`."""
    await conn.execute(INSERT, (key, os.getpid()))
    return written(conn, key, 1)


async def transaction(conn: Connection, key: str) -> Answer:
    """Two rows, both or none."""
    await conn.execute(INSERT, (key, os.getpid()))
    await conn.execute(INSERT, (key, os.getpid()))
    return written(conn, key, 2)


async def batch(conn: Connection, key: str, rows: int) -> Answer:
    """An import: all rows or none. Other requests are served between one row and the next."""
    async with conn.cursor() as cursor, cursor.copy("copy notes (key, worker) from stdin") as copy:
        for _ in range(rows):
            await copy.write_row((key, os.getpid()))
    return written(conn, key, rows)
