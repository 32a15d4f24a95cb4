"""What is said to a server, step by step, and without waiting: psycopg's `pq`, the thin layer over libpq.

Each conversation is a generator that yields what it waits for, a descriptor and poll events, and returns its result.
Who drives it does the waiting, with a deadline: `blocking` by `poll`, `asynchronous` and the monitor by an event loop.
At the deadline the driver throws `DriverTimeout` in, so that each conversation can clean up after itself.

Why a connect failed is told by `refusals`.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Generator
from typing import NamedTuple, TypeVar

import psycopg
from psycopg import pq

from .. import forks
from ..config.secret import Secret
from ..core.evidence import Fault, Identity, Report, Role, Sighting, unusable
from . import ConnectFailed, DriverTimeout, NoServer, Unanswered, refusals, tls
from .sealed import Sealed

T = TypeVar("T")
Steps = Generator[tuple[int, int], None, T]

MOST = refusals.MOST  # bytes

_DONE = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY})

# Being opened at this moment. A child forked now inherits their sockets, and nobody there will ever close them.
half_open: set[pq.abc.PGconn] = set()


def connecting(conninfo: Sealed) -> Steps[pq.abc.PGconn]:
    """Open a connection. Raises ConnectFailed."""
    opened, keeps_tls = conninfo.opened()  # now, and not when they were put together: TLS may have come meanwhile
    try:
        pgconn = yield from _connecting(opened)
    except ConnectFailed as error:
        if not keeps_tls:
            raise
        raise tls.explained(error, conninfo.place) from None
    if pgconn.ssl_in_use:
        tls.note(conninfo.place)
    return pgconn


def _connecting(conninfo: Secret) -> Steps[pq.abc.PGconn]:
    pgconn = pq.PGconn.connect_start(conninfo.reveal().encode())
    half_open.add(pgconn)
    try:
        attempt = refusals.Attempt(pgconn)
        while True:
            if pgconn.status == pq.ConnStatus.BAD:
                raise attempt.failure()
            attempt.look()
            state = pgconn.connect_poll()
            if state == pq.PollingStatus.OK:
                break
            if state not in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
                raise attempt.failure()
            yield pgconn.socket, select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT
        attempt.let_in()
        pgconn.nonblocking = 1
        return pgconn
    except DriverTimeout:
        where = pgconn.hostaddr.decode()
        pgconn.finish()
        words = f"connection to {where} timed out" if where else "connection timed out"
        raise ConnectFailed(words, Fault.TIMEOUT) from None
    except BaseException:
        pgconn.finish()
        raise
    finally:
        half_open.discard(pgconn)


class Met(NamedTuple):
    """A connection that has been opened."""

    session: pq.abc.PGconn
    sighting: Sighting = Sighting(Report(Role.UNKNOWN))


def meeting(conninfo: Sealed) -> Steps[Met]:
    """The same as an attempt at one of several addresses, see `race`."""
    return Met((yield from connecting(conninfo)))


def introducing(conninfo: Sealed) -> Steps[Met]:
    """The same where it matters who is met there."""
    session = yield from connecting(conninfo)
    half_open.add(session)
    try:
        return Met(session, (yield from sighting(session)))
    except Unanswered:
        return Met(session)
    except BaseException:
        session.finish()
        raise
    finally:
        half_open.discard(session)


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
    for pgconn in tuple(half_open):
        disown(pgconn)
    half_open.clear()


forks.in_child(_forget_half_open)


def asking(pgconn: pq.abc.PGconn, statement: bytes) -> Steps[pq.abc.PGresult | None]:
    """One statement by the simple protocol, outside any transaction of the user's. Raises psycopg.Error.

    The answers to our questions are short. A server that sends more than `MOST` is not listened to any longer.
    """
    left = MOST
    pgconn.send_query(statement)
    while pgconn.flush():
        yield pgconn.socket, select.POLLIN | select.POLLOUT
        left = _read(pgconn, left)
    last = error = None
    while True:
        try:
            while pgconn.is_busy():
                yield pgconn.socket, select.POLLIN
                left = _read(pgconn, left)
            result = pgconn.get_result()
        except psycopg.Error as lost:
            raise error or lost from None
        if result is None:
            break
        if result.status == pq.ExecStatus.FATAL_ERROR:
            # To the end, or the session could not be asked anything else.
            error = error or psycopg.errors.error_from_result(result)
            if error.sqlstate == refusals.POOLER and refusals.NO_SERVER in str(error):
                raise NoServer(str(error).strip()) from error
        elif result.status not in _DONE:
            raise psycopg.errors.error_from_result(result)
        last = result
    if error is not None:
        raise error
    return last


def _read(pgconn: pq.abc.PGconn, left: int) -> int:
    """Read what has come. Returns how many bytes may still come. Raises psycopg.OperationalError if it is too much."""
    waiting, _ = refusals.waiting_in(pgconn.socket)
    if waiting > left:
        raise psycopg.OperationalError(f"the server has sent more than {MOST} bytes in answer to a short question")
    pgconn.consume_input()
    return left - waiting


_ROLE_QUERY = (
    b"select pg_catalog.pg_is_in_recovery(), setting, source, pg_catalog.pg_backend_pid() from pg_catalog.pg_settings "
    b"where name = 'default_transaction_read_only'"
)


def reporting(pgconn: pq.abc.PGconn, *, ask: bool = False) -> Steps[Report]:
    """The role of its server: as reported by the session, else, or if told to `ask`, asked for. Raises Unanswered."""
    reported = None if ask else _reported(pgconn)
    return reported or (yield from _asking_for_the_role(pgconn, believe_reported=not ask)).report


_SWITCH = {b"on": True, b"off": False, b"t": True, b"f": False}


def _reported(pgconn: pq.abc.PGconn) -> Report | None:
    """None: before PostgreSQL 14, or behind a pooler that does not pass the parameters on; or it is no role at all."""
    return _role(pgconn.parameter_status(b"in_hot_standby"), pgconn.parameter_status(b"default_transaction_read_only"))


def _role(standby: bytes | None, read_only: bytes | None) -> Report | None:
    in_recovery, refuses = _SWITCH.get(standby or b""), _SWITCH.get(read_only or b"")
    if in_recovery is None or refuses is None:
        return None
    return Report(Role.STANDBY if in_recovery else Role.PRIMARY, refuses)


def _asking_for_the_role(pgconn: pq.abc.PGconn, *, believe_reported: bool) -> Steps[Sighting]:
    answer = yield from _row(pgconn, _ROLE_QUERY)
    if isinstance(answer, psycopg.Error):
        reported = _reported(pgconn) if believe_reported else None  # that came with this answer, if it has changed
        if reported is None:
            words = str(answer).strip()
            raise Unanswered(f"the server does not say whether it is a primary or a standby: {words}") from answer
        return Sighting(reported)
    report = None if answer is None else _report(answer)
    if report is None or answer is None:
        raise Unanswered("the server does not say whether it is a primary or a standby, but something else")
    return Sighting(report, pooled=_pooled(pgconn, answer, report, 3))


def _pooled(pgconn: pq.abc.PGconn, answer: pq.abc.PGresult, report: Report, column: int) -> bool:
    """Whether a pooler is in between: the backend that answered is not the one that this session began with.

    Or it says of itself something else than the session reports, as where a pooler passes on what another server said
    to another client.
    """
    backend, reported = _number(answer, column, 10), _reported(pgconn)
    return backend not in (None, pgconn.backend_pid) or (reported is not None and reported != report)


def _row(pgconn: pq.abc.PGconn, question: bytes) -> Steps[pq.abc.PGresult | psycopg.Error | None]:
    """The one row; or the error that came in its place, where the server is there and the session goes on."""
    try:
        result = yield from asking(pgconn, question)
    except psycopg.Error as error:
        if unusable(error.sqlstate) or pgconn.transaction_status != pq.TransactionStatus.IDLE:
            raise
        return error
    return result if result is not None and result.ntuples == 1 and result.nfields >= 2 else None


def asking_who_is_read_only(pgconn: pq.abc.PGconn) -> Steps[bool]:
    """Whether ``default_transaction_read_only`` was SET in this session, and so tells nothing of the server."""
    result = yield from asking(pgconn, _ROLE_QUERY)
    return result is not None and result.ntuples == 1 and result.get_value(0, 2) == b"session"


# One question for all: role, whether it takes writes, whose data it has, and how far it is. An ordinary role may ask.
# The control file learns of a promotion only with the checkpoint after it, so a primary's timeline is read from the
# name of the WAL file it writes. A standby's last restart point may be old, too, and the point up to which it has to
# recover lies on the timeline that it follows.
_SIGHT_QUERY = b"""
select r.standby, pg_catalog.current_setting('default_transaction_read_only'), s.system_identifier,
  case when r.standby then greatest(c.timeline_id, p.min_recovery_end_timeline)::text
       else pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) end,
  case when r.standby then pg_catalog.pg_last_wal_replay_lsn()
       else pg_catalog.pg_current_wal_lsn() end operator(pg_catalog.-) '0/0'::pg_catalog.pg_lsn,
  (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) operator(pg_catalog.*) 1000000)::bigint,
  pg_catalog.pg_backend_pid()
from (select pg_catalog.pg_is_in_recovery() as standby) r,
  pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() p
"""


def sighting(pgconn: pq.abc.PGconn, *, pooled: bool = False) -> Steps[Sighting]:
    """All that one question tells of a server; of one that does not answer it, at least the role. Raises Unanswered.

    Where a pooler is known to be in between, what the session reports is not believed.
    """
    answer = yield from _row(pgconn, _SIGHT_QUERY)
    report = None if answer is None or isinstance(answer, psycopg.Error) else _report(answer)
    if report is None or answer is None or isinstance(answer, psycopg.Error):
        # No such function, or no right to call it: a relative of PostgreSQL, perhaps.
        return (yield from _asking_for_the_role(pgconn, believe_reported=not pooled))
    timeline = _number(answer, 3, 10 if report.role is Role.STANDBY else 16)
    system = answer.get_value(0, 2) if answer.nfields > 2 else None
    # What cannot be read is not known. The role is all the same.
    started = _number(answer, 5, 10)
    identity = Identity(system.decode("ascii", "replace"), timeline, started) if system and timeline else None
    return Sighting(report, identity, _number(answer, 4, 10), pooled=_pooled(pgconn, answer, report, 6))


def _report(result: pq.abc.PGresult) -> Report | None:
    return _role(result.get_value(0, 0), result.get_value(0, 1))


_DIGITS = re.compile(rb"[0-9A-Fa-f]{1,20}")  # what `int` takes, and blanks, signs and underscores it takes as well


def _number(result: pq.abc.PGresult, column: int, base: int) -> int | None:
    text = result.get_value(0, column) if column < result.nfields else None
    try:
        return int(text, base) if text is not None and _DIGITS.fullmatch(text) else None
    except ValueError:
        return None
