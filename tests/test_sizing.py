"""The sums: what servers must have for a configuration. And that a real pool keeps to them."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import config, wait_for
from hypothesis import given
from hypothesis import strategies as st
from support import hold, put

from pgdbpool import sizing
from pgdbpool.config import Settings, load
from pgdbpool.renewal import CALM, LIFE, URGENT, Renewal
from pgdbpool.testing import Cluster


def made(groups: dict[str, Any], hosts: int = 1, **more: Any) -> Settings:
    db = [{"host": f"db{number}", "name": "app", "user": "app"} for number in range(1, hosts + 1)]
    return load({"db": db, "groups": groups} | more)


def test_a_process_needs_all_its_groups_and_the_monitor() -> None:
    settings = made({"read": {"connection_count": 15}, "write": {"connection_count": 10}})
    (need,) = sizing.needs(settings, 4)
    assert (need.server, need.of("read"), need.of("write"), need.probes) == ("db1:5432", 15, 10, 2)
    assert (need.per_process, need.connections) == (27, 108)


def test_every_endpoint_must_admit_every_group_since_roles_change() -> None:
    groups = {"read": {"target_session_attrs": "standby"}, "write": {"target_session_attrs": "primary"}}
    assert [need.per_process for need in sizing.needs(made(groups, hosts=3))] == [22, 22, 22]


def test_a_group_stays_where_its_tags_let_it() -> None:
    settings = load(
        {
            "db": [
                {"host": "db1", "name": "app", "user": "app", "tags": ["web"]},
                {"host": "db2", "name": "app", "user": "app", "tags": ["analytics"]},
            ],
            "groups": {"web": {"tags": ["web"]}, "reports": {"tags": ["analytics"], "connection_count": 2}, "any": {}},
        }
    )
    one, two = sizing.needs(settings)
    assert {part.group: part.connections for part in one.parts} == {"web": 10, "any": 10}
    assert {part.group: part.connections for part in two.parts} == {"reports": 2, "any": 10}


def test_total_count_limits_what_one_server_gets() -> None:
    assert [need.of("g") for need in sizing.needs(made({"g": {"total_count": 4}}, hosts=2))] == [4, 4]


def test_two_databases_of_one_server_are_one_server() -> None:
    db = [{"host": "db1", "name": name, "user": "app"} for name in ("one", "two")]
    (need,) = sizing.needs(load({"db": db, "groups": {"g": {}}}))
    assert (need.of("g"), need.probes) == (20, 4)
    (need,) = sizing.needs(load({"db": db, "groups": {"g": {"total_count": 12}}}))
    assert need.of("g") == 12


@pytest.mark.parametrize(
    ("more", "probes"),
    [({}, 2), ({"monitor": {"fall": 4}}, 4), ({"monitor": False}, 1), ({"type": "non-threaded"}, 1)],
    ids=["monitor", "fall", "no monitor", "non-threaded"],
)
def test_those_who_look_whether_a_server_lives_count(more: dict[str, Any], probes: int) -> None:
    assert sizing.probes(made({"g": {}}, **more)) == probes


def made_by_a_monitor(seconds: float, **more: bool) -> list[float]:
    """When it makes new connections to one endpoint, each of them as soon as it may."""
    renewal, now, times = Renewal(Random(1).random), 0.0, list[float]()
    renewal.renewed(now, LIFE)
    while (now := max(now, renewal.due(now, **more))) < seconds:
        renewal.began(now)
        renewal.renewed(now, LIFE)
        times.append(now)
    return times


def a_second(times: list[float], first: float, last: float) -> float:
    return sum(first <= each < last for each in times) / (last - first)


def test_the_new_connections_that_the_sizing_page_counts_are_those_that_a_monitor_makes() -> None:
    page = " ".join((Path(__file__).parent.parent / "docs" / "sizing.rst").read_text().split())
    well = made_by_a_monitor(100_000, doubted=False, urgent=False)
    assert a_second(well, 0, 100_000) == pytest.approx(0.022, abs=0.001)
    assert "of 60 s make some 22 a second" in page
    waiting = made_by_a_monitor(300, doubted=True, urgent=True)
    assert a_second(waiting, 0, 2) == pytest.approx(10, abs=1)
    assert a_second(waiting, 9, 11) == pytest.approx(2, abs=0.5)
    assert a_second(waiting, 18, 300) == pytest.approx(1 / URGENT, abs=0.05)
    assert f"10,000 a second in the first 2 s, 2,000 after 10 s, and {1000 / URGENT:,.0f} from 18 s on" in page
    calm = made_by_a_monitor(3600, doubted=True, urgent=False)
    assert a_second(calm, 60, 3600) == pytest.approx(1 / CALM, abs=0.005)
    assert f"one in 15 s: {1000 / CALM:.0f} a second" in page


def test_memory_is_connections_times_buffer_times_processes() -> None:
    settings = made({"read": {"connection_count": 5, "session_tmp_buffer": 64}, "write": {"connection_count": 3}})
    (need,) = sizing.needs(settings, 4)
    assert need.tmp_buffers(8) == 4 * (5 * 64 + 3 * 8)


def test_fewer_than_one_process_is_an_error() -> None:
    with pytest.raises(ValueError, match="processes: expected 1 or more, got 0"):
        sizing.needs(made({"g": {}}), 0)


def test_the_largest_connection_count_uses_all_the_room_there_is() -> None:
    assert sizing.largest(made({"g": {"connection_count": 50}}), 4, {"db1:5432": 97}) == {"g": 22}  # 4 x (22 + 2) = 96


def test_what_fits_already_stays() -> None:
    assert sizing.largest(made({"g": {"connection_count": 5}}), 4, {"db1:5432": 97}) == {"g": 5}


def test_where_one_connection_for_each_group_is_too_much_nothing_fits() -> None:
    settings = made({"a": {}, "b": {}})
    assert sizing.largest(settings, 8, {"db1:5432": 31}) is None
    assert sizing.most_processes(settings, {"db1:5432": 31}) == 1


def test_the_smallest_server_decides() -> None:
    room = {"db1:5432": 1000, "db2:5432": 30}
    settings = made({"g": {}}, hosts=2)
    assert sizing.most_processes(settings, room) == 2
    assert sizing.largest(settings, 3, room) == {"g": 8}


@given(
    counts=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    hosts=st.integers(1, 3),
    processes=st.integers(1, 20),
    room=st.integers(0, 3000),
)
def test_the_largest_fits_and_no_group_could_be_larger(
    counts: list[int], hosts: int, processes: int, room: int
) -> None:
    settings = made({f"g{n}": {"connection_count": count} for n, count in enumerate(counts)}, hosts)
    rooms = {need.server: room for need in sizing.needs(settings)}

    def fits(found: dict[str, int]) -> bool:
        return all(need.connections <= room for need in sizing.needs(settings, processes, found))

    found = sizing.largest(settings, processes, rooms)
    if found is None:
        assert not fits(dict.fromkeys(settings.groups, 1))
        return
    assert fits(found)
    for name, group in settings.groups.items():
        assert 1 <= found[name] <= group.connection_count
        assert found[name] == group.connection_count or not fits(found | {name: found[name] + 1})


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=4), room=st.integers(0, 1000))
def test_the_most_processes_fit_and_one_more_does_not(counts: list[int], room: int) -> None:
    settings = made({f"g{n}": {"connection_count": count} for n, count in enumerate(counts)})
    most = sizing.most_processes(settings, {"db1:5432": room})
    assert most == 0 or sizing.needs(settings, most)[0].connections <= room
    assert sizing.needs(settings, most + 1)[0].connections > room


def test_groups_are_compared_with_the_threads_of_a_process() -> None:
    settings = made({"a": {"connection_count": 3}, "b": {"connection_count": 4}, "c": {"total_count": 5}})
    assert [found.verdict for found in sizing.against_threads(settings, 4)] == ["below", "at", "above"]


def test_a_real_pool_opens_what_the_sum_says_and_no_more(pg_cluster: Cluster, open_pool: Any) -> None:
    groups = {
        "read": {"connection_count": 4, "target_session_attrs": "prefer-standby"},
        "write": {"connection_count": 3, "target_session_attrs": "primary"},
        "all": {"connection_count": 9, "total_count": 5},
    }
    pool = open_pool(config(*pg_cluster.nodes, groups=groups))
    needs = {need.server: need for need in sizing.needs(load(config(*pg_cluster.nodes, groups=groups)))}

    def ours(node: Any) -> list[str]:
        return [row["application_name"] for row in node.backends() if row["application_name"].startswith("pgdbpool:")]

    primary, *standbys = [pg_cluster.primary, *pg_cluster.standbys]
    held = [*hold(pool, 8, "read"), *hold(pool, 3, "write"), *hold(pool, 5, "all")]
    wait_for(lambda: all(ours(node).count("pgdbpool:monitor") == 1 for node in pg_cluster.nodes))
    assert ours(primary).count("pgdbpool:write") == 3
    assert [ours(node).count("pgdbpool:read") for node in standbys] == [4, 4]
    assert sum(ours(node).count("pgdbpool:all") for node in pg_cluster.nodes) == 5
    for node in pg_cluster.nodes:
        assert len(ours(node)) <= needs[f"{node.host}:{node.port}"].per_process

    for node in standbys:
        node.kill()
    more = hold(pool, 4, "read")  # all on the primary now
    assert ours(primary).count("pgdbpool:read") == 4
    assert len(ours(primary)) <= needs[f"{primary.host}:{primary.port}"].per_process
    put(pool, *held, *more)
