"""psycopg 3: what is asked of its connections without waiting, the same for `Connection` and `AsyncConnection`.

Users get an ordinary connection; what the pool adds is `Guarded`, in which a call that a dead server will never answer
comes to an end.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg import pq

from ..clock import monotonic
from ..core.evidence import Fault, connect_fault
from . import Conduct, ConnectFailed, DriverTimeout, LastWords, NoServer, Patience, Status, steps
from .adopted import style_restored
from .cancel import GaveUp
from .private import forget_prepared

T = TypeVar("T")
Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

WaitTimeout: type[Exception] = getattr(psycopg.errors, "_WaitTimeout", psycopg.errors.ConnectionTimeout)
TAKES_TIMEOUT = hasattr(psycopg.errors, "_WaitTimeout")  # whether `Connection.wait` does: from psycopg 3.3 on
LOOK_EVERY = 0.01  # s between two looks at the role that a session reports
ENDED = "pgdbpool: the call was ended by the pool"  # how the note begins
INTERVAL = 0.1  # s between two looks at signals, as psycopg itself has it


# -- a call that ends -------------------------------------------------------------------------------------------------


def guarded(
    gen: Generator[Any, Any, T], pgconn: pq.abc.PGconn, patience: Patience, began: float, *, started: bool
) -> Generator[Any, Any, T]:
    """The same conversation; but silence for longer than `patience` allows ends it, and the connection with it.

    While it lasts, `patience.check` is asked whether the server is still there: after `check_after` seconds without a
    word, and each time the silence has doubled.
    """
    same = _guarded(gen, pgconn, patience, began, started=started)
    same.__qualname__ = getattr(gen, "__qualname__", "")  # type: ignore[attr-defined]  # by which it is known whether it is a COMMIT, say
    return same


def _guarded(
    gen: Generator[Any, Any, T], pgconn: pq.abc.PGconn, patience: Patience, began: float, *, started: bool
) -> Generator[Any, Any, T]:
    heard = began
    check_at = patience.check_after
    try:
        # To say "nothing yet" makes it repeat what it waits for.
        state = gen.send(0) if started else next(gen)
        while True:
            ready = yield state
            now = monotonic()
            if ready:
                heard, check_at = now, patience.check_after
            elif pgconn.transaction_status == pq.TransactionStatus.ACTIVE:  # not while LISTENing, say
                silent = now - heard
                if patience.limit is not None and silent >= patience.limit:
                    late = GaveUp(f"the server has not answered for {silent:.1f} s; the connection was given up")
                    raise _noted(late, silent, patience.limited_by)
                if patience.check is not None and silent >= check_at:
                    words = patience.check(float("inf") if patience.limit is None else heard + patience.limit)
                    if words is not None and not _readable(pgconn):
                        dead = _no_answer(pgconn, f"the server has not answered for {silent:.1f} s: {words}")
                        raise _noted(dead, silent, patience.checked_by)
                    check_at = 2 * silent
            state = gen.send(ready)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def seconds_of(patience: Patience) -> float:
    """Seconds that a call may take before `guarded` has to look after it."""
    return min(patience.limit or float("inf"), patience.check_after if patience.check else float("inf"))


def first_patience(conduct: Conduct) -> float | None:
    """The same, if nothing else has to be done for a call."""
    if conduct.patience is None or conduct.observe is not None or not TAKES_TIMEOUT:
        return None
    return seconds_of(conduct.patience)


def _no_answer(pgconn: pq.abc.PGconn, words: str) -> psycopg.OperationalError:
    pgconn.finish()
    return psycopg.OperationalError(f"{words}; the connection was given up")


def _noted(error: psycopg.OperationalError, silent: float, decided: str) -> psycopg.OperationalError:
    """With the setting that has ended the call."""
    if decided:
        error.add_note(f"{ENDED} after {silent:.1f} s without an answer: {decided}")
    return error


def _readable(pgconn: pq.abc.PGconn) -> bool:
    poller = select.poll()
    poller.register(pgconn.socket, select.POLLIN)
    return bool(poller.poll(0))


# -- closing ------------------------------------------------------------------------------------------------------


def disown(conn: Connection) -> None:
    if steps.disown(conn.pgconn):
        conn.pgconn.finish()


def leave(conn: Any) -> None:
    if getattr(conn, "_pool", None) is None:  # psycopg says nothing of a connection that ends with its pool
        conn._pool = _ENDING


_ENDING = object()


def abort(conn: Connection, words: str = "") -> None:
    conn.aborted = words  # type: ignore[union-attr]  # before: whoever is in a call reads it as soon as that ends
    duplicate = _duplicate(conn)
    if duplicate is not None:
        with duplicate:
            try:
                duplicate.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def _duplicate(conn: Connection) -> socket.socket | None:
    """Its socket, for use by another thread than that of its user, who may close it at any moment."""
    try:
        descriptor = conn.fileno()
        duplicate = socket.socket(fileno=os.dup(descriptor))
    except (psycopg.Error, OSError):  # closed already
        return None
    try:
        # If it is still the connection's now, it was when it was duplicated, and not a stranger's.
        if conn.fileno() == descriptor:
            return duplicate
    except (psycopg.Error, OSError):
        pass
    duplicate.close()
    return None


# -- looking ------------------------------------------------------------------------------------------------------


def address(conn: Any) -> str:
    return conn.address  # type: ignore[no-any-return]


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


_LAST_DATA_RECEIVED = 52  # where Linux has it in its `struct tcp_info`: milliseconds ago, a number of 32 bits


def heard_within(conn: Connection, seconds: float) -> bool:
    if sys.platform != "linux":
        return False
    duplicate = _duplicate(conn)
    if duplicate is None:
        return False
    with duplicate:
        try:
            info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED + 4)
            (ago,) = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)
        except (OSError, struct.error):  # a Unix socket
            return False
    return bool(ago < seconds * 1000)


def given_up(conn: Any) -> bool:
    """Whether a call on it has lasted for too long: it is as good as broken, but its statement may be going on."""
    return bool(conn.given_up)


def status(conn: Connection) -> Status:
    if conn.closed:
        return Status.BROKEN if conn.broken else Status.CLOSED
    if given_up(conn):
        return Status.BROKEN
    match conn.pgconn.transaction_status:
        case pq.TransactionStatus.IDLE:
            # In a pipeline that its user has not left, or was interrupted on the way out of; or it waits for messages.
            if conn.pgconn.pipeline_status != pq.PipelineStatus.OFF or conn._pipeline or _listens(conn):
                return Status.BUSY
            return Status.PREPARED if conn._tpc else Status.IDLE
        case pq.TransactionStatus.INTRANS | pq.TransactionStatus.INERROR:
            return Status.IN_TRANSACTION
        case pq.TransactionStatus.ACTIVE:
            return Status.BUSY
        case _:
            return Status.BROKEN


def _listens(conn: Any) -> bool:
    """Whether a generator of `notifies` stands half-way: it holds the connection's lock, and would take messages."""
    return (hasattr(conn.lock, "locked") and conn.lock.locked()) or getattr(conn, "_notifies_backlog", ()) is None


def closed_in_peace(conn: Any) -> bool:
    return bool(conn.closed_in == pq.TransactionStatus.IDLE)


def write_refused(conn: Any) -> bool:
    """Whether a write was refused (25006) on a connection since the last time that this was asked."""
    refused: bool = conn.refused
    conn.refused = False
    return refused


def watch(conn: Any, writes: bool) -> Callable[[float], bool]:
    pgconn = conn.pgconn
    parameter = pgconn.parameter_status
    standby = parameter(b"in_hot_standby")
    read_only = parameter(b"default_transaction_read_only")
    look_again = float("-inf")

    # transaction_status is 0 when idle. On a closed connection it is not, and nothing further is asked of it.
    # A parameter costs more than all the rest, in every checkout. So the role, which only the server changes, is not
    # looked at each time by a connection that is used all the time; and whether it takes writes, which a user changes
    # too, only where it matters.
    def clean(now: float) -> bool:
        nonlocal look_again
        if pgconn.transaction_status or (conn.altered and not style_restored(conn)):
            return False
        if now >= look_again:
            if parameter(b"in_hot_standby") != standby:
                return False
            look_again = now + LOOK_EVERY
        return True

    def clean_and_writable(now: float) -> bool:
        return clean(now) and parameter(b"default_transaction_read_only") == read_only

    return clean_and_writable if writes else clean


def in_failed_transaction(conn: Connection) -> bool:
    """The server would answer COMMIT with ROLLBACK and call it a success."""
    return conn.pgconn.transaction_status == pq.TransactionStatus.INERROR


def nothing_committed() -> psycopg.Error:
    """What committing such a transaction raises."""
    return psycopg.errors.InFailedSqlTransaction(
        "a statement of this transaction failed before: it was rolled back, nothing was committed"
    )


_LAST_WORDS = frozenset({"57P02"})  # SQLSTATEs of warnings after which the server closes the connection
_FATAL = frozenset({"FATAL", "PANIC"})
_MOST_READS = 16  # of a server that does not stop talking


def listen(conn: Any) -> None:
    """Remember the words with which the server ends the connection, for `last_words` and `farewell`."""
    # Not by a method of the connection's: what refers to it is counted, see `pgdbpool.lost`.
    conn.heard = []
    conn.add_notice_handler(partial(_note, conn.heard))


def _note(heard: list[LastWords], diagnostic: psycopg.errors.Diagnostic) -> None:
    code = diagnostic.sqlstate
    if code is not None and (code in _LAST_WORDS or diagnostic.severity_nonlocalized in _FATAL):
        heard[:] = [LastWords(code, f"{diagnostic.severity}:  {diagnostic.message_primary}")]


def heard_in(conn: Any, error: BaseException) -> None:
    """Remember with which words a call failed, and whether it was a refused write: its user may catch that."""
    if isinstance(error, psycopg.Error):
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            conn.refused = conn.altered = True
        # Not of psycopg's own statements if there are none. A context: it comes from inside a function, which executes
        # what was prepared by SQL.
        if is_stale_plan(error) and (not forget_prepared(conn) or conn.keeps or error.diag.context):
            conn.worn = conn.altered = True
        if conn.aborted:
            error.add_note(f"{ENDED}: {conn.aborted}")
        elif isinstance(error, psycopg.errors.QueryCanceled):
            _note_query_timeout(conn, error)
        heard: list[LastWords] = []
        _note(heard, error.diag)
        conn.answered_by = heard[0] if heard else conn.answered_by


def _note_query_timeout(conn: Any, error: psycopg.Error) -> None:
    """Of a statement that the server has ended: by which of our settings, where its words tell that it was by one."""
    conduct: Conduct | None = getattr(conn, "conduct", None)
    decided = conduct.patience.limited_by if conduct is not None and conduct.patience is not None else ""
    if decided and "statement timeout" in (error.diag.message_primary or ""):
        error.add_note(f"pgdbpool: {decided.rpartition(', and ')[0]}")


def is_stale_plan(error: psycopg.Error) -> bool:
    """Whether a prepared statement would now give other columns than when it was prepared, and so never runs again."""
    if not isinstance(error, psycopg.errors.FeatureNotSupported):
        return False
    diag = error.diag  # the server's words may be in any language, so its function is looked at first
    return diag.source_function == "RevalidateCachedQuery" or "cached plan" in (diag.message_primary or "")


def last_words(conn: Any) -> LastWords | None:
    said: LastWords | None = conn.heard[-1] if conn.heard else conn.answered_by
    return said


def farewell(conn: Any) -> psycopg.Error | None:
    pgconn = conn.pgconn
    try:
        for _ in range(_MOST_READS):
            if conn.heard or quiet(conn):
                break
            pgconn.consume_input()
            pgconn.is_busy()  # which has libpq look through what has come
    except psycopg.Error as error:
        return _farewell(conn) or error
    return _farewell(conn)


def _farewell(conn: Any) -> psycopg.Error | None:
    if not conn.heard:
        return None
    said = conn.heard[-1]
    try:
        kind = psycopg.errors.lookup(said.sqlstate)
    except KeyError:
        kind = psycopg.OperationalError
    return kind(said.words)


def listen_to_the_end(conn: Connection) -> None:
    try:
        conn.pgconn.consume_input()
        conn.pgconn.is_busy()  # which reads what has come; an error outside any statement comes as a notice
    except psycopg.Error:  # it has said nothing
        pass


def sqlstate(error: BaseException) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None


_OF_A_LOSS = ("08", "57", "25P")  # how the SQLSTATEs begin with which a server ends sessions


def words(error: BaseException, *, lost: bool) -> str | None:
    if not isinstance(error, psycopg.Error):
        return None
    code = error.sqlstate
    if code is not None:
        # Not its details, nor the statement: they have values in them.
        return error.diag.message_primary if code.startswith(_OF_A_LOSS) or not lost else None
    if isinstance(error, psycopg.OperationalError):  # libpq's words, or psycopg's own
        return str(error).strip()
    return None if lost else type(error).__name__


def fault(error: BaseException) -> Fault | None:
    match error:
        case ConnectFailed():
            return error.fault
        case NoServer():
            return Fault.WAITING
        case DriverTimeout():
            return Fault.TIMEOUT
        case psycopg.OperationalError():
            return connect_fault(error.sqlstate)
        case psycopg.Error():  # without a SQLSTATE the driver itself does not do what it was told
            return Fault.MISCONFIGURED if error.sqlstate is None else connect_fault(error.sqlstate)
    return None


def describe(conn: Connection) -> str:
    try:
        return f"backend {conn.pgconn.backend_pid}"
    except psycopg.Error:
        return "closed connection"
