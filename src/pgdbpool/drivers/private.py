"""What psycopg has no public way to ask of libpq, and how it is asked all the same.

Each function copes where it cannot be had: in a libpq that is linked in another way, or a psycopg that has changed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import psycopg
from psycopg import generators, pq

_VERBOSE, _DEFAULT = 2, 1  # PQERRORS_VERBOSE, PQERRORS_DEFAULT


def be_verbose(pgconn: pq.abc.PGconn, on: bool) -> None:
    """Have libpq write the SQLSTATE, among others, into its words of an error of the server's; or no longer."""
    tell = _set_verbosity()
    pointer = getattr(pgconn, "pgconn_ptr", None)
    if tell is not None and pointer is not None:
        tell(pointer, _VERBOSE if on else _DEFAULT)


@cache
def _set_verbosity() -> Callable[[int, int], object] | None:
    """`PQsetErrorVerbosity` of the libpq that psycopg uses; None where it cannot be had."""
    try:
        if pq.__impl__ == "python":
            library: Any = import_module("psycopg.pq._pq_ctypes").pq
        else:
            # The C module itself: in what it depends on is looked, too, and libpq is there.
            library = ctypes.CDLL(str(import_module(f"psycopg_{pq.__impl__}.pq").__file__))
        # An object of our own, so that the library's keeps the types that psycopg gave it.
        return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(("PQsetErrorVerbosity", library))
    except (ImportError, OSError, AttributeError):
        return None


def beginning(
    conn: Any, begin: bytes, begin_with: Sequence[bytes], execute: Callable[[bytes], Generator[Any, Any, Any]]
) -> Generator[Any, Any, Any]:
    """psycopg's conversation that begins a transaction, with more statements in the same message.

    `execute` is psycopg's own conversation for one command. In pipeline mode it sends nothing by itself.
    """
    if conn._pipeline:
        result = yield from execute(begin)
        for statement in begin_with:
            yield from execute(statement)
        return result
    conn._check_connection_ok()
    conn.pgconn.send_query(b"; ".join((begin, *begin_with)))
    results = yield from generators.execute(conn.pgconn)
    for result in results:
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            raise psycopg.errors.error_from_result(result)
    return results[0]


# -- what a connection remembers ---------------------------------------------------------------------------------------


class Handlers(NamedTuple):
    """The callables that are told of notices and of notifications."""

    notices: tuple[Any, ...]
    notifications: tuple[Any, ...]


def handlers(conn: Any) -> Handlers:
    return Handlers(tuple(getattr(conn, "_notice_handlers", ())), tuple(getattr(conn, "_notify_handlers", ())))


def put_back_handlers(conn: Any, meant: Handlers) -> None:
    present = handlers(conn)
    if present.notices != meant.notices:
        conn._notice_handlers[:] = meant.notices
    if present.notifications != meant.notifications:
        conn._notify_handlers[:] = meant.notifications


def drop_notifications(conn: Any) -> None:
    """Those that have come, and that nobody has asked for yet."""
    while conn.pgconn.notifies() is not None:
        pass
    waiting = getattr(conn, "_notifies_backlog", None)
    if waiting is not None:
        waiting.clear()


def forget_prepared(conn: Any) -> bool:
    """Have psycopg forget what it has prepared: the next statement that succeeds takes it away on the server, too.

    False: it had prepared nothing.
    """
    clear = getattr(getattr(conn, "_prepared", None), "clear", None)
    return clear is not None and bool(clear())


# What psycopg has prepared, and nothing else.
_DEALLOCATE = b"""DO $$DECLARE own text; BEGIN
FOR own IN SELECT name FROM pg_catalog.pg_prepared_statement()
WHERE pg_catalog.left(name, 5) OPERATOR(pg_catalog.=) '_pg3_'
LOOP EXECUTE 'DEALLOCATE ' OPERATOR(pg_catalog.||) own; END LOOP; END$$"""


def deallocating(
    conn: Any, name: bytes | None, deallocate: Callable[[bytes | None], Generator[Any, Any, None]]
) -> Generator[Any, Any, None]:
    """psycopg's conversation that takes away one prepared statement, or all: it does the latter after each rollback.

    Where others than psycopg have prepared some for the life of the connection, these stay.
    """
    if name is None and conn.keeps:
        yield from conn._exec_command(_DEALLOCATE)
    else:
        yield from deallocate(name)
