"""What can be learned about an endpoint, and what it means.

Everything the pool believes comes from evidence it meets on its way: how a connect ended, the SQLSTATE of an
error, the parameters a session reports without being asked. This module names the kinds; `endpoint` and
`topology` draw the conclusions.

Only a server's own "no" counts against it: what it says, what the kernel of its machine says, a connection that is
closed before any word, and silence. What libpq says, of a key that it cannot read, or what this machine says, of ports
that it has not, keeps us from opening connections, and those that are open are as good as before. An exception of our
own (a bug, a stack too deep, no memory) says nothing at all.

SQLSTATE classes: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    """What a server is, as far as known."""

    PRIMARY = "primary"
    STANDBY = "standby"
    UNKNOWN = "unknown"


class Health(StrEnum):
    """``UP``: a connect or answer proved it. ``SUSPECT``: unproven, or something broke. ``DOWN``: not to be used."""

    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


class Report(NamedTuple):
    """What one session says about its server: the role, and whether new transactions are read only there."""

    role: Role
    read_only: bool = False


class Identity(NamedTuple):
    """Whose data a server holds. Each promotion within one `system` begins a timeline of a higher number."""

    system: str
    """PostgreSQL's `system_identifier`: the same for a primary and all its standbys."""
    timeline: int
    started: int | None = None
    """When its postmaster started, in microseconds: of all servers of one system each has its own."""


class Sighting(NamedTuple):
    """What one look at a server saw: a probe, or the first question of a new session."""

    report: Report
    identity: Identity | None = None
    position: int | None = None
    """Bytes of WAL: written by a primary, replayed by a standby."""
    pooled: bool = False
    """A pooler is in between: the session is the pooler's, and another server may answer the next question."""
    spread: bool | None = None
    """Whether the name that led there has several addresses, each of which may be another server's. None: not known."""


class Fault(StrEnum):
    """Why a connection could not be opened, or ended."""

    REFUSED = "refused"  # nobody listens, or the connection was closed before any word: nothing there can be used
    WAITING = "waiting"  # a pooler lets us in, and nothing behind it answers: gone, busy, or a pause for maintenance
    TIMEOUT = "timeout"  # no answer in time: says little about sessions already open
    UNREACHABLE = "unreachable"  # no way leads there, says a network in between: as silence
    UNRESOLVED = "unresolved"  # its name has no address: says nothing about sessions already open
    STARTING = "starting"  # 57P03: up in a moment
    FULL = "full"  # 53300: no new sessions for a moment, those open are fine
    MISCONFIGURED = "misconfigured"  # 28*, 3D000, or a word of libpq's: no retry will mend it
    LOCAL = "local"  # this machine could not even ask: no descriptor, no port. Says nothing about the server
    CRASHED = "crashed"  # 57P02: every session of the server ends
    ENDED = "ended"  # 08*, 57P01 or a lost socket: this session is gone, others may be


SILENT = frozenset({Fault.TIMEOUT, Fault.WAITING, Fault.UNREACHABLE})
# A probe that fails so counts against the server; after `fall` in a row it is taken for dead.
MISSES = SILENT | {Fault.REFUSED}
# How long it has to be so behind a pooler (s). No caller is sent there if another endpoint will do; nobody is; calls in
# flight are ended. A pause is a matter of seconds, and PgBouncer itself gives up a server out of reach after 15.
WAITS_LEAST, WAITS_DOWN, WAITS_DEAD = 1.0, 5.0, 30.0
# Waiting does not help whoever needs a new connection.
HOPELESS = frozenset({Fault.MISCONFIGURED, Fault.LOCAL})

# What a server means that turns a connect away: by its SQLSTATE, or the first characters of that.
_TURNED_AWAY = {
    "57P03": Fault.STARTING,
    "57P01": Fault.REFUSED,
    "57P02": Fault.REFUSED,
    "08": Fault.REFUSED,  # a pooler that has lost the server behind it
    "57P04": Fault.MISCONFIGURED,  # the database was dropped
    "55000": Fault.MISCONFIGURED,  # it admits nobody
    "28": Fault.MISCONFIGURED,
    "3D": Fault.MISCONFIGURED,
    "42": Fault.MISCONFIGURED,  # no right to connect; a setting that does not exist
    "22": Fault.MISCONFIGURED,  # a setting whose value is wrong
    "0A": Fault.MISCONFIGURED,
}


def connect_fault(sqlstate: str | None, *, timed_out: bool = False) -> Fault:
    """The meaning of a failed connect, or of the end of a session before it was of use.

    Without a SQLSTATE the server has ended it without a word. A server that turns us away for any reason we do not know
    is there, and those it has let in are fine: `Fault.FULL`. Errors of our own are no evidence: they do not come here.
    """
    if timed_out:
        return Fault.TIMEOUT
    if sqlstate is None:
        return Fault.ENDED
    return _TURNED_AWAY.get(sqlstate) or _TURNED_AWAY.get(sqlstate[:2]) or Fault.FULL


# Errors that a session may outlive, and that say of its server all the same that it cannot be used: a pooler, say, has
# lost the one behind it.
_UNUSABLE = ("08", "28", "3D", "53300", "57P", "58")


def unusable(sqlstate: str | None) -> bool:
    """Whether an error in answer to a question of ours, on a session that goes on, says that nobody can use the server.

    Else it only did not answer this one: the role has a statement_timeout that is too short, or lacks a privilege.
    """
    return sqlstate is None or sqlstate.startswith(_UNUSABLE)


# A session that ended for its own sake: a transaction too long or idle in it too long, idle too long, database dropped.
_OWN_END = frozenset({"25P03", "25P04", "57P05", "57P04"})


def session_fault(sqlstate: str | None) -> Fault | None:
    """The meaning of a session that broke in somebody's hands; None where it says nothing about the endpoint."""
    if sqlstate in _OWN_END:
        return None
    return Fault.CRASHED if sqlstate == "57P02" else Fault.ENDED
