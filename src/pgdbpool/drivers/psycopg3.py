"""psycopg 3, synchronous.

Connecting, pinging and asking for the role go through `psycopg.pq`, the thin layer over libpq, in a loop of our own:
so every wait has a deadline in fractions of a second, and no transaction is begun for the pool's own questions.
What users get is an ordinary `psycopg.Connection`.

libpq does not tell the SQLSTATE of a refused login, only the server's text. It is recognised in English; a server
with other ``lc_messages`` is still known to have *spoken*, which keeps it from being taken for dead.
"""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from ..core.evidence import Fault, Report, Role, connect_fault
from . import ConnectFailed, DriverTimeout, Status

Connection = psycopg.Connection[Any]

_BAD = pq.ConnStatus.BAD
_READING = pq.PollingStatus.READING
_WRITING = pq.PollingStatus.WRITING
_OK = pq.PollingStatus.OK
_DONE = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY})

# The longest wait without a look at signals and at the deadline, in seconds.
_INTERVAL = 0.5


# -- opening ------------------------------------------------------------------------------------------------------


def connect(params: Mapping[str, str | int], autocommit: bool, deadline: float) -> Connection:
    conninfo = make_conninfo("", **params)
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    try:
        _finish_connecting(pgconn, deadline)
    except BaseException:
        pgconn.finish()
        raise
    pgconn.nonblocking = 1
    conn: Connection = psycopg.Connection(pgconn)
    conn.autocommit = autocommit
    return conn


def _finish_connecting(pgconn: pq.abc.PGconn, deadline: float) -> None:
    while True:
        if pgconn.status == _BAD:
            raise _connect_failed(pgconn)
        state = pgconn.connect_poll()
        if state == _OK:
            return
        if state not in (_READING, _WRITING):
            raise _connect_failed(pgconn)
        events = select.POLLIN if state == _READING else select.POLLOUT
        # A new poller each time: libpq may go on with another socket.
        if not _wait(pgconn, events, deadline):
            raise ConnectFailed("connection timed out", Fault.TIMEOUT)


def _wait(pgconn: pq.abc.PGconn, events: int, deadline: float) -> bool:
    """Wait for the socket; False at the deadline."""
    poller = select.poll()
    poller.register(pgconn.socket, events)
    while True:
        rest = deadline - monotonic()
        if poller.poll(max(0.0, min(rest, _INTERVAL)) * 1000):
            return True
        if rest <= 0:
            return False


# What the server says when it turns a session away -> SQLSTATE.
_SAID = (
    (r"the database system is|not (yet )?accepting connections", "57P03"),
    (r"too many (clients|connections)|connection slots are reserved|sorry, too many", "53300"),
    (r"password authentication failed|no password supplied|SCRAM authentication", "28P01"),
    (r"pg_hba\.conf|role \".*\" does not exist|not permitted to log in|authentication failed", "28000"),
    (r"database \".*\" does not exist", "3D000"),
    (r"permission denied for database", "42501"),
    # Not the server's words but libpq's: it will not speak to this server as it was told to.
    (r"SSL, but SSL was required|certificate verify failed|server certificate for|root certificate", "28000"),
)
_SPOKE = re.compile(r"failed: [^\s:]+:  ")  # severity, colon, two blanks: the form of a server's message


def _connect_failed(pgconn: pq.abc.PGconn) -> ConnectFailed:
    message = pgconn.error_message.decode("utf-8", "replace").strip() or "connection failed"
    for pattern, code in _SAID:
        if re.search(pattern, message):
            return ConnectFailed(message, connect_fault(code))
    if "unsupported startup parameter" in message:
        return ConnectFailed(message, Fault.MISCONFIGURED, options_refused=True)
    fault = Fault.FULL if _SPOKE.search(message) else Fault.REFUSED
    return ConnectFailed(message, fault)


# -- closing ------------------------------------------------------------------------------------------------------


def close(conn: Connection) -> None:
    try:
        conn.close()
    except Exception:  # what is wrong with it does not matter any more
        pass


def disown(conn: Connection) -> None:
    try:
        null = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(null, conn.fileno())
        finally:
            os.close(null)
    except (psycopg.Error, OSError):  # closed already
        return
    close(conn)


def abort(conn: Connection) -> None:
    try:
        duplicate = socket.socket(fileno=os.dup(conn.fileno()))
    except (psycopg.Error, OSError):  # closed already
        return
    with duplicate:
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


# -- asking -------------------------------------------------------------------------------------------------------


def descriptor(conn: Connection) -> int:
    try:
        return conn.pgconn.socket
    except psycopg.Error:
        return -1


def quiet(conn: Connection) -> bool:
    try:
        poller = select.poll()
        poller.register(conn.pgconn.socket, select.POLLIN)
        return not poller.poll(0)
    except (psycopg.Error, OSError, ValueError):
        return False


def ping(conn: Connection, deadline: float) -> None:
    _ask(conn.pgconn, b"", deadline)


def run(conn: Connection, statement: str, deadline: float) -> None:
    _ask(conn.pgconn, statement.encode(), deadline)


def _ask(pgconn: pq.abc.PGconn, statement: bytes, deadline: float) -> pq.abc.PGresult | None:
    """One statement by the simple protocol, bounded. Raises psycopg.Error or DriverTimeout."""
    pgconn.send_query(statement)
    while pgconn.flush():
        _expect(pgconn, select.POLLIN | select.POLLOUT, deadline)
        pgconn.consume_input()
    last = None
    while True:
        while pgconn.is_busy():
            _expect(pgconn, select.POLLIN, deadline)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return last
        if result.status not in _DONE:
            raise psycopg.errors.error_from_result(result)
        last = result


def _expect(pgconn: pq.abc.PGconn, events: int, deadline: float) -> None:
    if not _wait(pgconn, events, deadline):
        raise DriverTimeout("the server did not answer in time")


_ROLE_QUERY = (
    b"select pg_catalog.pg_is_in_recovery(), setting, source from pg_catalog.pg_settings "
    b"where name = 'default_transaction_read_only'"
)


def report(conn: Connection, deadline: float) -> Report:
    pgconn = conn.pgconn
    standby = pgconn.parameter_status(b"in_hot_standby")
    read_only = pgconn.parameter_status(b"default_transaction_read_only")
    if standby is None or read_only is None:
        # Before PostgreSQL 14, or behind a pooler that does not pass the parameters on.
        result = _ask(pgconn, _ROLE_QUERY, deadline)
        if result is None or result.ntuples != 1:
            return Report(Role.UNKNOWN)
        standby = b"on" if result.get_value(0, 0) == b"t" else b"off"
        read_only = result.get_value(0, 1)
    return Report(Role.STANDBY if standby == b"on" else Role.PRIMARY, read_only == b"on")


def says_read_only_itself(conn: Connection, deadline: float) -> bool:
    """Whether ``default_transaction_read_only`` was SET in this session, and so tells nothing of the server."""
    result = _ask(conn.pgconn, _ROLE_QUERY, deadline)
    return result is not None and result.ntuples == 1 and result.get_value(0, 2) == b"session"


def status(conn: Connection) -> Status:
    if conn.closed:
        return Status.BROKEN if conn.broken else Status.CLOSED
    match conn.pgconn.transaction_status:
        case pq.TransactionStatus.IDLE:
            return Status.IDLE
        case pq.TransactionStatus.INTRANS | pq.TransactionStatus.INERROR:
            return Status.IN_TRANSACTION
        case pq.TransactionStatus.ACTIVE:
            return Status.BUSY
        case _:
            return Status.BROKEN


def watch(conn: Connection, autocommit: bool, writes: bool) -> Callable[[], bool]:
    pgconn = conn.pgconn
    parameter = pgconn.parameter_status
    standby = parameter(b"in_hot_standby")
    read_only = parameter(b"default_transaction_read_only")

    # transaction_status is 0 when idle. On a closed connection it is not, and nothing further is asked of it.
    # Each question costs some 50 ns in every checkout, so the one about writes is asked only where it matters.
    def clean() -> bool:
        return (
            not pgconn.transaction_status and parameter(b"in_hot_standby") == standby and conn.autocommit is autocommit
        )

    def clean_and_writable() -> bool:
        return clean() and parameter(b"default_transaction_read_only") == read_only

    return clean_and_writable if writes else clean


# -- transactions -------------------------------------------------------------------------------------------------


def commit(conn: Connection) -> None:
    if conn.pgconn.transaction_status == pq.TransactionStatus.INERROR:
        # The server would answer COMMIT with ROLLBACK and call it a success.
        conn.rollback()
        raise psycopg.errors.InFailedSqlTransaction(
            "a statement of this transaction failed before: it was rolled back, nothing was committed"
        )
    conn.commit()


def rollback(conn: Connection) -> None:
    conn.rollback()


def autocommit(conn: Connection) -> bool:
    return conn.autocommit


def set_autocommit(conn: Connection, on: bool) -> None:
    conn.autocommit = on


def sqlstate(error: BaseException) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None


def describe(conn: Connection) -> str:
    try:
        return f"backend {conn.pgconn.backend_pid}"
    except psycopg.Error:
        return "closed connection"
