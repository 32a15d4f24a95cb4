"""What a borrower may have left in a session, beside its transaction, and how the next one is spared it.

psycopg's own part, its handlers and what it has heard, is put back on every return. What is on the server stays, unless
the group says ``reset = "state"``: then all of it goes in one message. That is DISCARD ALL in its parts, without two of
them: DEALLOCATE ALL takes the statements away that psycopg has prepared and believes to have, and DISCARD PLANS makes
the server plan all of them anew. See docs/state.rst, which has a row for each part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from psycopg import pq

from . import steps
from .private import drop_notifications

# In this order: SET SESSION AUTHORIZATION sets the role too, RESET ALL leaves both alone, and RESET ROLE goes back to
# the role that the session was opened with. RESET ALL comes early, since a statement_timeout of a borrower's holds for
# each statement up to there.
_RESET = (
    "CLOSE ALL",
    "RESET SESSION AUTHORIZATION",
    "RESET ALL",
    "RESET ROLE",
    "UNLISTEN *",
    "SELECT pg_catalog.pg_advisory_unlock_all()",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
)
# What was prepared by PREPARE, or by libpq's own functions. DEALLOCATE wants a name that is written out, so one message
# cannot do both.
_PREPARED = (
    "SELECT name FROM pg_catalog.pg_prepared_statement() "
    "WHERE from_sql OR pg_catalog.left(name, 5) OPERATOR(pg_catalog.<>) '_pg3_'"
)


def resetting(conn: Any) -> steps.Steps[None]:
    """Put back what is on the server. One round trip, and one more where the borrower has prepared statements itself.

    The session is idle. Raises psycopg.Error.
    """
    pgconn = conn.pgconn
    left = yield from _prepared(pgconn, "; ".join((*_RESET, *conn.said, _PREPARED)))
    if left := left - conn.kept:
        yield from steps.asking(pgconn, b"; ".join(b'DEALLOCATE "%s"' % name.replace(b'"', b'""') for name in left))
    drop_notifications(conn)


def keeping_prepared(conn: Any) -> steps.Steps[None]:
    """What is prepared now is no borrower's."""
    conn.kept = yield from _prepared(conn.pgconn, _PREPARED)


def keep_prepared(conn: Any) -> None:
    """There are prepared statements that are not psycopg's."""
    conn.keeps = True


def worn(conn: Any) -> bool:
    """Whether a statement that is not psycopg's own would fail on it for ever."""
    return bool(conn.worn)


def _prepared(pgconn: pq.abc.PGconn, question: str) -> steps.Steps[frozenset[bytes]]:
    result = yield from steps.asking(pgconn, question.encode())
    return frozenset(_names(result)) if result is not None else frozenset()


def _names(result: pq.abc.PGresult) -> Collection[bytes]:
    return [result.get_value(row, 0) or b"" for row in range(result.ntuples)]


def keep(conn: Any, statements: Sequence[str]) -> None:
    """These SETs have made the session what it is, and RESET ALL undoes them: each reset says them again."""
    conn.said = tuple(statements)
