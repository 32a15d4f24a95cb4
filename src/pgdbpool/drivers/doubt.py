"""What became of a call that ended by an exception: was something sent whose answer nobody has?

A connection that is lost while COMMIT is under way leaves it open whether the transaction happened, whoever sent that
COMMIT: the pool, or its user by `conn.commit()`, ``conn.transaction()``, ``execute("COMMIT")`` or `tpc_commit`. If it
is lost in any other statement of a transaction, nothing has been committed. libpq cannot tell the two apart afterwards,
so each call that ends by an exception is looked at once, at that moment: psycopg's generators still have in their
variables what they were sending. Calls that succeed cost nothing, and neither do those that the server answers by an
error.

A block may also end while a call goes on: another task or thread is inside of it, or a stream was left open. Then the
call's own conversation is looked at, which the connection remembers (`conversation`).

Where nothing can be read there, psycopg's internals being others, the answer is the careful one: it may have been a
COMMIT. In a pipeline, where many statements are under way, what is sent is looked at on its way (`Commands`).
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterator
from inspect import GEN_CREATED, getgeneratorstate, isgenerator
from types import FrameType
from typing import Any

import psycopg
from psycopg import pq

from ..interpreter import gil
from . import COMMIT_NOTE, Doubt
from .adopted import INTERRUPTED
from .cancel import GaveUp

_LOST = pq.TransactionStatus.UNKNOWN
_IN_TRANSACTION = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)
# The server ended the session because it was idle: so it had not begun with what was sent.
_IDLE_TOO_LONG = frozenset({"25P03", "57P05"})

STATEMENT_NOTE = (
    "pgdbpool: the connection was lost before the answer came: unless a transaction was open, the statement may or may "
    "not have taken effect"
)


def called_off(conn: Any, gen: Any, error: BaseException) -> Doubt:
    """A call ended by `error`: what it puts in doubt.

    To be called at once, before `gen`, its conversation, is closed or goes on.
    """
    status = conn.pgconn.transaction_status
    lost = status == _LOST or _is_the_end(error)
    if (not lost and isinstance(error, psycopg.Error)) or status in _IN_TRANSACTION:
        return Doubt.NOTHING  # the server has answered, or nothing is under way
    if isgenerator(gen) and getgeneratorstate(gen) == GEN_CREATED:
        return Doubt.NOTHING  # the connection was lost before, or the call interrupted before it began
    conn.altered |= INTERRUPTED
    conn.conversation = None  # from here on `conn.doubt` says what it puts in doubt
    doubt = _doubt(conn, gen, error)
    if doubt is Doubt.STATEMENT and status == pq.TransactionStatus.IDLE:
        doubt = Doubt.NOTHING  # it has come to its end, or was not sent
    conn.doubt = max(doubt, conn.doubt or Doubt.NOTHING)
    if doubt is Doubt.COMMIT:
        error.add_note(COMMIT_NOTE)
    elif doubt is Doubt.STATEMENT and lost:
        error.add_note(STATEMENT_NOTE)
    return doubt


def _is_the_end(error: BaseException) -> bool:
    """Of a session, though libpq has not seen the socket closed."""
    if isinstance(error, GaveUp):
        return True
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized in ("FATAL", "PANIC")


def left_pipeline(conn: Any, commands: Commands, error: BaseException) -> None:
    """A pipeline ended by `error`. If not all of it was answered, a COMMIT in it is in doubt."""
    pgconn = conn.pgconn
    if pgconn.status != pq.ConnStatus.BAD and pgconn.pipeline_status == pq.PipelineStatus.OFF:
        return
    conn.altered |= INTERRUPTED
    if _commits(conn, commands):
        conn.doubt = Doubt.COMMIT
        if COMMIT_NOTE not in getattr(error, "__notes__", ()):
            error.add_note(COMMIT_NOTE)


def _doubt(conn: Any, gen: Any, error: BaseException) -> Doubt:
    if isinstance(error, psycopg.Error) and error.sqlstate in _IDLE_TOO_LONG:
        return Doubt.NOTHING
    frames = [*_frames_of(error), *_frames_in(gen)]
    if not any(True for frame in frames for _ in _texts(frame)):
        frames += _frames_around()
    names = [frame.f_code.co_name for frame in frames]
    if "_check_connection_ok" in names or "notifies" in names:
        return Doubt.NOTHING  # it was lost before, or nothing had been sent
    if _BEGINNING in names and conn._pipeline is None:
        conn.unsent = True
        return Doubt.NOTHING  # before the statement itself
    texts = [text for frame in frames for text in _texts(frame)]
    if conn._pipeline is not None:
        if _commits_in(conn):
            return Doubt.COMMIT
    elif any(map(may_commit, texts)) or not (texts or _HARMLESS & set(names)):
        return Doubt.COMMIT
    return _by_itself(conn)


def in_doubt(conn: Any) -> Doubt:
    """What was sent whose answer nobody has, on a connection that is not idle, or was interrupted."""
    known: Doubt = conn.doubt or Doubt.NOTHING
    if known is Doubt.COMMIT or (conn.doubt is not None and conn.conversation is None):
        return known
    if conn.doubt is None and conn.pgconn.status == pq.ConnStatus.BAD and not conn._closed:
        return Doubt.COMMIT  # lost in a conversation that did not go through `wait`
    if conn._pipeline is not None and _commits_in(conn):
        return Doubt.COMMIT
    if conn.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
        return known
    if conn._pipeline is None and _commit_goes_on(conn.conversation):
        return Doubt.COMMIT
    return max(known, _by_itself(conn))


def _commit_goes_on(gen: Any) -> bool:
    """Whether a session that is busy, with this conversation as its last, may be busy with a COMMIT."""
    if not gil():
        return True  # whose conversation it is may be going on with it at this moment
    name = getattr(gen, "__qualname__", "").rpartition(".")[2]
    if getattr(gen, "gi_frame", None) is None:  # it has ended, and left the session as it is
        return name not in _LEAVE_BUSY
    if name in _LEAVE_BUSY and name in _HARMLESS:
        return False
    frames = list(_frames_in(gen))
    if any(frame.f_code.co_name == _BEGINNING for frame in frames):
        return False  # the statement itself comes after it
    texts = [text for frame in frames for text in _texts(frame)]
    return not texts or any(map(may_commit, texts))


def _by_itself(conn: Any) -> Doubt:
    """Of a statement that does not commit others."""
    return Doubt.STATEMENT if conn.autocommit and not conn._num_transactions else Doubt.NOTHING


# -- reading what was sent ---------------------------------------------------------------------------------------------

# psycopg's generator that sends BEGIN, where one is needed, before a statement.
_BEGINNING = "_start_query"
# Its generators that have no text: they move the data of a COPY, or ask what columns a cursor has.
_HARMLESS = {"copy_from", "copy_to", "copy_end", "_describe_gen"}
# Those after which a session is busy until its user has gone on to the end of a COPY or a stream.
_LEAVE_BUSY = {"copy_from", "copy_to", "_start_copy_gen", "_stream_send_gen", "_stream_fetchone_gen"}
_COMMITS = re.compile(
    rb"\bcommit\b|\bprepare\s+transaction\b|(?:^|;)(?:\s|--[^\n]*\n|/\*.*?\*/)*end\b", re.IGNORECASE | re.DOTALL
)
_END = re.compile(rb"\bend\b", re.IGNORECASE)
_CASE = re.compile(rb"\bcase\b", re.IGNORECASE)


def may_commit(sql: bytes) -> bool:
    """Whether a text has a statement in it that ends a transaction for good. True where that is not clear."""
    return bool(_COMMITS.search(sql) or (_END.search(sql) and not _CASE.search(sql)))


def _frames_of(error: BaseException) -> Iterator[FrameType]:
    """Of the generators that it came through, the outermost first."""
    trace = error.__traceback__
    while trace is not None:
        if _is_psycopgs(trace.tb_frame):
            yield trace.tb_frame
        trace = trace.tb_next


def _frames_in(gen: Any) -> Iterator[FrameType]:
    """Of a generator that stands where it was interrupted, and those in it."""
    while gen is not None:
        frame = getattr(gen, "gi_frame", None)
        if frame is None:
            return
        if _is_psycopgs(frame):
            yield frame
            gen = gen.gi_yieldfrom
        else:  # one of ours around it
            gen = frame.f_locals.get("gen")


def _frames_around() -> Iterator[FrameType]:
    """Of the functions that wait for this call: where psycopg has ended the conversation that was interrupted."""
    frame: FrameType | None = sys._getframe(1)
    seen = False
    while frame is not None:
        if _is_psycopgs(frame):
            seen = True
            yield frame
        elif seen and frame.f_globals.get("__name__", "").partition(".")[0] != __package__.partition(".")[0]:
            return
        frame = frame.f_back


def _is_psycopgs(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "psycopg"


def _texts(frame: FrameType) -> Iterator[bytes]:
    """The SQL that a function of psycopg's has in its variables."""
    values = frame.f_locals
    if frame.f_code.co_name in ("commit", "tpc_commit", "tpc_prepare") or _ends_a_transaction(frame):
        yield b"COMMIT"
    for name in ("query", "statement", "pgq", "command"):
        text = _text(values.get(name))
        if text is not None:
            yield text
    if frame.f_code.co_name == "_stream_fetchone_gen":
        text = _text(values["self"]._query)
        if text is not None:
            yield text


def _ends_a_transaction(frame: FrameType) -> bool:
    this = frame.f_locals.get("self")
    return (
        frame.f_code.co_name in ("__exit__", "__aexit__")
        and isinstance(this, psycopg.Transaction | psycopg.AsyncTransaction)
        and this._outer_transaction
        and this.status == this.Status.COMMITTED
    )


def _text(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode(errors="replace")
    if isinstance(value, bytes):
        return value
    if isinstance(value, psycopg.sql.Composable):
        return value.as_string().encode(errors="replace")
    text = getattr(value, "query", None)  # a PostgresQuery
    return text if isinstance(text, bytes) else None


# -- pipelines ---------------------------------------------------------------------------------------------------------


class Commands(deque[Any]):
    """The commands of a pipeline on their way to the server. It remembers whether one of them may commit."""

    commits = False

    def __init__(self) -> None:
        super().__init__()
        self.prepared: set[bytes] = set()  # names of statements that were executed

    def append(self, command: Any) -> None:
        """One more: a partial of a method of libpq's and its arguments, the text or the name of a statement first."""
        arguments = getattr(command, "args", ())
        if arguments and isinstance(arguments[0], bytes):
            if arguments[0].startswith(_PREPARED):
                self.prepared.add(arguments[0])
            elif may_commit(arguments[0]):
                self.commits = True
        super().append(command)


_PREPARED = b"_pg3_"  # how psycopg calls the statements that it prepares


def _commits(conn: Any, commands: Commands) -> bool:
    known = {name: sql for (sql, _types), name in conn._prepared._names.items()}
    return commands.commits or any(may_commit(known.get(name, b"commit")) for name in commands.prepared)


def _commits_in(conn: Any) -> bool:
    pipeline = conn._pipeline
    if isinstance(pipeline.command_queue, Commands):
        return _commits(conn, pipeline.command_queue)
    # One that psycopg has made for `executemany`.
    texts = [_text(getattr(each[0], "_query", None)) for each in pipeline.result_queue if each is not None]
    return any(text is None or may_commit(text) for text in texts)
