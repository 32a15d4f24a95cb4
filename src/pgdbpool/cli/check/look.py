"""One look at one endpoint: what its server says of itself, and whether each group gets in.

It connects as the pool would, by the same steps: once as the monitor, and once for each group with the group's own
session settings, one after the other. So there is never more than one connection of ours to an endpoint. Nothing is
written, and no exception leaves this module: what went wrong is part of what was found.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import msgspec
import psycopg
from psycopg import pq

from pgdbpool.config import EndpointSettings, GroupSettings, Secret, conninfo, session_settings
from pgdbpool.core.evidence import Fault, Report, Role, Sighting
from pgdbpool.core.server import PARTICULAR
from pgdbpool.drivers import ConnectFailed, DriverTimeout, Unanswered, steps
from pgdbpool.drivers.blocking import drive, reach, resolved
from pgdbpool.drivers.passwords import Given, checked

ANSWER = 5.0  # s: how long a question may take
ROUND_TRIPS = 10
_AS = "check"  # what takes the place of a group's name in ours

# An ordinary role may ask all of this. What it may not see of other users' sessions (backend_type) is null: those count
# as clients, unless they belong to nobody or to no database, as the server's own workers and WAL senders do.
_FACTS = """
select pg_catalog.current_setting('server_version'),
  pg_catalog.current_setting('max_connections')::int,
  pg_catalog.current_setting('superuser_reserved_connections')::int,
  coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int,
  r.rolsuper, r.rolconnlimit, d.datconnlimit,
  (select pg_catalog.count(*) from activity),
  (select pg_catalog.count(*) from activity where ours),
  (select pg_catalog.count(*) from activity where usesysid = r.oid and not ours),
  (select pg_catalog.count(*) from activity where datid = d.oid and not ours),
  (select version from pg_catalog.pg_stat_ssl where pid = pg_catalog.pg_backend_pid() and ssl),
  pg_catalog.pg_size_bytes(pg_catalog.current_setting('shared_buffers')),
  pg_catalog.pg_size_bytes(pg_catalog.current_setting('temp_buffers')),
  pg_catalog.pg_size_bytes(pg_catalog.current_setting('work_mem')),
  r.rolname, d.datname
from pg_catalog.pg_roles r, pg_catalog.pg_database d
where r.rolname = current_user and d.datname = pg_catalog.current_database()
"""
# The server shows names in its own way, cut off and with other characters: it is asked how. Up to the end of the
# statement we bear them ourselves.
_ACTIVITY = """
with ours as (
  select pg_catalog.left(pg_catalog.set_config('application_name', name, true),
    pg_catalog.current_setting('max_identifier_length')::int) as name
  from pg_catalog.unnest({names}) as name
), activity as (
  select usesysid, datid,
    coalesce(usename = current_user and datname = pg_catalog.current_database()
             and application_name in (select name from ours), false) as ours
  from pg_catalog.pg_stat_activity
  where pid <> pg_catalog.pg_backend_pid() and datid is not null and usesysid is not null
    and coalesce(backend_type, 'client backend') = 'client backend')
"""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself."""

    version: str
    max_connections: int
    reserved: int
    """Of these, connections kept back for others than our role."""
    limit: str | None
    """What sets the limit that counts, if it is not max_connections: `alter role app connection limit`."""
    admits: int
    """Connections it would admit for us if nobody else had any."""
    used: int
    """Connections that are open now, without the one that asked."""
    ours: int
    """Of these, those that a pool of this configuration has open."""
    others: int
    """Of these, those that take room from us."""
    tls: str | None
    """The protocol's version, as TLSv1.3."""
    shared_buffers: int
    temp_buffers: int
    work_mem: int
    """Bytes, all three."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one group gets in."""

    error: str | None = None
    options_refused: bool = False
    """A pooler in between takes no startup options."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found at one endpoint. Times are seconds."""

    connect_time: float | None = None
    round_trip: float | None = None
    """The shortest of several."""
    sighting: Sighting | None = None
    facts: Facts | None = None
    fault: Fault | None = None
    error: str | None = None
    groups: dict[str, Entry] = {}


def look(where: EndpointSettings, groups: list[GroupSettings]) -> Look:
    """Ask the server at `where` all there is to ask, and try to get in as each of `groups`."""
    try:
        password = checked(Given([where.password()])) if callable(where.password) else where.password
        return _look(where, groups, password)
    except ConnectFailed as error:
        return Look(fault=error.fault, error=_line(error, where))
    except (psycopg.Error, DriverTimeout) as error:
        return Look(fault=Fault.TIMEOUT if isinstance(error, DriverTimeout) else Fault.ENDED, error=_line(error, where))
    except Exception as error:  # of the callable that gives the password; its text may be anything
        return Look(fault=Fault.MISCONFIGURED, error=f"the password could not be had: {type(error).__name__}")


def _look(where: EndpointSettings, groups: list[GroupSettings], password: Any) -> Look:
    began = monotonic()
    session = _connect(where, GroupSettings(name=_AS), password, options=False)
    connect_time = monotonic() - began
    silent = None
    try:
        try:
            sighting = drive(steps.sighting(session), monotonic() + ANSWER)
        except Unanswered as error:
            sighting, silent = Sighting(Report(Role.UNKNOWN)), _line(error, where)
        trips = []
        for _ in range(ROUND_TRIPS):
            began = monotonic()
            drive(steps.asking(session, b"select 1"), began + ANSWER)
            trips.append(monotonic() - began)
        facts = _facts(session, where, groups)
    finally:
        session.finish()
    return Look(
        connect_time=connect_time,
        round_trip=min(trips),
        sighting=sighting,
        facts=facts,
        groups={group.name: _enter(where, group, password, silent) for group in groups},
    )


def _connect(where: EndpointSettings, group: GroupSettings, password: Any, *, options: bool) -> pq.abc.PGconn:
    places = resolved(conninfo(where, group, password, startup_options=options))
    return reach(places, steps.meeting, monotonic() + where.connect_timeout).session


def _facts(session: pq.abc.PGconn, where: EndpointSettings, groups: list[GroupSettings]) -> Facts | None:
    names = _names(session, where, groups)
    activity = _ACTIVITY.format(names=f"array[{', '.join(map(_literal, names))}]")
    row = _row(session, activity + _FACTS)
    if row is None:
        return None
    version, *numbers = row[:4]
    most, for_superusers, reserved = map(int, numbers)
    superuser, role_limit, database_limit = row[4] == "t", int(row[5]), int(row[6])
    used, ours, same_role, same_database = map(int, row[7:11])
    kept_back = 0 if superuser else for_superusers + reserved
    # Each limit, with how much of it others have taken: the scarcest is the one that counts.
    limits: list[tuple[int, int, str | None]] = [(most - kept_back, used - ours, None)]
    if not superuser and role_limit >= 0:
        limits.append((role_limit, same_role, f"alter role {row[15]} connection limit"))
    if not superuser and database_limit >= 0:
        limits.append((database_limit, same_database, f"alter database {row[16]} connection limit"))
    admits, others, limit = min(limits, key=lambda each: each[0] - each[1])
    return Facts(
        version=version.split()[0],
        max_connections=most,
        reserved=kept_back,
        limit=limit,
        admits=admits,
        used=used,
        ours=ours,
        others=others,
        tls=row[11] or None,
        shared_buffers=int(row[12]),
        temp_buffers=int(row[13]),
        work_mem=int(row[14]),
    )


def _names(session: pq.abc.PGconn, where: EndpointSettings, groups: list[GroupSettings]) -> list[str]:
    """By what names the server knows the connections of a pool of this configuration."""
    names = [f"pgdbpool:{name}" for name in ("monitor", *(group.name for group in groups))]
    said = session.parameter_status(b"application_name")
    if said is None or said == f"pgdbpool:{_AS}".encode():
        return names
    named = said.decode("utf-8", "replace")
    # By the environment or a service file: a process of the application may have another.
    return [named] if "application_name" in where.params else [named, *names]


def _enter(where: EndpointSettings, group: GroupSettings, password: Any, silent: str | None) -> Entry:
    """Whether the group gets in, with its own session settings. `silent`: why the server does not tell its role."""
    if group.tags and not group.tags & where.tags:
        return Entry()
    refused = False
    try:
        try:
            session = _connect(where, group, password, options=where.pooler is None)
        except ConnectFailed as error:
            if not error.options_refused:
                raise
            refused = True
            session = _connect(where, group, password, options=False)
        try:
            if where.pooler == "session":  # else another application might get them
                for name, value in session_settings(where, group).items():
                    drive(steps.asking(session, f"set {name} = '{value}'".encode()), monotonic() + ANSWER)
            if group.sqlprepare:
                drive(steps.asking(session, b'select "SQLPrepare"."PrepareQueries"()'), monotonic() + ANSWER)
        finally:
            session.finish()
    except (ConnectFailed, psycopg.Error, DriverTimeout) as error:
        return Entry(error=_line(error, where), options_refused=refused)
    return Entry(error=silent if group.target_session_attrs in PARTICULAR else None, options_refused=refused)


def _row(session: pq.abc.PGconn, question: str) -> list[str] | None:
    """The one row of an answer; None where the server has no such tables: a relative of PostgreSQL, or a pooler."""
    try:
        result = drive(steps.asking(session, question.encode()), monotonic() + ANSWER)
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise
        return None
    if result is None or result.ntuples != 1:
        return None
    return [(result.get_value(0, column) or b"").decode() for column in range(result.nfields)]


def _literal(text: str) -> str:
    quoted = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{quoted}'"


def _line(error: BaseException, where: EndpointSettings) -> str:
    """The first line of an error, without what libpq puts before a server's own words."""
    words = next(iter(str(error).strip().splitlines()), type(error).__name__)
    for prefix in ("connection failed: ", "connection to server "):
        words = words.removeprefix(prefix)
    head, colon, rest = words.partition(" failed: ")
    words = rest if colon and head.startswith(("at ", "on ")) else words
    if isinstance(where.password, Secret) and where.password:
        words = words.replace(where.password.reveal(), "***")
    return words
