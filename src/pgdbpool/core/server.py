"""A server, as a session or a probe has reached it: an endpoint is only the name that led there.

Which server answers behind a name can change at any moment (DNS, a virtual address, a load balancer, a pooler), and a
session stays with the one that it has reached. So each slot knows its `Server`, and an endpoint the one that the newest
connection has reached: what a new connection would find. Two looks have met the same server if they agree on
``system_identifier`` and on the start of the postmaster. Where one of them does not tell, they count as the same.

What follows where a session has one server, and a newer connection of the same endpoint reaches another one::

    the session      the newer connection              the session ...
    ---------------  --------------------------------  ------------------------------------------------------------
    primary          higher timeline, any role         is of the past: closed in every group, in a statement too
    primary          same timeline, standby            stays: a switchover may come, a name may lead to several
    primary          same timeline, primary            stays: nothing tells which of the two is newer
    primary          lower timeline, primary           stays; the newer connection is of the past, and is closed
    standby          any timeline, primary             stays in groups that want a standby, or any server: a name may
                                                       lead to several; is replaced in prefer-primary
    primary          any timeline, standby             is replaced in prefer-standby
    standby          any timeline, standby             stays: round-robin DNS, a service for all that may be read
    any              of another system                 is replaced where the newer one suits its group as well, unless
                                                       the name leads to both in turn; see `systems`
    primary          primary of another system, and    is of the past: closed in every group, in a statement too
                     so the last few in a row
    not known        any                               goes by the endpoint's role, as if it were the same server
    with a pooler    any of no higher timeline         the same: its next transaction may run on any of them

and where it is the same server::

    standby          primary: promoted                 leaves groups that want no primary
    primary          standby (no restart: a pooler)    leaves groups that want no standby
    read only, by    takes writes: the setting was     is replaced: a new session may write
    its own setting  lifted for new sessions
    takes writes     read only: new sessions are       leaves groups that want to write

A session that has refused a write itself is replaced, in `any` too, once a new connection finds a server that takes it.

A name that has come back to a server that it had left leads to several at once, until it has led to one and the same
many times in a row: then the one of them that suits a group best counts for it, and not the last.

No group takes a server of the past. Every other one is judged by the role of its own server: a session that suits its
group stays in use although a new connection would find another server.
"""

from __future__ import annotations

from .evidence import Identity, Report, Role

# What cannot do with a server of any role.
PARTICULAR = frozenset({"primary", "standby", "read-write", "read-only"})


class Server:
    """One server behind an endpoint, and what is known of it."""

    __slots__ = ("demoted", "fenced_by", "identity", "lost", "report", "seen")

    def __init__(self) -> None:
        self.report = Report(Role.UNKNOWN)
        self.identity: Identity | None = None  # the last known, also while it is down
        self.demoted = False  # it says primary, but took writes before and now refuses them
        self.fenced_by: str | None = None  # why it must not be used, though it says primary
        self.seen = float("-inf")  # when a connection last reached it
        self.lost = False  # since then a session with it has ended, or a connect that might have reached it has failed

    def is_(self, identity: Identity | None) -> bool:
        """Whether a look that found this identity has met this server, as far as can be told."""
        mine = self.identity
        if mine is None or identity is None:
            return True
        if mine.system != identity.system:
            return False
        return mine.started is None or identity.started is None or mine.started == identity.started

    def learn(self, report: Report, identity: Identity | None) -> bool:
        """Take over what was seen of it. Returns whether that is news."""
        before, known = self.report, self.identity
        if identity is not None:
            if known is not None and identity.started is not None and known.started == identity.started:
                # One process never goes back; a standby's control file may lag behind what it replays.
                identity = identity._replace(timeline=max(identity.timeline, known.timeline))
            self.identity = identity
        elif (before.role, report.role) == (Role.STANDBY, Role.PRIMARY):
            self.identity = None  # promoted just now: the number of its timeline is not known yet
        if report == before and self.identity == known:
            return False
        self.report = report
        if report.role is not Role.PRIMARY or not report.read_only:
            self.demoted = False
        elif before.role is Role.PRIMARY and not before.read_only:
            self.demoted = True
        return True

    @property
    def takes_writes(self) -> bool:
        """Whether it is a primary that counts."""
        return self.report.role is Role.PRIMARY and not self.demoted and self.fenced_by is None


def fit(target: str, report: Report) -> int | None:
    """How well a role suits a group: 0 as asked, 1 unknown yet, 2 second choice; None: not at all.

    The words are libpq's ``target_session_attrs``, and ``prefer-primary``.
    """
    if target == "any":
        return 0
    role, read_only = report
    if role is Role.UNKNOWN:
        return 1
    standby = role is Role.STANDBY
    match target:
        case "primary":
            return None if standby else 0
        case "standby":
            return 0 if standby else None
        case "read-write":
            return None if standby or read_only else 0
        case "read-only":
            return 0 if standby or read_only else None
        case "prefer-standby":
            return 0 if standby else 2
        case "prefer-primary":
            return 2 if standby else 0
    raise AssertionError(f"target_session_attrs {target!r} passed validation")


def leaves(
    target: str,
    server: Server,
    found: Server,
    *,
    read_only: bool = False,
    refused: bool = False,
    moved: bool = False,
) -> str | None:
    """Why a session with `server` has to go; None: it may stay.

    It is `read_only` by its own setting, and has `refused` a write. `found` is what a new connection of the same
    endpoint reaches; `moved`: to which the name has moved, from another system.
    """
    mine, theirs = suits(target, server), suits(target, found)
    if mine is None:
        return "role" if server.fenced_by is None else "fenced"
    better = server is not found and theirs is not None and theirs < mine
    lifted = read_only and server is found and found.report == Report(Role.PRIMARY)
    elsewhere = server is not found and theirs is not None and theirs <= mine
    wanted = moved or (refused and found.takes_writes and not found.report.read_only)
    return "role" if better or lifted or (elsewhere and wanted) else None


def suits(target: str, server: Server) -> int | None:
    """How well a server suits a group, all that is known of it considered; as `fit`."""
    if server.fenced_by is not None:
        return None
    rank = fit(target, server.report)
    if server.demoted and rank == 0:
        # It says primary, but an operator has stopped its writes.
        return {"primary": None, "prefer-primary": 2}.get(target, rank)
    return rank
