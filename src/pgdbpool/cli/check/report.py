"""What a check has to say, as frozen values, for the screen and for ``--json``. Times are seconds, sizes bytes."""

from __future__ import annotations

import msgspec


class EndpointReport(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint."""

    endpoint: str
    reachable: bool
    chosen: dict[str, str] = {}
    """What the environment or a service has decided, and what did: `{"host": "PGHOST"}`."""
    error: str | None = None
    advice: str | None = None
    """What to do about the error."""
    role: str = "unknown"
    read_only: bool = False
    fenced: str | None = None
    """Why it would not be used though it says primary."""
    version: str | None = None
    connect_time: float | None = None
    round_trip: float | None = None
    lag: int | None = None
    """Bytes of WAL that a standby is behind its primary."""
    tls: str | None = None
    sslmode: str | None = None
    """As the configuration, the environment or libpq itself has it."""
    max_connections: int | None = None
    reserved: int | None = None
    """Of these, connections kept back for other roles than ours."""
    admits: int | None = None
    """How many it would admit for us if nobody else had any."""
    limit: str | None = None
    """What sets that limit, if it is not max_connections: ``alter role app connection limit``."""
    used: int | None = None
    """Connections that are open now, without the one that asked."""
    ours: int | None = None
    """Of these, those of pools with this configuration."""
    others: int | None = None
    """Of these, those that take room from us."""
    shared_buffers: int | None = None
    temp_buffers: int | None = None
    work_mem: int | None = None


class GroupReport(msgspec.Struct, frozen=True, kw_only=True):
    """One group: where its callers would be sent."""

    group: str
    target_session_attrs: str
    autocommit: bool
    connection_count: int
    total_count: int | None
    tiers: tuple[tuple[str, ...], ...]
    """The endpoints that it may use, in order of preference; those in one tier share the load."""
    spill: bool
    not_used: dict[str, str]
    """The other endpoints, each with the reason."""
    notes: tuple[str, ...] = ()
    problem: str | None = None


class ServerSize(msgspec.Struct, frozen=True, kw_only=True):
    """What one server must have."""

    server: str
    groups: dict[str, int]
    """Connections of each group in one process."""
    probes: int
    per_process: int
    connections: int
    admits: int | None = None
    others: int | None = None
    shared_buffers: int | None = None
    tmp_buffers: int | None = None
    """For temporary tables, if each session uses all it may."""
    work_mem: int | None = None
    """For one sort or hash in each session at the same time."""
    problem: str | None = None
    memory_problem: str | None = None


class Instead(msgspec.Struct, frozen=True, kw_only=True):
    """What would fit: any one of these."""

    connection_count: dict[str, int] | None
    """The largest that fit with so many processes; None: not even one connection for each group does."""
    processes: int
    """The most that fit with these groups."""
    servers: dict[str, tuple[str, int]]
    """What to set on those that are too small, and to which value."""


class ThreadsReport(msgspec.Struct, frozen=True, kw_only=True):
    """One group's connections to one endpoint against the threads of a process."""

    group: str
    connections: int
    threads: int
    verdict: str
    """`below`, `at` or `above`."""
    meaning: str


class Sizing(msgspec.Struct, frozen=True, kw_only=True):
    """Whether it fits."""

    processes: int
    threads: int | None
    memory: int | None
    """What each server has, as ``--memory`` says."""
    fits: bool
    servers: tuple[ServerSize, ...]
    instead: Instead | None = None
    """Where there are too few connections."""
    session_tmp_buffer: int | None = None
    """Where memory is too little: the largest that fits, in MB, for all groups alike. 0: not even 1 does."""
    against_threads: tuple[ThreadsReport, ...] = ()


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole."""

    ok: bool
    """Whether there are no problems: exit code 0."""
    model: str
    """`type` of the configuration."""
    endpoints: tuple[EndpointReport, ...]
    groups: tuple[GroupReport, ...]
    sizing: Sizing | None
    """None without ``--processes``, ``--threads`` and ``--memory``."""
    problems: tuple[str, ...]
    """One sentence for each."""
    recommendations: tuple[str, ...] = ()
    """What would be safer; the exit code does not depend on it."""
