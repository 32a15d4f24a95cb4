"""`pgdbpool events`: what happened to the servers, once for all processes, and what is still to come."""

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import python, wait_for

from pgdbpool import Pool
from pgdbpool.cli.events import Line, Told
from pgdbpool.testing import Cluster, Node

from .command import COMMAND, LIMIT, environment, run
from .test_top import APPLICATION, published, shown


def all_up(folder: Path) -> list[Any]:
    """The endpoints that every process has seen up."""
    endpoints = shown(folder)["shop"]["endpoints"]
    return [each for each in endpoints if all(view.endswith(", up") for view in each["views"])]


def test_what_several_processes_noticed_is_one_line(pg_cluster: Cluster, tmp_path: Path) -> None:
    what = repr(published(tmp_path, *pg_cluster.nodes))
    gone = pg_cluster.standbys[0]
    label = f"{gone.host}:{gone.port}"

    def down() -> list[dict[str, object]]:
        lines = [json.loads(line) for line in run("events", "--directory", tmp_path, "--json").out.splitlines()]
        return [line for line in lines if line["kind"] == "endpoint-down"]

    with python(APPLICATION, what) as one, python(APPLICATION, what) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == "holds\n"
        # Who never saw it up does not see it go down.
        wait_for(lambda: [sum(each["views"].values()) for each in all_up(tmp_path)] == [2, 2, 2])
        gone.kill()
        lines = wait_for(lambda: (found := down()) and found[0]["pools"] == 2 and found)
        assert [(line["endpoint"], line["pools"], line["of"]) for line in lines] == [(label, 2, 2)]
        done = run("events", "shop", "--directory", tmp_path)
        assert (done.code, done.err) == (0, "")
        (line,) = [line for line in done.out.splitlines() if "▼" in line]
        assert f"{label} is down" in line
        assert line.endswith("shop, 2 of 2 pools")
        for process in (one, two):
            process.communicate("", timeout=LIMIT)


def test_follow_goes_on_with_those_to_come_each_once(
    pg_cluster: Cluster, tmp_path: Path, open_pool: Callable[..., Pool]
) -> None:
    pool = open_pool(published(tmp_path, *pg_cluster.nodes))
    wait_for(lambda: {endpoint.health for endpoint in pool.endpoints()} == {"up"})  # else its end is no news
    wait_for(lambda: run("events", "--directory", tmp_path).code == 0)
    command = [*COMMAND, "events", "--directory", str(tmp_path), "--follow", "--json"]
    node = pg_cluster.standbys[0]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as tail:
        assert tail.stdout is not None
        too_late = threading.Timer(LIMIT, tail.kill)
        too_late.start()

        def until(kind: str) -> list[str]:
            seen = []
            for line in tail.stdout or ():
                seen.append(json.loads(line)["kind"])
                if seen[-1] == kind:
                    break
            return seen

        first = until("endpoint-up")
        node.kill()
        assert until("endpoint-down").count("endpoint-down") == 1
        node.start()
        again = until("endpoint-up")
        assert "endpoint-down" not in again + first
        too_late.cancel()
        tail.send_signal(2)
        assert tail.communicate(timeout=LIMIT)[1] == ""
        assert tail.returncode == 0


def test_only_the_last_ones_are_shown(pg_node: Node, tmp_path: Path, open_pool: Callable[..., Pool]) -> None:
    open_pool(published(tmp_path, pg_node)).wait()
    wait_for(lambda: run("events", "--directory", tmp_path).out.count("\n") >= 1)
    assert run("events", "--directory", tmp_path, "-n", "0").out == ""
    assert run("events", "--directory", tmp_path, "-n", "1").out.count("\n") == 1


def test_where_nobody_publishes_it_says_how_to(tmp_path: Path) -> None:
    done = run("events", "--directory", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert "put [status] with name" in done.err


# What has been told, without servers


def line(at: float, kind: str = "endpoint-down") -> Line:
    return Line(
        application="shop", at=at, kind=kind, endpoint="db1", message="", seconds=None, group=None, pools=1, of=2
    )


def test_an_event_whose_time_is_corrected_is_not_told_again() -> None:
    told = Told()
    assert told.new([line(100.0)]) == [line(100.0)]
    assert told.new([line(99.0)]) == []
    assert told.new([line(99.0), line(150.0)]) == [line(150.0)]


def test_what_happens_twice_is_told_twice() -> None:
    told = Told()
    told.new([line(100.0)])
    assert told.new([line(100.0), line(103.0)]) == [line(103.0)]
    assert told.new([line(100.0), line(103.0), line(103.5, "endpoint-up")]) == [line(103.5, "endpoint-up")]


def test_a_process_that_was_silent_for_a_while_tells_nothing_twice() -> None:
    told = Told()
    recent = 4_000_000_000.0  # the clock of this test is far ahead
    told.new([line(recent)])
    assert told.new([]) == []
    assert told.new([line(recent)]) == []
