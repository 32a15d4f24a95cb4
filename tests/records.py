"""Records to add up, made by hand: only what a test is about differs from the rest."""

from typing import Any

from pgdbpool.core.stats import Counters, EndpointStats, GroupStats, LaneStats, PoolStats
from pgdbpool.publish import PoolRecord, Sample, Worker
from pgdbpool.publish.alive import Identity
from pgdbpool.publish.record import raw


def endpoint(label: str = "db1:5432", **more: Any) -> EndpointStats:
    usual: dict[str, Any] = {
        "endpoint": label,
        "role": "primary",
        "last_role": "primary",
        "read_only": False,
        "demoted": False,
        "fenced": None,
        "health": "up",
        "fault": None,
        "down_for": None,
        "answered": 0.5,
        "priority": 0,
        "weight": 1.0,
        "share": 1.0,
        "open": 2,
        "leased": 1,
        "opening": 0,
        "position": None,
        "lag": None,
        "probe_time": 0.001,
        "last_error": None,
        "last_error_age": None,
    }
    return EndpointStats(**usual | more)


def lane(label: str = "db1:5432", requests: int = 0, **more: Any) -> LaneStats:
    usual: dict[str, Any] = {
        "endpoint": label,
        "live": True,
        "limit": 10,
        "open": 2,
        "idle": 1,
        "leased": 1,
        "opening": 0,
        "closing": 0,
        "counters": Counters(requests=requests),
    }
    return LaneStats(**usual | more)


def group(name: str = "read", requests: int = 0, lanes: tuple[LaneStats, ...] | None = None, **more: Any) -> GroupStats:
    usual: dict[str, Any] = {
        "group": name,
        "limit": 10,
        "configured_limit": 10,
        "least": 1,
        "open": 2,
        "idle": 1,
        "leased": 1,
        "opening": 0,
        "closing": 0,
        "waiting": 0,
        "longest_wait": 0.0,
        "longest_use": 0.0,
        "paused": False,
        "counters": Counters(requests=requests),
        "endpoints": (lane(requests=requests),) if lanes is None else lanes,
    }
    return GroupStats(**usual | more)


def stats(*groups: GroupStats, endpoints: tuple[EndpointStats, ...] = ()) -> PoolStats:
    return PoolStats(
        name="pgdbpool-1",
        at=0.0,
        failovers=0,
        events={},
        groups={each.group: each for each in groups},
        endpoints=endpoints or (endpoint(),),
    )


def pool(
    *groups: GroupStats, endpoints: tuple[EndpointStats, ...] = (), samples: tuple[Sample, ...] = (), **more: Any
) -> PoolRecord:
    raw_samples = tuple(raw(sample) for sample in samples)
    return PoolRecord(kind="threaded", stats=stats(*groups, endpoints=endpoints), raw_samples=raw_samples, **more)


def worker(*pools: PoolRecord, pid: int = 1, at: float = 1000.0, **more: Any) -> Worker:
    usual: dict[str, Any] = {
        "name": "shop",
        "identity": Identity("boot", "namespace", pid, 1),
        "interval": 1.0,
        "by_itself": True,
    }
    return Worker(at=at, pools=pools, **usual | more)
