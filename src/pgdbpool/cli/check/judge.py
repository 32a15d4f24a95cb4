"""From what was found to a verdict: no I/O.

What was seen of each endpoint is told to the pool's own core, as the monitor would tell it. So the routes shown are
those that a pool would take, fencing included, and not a second opinion.
"""

from __future__ import annotations

from time import monotonic

from pgdbpool import sizing
from pgdbpool.config import GroupSettings, Settings
from pgdbpool.core import routes, stats
from pgdbpool.core.endpoint import Endpoint
from pgdbpool.core.evidence import Fault, Role
from pgdbpool.core.group import Group
from pgdbpool.core.lane import Lane
from pgdbpool.core.topology import Topology
from pgdbpool.sync import Pool

from .look import Facts, Look
from .report import CheckReport, EndpointReport, GroupReport, Instead, ServerSize, Sizing, ThreadsReport

ADVICE = {
    Fault.REFUSED: "is the server running, and are host and port right?",
    Fault.TIMEOUT: "is a firewall in the way, or the server overloaded?",
    Fault.UNRESOLVED: "is the host name right?",
    Fault.STARTING: "try again in a moment",
    Fault.FULL: "raise max_connections, or lower connection_count",
    Fault.MISCONFIGURED: "check user, pass, name and ssl, and the server's pg_hba.conf",
    Fault.ENDED: "the server ended the session; see its log",
}
MEANING = {
    "below": "threads wait when more than {connections} need one",
    "at": "no thread waits for another",
    "above": "{more} never used while one endpoint serves it",
}


def judge(settings: Settings, looks: list[Look], processes: int | None, threads: int | None) -> CheckReport:
    """The whole report; `looks` are in the order of the endpoints."""
    topology = _told(settings, looks)
    endpoints = _endpoints(topology, looks)
    groups = tuple(_group(group, settings.groups[group.name], topology, looks) for group in topology.groups)
    size = None
    if processes is not None or threads is not None:
        size = _sizing(settings, looks, processes or 1, threads)
    problems = [f"{each.endpoint}: {each.error}" for each in endpoints if each.error]
    problems += [f"group {each.group}: {each.problem}" for each in groups if each.problem]
    problems += [each.problem for each in size.servers if each.problem] if size else []
    if size and settings.type == "non-threaded" and (threads or 1) > 1:
        problems.append(f'type "non-threaded" is for one thread in each process, not {threads}: use "threaded"')
    return CheckReport(
        ok=not problems,
        model=settings.type,
        endpoints=endpoints,
        groups=groups,
        sizing=size,
        problems=tuple(problems),
    )


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


def _endpoints(topology: Topology, looks: list[Look]) -> tuple[EndpointReport, ...]:
    reports = []
    for believed, look in zip(stats.endpoints(topology, monotonic()), looks, strict=True):
        if look.sighting is None:
            advice = ADVICE.get(look.fault) if look.fault else None
            reports.append(EndpointReport(endpoint=believed.endpoint, reachable=False, error=look.error, advice=advice))
            continue
        facts = look.facts
        found = {name: getattr(facts, name) for name in facts.__struct_fields__} if facts else {}
        reports.append(
            EndpointReport(
                endpoint=believed.endpoint,
                reachable=True,
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
    not_used, notes = {}, []
    for endpoint, look in zip(topology.endpoints, looks, strict=True):
        lane = next((lane for lane in group.lanes if lane.endpoint is endpoint), None)
        entry = look.groups.get(group.name)
        if entry is not None and entry.options_refused:
            notes.append(f"{endpoint.label} takes no startup options: the pool will SET them, one round trip more each")
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


def _sizing(settings: Settings, looks: list[Look], processes: int, threads: int | None) -> Sizing:
    facts: dict[str, Facts] = {}
    for where, look in zip(settings.db, looks, strict=True):
        if look.facts is not None:
            facts.setdefault(where.label, look.facts)
    room = {server: found.admits - found.others for server, found in facts.items()}
    needs = sizing.needs(settings, processes)
    servers = tuple(_server(need, facts.get(need.server)) for need in needs)
    instead = None
    if any(each.problem for each in servers):
        instead = Instead(
            connection_count=sizing.largest(settings, processes, room),
            processes=sizing.most_processes(settings, room),
            servers={
                need.server: _remedy(need, facts[need.server])
                for need in needs
                if need.server in room and need.connections > room[need.server]
            },
        )
    return Sizing(
        processes=processes,
        threads=threads,
        fits=instead is None,
        servers=servers,
        instead=instead,
        against_threads=tuple(_meaning(each) for each in sizing.against_threads(settings, threads)) if threads else (),
    )


def _server(need: sizing.Need, facts: Facts | None) -> ServerSize:
    return ServerSize(
        server=need.server,
        groups={group: need.of(group) for group in dict.fromkeys(part.group for part in need.parts)},
        probes=need.probes,
        per_process=need.per_process,
        connections=need.connections,
        admits=facts.admits if facts else None,
        others=facts.others if facts else None,
        tmp_buffers=need.tmp_buffers(facts.temp_buffers // sizing.MB) * sizing.MB if facts else None,
        work_mem=(need.connections - need.processes * need.probes) * facts.work_mem if facts else None,
        problem=_too_small(need, facts) if facts else None,
    )


def _too_small(need: sizing.Need, facts: Facts) -> str | None:
    if need.connections <= facts.admits - facts.others:
        return None
    words = f"{need.server}: {processes(need.processes)} may open {need.connections} connections, it admits "
    if facts.others:
        return f"{words}{facts.admits} and others have {facts.others} of them"
    return f"{words}{facts.admits}"


def _remedy(need: sizing.Need, facts: Facts) -> tuple[str, int]:
    if facts.limit is not None:
        return facts.limit, need.connections + facts.others
    return "max_connections", need.connections + facts.others + facts.reserved


def processes(count: int) -> str:
    """``1 process``, ``4 processes``."""
    return "1 process" if count == 1 else f"{count} processes"


def _meaning(found: sizing.Threads) -> ThreadsReport:
    words = MEANING[found.verdict].format(
        connections=found.connections, threads=found.threads, more=found.connections - found.threads
    )
    return ThreadsReport(
        group=found.group,
        connections=found.connections,
        threads=found.threads,
        verdict=found.verdict,
        meaning=words,
    )
