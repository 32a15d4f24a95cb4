"""Which endpoints a group may use now, in which order: pure functions of what is believed.

::

    candidates  endpoints that bear one of the group's tags
    rank        (how well the role suits target_session_attrs, priority); one that does not suit drops out
    tiers       candidates of equal rank that are usable: not down, and something open or nothing in the way
    route       the first tier; with `spill` all of them

A primary that was overtaken by a promotion is *fenced*: of all endpoints of one `system_identifier` a primary counts
only if nobody has been seen on a higher timeline. Endpoints of different systems are independent of each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter

from .endpoint import Endpoint
from .evidence import Report, Role
from .group import Group
from .lane import Lane

# What cannot do with a server of any role.
PARTICULAR = frozenset({"primary", "standby", "read-write", "read-only"})


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


def suits(target: str, endpoint: Endpoint) -> int | None:
    """How well an endpoint suits a group, all that is known of it considered; as `fit`."""
    if endpoint.fenced_by is not None:
        return None
    rank = fit(target, endpoint.report)
    if endpoint.demoted and rank == 0:
        # It says primary, but an operator has stopped its writes.
        return {"primary": None, "prefer-primary": 2}.get(target, rank)
    return rank


def overtaken(endpoints: Iterable[Endpoint]) -> dict[Endpoint, Endpoint]:
    """Primaries that are no longer, each with the endpoint that shows it."""
    newest: dict[str, Endpoint] = {}
    known = [endpoint for endpoint in endpoints if endpoint.identity is not None]
    for endpoint in known:
        best = newest.setdefault(_system(endpoint), endpoint)
        if _timeline(endpoint) > _timeline(best):
            newest[_system(endpoint)] = endpoint
    return {
        endpoint: newest[_system(endpoint)]
        for endpoint in known
        if endpoint.role is Role.PRIMARY and _timeline(endpoint) < _timeline(newest[_system(endpoint)])
    }


def _system(endpoint: Endpoint) -> str:
    return endpoint.identity.system if endpoint.identity else ""


def _timeline(endpoint: Endpoint) -> float:
    return endpoint.identity.timeline if endpoint.identity else 0


def tiers(group: Group) -> list[list[Lane]]:
    """The usable lanes of a group, those equally preferred together."""
    ranked = sorted(
        (
            (rank, lane.endpoint.priority, lane)
            for lane in group.lanes
            if lane.usable and (rank := suits(group.settings.target_session_attrs, lane.endpoint)) is not None
        ),
        key=lambda each: each[:2],
    )
    return [[lane for *_, lane in tier] for _, tier in groupby(ranked, key=lambda each: each[:2])]


def refusal(group: Group) -> str | None:
    """The servers' words, where every endpoint of the group refuses us for a reason no retry will mend."""
    if any(lane.open or not lane.refused for lane in group.lanes):
        return None
    words = "; ".join(f"{lane.endpoint.label}: {lane.setup_error or lane.endpoint.last_error}" for lane in group.lanes)
    return f"group {group.name!r}: every endpoint refuses the connection: {words}"


def unreachable(group: Group) -> str:
    """Why a group can use no endpoint: a few words for each."""
    target = group.settings.target_session_attrs
    parts = []
    for endpoint in map(attrgetter("endpoint"), group.lanes):
        if endpoint.fenced_by is not None:
            words = endpoint.fenced_by
        elif suits(target, endpoint) is None and endpoint.fault is None:
            words = f"is a {endpoint.role.value}, not {target}"
            if endpoint.role is Role.PRIMARY and endpoint.report.read_only:
                words = f"takes no writes, not {target}"
        else:
            words = endpoint.last_error or "not tried yet"
        parts.append(f"{endpoint.label}: {words}")
    return "; ".join(parts)
