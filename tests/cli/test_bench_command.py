"""`pgdbpool bench`: a bounded load on real servers that writes nothing, and true figures."""

import signal
from pathlib import Path

import pytest
from conftest import wait_for

from pgdbpool.testing import Cluster, Node

from .command import LIMIT, Terminal, run, toml

GROUPS = """
[groups.read]
target_session_attrs = "prefer-standby"
[groups.write]
target_session_attrs = "primary"
autocommit = false
"""


def statements(node: Node) -> dict[str, int]:
    """What has been committed, and written, in the database."""
    node.execute("select pg_stat_clear_snapshot()")
    row = node.execute(
        "select xact_commit, tup_inserted + tup_updated + tup_deleted from pg_stat_database where datname = 'app'"
    )[0]
    return {"transactions": row[0], "written": row[1]}


def test_every_group_gets_its_share_of_the_load_where_it_belongs(pg_cluster: Cluster, tmp_path: Path) -> None:
    done = run("bench", toml(tmp_path, *pg_cluster.nodes, groups=GROUPS), "--seconds", "1", "--json")
    assert done.code == 0, done.out
    report = done.json
    assert (report["ok"], report["threads"]) == (True, 4)
    primary = f"{pg_cluster.primary.host}:{pg_cluster.primary.port}"
    read, write = report["groups"]
    assert read["operations"] > 10
    assert write["operations"] > 10
    assert report["operations"] == read["operations"] + write["operations"]
    assert read["rate"] == pytest.approx(read["operations"] / report["seconds"])
    assert read["share"][primary] == 0.0
    assert sum(read["share"].values()) == pytest.approx(1.0)
    assert write["share"][primary] == 1.0
    for group in report["groups"]:
        assert group["failed"] == 0
        for times in (group["wait"], group["use"]):
            assert 0 < times["p50"] <= times["p99"] <= times["longest"] < LIMIT


def test_it_asks_the_servers_as_often_as_it_says_and_writes_nothing(pg_node: Node, tmp_path: Path) -> None:
    before = statements(pg_node)
    done = run("bench", toml(tmp_path, pg_node), "--seconds", "1", "--threads", "2", "--json")
    operations = done.json["operations"]
    # The server's statistics come a little late.
    wait_for(lambda: statements(pg_node)["transactions"] - before["transactions"] >= operations)
    assert statements(pg_node)["written"] == before["written"]


def test_it_leaves_no_session(pg_node: Node, tmp_path: Path) -> None:
    assert run("bench", toml(tmp_path, pg_node, groups="[groups.gone]"), "--seconds", "0.5").code == 0
    wait_for(lambda: not pg_node.backends("pgdbpool:gone"))


def test_only_the_groups_that_are_named_are_used(pg_cluster: Cluster, tmp_path: Path) -> None:
    path = toml(tmp_path, *pg_cluster.nodes, groups=GROUPS)
    done = run("bench", path, "--seconds", "0.5", "--group", "write", "--json")
    assert [group["group"] for group in done.json["groups"]] == ["write"]


def test_a_non_threaded_pool_is_used_by_one_thread(pg_node: Node, tmp_path: Path) -> None:
    path = toml(tmp_path, pg_node, top='type = "non-threaded"')
    done = run("bench", path, "--seconds", "0.5", "--json")
    assert (done.code, done.json["threads"]) == (0, 1)
    assert done.json["operations"] > 10
    done = run("bench", path, "--threads", "3")
    assert (done.code, done.out) == (2, "")
    assert '--threads 3: a pool of type "non-threaded" serves one thread' in done.err


def test_failures_are_counted_and_make_the_exit_code_1(pg_node: Node, tmp_path: Path) -> None:
    groups = "[groups.tight]\nconnection_count = 1\nmax_waiting = 1"
    done = run("bench", toml(tmp_path, pg_node, groups=groups), "--seconds", "1", "--threads", "8")
    assert done.code == 1
    assert "times TooManyWaiting: " in done.out
    assert "Traceback" not in done.out + done.err


def test_where_no_server_answers_it_says_why(tmp_path: Path, pg_cluster: Cluster) -> None:
    for node in pg_cluster.nodes:
        node.kill()
    done = run("bench", toml(tmp_path, *pg_cluster.nodes))
    assert (done.code, done.out) == (1, "")
    assert "Connection refused" in done.err
    assert "Traceback" not in done.err


def test_a_group_that_does_not_exist_is_bad_input(pg_node: Node, tmp_path: Path) -> None:
    done = run("bench", toml(tmp_path, pg_node), "--group", "other")
    assert done.code == 2
    assert "--group other: there is no such group, the configuration has default" in done.err


def test_in_a_terminal_a_bar_shows_how_far_it_is_and_ctrl_c_shows_what_was_measured(
    pg_node: Node, tmp_path: Path
) -> None:
    with Terminal("bench", toml(tmp_path, pg_node), "--seconds", "60") as terminal:
        terminal.read(until="of 60 s")
        terminal.process.send_signal(signal.SIGINT)
        written = terminal.read()
        assert terminal.process.wait(LIMIT) == 130
    assert "operations per second in all" in written
    assert "Traceback" not in written
