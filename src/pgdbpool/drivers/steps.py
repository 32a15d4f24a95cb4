"""What is said to a server, step by step, and without waiting: psycopg's `pq`, the thin layer over libpq.

Each conversation is a generator that yields what it waits for, a descriptor and poll events, and returns its result.
Who drives it does the waiting, with a deadline: `blocking` by `poll`, `asynchronous` and the monitor by an event loop.
At the deadline the driver throws `DriverTimeout` in, so that each conversation can clean up after itself.

libpq does not tell the SQLSTATE of a refused login, only the server's text. It is recognised in English; a server
with other ``lc_messages`` is still known to have *spoken*, which keeps it from being taken for dead.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
from collections.abc import Generator
from typing import TypeVar

import psycopg
from psycopg import pq

from .. import forks
from ..config.secret import Secret
from ..core.evidence import Fault, Identity, Report, Role, Sighting, connect_fault, unusable
from . import ConnectFailed, DriverTimeout, Unanswered

T = TypeVar("T")
Steps = Generator[tuple[int, int], None, T]

_DONE = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY})

# Being opened at this moment. A child forked now inherits their sockets, and nobody there will ever close them.
_half_open: set[pq.abc.PGconn] = set()


def connecting(conninfo: Secret) -> Steps[pq.abc.PGconn]:
    """Open a connection. Raises ConnectFailed."""
    pgconn = pq.PGconn.connect_start(conninfo.reveal().encode())
    _half_open.add(pgconn)
    try:
        while True:
            if pgconn.status == pq.ConnStatus.BAD:
                raise _connect_failed(pgconn)
            state = pgconn.connect_poll()
            if state == pq.PollingStatus.OK:
                break
            if state not in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
                raise _connect_failed(pgconn)
            yield pgconn.socket, select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT
        pgconn.nonblocking = 1
        return pgconn
    except DriverTimeout:
        pgconn.finish()
        raise ConnectFailed("connection timed out", Fault.TIMEOUT) from None
    except BaseException:
        pgconn.finish()
        raise
    finally:
        _half_open.discard(pgconn)


def disown(pgconn: pq.abc.PGconn) -> bool:
    """In a forked child: point what is the parent's at the null device. False: it has no socket, or no more."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(null, pgconn.socket)
        finally:
            os.close(null)
    except (psycopg.Error, OSError):
        return False
    return True


def _forget_half_open() -> None:
    """In a forked child: what the parent was opening is the parent's."""
    for pgconn in tuple(_half_open):
        disown(pgconn)
    _half_open.clear()


forks.in_child(_forget_half_open)


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
# What the kernel says when this side cannot even ask: the process has no descriptor left, say, or too many ask for a
# Unix socket at the same time. That says nothing against a server.
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)
_SPOKE = re.compile(r"failed: [^\s:]+:  ")  # severity, colon, two blanks: the form of a server's message


def _connect_failed(pgconn: pq.abc.PGconn) -> ConnectFailed:
    message = pgconn.error_message.decode("utf-8", "replace").strip()
    if not message:
        return ConnectFailed(_no_socket(), Fault.FULL)
    for pattern, code in _SAID:
        if re.search(pattern, message):
            return ConnectFailed(message, connect_fault(code), sqlstate=code)
    if "unsupported startup parameter" in message:
        return ConnectFailed(message, Fault.MISCONFIGURED, options_refused=True)
    if "could not translate host name" in message:
        return ConnectFailed(message, Fault.UNRESOLVED)
    # Of several addresses the last one counts: the others may be of a kind that this machine does not speak.
    last = message.rpartition("connection to server")[2]
    full = _SPOKE.search(message) or any(os.strerror(code) in last for code in _OURS)
    fault = Fault.FULL if full else Fault.REFUSED
    return ConnectFailed(message, fault)


def _no_socket() -> str:
    """Words for what libpq (16 and newer) says nothing of: that it could not make a socket."""
    try:
        socket.socket().close()
    except OSError as error:
        return f"could not create socket: {error.strerror}"
    return "connection failed: no socket could be made"


def asking(pgconn: pq.abc.PGconn, statement: bytes) -> Steps[pq.abc.PGresult | None]:
    """One statement by the simple protocol, outside any transaction of the user's. Raises psycopg.Error."""
    pgconn.send_query(statement)
    while pgconn.flush():
        yield pgconn.socket, select.POLLIN | select.POLLOUT
        pgconn.consume_input()
    last = error = None
    while True:
        try:
            while pgconn.is_busy():
                yield pgconn.socket, select.POLLIN
                pgconn.consume_input()
            result = pgconn.get_result()
        except psycopg.Error as lost:
            raise error or lost from None
        if result is None:
            break
        if result.status == pq.ExecStatus.FATAL_ERROR:
            # To the end, or the session could not be asked anything else.
            error = error or psycopg.errors.error_from_result(result)
        elif result.status not in _DONE:
            raise psycopg.errors.error_from_result(result)
        last = result
    if error is not None:
        raise error
    return last


_ROLE_QUERY = (
    b"select pg_catalog.pg_is_in_recovery(), setting, source from pg_catalog.pg_settings "
    b"where name = 'default_transaction_read_only'"
)


def reporting(pgconn: pq.abc.PGconn) -> Steps[Report]:
    """The role of its server: as reported by the session, else asked for. Raises Unanswered."""
    return _reported(pgconn) or (yield from _asking_for_the_role(pgconn))


def _reported(pgconn: pq.abc.PGconn) -> Report | None:
    standby = pgconn.parameter_status(b"in_hot_standby")
    read_only = pgconn.parameter_status(b"default_transaction_read_only")
    if standby is None or read_only is None:
        return None  # before PostgreSQL 14, or behind a pooler that does not pass the parameters on
    return Report(Role.STANDBY if standby == b"on" else Role.PRIMARY, read_only == b"on")


def _asking_for_the_role(pgconn: pq.abc.PGconn) -> Steps[Report]:
    answer = yield from _row(pgconn, _ROLE_QUERY)
    if isinstance(answer, psycopg.Error):
        reported = _reported(pgconn)  # that came with this answer, if it has changed
        if reported is None:
            words = str(answer).strip()
            raise Unanswered(f"the server does not say whether it is a primary or a standby: {words}") from answer
        return reported
    return Report(Role.UNKNOWN) if answer is None else _report(answer)


def _row(pgconn: pq.abc.PGconn, question: bytes) -> Steps[pq.abc.PGresult | psycopg.Error | None]:
    """The one row; or the error that came in its place, where the server is there and the session goes on."""
    try:
        result = yield from asking(pgconn, question)
    except psycopg.Error as error:
        if unusable(error.sqlstate) or pgconn.transaction_status != pq.TransactionStatus.IDLE:
            raise
        return error
    return result if result is not None and result.ntuples == 1 else None


def asking_who_is_read_only(pgconn: pq.abc.PGconn) -> Steps[bool]:
    """Whether ``default_transaction_read_only`` was SET in this session, and so tells nothing of the server."""
    result = yield from asking(pgconn, _ROLE_QUERY)
    return result is not None and result.ntuples == 1 and result.get_value(0, 2) == b"session"


# One question for all: role, whether it takes writes, whose data it has, and how far it is. An ordinary role may ask.
# The control file learns of a promotion only with the checkpoint after it, so a primary's timeline is read from the
# name of the WAL file it writes.
_SIGHT_QUERY = b"""
select r.standby, pg_catalog.current_setting('default_transaction_read_only'), s.system_identifier,
  case when r.standby then c.timeline_id::text
       else pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) end,
  case when r.standby then pg_catalog.pg_last_wal_replay_lsn()
       else pg_catalog.pg_current_wal_lsn() end operator(pg_catalog.-) '0/0'::pg_catalog.pg_lsn
from (select pg_catalog.pg_is_in_recovery() as standby) r,
  pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c
"""


def sighting(pgconn: pq.abc.PGconn) -> Steps[Sighting]:
    """All that one question tells of a server; of one that does not answer it, at least the role. Raises Unanswered."""
    answer = yield from _row(pgconn, _SIGHT_QUERY)
    if answer is None or isinstance(answer, psycopg.Error):
        # No such function, or no right to call it: a relative of PostgreSQL, perhaps.
        return Sighting((yield from _asking_for_the_role(pgconn)))
    system, timeline, position = (_text(answer, column) for column in (2, 3, 4))
    report = _report(answer)
    number = int(timeline, 10 if report.role is Role.STANDBY else 16)
    return Sighting(report, Identity(system, number), int(position) if position else None)


def _report(result: pq.abc.PGresult) -> Report:
    role = Role.STANDBY if result.get_value(0, 0) == b"t" else Role.PRIMARY
    return Report(role, result.get_value(0, 1) == b"on")


def _text(result: pq.abc.PGresult, column: int) -> str:
    return (result.get_value(0, column) or b"").decode()
