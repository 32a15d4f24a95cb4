"""What can be learned about an endpoint, and what it means.

Everything the pool believes comes from evidence it meets on its way: how a connect ended, the SQLSTATE of an
error, the parameters a session reports without being asked. This module names the kinds; `endpoint` and
`topology` draw the conclusions.

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
    timeline: float
    """Infinite: promoted just now, the number is not known yet."""


class Sighting(NamedTuple):
    """What one look at a server saw: a probe, or the first question of a new session."""

    report: Report
    identity: Identity | None = None
    position: int | None = None
    """Bytes of WAL: written by a primary, replayed by a standby."""


class Fault(StrEnum):
    """Why a connection could not be opened, or ended."""

    REFUSED = "refused"  # nobody listens, or the connection was reset: nothing there can be used
    TIMEOUT = "timeout"  # no answer in time: says little about sessions already open
    UNRESOLVED = "unresolved"  # its name has no address: says nothing about sessions already open
    STARTING = "starting"  # 57P03: up in a moment
    FULL = "full"  # 53300: no new sessions for a moment, those open are fine
    MISCONFIGURED = "misconfigured"  # 28*, 3D000, 42501: no retry will mend it
    CRASHED = "crashed"  # 57P02: every session of the server ends
    ENDED = "ended"  # 08*, 57P01 or a lost socket: this session is gone, others may be


_BY_CODE = {
    "57P01": Fault.ENDED,
    "57P02": Fault.CRASHED,
    "57P03": Fault.STARTING,
    "53300": Fault.FULL,
    "3D000": Fault.MISCONFIGURED,
    "42501": Fault.MISCONFIGURED,
}


def connect_fault(sqlstate: str | None, *, timed_out: bool = False) -> Fault:
    """The meaning of a failed connect. Without a SQLSTATE the server itself has not spoken."""
    if timed_out:
        return Fault.TIMEOUT
    if sqlstate is None:
        return Fault.REFUSED
    if sqlstate.startswith("28"):
        return Fault.MISCONFIGURED
    fault = _BY_CODE.get(sqlstate, Fault.REFUSED)
    return Fault.REFUSED if fault in (Fault.ENDED, Fault.CRASHED) else fault


# Errors that a session may outlive, and that say of its server all the same that it cannot be used: a pooler, say, has
# lost the one behind it.
_UNUSABLE = ("08", "28", "3D", "53300", "57P", "58")


def unusable(sqlstate: str | None) -> bool:
    """Whether an error in answer to a question of ours, on a session that goes on, says that nobody can use the server.

    Else it only did not answer this one: the role has a statement_timeout that is too short, or lacks a privilege.
    """
    return sqlstate is None or sqlstate.startswith(_UNUSABLE)


# A session that ended for its own sake: idle in transaction too long, idle too long, database dropped.
_OWN_END = frozenset({"25P03", "57P05", "57P04"})


def session_fault(sqlstate: str | None) -> Fault | None:
    """The meaning of a session that broke in somebody's hands; None where it says nothing about the endpoint."""
    if sqlstate in _OWN_END:
        return None
    return Fault.CRASHED if sqlstate == "57P02" else Fault.ENDED
