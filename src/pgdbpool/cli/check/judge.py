"""From what was found to a verdict: no I/O.

What was seen of each endpoint is told to the pool's own core, as the monitor would tell it. So the routes shown are
those that a pool would take, fencing included, and not a second opinion.
"""

from __future__ import annotations

import ipaddress
from time import monotonic

from pgdbpool.config import EndpointSettings, GroupSettings, Settings
from pgdbpool.config.environment import libpq_parameters, proofs
from pgdbpool.core import routes, stats
from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.evidence import Fault, Role
from pgdbpool.core.group import Group
from pgdbpool.core.lane import Lane
from pgdbpool.core.topology import Topology
from pgdbpool.sync import Pool

from .fit import fit
from .look import Look
from .report import CheckReport, EndpointReport, GroupReport, Sizing

ADVICE = {
    Fault.REFUSED: "is the server running, and are host and port right?",
    Fault.TIMEOUT: "is a firewall in the way, or the server overloaded?",
    Fault.UNREACHABLE: "is the network up, and is host right?",
    Fault.UNRESOLVED: "is the host name right?",
    Fault.STARTING: "try again in a moment",
    Fault.FULL: "raise max_connections, or lower connection_count",
    Fault.MISCONFIGURED: "check user, pass, name and ssl, and the server's pg_hba.conf",
    Fault.LOCAL: "this machine has no socket or port left, or does not permit it",
    Fault.ENDED: "the server ended the session; see its log",
}


def judge(
    settings: Settings,
    looks: list[Look],
    processes: int | None = None,
    threads: int | None = None,
    memory: int | None = None,
) -> CheckReport:
    """The whole report; `looks` are in the order of the endpoints, `memory` is what each server has, in bytes."""
    topology = _told(settings, looks)
    endpoints = _endpoints(settings, topology, looks)
    groups = tuple(_group(group, settings.groups[group.name], topology, looks) for group in topology.groups)
    size: Sizing | None = None
    if (processes, threads, memory) != (None, None, None):
        size = fit(settings, looks, processes or 1, threads, memory)
    problems = [f"{each.endpoint}: {each.error}" for each in endpoints if each.error]
    problems += [f"group {each.group}: {each.problem}" for each in groups if each.problem]
    for server in size.servers if size else ():
        problems += filter(None, [server.problem, server.memory_problem])
    if size and settings.type == "non-threaded" and (threads or 1) > 1:
        problems.append(f'type "non-threaded" is for one thread in each process, not {threads}: use "threaded"')
    return CheckReport(
        ok=not problems,
        model=settings.type,
        endpoints=endpoints,
        groups=groups,
        sizing=size,
        problems=tuple(problems),
        recommendations=_recommendations(settings),
    )


def _recommendations(settings: Settings) -> tuple[str, ...]:
    """Where nothing proves who answers: what would."""
    unproved: dict[str | None, list[str]] = {}
    readable = []
    for where in settings.db:
        mode, auth_required = proofs(where)
        if where.is_socket or _is_here(where.host) or mode == "verify-full":
            continue
        unproved.setdefault(mode, []).append(where.label)
        if not auth_required and "require_auth" in libpq_parameters():
            readable.append(where.label)

    def of(labels: list[str]) -> str:
        return "" if len(labels) == len(settings.db) else f"{', '.join(labels)}: "

    lines = [
        f"{of(labels)}ssl is {mode}, so nothing proves which program answers there, and that program gets the writes; "
        'ssl = "verify-full" with params.sslrootcert is the proof'
        for mode, labels in unproved.items()
    ]
    if readable:
        lines.append(
            f"{of(readable)}the program that answers there may ask for the password in plain text; "
            'params.require_auth = "scram-sha-256" keeps it from that'
        )
    return tuple(lines)


def _is_here(host: str) -> bool:
    """Whether this is an address of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _told(settings: Settings, looks: list[Look]) -> Topology:
    """The core of a pool that is never opened, told of what was seen."""
    topology = Pool(settings, open=False)._topology
    topology.open()
    now = monotonic()
    for endpoint, look in zip(topology.endpoints, looks, strict=True):
        if look.sighting is not None:
            topology.probed(endpoint, look.sighting, look.round_trip or 0.0, now)
        elif look.fault is not None:
            for _ in range(topology.fall):
                topology.probe_failed(endpoint, look.fault, look.error or "", now)
        for lane in topology.lanes(endpoint):
            entry = look.groups.get(lane.group.name)
            if entry is not None and entry.error:
                lane.setup_error = entry.error
    topology.reroute(now)
    return topology


def _endpoints(settings: Settings, topology: Topology, looks: list[Look]) -> tuple[EndpointReport, ...]:
    reports = []
    for where, believed, look in zip(settings.db, stats.endpoints(topology, monotonic()), looks, strict=True):
        chosen = dict(where.chosen)
        if look.sighting is None:
            advice = ADVICE.get(look.fault) if look.fault else None
            reports.append(
                EndpointReport(
                    endpoint=believed.endpoint,
                    reachable=False,
                    chosen=chosen,
                    sslmode=proofs(where)[0],
                    error=look.error,
                    advice=advice,
                )
            )
            continue
        facts = look.facts
        found = {name: getattr(facts, name) for name in facts.__struct_fields__} if facts else {}
        reports.append(
            EndpointReport(
                endpoint=believed.endpoint,
                reachable=True,
                chosen=chosen,
                sslmode=proofs(where)[0],
                role=believed.role,
                read_only=believed.read_only,
                fenced=believed.fenced,
                connect_time=look.connect_time,
                round_trip=look.round_trip,
                lag=believed.lag,
                **found,
            )
        )
    return tuple(reports)


def _group(group: Group, how: GroupSettings, topology: Topology, looks: list[Look]) -> GroupReport:
    tiers = tuple(tuple(lane.endpoint.label for lane in tier) for tier in routes.tiers(group))
    used = {label for tier in tiers for label in tier}
    not_used: dict[str, str] = {}
    notes = [f"{key} comes from {source}" for key, source in how.chosen.items()]
    for endpoint, look in zip(topology.endpoints, looks, strict=True):
        lane = next((lane for lane in group.lanes if lane.endpoint is endpoint), None)
        entry = look.groups.get(group.name)
        where: EndpointSettings = endpoint.settings  # type: ignore[assignment]
        if look.sighting is not None and look.sighting.pooled and where.pooler is None and lane is not None:
            notes.append(
                f"{endpoint.label}: a pooler is in between, taken for one in transaction mode; say pooler = "
                '"transaction" or "session" at the endpoint'
            )
        if entry is not None and entry.options_refused:
            notes.append(
                f"{endpoint.label} takes no startup options, so a pooler is in between: query_timeout and "
                'session_tmp_buffer hold in transactions only, unless the endpoint says pooler = "session"'
            )
        if endpoint.label not in used:
            reason = f"bears none of the group's tags: {', '.join(sorted(how.tags))}"
            not_used[endpoint.label] = reason if lane is None else _why_not(group, endpoint, lane.setup_error)
    problem = None
    if not group.lanes:
        problem = f"no endpoint bears one of its tags: {', '.join(sorted(how.tags))}"
    elif not tiers:
        problem = f"no endpoint that is {how.target_session_attrs}"
        if how.target_session_attrs in ("any", "prefer-standby", "prefer-primary"):
            problem = "no endpoint can be used"
    elif broken := [label for label, lane in _lanes(group) if lane.setup_error and lane.endpoint.fault is None]:
        problem = f"its sessions cannot be set up on {', '.join(broken)}"
    return GroupReport(
        group=group.name,
        target_session_attrs=how.target_session_attrs,
        autocommit=how.autocommit,
        connection_count=how.connection_count,
        total_count=how.total_count,
        tiers=tiers,
        spill=how.spill,
        not_used=not_used,
        notes=tuple(notes),
        problem=problem,
    )


def _lanes(group: Group) -> list[tuple[str, Lane]]:
    return [(lane.endpoint.label, lane) for lane in group.lanes]


def _why_not(group: Group, endpoint: Endpoint, setup_error: str | None) -> str:
    if endpoint.last_error is not None:
        return endpoint.last_error
    if endpoint.fenced_by is not None:
        return endpoint.fenced_by
    if setup_error is not None:
        return setup_error
    if endpoint.role is Role.PRIMARY and endpoint.report.read_only and group.settings.target_session_attrs != "standby":
        return "takes no writes"
    return f"is a {endpoint.role.value}"
