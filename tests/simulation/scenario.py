"""What a seed decides: the settings of the pool, its servers, its callers, and how hostile the world is.

Small numbers are preferred, since the interesting moments come when something is used up.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import msgspec

from pgdbpool.config import EndpointSettings, GroupSettings
from pgdbpool.core.evidence import Report, Role
from pgdbpool.core.server import Server

from .servers import PRIMARY, STANDBY, Truth

LATENCIES = [50e-6, 0.2e-3, 1e-3, 5e-3, 50e-3]
TARGETS = ["any", "primary", "primary", "read-write", "read-only", "standby", "prefer-standby", "prefer-primary"]
POLL_AFTER = {"auto": 0.5, "off": float("inf"), "ping": 0.0}


def rank(target: str, report: Report) -> int | None:
    """How well a server suits a group; None: not at all. Written apart from core, from the manual."""
    if target == "any":
        return 0
    if report.role is Role.UNKNOWN:
        return 1
    standby = report.role is Role.STANDBY
    return {
        "primary": None if standby else 0,
        "standby": 0 if standby else None,
        "read-write": None if standby or report.read_only else 0,
        "read-only": 0 if standby or report.read_only else None,
        "prefer-standby": 0 if standby else 2,
        "prefer-primary": 2 if standby else 0,
    }[target]


def place_of(target: str, server: Server) -> int | None:
    """The same for what is believed of a server, fencing included."""
    if server.fenced_by is not None:
        return None
    place = rank(target, server.report)
    if server.demoted and place == 0:  # it says that it is a primary, and takes no writes any more
        return {"primary": None, "prefer-primary": 2}.get(target, place)
    return place


@dataclass(frozen=True)
class CallerPlan:
    """How one caller behaves."""

    groups: tuple[int, ...]  # indices, one drawn for each checkout
    patience: tuple[float, ...]
    think: float  # s, on average
    wave: float  # s between two moments at which callers come; 0: they come at any time
    use: float
    cancelled: float  # share of checkouts
    leaves_open: float  # share of checkouts that come back within a transaction
    insists: int  # times that it comes again at once when it got nothing in time
    untimely: bool  # comes, if it rests, when another loses the processor inside core
    nested: int = 1  # checkouts at a time


@dataclass(frozen=True)
class Scenario:
    threaded: bool
    listens: bool
    monitored: bool
    preemption: float
    places: tuple[EndpointSettings, ...]
    latencies: tuple[float, ...]
    truths: tuple[Truth, ...]
    groups: tuple[GroupSettings, ...]
    resets: tuple[bool, ...]  # which groups have a `reset` callable
    callers: tuple[CallerPlan, ...]
    trouble: float  # s of it
    strikes: int
    owner: bool  # resizes, pauses, drains
    names_move: bool  # and there may be servers to which none of them leads at first
    crowded: bool  # many who wait long for what others keep long, with places free


def draw(random: Random) -> Scenario:
    choice = random.choice
    threaded = random.random() < 0.7
    places = _places(random)
    crowded = threaded and random.random() < 0.15
    if crowded:
        places = tuple(msgspec.structs.replace(place, priority=0, connect_timeout=10.0) for place in places)
    trouble = choice([2.0, 5.0, 10.0, 30.0])
    groups = _groups(random, places)
    if crowded:
        groups = tuple(_roomy(random, group) for group in groups)
    names_move = not crowded and random.random() < 0.5
    count = len(places) + (choice([0, 1, 1, 2]) if names_move else 0)
    return Scenario(
        threaded=threaded,
        listens=random.random() < 0.85,
        monitored=threaded and random.random() < 0.5,
        preemption=choice([0.0, 0.05, 0.3, 0.7]) if threaded else 0.0,
        places=places,
        latencies=tuple(choice(LATENCIES) for _ in range(count)),
        truths=_truths(random, count),
        groups=groups,
        resets=tuple(random.random() < 0.1 for _ in groups),
        callers=_crowd(random, len(groups), trouble) if crowded else _callers(random, len(groups), threaded, trouble),
        trouble=trouble,
        strikes=choice([0, 1, 2, 4, 8]),
        owner=not crowded and random.random() < 0.3,
        names_move=names_move,
        crowded=crowded,
    )


def attached(group: GroupSettings, place: EndpointSettings) -> bool:
    """Whether a group may use an endpoint, as far as tags say."""
    return not group.tags or bool(group.tags & place.tags)


def _places(random: Random) -> tuple[EndpointSettings, ...]:
    places = []
    for index in range(random.choice([1, 2, 2, 3, 3, 4])):
        tags = frozenset({"zone", "archive"} if random.random() < 0.1 else {"zone"} if random.random() < 0.6 else ())
        places.append(
            EndpointSettings(
                host=f"db{index + 1}",
                ssl="disable",
                keepalives=False,
                priority=random.choice([0, 0, 0, 1]),
                weight=random.choice([1.0, 1.0, 3.0]),
                tags=tags,
                connect_timeout=random.choice([0.3, 2.0, 10.0]),
            )
        )
    return tuple(places)


def _truths(random: Random, count: int) -> tuple[Truth, ...]:
    """A cluster; sometimes two of them, sometimes one without a primary."""
    truths = [Truth(STANDBY, 1, 1) for _ in range(count)]
    if random.random() < 0.95:
        truths[random.randrange(count)] = Truth(PRIMARY, 1, 1)
    if random.random() < 0.1:
        truths[random.randrange(count)] = Truth(PRIMARY, 2, 1)
    return tuple(truths)


def _groups(random: Random, places: tuple[EndpointSettings, ...]) -> tuple[GroupSettings, ...]:
    choice = random.choice
    groups = []
    for index in range(choice([1, 1, 2, 2, 3, 4])):
        limit = choice([1, 1, 2, 3, 4])
        total = choice([None, None, 1, 2, 4])
        warm = choice([0, 1, 1, 2])
        tags = frozenset(choice([(), (), (), ("zone",), ("archive",)]))
        if not any(tags & place.tags for place in places):
            tags = frozenset()
        groups.append(
            GroupSettings(
                name=f"g{index + 1}",
                connection_count=limit,
                total_count=total,
                min_count=min(warm, limit, total or warm),
                max_waiting=choice([0, 0, 0, 1, 3]),
                max_lifetime=choice([0.0, 0.0, 4.0, 3600.0]),
                max_idle=choice([0.0, 2.0, 600.0]),
                target_session_attrs=choice(TARGETS),
                spill=random.random() < 0.25,
                balance=choice(["least-busy", "least-busy", "round-robin", "latency", "random"]),
                autocommit=choice([True, False]),
                reconnect_timeout=choice([0.0, 1.0, 300.0]),
                query_timeout=choice([None, None, 200, 3000]),
                tags=tags,
                check=choice(["auto", "auto", "auto", "auto", "off", "ping"]),
            )
        )
    return tuple(groups)


def _callers(random: Random, groups: int, threaded: bool, trouble: float) -> tuple[CallerPlan, ...]:
    choice = random.choice
    count = choice([1, 2, 4, 8]) if threaded else 1
    visits = choice([20, 60, 120])  # of all of them, about
    wave = choice([0.0, 0.0, 0.01, 0.1, 1.0])
    callers = []
    for _ in range(count):
        favourites = tuple(random.randrange(groups) for _ in range(choice([1, 2, 4])))
        cycle = trouble * count / visits
        use = cycle * choice([0.1, 0.5, 0.9])
        callers.append(
            CallerPlan(
                groups=favourites,
                patience=tuple(choice([0.0, 0.02, 0.3, 1.0, 5.0]) for _ in range(2)),
                think=cycle - use,
                wave=wave,
                use=use,
                cancelled=choice([0.0, 0.0, 0.1, 0.3]),
                leaves_open=choice([0.0, 0.1, 0.5]),
                insists=choice([0, 0, 1, 3]),
                untimely=threaded and random.random() < 0.5,
                nested=1 if threaded else choice([1, 1, 2, 3]),
            )
        )
    return tuple(callers)


def _roomy(random: Random, group: GroupSettings) -> GroupSettings:
    """Whoever has to wait need not, but for what is wrong with the servers."""
    total = random.choice([None, None, 4])
    size = random.choice([3, 4])
    return msgspec.structs.replace(
        group, connection_count=size, total_count=total, min_count=1, max_waiting=0, target_session_attrs="any"
    )


def _crowd(random: Random, groups: int, trouble: float) -> tuple[CallerPlan, ...]:
    """Callers that keep what they have for a good part of the time, so that others need a new connection."""
    plan = CallerPlan(
        groups=tuple(range(groups)),
        patience=(5.0, 20.0),
        think=trouble / 8,
        wave=0.0,
        use=trouble * random.choice([0.1, 0.3]),
        cancelled=0.0,
        leaves_open=0.0,
        insists=1,
        untimely=False,
    )
    return (plan,) * random.choice([4, 8])
