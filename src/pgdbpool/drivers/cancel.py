"""Ends on the server what a session is doing for a caller who has gone: cancelled, timed out, interrupted by a signal.

A statement does not end because its caller does not wait for it any more. Its server is asked to cancel it, by libpq,
which comes by a second connection, encrypted if the first one is (libpq 17 and newer); then the session is read until
it is at rest. Only when the request has been taken in does the reading begin: so it can never hit what comes next.

A COMMIT is not cancelled. One that waits for a synchronous standby would then be reported as done without it.

Nor is a BEGIN. Its caller wanted a statement of which nothing was sent yet; the transaction is made to fail instead, as
a statement that was cancelled does, so that it is not committed as if that statement were in it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg import capabilities, pq

from ..clock import monotonic
from . import DriverTimeout
from .steps import Steps

IN_PLACE = 0.5  # s that whoever was interrupted waits for that
LIMIT = 2.0  # s that somebody else does, before the connection is closed
PAUSE = 0.05
_AGAIN = 0.25  # s until the request is repeated: it may have come before the statement, or there is another behind it

# The words are for the server's log.
_FAIL = (
    b"do $$ begin raise exception using errcode = 'query_canceled', message = "
    b"'pgdbpool: the caller was interrupted during BEGIN, and its statement was not sent'; end $$"
)
_SSL_REQUEST = struct.pack("!II", 8, 80877103)

# psycopg's generators, by their names.
_COPIES = ("copy_from", "copy_to", "copy_end")  # which the block of the copy ends itself


class GaveUp(psycopg.OperationalError):
    """A call has lasted for too long; its statement may still be going on."""


def at_work(conn: Any) -> bool:
    """Whether its server may be busy with a statement."""
    pgconn: pq.abc.PGconn = conn.pgconn
    return (
        pgconn.transaction_status == pq.TransactionStatus.ACTIVE or pgconn.pipeline_status != pq.PipelineStatus.OFF
    ) and pgconn.status == pq.ConnStatus.OK


def left_unfinished(conn: Any, gen: Any, error: BaseException, *, commits: bool) -> bool:
    """After a call has been interrupted: whether its statement has to be ended, now and by whoever was interrupted."""
    if isinstance(error, psycopg.Error) and not isinstance(error, GaveUp):
        return False
    name = getattr(gen, "__qualname__", "")
    conn.committing = commits
    if isinstance(error, GaveUp):
        conn.given_up = True
        return False
    if conn.committing or name.endswith(_COPIES):
        return False
    return bool(conn.pgconn.transaction_status == pq.TransactionStatus.ACTIVE)


def in_pipeline(conn: Any) -> bool:
    """Whether there is a pipeline, which has to take in all that comes itself."""
    return bool(conn.pgconn.pipeline_status != pq.PipelineStatus.OFF)


def ending(
    conn: Any, deadline: float, *, mine: bool, commits: bool
) -> Generator[tuple[Steps[None], float], bool, None]:
    """The conversations to carry out, each with its deadline; is told whether one was carried out by then.

    `commits`: what somebody else is inside of may be a COMMIT.

    If the caller is the one who was interrupted, the call is its own (`mine`). Else somebody may be inside of one, a
    generator that was left open, say: then the server is asked to cancel it, and no more. Raises DriverTimeout.
    """
    pgconn = conn.pgconn
    in_use = getattr(conn.lock, "locked", _never)
    if not mine and in_use():
        if not (commits or conn.committing):
            yield requesting(pgconn), deadline
        return
    spared = conn.committing or conn.unsent
    over = yield draining(pgconn), monotonic()  # it may have ended by itself
    while not over:
        if not spared:
            yield requesting(pgconn), deadline
        over = yield draining(pgconn), deadline if spared else min(deadline, monotonic() + _AGAIN)
        if not over and monotonic() >= deadline:
            raise DriverTimeout("the server has not ended a statement that was cancelled")
    if conn.unsent and pgconn.transaction_status == pq.TransactionStatus.INTRANS:
        yield failing(pgconn), deadline
    conn.committing = conn.unsent = False


def leaving_pipeline(conn: Any) -> list[Steps[None]]:
    """The requests to be made before a connection is closed that was interrupted in a pipeline; `PAUSE` between them.

    The first may come before the server has begun with what it was sent. To take in what else comes is psycopg's, which
    may wait for ever for what begins later.
    """
    return [requesting(conn.pgconn), requesting(conn.pgconn)]


def requesting(pgconn: pq.abc.PGconn) -> Steps[None]:
    """Ask its server to cancel what the session is doing, until the server has taken it in. Raises psycopg.Error."""
    if capabilities.has_cancel_safe():
        return _requesting(pgconn.cancel_conn())  # made now: the session may be closed meanwhile
    return _requesting_in_one_go(pgconn)


def _requesting(request: pq.abc.PGcancelConn) -> Steps[None]:
    try:
        request.start()
        while (state := request.poll()) != pq.PollingStatus.OK:
            if state not in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
                raise psycopg.OperationalError(f"cannot cancel: {request.get_error_message()}")
            yield request.socket, select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT
    finally:
        request.finish()


def _requesting_in_one_go(pgconn: pq.abc.PGconn) -> Steps[None]:
    yield from _calling(pgconn)  # libpq waits then, in all of it. So first look whether there is anybody who answers.
    pgconn.get_cancel().cancel()


def _calling(pgconn: pq.abc.PGconn) -> Steps[None]:
    """Have its server say a word on another connection."""
    try:
        with socket.socket(fileno=os.dup(pgconn.socket)) as mine:
            family, address = mine.family, mine.getpeername()
        with socket.socket(family, socket.SOCK_STREAM) as other:
            other.setblocking(False)
            other.connect_ex(address)
            yield other.fileno(), select.POLLOUT
            other.send(_SSL_REQUEST)
            yield other.fileno(), select.POLLIN
            if not other.recv(1):
                raise psycopg.OperationalError("cannot cancel: the server says nothing")
    except OSError as error:
        raise psycopg.OperationalError(f"cannot cancel: {error}") from error


def draining(pgconn: pq.abc.PGconn) -> Steps[None]:
    """Read until the session is at rest; whatever comes is of no interest to anybody. Raises psycopg.Error."""
    if pgconn.pipeline_status != pq.PipelineStatus.OFF:
        pgconn.pipeline_sync()  # what was left behind may lack one, and after an error the server waits for it
    while True:
        while pgconn.flush():
            yield pgconn.socket, select.POLLIN | select.POLLOUT
            pgconn.consume_input()
        while pgconn.is_busy():
            yield pgconn.socket, select.POLLIN
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            if _leaves_pipeline(pgconn):
                return
        elif result.status == pq.ExecStatus.COPY_IN:
            pgconn.put_copy_end(b"cancelled")
        elif result.status == pq.ExecStatus.COPY_OUT:
            yield from _copying_out(pgconn)
        elif result.status == pq.ExecStatus.COPY_BOTH:
            raise psycopg.OperationalError("a replication stream cannot be ended")


def failing(pgconn: pq.abc.PGconn) -> Steps[None]:
    """Make a transaction fail. Raises psycopg.Error."""
    pgconn.send_query(_FAIL)
    yield from draining(pgconn)


def _leaves_pipeline(pgconn: pq.abc.PGconn) -> bool:
    if pgconn.pipeline_status == pq.PipelineStatus.OFF:
        return True
    try:
        pgconn.exit_pipeline_mode()
    except psycopg.Error:  # there is more
        return False
    return True


def _copying_out(pgconn: pq.abc.PGconn) -> Steps[None]:
    while (size := pgconn.get_copy_data(1)[0]) >= 0:
        if size == 0:
            yield pgconn.socket, select.POLLIN
            pgconn.consume_input()


def _never() -> bool:
    return False
