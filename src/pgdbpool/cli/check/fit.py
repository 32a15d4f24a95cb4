"""Do the servers have room for so many processes, and if not, what would fit? `pgdbpool.sizing` does the sums."""

from __future__ import annotations

from typing import Any

from pgdbpool import sizing
from pgdbpool.cli.output import size
from pgdbpool.config import Settings
from pgdbpool.wording import connections

from .look import Facts, Look
from .report import Instead, ServerSize, Sizing, ThreadsReport

MEANING = {
    "below": "threads wait when more than {connections} need one",
    "at": "no thread waits for another",
    "above": "{more} never used while one endpoint serves it",
}


def fit(settings: Settings, looks: list[Look], processes: int, threads: int | None, memory: int | None) -> Sizing:
    """The sizes, and whether they fit. `memory` is what each server has, in bytes; None: not known."""
    facts: dict[str, Facts] = {}
    for where, look in zip(settings.db, looks, strict=True):
        if look.facts is not None:
            facts.setdefault(where.label, look.facts)
    needs = sizing.needs(settings, processes)
    servers = tuple(_server(need, facts.get(need.server), memory) for need in needs)
    return Sizing(
        processes=processes,
        threads=threads,
        memory=memory,
        fits=not any(each.problem or each.memory_problem for each in servers),
        servers=servers,
        instead=_instead(settings, needs, facts) if any(each.problem for each in servers) else None,
        session_tmp_buffer=_tmp_buffer(needs, facts, memory),
        against_threads=tuple(_meaning(each) for each in sizing.against_threads(settings, threads)) if threads else (),
    )


def _server(need: sizing.Need, facts: Facts | None, memory: int | None) -> ServerSize:
    groups = {group: need.of(group) for group in dict.fromkeys(part.group for part in need.parts)}
    known: dict[str, Any] = {}
    if facts is not None:
        tmp_buffers, work_mem = _memory(need, facts)
        known = {
            "admits": facts.admits,
            "others": facts.others,
            "shared_buffers": facts.shared_buffers,
            "tmp_buffers": tmp_buffers,
            "work_mem": work_mem,
            "problem": _too_few(need, facts),
            "memory_problem": _too_little(need, facts, memory) if memory is not None else None,
        }
    return ServerSize(
        server=need.server,
        groups=groups,
        probes=need.probes,
        per_process=need.per_process,
        connections=need.connections,
        **known,
    )


# -- connections ------------------------------------------------------------------------------------------------


def _too_few(need: sizing.Need, facts: Facts) -> str | None:
    if need.connections <= facts.admits - facts.others:
        return None
    words = f"{need.server}: {count_processes(need.processes)} may open {connections(need.connections)}, it admits "
    if facts.others:
        return f"{words}{facts.admits} and others have {facts.others} of them"
    return f"{words}{facts.admits}"


def _instead(settings: Settings, needs: tuple[sizing.Need, ...], facts: dict[str, Facts]) -> Instead:
    room = {server: found.admits - found.others for server, found in facts.items()}
    return Instead(
        connection_count=sizing.largest(settings, needs[0].processes, room),
        processes=sizing.most_processes(settings, room),
        servers={
            need.server: _setting(need, facts[need.server])
            for need in needs
            if need.server in room and need.connections > room[need.server]
        },
    )


def _setting(need: sizing.Need, facts: Facts) -> tuple[str, int]:
    if facts.limit is not None:
        return facts.limit, need.connections + facts.others
    return "max_connections", need.connections + facts.others + facts.reserved


# -- memory -----------------------------------------------------------------------------------------------------


def _memory(need: sizing.Need, facts: Facts) -> tuple[int, int]:
    """Bytes for temporary tables, and for one sort in each session."""
    sessions = need.connections - need.processes * need.probes
    return need.tmp_buffers(facts.temp_buffers // sizing.MB) * sizing.MB, sessions * facts.work_mem


def _too_little(need: sizing.Need, facts: Facts, memory: int) -> str | None:
    tmp_buffers, work_mem = _memory(need, facts)
    total = facts.shared_buffers + tmp_buffers + work_mem
    if total <= memory:
        return None
    parts = f"shared_buffers {size(facts.shared_buffers)}, temp tables {size(tmp_buffers)}, sorts {size(work_mem)}"
    return f"{need.server}: {count_processes(need.processes)} may take {size(total)} ({parts}), it has {size(memory)}"


def _tmp_buffer(needs: tuple[sizing.Need, ...], facts: dict[str, Facts], memory: int | None) -> int | None:
    """The largest that fits, in MB, for all groups alike; 0: not even 1 does. None: what is configured does."""
    found = []
    for need in needs:
        known = facts.get(need.server)
        if known is None or memory is None or _too_little(need, known, memory) is None:
            continue
        sessions = need.connections - need.processes * need.probes
        found.append(max(0, memory - known.shared_buffers - _memory(need, known)[1]) // sessions // sizing.MB)
    return min(found, default=None)


# -- words ------------------------------------------------------------------------------------------------------


def count_processes(count: int) -> str:
    """``1 process``, ``4 processes``."""
    return "1 process" if count == 1 else f"{count} processes"


def _meaning(found: sizing.Threads) -> ThreadsReport:
    words = MEANING[found.verdict].format(connections=found.connections, more=found.connections - found.threads)
    return ThreadsReport(
        group=found.group,
        connections=found.connections,
        threads=found.threads,
        verdict=found.verdict,
        meaning=words,
    )
