"""The report as tables."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from pgdbpool.cli.output import mark, milliseconds, size, table, word
from pgdbpool.wording import connections

from .fit import count_processes
from .report import CheckReport, EndpointReport, GroupReport, Instead, Sizing


def show(report: CheckReport, console: Console) -> None:
    """Write all of it."""
    _endpoints(report.endpoints, console)
    _groups(report.groups, console)
    if report.sizing is not None:
        _sizing(report.sizing, console)
        if report.sizing.threads is not None:
            _threads(report.sizing, console)
    _verdict(report, console)
    for words in report.recommendations:
        console.print(Text(f"Safer: {words}", "dim"))


def _endpoints(endpoints: tuple[EndpointReport, ...], console: Console) -> None:
    names = ("endpoint", "role", "version", "round trip", "lag", "TLS", "in use", "of")
    shown = table(*names, right=("round trip", "lag", "in use", "of"))
    for each in endpoints:
        if not each.reachable:
            shown.add_row(each.endpoint, word("down"), *[""] * 6)
            continue
        role = word(each.role)
        if each.read_only and each.role == "primary":
            role.append(" read only", "yellow")
        if each.fenced:
            role.append(" fenced", "bold red")
        shown.add_row(
            each.endpoint,
            role,
            each.version or "",
            milliseconds(each.round_trip),
            size(each.lag),
            each.tls or "off",
            "" if each.used is None else str(each.used),
            "" if each.admits is None else str(each.admits),
        )
    console.print(shown)
    for each in endpoints:
        if each.chosen:
            words = ", ".join(f"{key} from {source}" for key, source in each.chosen.items())
            console.print(Text(f"{each.endpoint}: {words}", "dim"))


def _groups(groups: tuple[GroupReport, ...], console: Console) -> None:
    shown = table("", "group", "wants", "connections", "goes to", right=("connections",))
    for each in groups:
        count = str(each.connection_count)
        if each.total_count is not None:
            count += f", {each.total_count} in all"
        name = Text(each.group, "bold")
        shown.add_row(mark(each.problem is None), name, each.target_session_attrs, count, _way(each))
    console.print(shown)


def _way(group: GroupReport) -> Text:
    """The tiers, in order, and why the rest is left out."""
    way = Text()
    for number, tier in enumerate(group.tiers):
        if number:
            way.append("\nif all are busy: " if group.spill else "\nelse: ", "dim")
        way.append(", ".join(tier))
    if not group.tiers:
        way.append("nowhere", "bold red")
    for endpoint, reason in group.not_used.items():
        if group.tiers and reason.startswith("is a "):
            continue  # as it should be
        way.append(f"\nnot {endpoint}: {reason}", "dim")
    for note in group.notes:
        way.append(f"\n{note}", "dim")
    return way


def _sizing(sizing: Sizing, console: Console) -> None:
    console.print(Text(f"Sizing for {count_processes(sizing.processes)}", "bold"))
    ways: dict[str, list[str]] = {}
    for server in sizing.servers:
        parts = [f"{name} {count}" for name, count in (*server.groups.items(), ("monitor", server.probes))]
        ways.setdefault(f"{connections(server.per_process)}: {' + '.join(parts)}", []).append(server.server)
    for way, servers in ways.items():
        where = "each server" if len(ways) == 1 else ", ".join(servers)
        console.print(Text(f"A process opens to {where} at most {way}"))
    names = ("connections", "admits", "others", "temp tables", "sorts")
    shown = table("", "server", *names, right=names)
    for server in sizing.servers:
        shown.add_row(
            mark(server.problem is None and server.memory_problem is None),
            server.server,
            Text(str(server.connections), "bold"),
            "?" if server.admits is None else str(server.admits),
            "?" if server.others is None else str(server.others),
            size(server.tmp_buffers) or "?",
            size(server.work_mem) or "?",
        )
    console.print(shown)
    if any(server.admits is None for server in sizing.servers):
        console.print(Text("?: the server has not told how many connections it admits", "yellow"))
    console.print(Text("temp tables: each session fills its temp_buffers; sorts: one of work_mem in each", "dim"))


def _threads(sizing: Sizing, console: Console) -> None:
    shown = table("group", "connections", "threads", "", "", right=("connections", "threads"))
    for each in sizing.against_threads:
        style = {"below": "yellow", "at": "green", "above": "yellow"}[each.verdict]
        shown.add_row(
            Text(each.group, "bold"),
            str(each.connections),
            str(each.threads),
            Text(each.verdict, style),
            Text(each.meaning, "dim"),
        )
    console.print(shown)


def _verdict(report: CheckReport, console: Console) -> None:
    if report.ok:
        console.print(mark(True), "All is well.")
        return
    advice = {each.error: each.advice for each in report.endpoints if each.error and each.advice}
    for problem in report.problems:
        console.print(mark(False), Text(problem, "bold"))
        for error, words in advice.items():
            if problem.endswith(f": {error}"):
                console.print(Text(f"  {words}", "dim"))
    for line in remedies(report.sizing) if report.sizing is not None else ():
        console.print(Text(f"  {line}", "dim"))


def remedies(sizing: Sizing) -> list[str]:
    """What would fit, one line for each way."""
    lines = _for_connections(sizing.instead, sizing.processes) if sizing.instead is not None else []
    if sizing.session_tmp_buffer:
        lines.append(f"fits in memory with session_tmp_buffer {sizing.session_tmp_buffer} for all groups")
    elif sizing.session_tmp_buffer == 0:
        lines.append("no session_tmp_buffer fits in memory: fewer connections or processes, or less work_mem")
    return lines


def _for_connections(instead: Instead, wished: int) -> list[str]:
    lines = []
    if instead.connection_count is not None:
        counts = ", ".join(f"{name} {count}" for name, count in instead.connection_count.items())
        lines.append(f"fits with connection_count: {counts}")
    else:
        lines.append(f"{count_processes(wished)} do not fit even with connection_count 1 for each group")
    if instead.processes:
        lines.append(f"or with at most {count_processes(instead.processes)}")
    by_name: dict[str, dict[str, int]] = {}
    for server, (name, value) in instead.servers.items():
        by_name.setdefault(name, {})[server] = value
    for name, values in by_name.items():
        lines.append(f"or with {name} {max(values.values())} on {', '.join(values)}")
    return lines
