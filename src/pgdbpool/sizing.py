"""How many connections, and how much memory, servers must have for a configuration: arithmetic, nothing else.

The formula for one server::

    connections = processes x (sum over the groups of min(connection_count, total_count) + probes)

Every group that `tags` let onto an endpoint counts there, whatever role the endpoint has now: after a failover a
standby is the primary, and what read on the standbys reads there too. While roles change, the old and the new
connections may be open together. So the sum holds at every moment, and is not what is open on a quiet day: see
`Pool.stats()` for that.

`probes` are the connections of those who look whether a server lives. The monitor keeps one to each endpoint in each
process, and asks on a second one (up to `fall`) beside it when the first gives no answer in time. Without a monitor a
call that waits for an answer looks for itself, on one that it closes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from .config import EndpointSettings, GroupSettings, Settings

__all__ = ["Need", "Part", "Threads", "against_threads", "largest", "most_processes", "needs", "probes"]

MB = 1024 * 1024
_ENDLESS = 2**62


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one group may open on one server, in one process."""

    group: str
    connections: int
    tmp_buffer: int | None = None
    """MB that each session may use for temporary tables; None: what the server gives it (`temp_buffers`)."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What one server must admit."""

    server: str
    parts: tuple[Part, ...]
    probes: int
    """Connections of the monitor, in one process, at most."""
    processes: int

    @property
    def per_process(self) -> int:
        """Connections that one process may have open at the same time."""
        return sum(part.connections for part in self.parts) + self.probes

    @property
    def connections(self) -> int:
        """The same for all processes."""
        return self.processes * self.per_process

    def of(self, group: str) -> int:
        """Connections of one group, in one process."""
        return sum(part.connections for part in self.parts if part.group == group)

    def tmp_buffers(self, default: int) -> int:
        """MB of memory for temporary tables, if every session uses all it may; `default` MB where nothing is set."""
        return self.processes * sum(part.connections * (part.tmp_buffer or default) for part in self.parts)


class Threads(msgspec.Struct, frozen=True, kw_only=True):
    """How one group's connections to one endpoint compare with the threads of a process."""

    group: str
    connections: int
    threads: int
    verdict: str
    """`below`, `at` or `above`."""


def probes(settings: Settings) -> int:
    """Connections to one endpoint that serve to see whether it lives: at most so many, in one process."""
    if settings.type == "non-threaded" or settings.monitor is None:
        return 1
    return max(2, settings.monitor.fall)  # two while the one takes the place of the other


def needs(
    settings: Settings, processes: int = 1, connection_count: Mapping[str, int] | None = None
) -> tuple[Need, ...]:
    """What each server must admit for so many processes with these settings.

    `connection_count` stands in for that of the groups it names. Endpoints that share host and port are one server.
    Raises ValueError for fewer than one process.
    """
    if processes < 1:
        raise ValueError(f"processes: expected 1 or more, got {processes}")
    servers: dict[str, list[EndpointSettings]] = {}
    for endpoint in settings.db:
        servers.setdefault(endpoint.label, []).append(endpoint)
    counts = connection_count or {}
    return tuple(
        Need(
            server=server,
            parts=tuple(_parts(endpoints, settings.groups.values(), counts)),
            probes=probes(settings) * len(endpoints),
            processes=processes,
        )
        for server, endpoints in servers.items()
    )


def _parts(
    endpoints: Iterable[EndpointSettings], groups: Iterable[GroupSettings], counts: Mapping[str, int]
) -> Iterable[Part]:
    for group in groups:
        left = _ENDLESS if group.total_count is None else group.total_count
        for endpoint in endpoints:
            if group.tags and not group.tags & endpoint.tags:
                continue
            count = min(counts.get(group.name, group.connection_count), left)
            left -= count
            tmp = endpoint.session_tmp_buffer if group.session_tmp_buffer is None else group.session_tmp_buffer
            yield Part(group=group.name, connections=count, tmp_buffer=tmp)


def _most(group: GroupSettings) -> int:
    """What a group may open on one endpoint."""
    return group.connection_count if group.total_count is None else min(group.connection_count, group.total_count)


def _fits(all_needs: Iterable[Need], room: Mapping[str, int]) -> bool:
    return all(need.connections <= room[need.server] for need in all_needs if need.server in room)


def most_processes(settings: Settings, room: Mapping[str, int]) -> int:
    """How many processes the servers have room for; `room` says how many connections each admits, for one at least.

    0: not even for one process.
    """
    return min(max(0, room[need.server]) // need.per_process for need in needs(settings) if need.server in room)


def largest(settings: Settings, processes: int, room: Mapping[str, int]) -> dict[str, int] | None:
    """The largest `connection_count` of each group with which it fits, in about the proportion they are configured.

    None of them alone could be one larger, unless that is what is configured. None: it does not fit with 1 each.
    """
    wished = {name: _most(group) for name, group in settings.groups.items()}

    def fits(counts: Mapping[str, int]) -> bool:
        return _fits(needs(settings, processes, counts), room)

    def scaled(share: float) -> dict[str, int]:
        return {name: max(1, int(count * share)) for name, count in wished.items()}

    if not fits(scaled(0.0)):
        return None
    low, high = 0.0, 1.0
    if fits(wished):
        return wished
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(scaled(middle)) else (low, middle)
    counts = scaled(low)
    # What rounding down has left over goes to those that lost most of what they wished for.
    open_to = [name for name in wished if counts[name] < wished[name]]
    while open_to:
        name = min(open_to, key=lambda name: counts[name] / wished[name])
        if counts[name] < wished[name] and fits(counts | {name: counts[name] + 1}):
            counts[name] += 1
        else:
            open_to.remove(name)
    return counts


def against_threads(settings: Settings, threads: int) -> tuple[Threads, ...]:
    """For each group: has it fewer connections on one endpoint than a process has threads, as many, or more?

    A thread normally holds one connection of a group at a time. Below, threads wait for each other when all are at
    work; above, the difference is never used while one endpoint serves the group.
    """
    found = []
    for group in settings.groups.values():
        count = _most(group)
        verdict = "below" if count < threads else "at" if count == threads else "above"
        found.append(Threads(group=group.name, connections=count, threads=threads, verdict=verdict))
    return tuple(found)
