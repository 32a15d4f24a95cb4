"""Which endpoints a group may use now, in which order: pure functions of what is believed.

::

    candidates  endpoints that bear one of the group's tags
    rank        (how well the role suits target_session_attrs, priority); one that does not suit drops out, unless
                sessions are open there with a server that does; one that is mute behind a pooler comes last
    tiers       candidates of equal rank that are usable: not down, and something open or nothing in the way
    route       the first tier; with `spill` all of them

A primary that was overtaken by a promotion is *fenced*: of all servers of one `system_identifier` a primary counts
only if nobody has been seen on a higher timeline, and a name that has led to a primary never leads back to one of a
lower timeline. Different systems are independent of each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from .endpoint import Endpoint
from .evidence import Role
from .group import PARTED, Group
from .lane import Lane
from .server import Server, suits


def overtaken(endpoints: Iterable[Endpoint]) -> dict[Server, Endpoint]:
    """Primaries of the past, each with the endpoint that shows it."""
    endpoints = list(endpoints)
    newest: dict[str, tuple[int, Endpoint]] = {}
    for endpoint in endpoints:
        for server in endpoint.servers:
            if server.identity is not None:
                system, timeline, _ = server.identity
                if timeline > newest.get(system, (-1, endpoint))[0]:
                    newest[system] = timeline, endpoint
    found = {}
    for endpoint in endpoints:
        for server in endpoint.servers:
            if server.identity is None or server.report.role is not Role.PRIMARY:
                continue
            system, timeline, _ = server.identity
            if timeline < newest[system][0]:
                found[server] = newest[system][1]
            elif timeline < endpoint.newest.get(system, timeline):
                found[server] = endpoint
    return found


def is_past(server: Server, endpoints: Iterable[Endpoint]) -> bool:
    """Whether a server that no endpoint is known to lead to is a primary of the past."""
    if server.identity is None or server.report.role is not Role.PRIMARY:
        return False
    system, timeline, _ = server.identity
    for endpoint in endpoints:
        if endpoint.newest.get(system, 0) > timeline:
            return True
        known = [each.identity for each in endpoint.servers if each.identity is not None]
        if any(each.system == system and each.timeline > timeline for each in known):
            return True
    return False


def standing(lane: Lane) -> int | None:
    """How well a lane suits its group: by what a new connection would reach, else by the sessions that are open."""
    target = lane.group.settings.target_session_attrs
    rank = suits(target, lane.found)
    if rank is not None or not lane.open:
        return rank
    staying = (slot for slot in lane.slots if slot.generation == lane.generation and slot.expires not in PARTED)
    ranks = [suits(target, server) for server in {slot.server for slot in staying}]
    return min((rank for rank in ranks if rank is not None), default=None)


def tiers(group: Group) -> list[list[Lane]]:
    """The usable lanes of a group, those equally preferred together."""
    ranked = sorted(
        (
            (lane.endpoint.mute, rank, lane.endpoint.priority, lane)
            for lane in group.lanes
            if lane.usable and (rank := standing(lane)) is not None
        ),
        key=lambda each: each[:3],
    )
    return [[lane for *_, lane in tier] for _, tier in groupby(ranked, key=lambda each: each[:3])]


def refusal(group: Group) -> str | None:
    """The words of the servers or of libpq, if no endpoint of the group lets us in and no retry will mend that."""
    if any(lane.open or not lane.refused for lane in group.lanes):
        return None
    what = "made ready" if all(lane.setup_error for lane in group.lanes) else "opened"
    said: dict[str | None, list[str]] = {}
    for lane in group.lanes:
        said.setdefault(lane.setup_error or lane.endpoint.last_error, []).append(lane.endpoint.label)
    words = "; ".join(f"{', '.join(labels)}: {error}" for error, labels in said.items())
    return f"group {group.name!r}: no connection can be {what}: {words}"


def _last(server: Server, endpoint: Endpoint) -> bool:
    """Whether a name has last led there: to a primary of the past, which is not believed to be its place for that."""
    return server.fenced_by is not None and server.seen > endpoint.server.seen


def unreachable(group: Group) -> str:
    """Why a group can use no endpoint: a few words for each."""
    target = group.settings.target_session_attrs
    parts = []
    for lane in group.lanes:
        endpoint = lane.endpoint
        past = endpoint.fenced_by or next(
            (server.fenced_by for server in endpoint.others if _last(server, endpoint)), None
        )
        if past is not None:
            words = past
        elif suits(target, endpoint.server) is None and endpoint.fault is None:
            words = f"is a {endpoint.role.value}, not {target}"
            if endpoint.role is Role.PRIMARY and endpoint.report.read_only:
                words = f"takes no writes, not {target}"
        else:
            words = endpoint.last_error or ("no answer yet" if lane.opening else "not tried yet")
        parts.append(f"{endpoint.label}: {words}")
    return "; ".join(parts)
