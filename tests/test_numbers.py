"""Numbers that are true: of a group that is full, of `wait`, and of callers who got nothing, in every model."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import LIMIT, config, wait_for
from support import hold, put, start, stats
from test_stats import tail
from ways import Face, Way, way

from pgdbpool import PoolTimeout
from pgdbpool.integrations.prometheus import PoolCollector

__all__ = ["way"]

METRICS = Path(__file__).resolve().parents[1] / "docs" / "metrics.rst"


async def get(face: Face, group: str = "default", timeout: float = LIMIT) -> Any:
    """A connection of its own of the group."""
    found = face.pool.getconn(group, timeout=timeout)
    return await found if face.way == "asyncio" else found


async def give(face: Face, *conns: Any) -> None:
    for conn in conns:
        done = face.pool.putconn(conn)
        if face.way == "asyncio":
            await done


async def wait(face: Face, timeout: float) -> None:
    done = face.pool.wait(timeout)
    if face.way == "asyncio":
        await done


# -- a group that is full -----------------------------------------------------------------------------------------

RATIO = re.compile(
    r"sum by \((?P<by>[\w, ]+)\) \((?P<one>\w+)\{(?P<label>\w+)=\"(?P<word>\w+)\"\}\)\s*"
    r"/ on \((?P<on>[\w, ]+)\) (?P<other>\w+) > (?P<least>[\d.]+)"
)


def fires(alert: str, families: Iterable[Any]) -> set[str]:
    """The groups for which an alert of the manual fires, of the form: sum by (...) (a{b="c"}) / on (...) d > e."""
    text = METRICS.read_text()
    found = RATIO.search(text, text.index(f"alert: {alert}"))
    assert found is not None
    assert found["by"] == found["on"]
    names = [name.strip() for name in found["by"].split(",")]
    sums: dict[tuple[str, ...], float] = {}
    others: dict[tuple[str, ...], float] = {}
    for sample in (sample for family in families for sample in family.samples):
        key = tuple(sample.labels.get(name, "") for name in names)
        if sample.name == found["one"] and sample.labels[found["label"]] == found["word"]:
            sums[key] = sums.get(key, 0.0) + sample.value
        elif sample.name == found["other"]:
            others[key] = sample.value
    assert sums.keys() == others.keys()
    where = names.index("group")
    return {key[where] for key, most in others.items() if most and sums[key] / most > float(found["least"])}


BOUND = {
    "read": {"connection_count": 2, "target_session_attrs": "standby"},
    "write": {"connection_count": 2, "target_session_attrs": "primary"},
}


def test_the_alert_for_a_full_group_fires_where_it_is_bound_to_one_role(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes, groups=BOUND))
    pool.wait(LIMIT)
    wait_for(lambda: "unknown" not in {each.role for each in pool.endpoints()})
    assert fires("PoolNearlyFull", PoolCollector(pool).collect()) == set()
    held = hold(pool, 4, "read")
    waiting = [start(pool.getconn, "read") for _ in range(3)]
    wait_for(lambda: stats(pool, "read").waiting == 3)
    read = stats(pool, "read")
    assert (read.leased, read.limit, read.configured_limit) == (4, 4, 6)
    assert fires("PoolNearlyFull", PoolCollector(pool).collect()) == {"read"}
    put(pool, *held)
    put(pool, *(each.result(LIMIT) for each in waiting))
    assert fires("PoolNearlyFull", PoolCollector(pool).collect()) == set()


def test_the_limit_of_a_full_group_is_what_it_has_in_use(pg_cluster, way: Way):
    async def story(face: Face) -> None:
        if face.way in ("threaded", "handler"):  # in the others nothing changes while nobody waits
            wait_for(lambda: "unknown" not in {each.role for each in face.pool.endpoints()})
        held = []
        while face.stats("read").leased < face.stats("read").limit:
            held.append(await get(face, "read"))
        assert face.stats("read").leased == face.stats("read").limit < face.stats("read").configured_limit
        assert fires("PoolNearlyFull", PoolCollector(face.pool).collect()) == {"read"}
        await give(face, *held)

    way(story, config(*pg_cluster.nodes, groups=BOUND))


def test_the_limit_shrinks_with_a_server_that_is_down_and_its_last_role_is_known(pg_cluster, open_pool):
    groups = {"read": {"connection_count": 2}, "write": {"connection_count": 2, "target_session_attrs": "primary"}}
    pool = open_pool(config(*pg_cluster.nodes, groups=groups))
    wait_for(lambda: "unknown" not in {each.role for each in pool.endpoints()})
    assert stats(pool, "read").limit == 6
    primary = pg_cluster.primary
    label = f"{primary.host}:{primary.port}"
    primary.kill()
    wait_for(lambda: stats(pool, "read").limit == 4)
    assert (stats(pool, "write").limit, stats(pool, "write").configured_limit) == (0, 6)
    gone = next(each for each in pool.endpoints() if each.endpoint == label)
    assert (gone.health, gone.role, gone.last_role, gone.share) == ("down", "unknown", "primary", 0.0)
    assert "was primary" in repr(pool.stats())
    pg_cluster.heal()
    wait_for(lambda: stats(pool, "read").limit == 6)


def test_a_pause_is_no_change_of_the_limit(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3))
    pool.pause()
    assert stats(pool).limit == 3
    assert not stats(pool).endpoints[0].live


# -- wait ---------------------------------------------------------------------------------------------------------


def test_wait_has_one_deadline_for_all_connections_and_groups(pg_node, way: Way, monkeypatch):
    async def story(face: Face) -> None:
        inner, deadlines = face.pool._find, []

        async def listen(group: Any, slot: Any, began: float, timeout: float, **more: Any) -> Any:
            deadlines.append(began + timeout)
            return await inner(group, slot, began, timeout, **more)

        monkeypatch.setattr(face.pool, "_find", listen)
        await wait(face, LIMIT)
        assert len(deadlines) == 4, "one for each connection"
        assert len(set(deadlines)) == 1, "time that has gone by is counted once"

    groups = {name: {"connection_count": 2, "min_count": 2} for name in ("one", "two")}
    way(story, config(pg_node, groups=groups, monitor=False))


def test_a_wait_that_gives_up_blames_those_who_hold_and_not_itself(pg_node, way: Way):
    async def story(face: Face) -> None:
        held = [await get(face), await get(face)]
        await give(face, held.pop())
        with pytest.raises(PoolTimeout) as caught:
            await wait(face, 0.3)
        assert caught.value.reason == "exhausted"
        assert str(caught.value).count("; server ") == 1, f"there is one holder: {caught.value}"
        assert "in use" in str(caught.value)
        assert "test_numbers.py" in str(caught.value)
        await give(face, *held)

    way(story, config(pg_node, connection_count=2, min_count=2))


# -- why a caller got nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0.3, 1.0])
def test_a_slow_connect_is_the_reason_and_not_the_one_who_holds_a_connection(pg_node, way: Way, timeout):
    with pg_node.proxy() as proxy:

        async def story(face: Face) -> None:
            held = await get(face)
            proxy.stall()
            with pytest.raises(PoolTimeout) as caught:
                await get(face, timeout=timeout)
            words = str(caught.value)
            assert caught.value.reason == "connecting", words
            assert f"127.0.0.1:{proxy.port}" in words
            assert "1 of 2 connections in use, 0 others waiting" in words
            assert "held by" not in words
            proxy.resume()
            await give(face, held)

        way(story, config(proxy, connection_count=2, min_count=0, monitor=False))


def test_where_every_connection_is_in_use_that_is_the_reason(pg_node, way: Way):
    async def story(face: Face) -> None:
        held = [await get(face), await get(face)]
        with pytest.raises(PoolTimeout) as caught:
            await get(face, timeout=0.2)
        assert caught.value.reason == "exhausted"
        assert "test_numbers.py" in str(caught.value)
        await give(face, *held)

    way(story, config(pg_node, connection_count=2))


def test_callers_who_got_nothing_are_in_the_statistics_of_waits(pg_node, way: Way):
    async def story(face: Face) -> None:
        held = await get(face)
        before = face.stats().counters
        for _ in range(2):
            with pytest.raises(PoolTimeout):
                await get(face, timeout=0.3)
        await give(face, held)
        counted = face.stats().counters.since(before)
        assert (counted.timeouts, counted.waits, sum(counted.wait_times)) == (2, 2, 2)
        if face.way != "non-threaded":  # there it would wait for itself, and is told at once
            assert tail(counted.wait_times, 0.25) == 2
            assert counted.wait_time >= 0.6
        total = [
            sample.value
            for family in PoolCollector(face.pool).collect()
            for sample in family.samples
            if sample.name == "pgdbpool_wait_time_seconds_count" and sample.labels["endpoint"] == ""
        ]
        assert total == [2]

    way(story, config(pg_node, connection_count=1))
