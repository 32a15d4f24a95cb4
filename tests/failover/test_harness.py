"""The harness of `python -m bench.failover` runs from end to end, and nothing it starts outlives it."""

import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import LIMIT, wait_for

from bench.failover.client import Client, ClientError
from bench.failover.ops import callers
from bench.failover.peers import Pgdbpool, Place
from bench.failover.stage import TABLES, place
from bench.failover.worker import Task
from pgdbpool.testing import Node

from . import ROOT

PAUSE = 0.005


@pytest.fixture
def node(pg_node: Node) -> Node:
    """A server with the tables that the callers use."""
    pg_node.execute("drop table if exists items, observed")
    pg_node.execute(TABLES)
    return pg_node


def work(*places: Place, peer: str = Pgdbpool.name, count: int = 4) -> Client:
    return Client(Task(peer, list(places), callers(count), PAUSE))


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} comes with `make bench`")


@pytest.mark.parametrize(
    "peer",
    [
        "pgdbpool",
        "pgdbpool, non-threaded",
        "pgdbpool, asyncio",
        pytest.param("psycopg_pool", marks=needs("psycopg_pool")),
        pytest.param("SQLAlchemy", marks=needs("sqlalchemy")),
    ],
)
def test_callers_work_until_they_are_told_to_stop(peer: str, node: Node) -> None:
    with work(place(node), peer=peer) as client:
        client.start()
        wait_for(lambda: {op.caller for op in client.ops} == {0, 1, 2, 3})
        client.tell_to_stop()
        client.wait_for_callers(time.monotonic() + LIMIT)
        assert client.hung == {}
        assert {op.outcome for op in client.ops} == {"done"}
        assert {op.server for op in client.ops} == {node.port}
        done = len([op for op in client.ops if op.kind == "write"])
        assert node.execute("select count(*), count(distinct id) from items") == [(done, done)]


def test_a_caller_that_does_not_end_is_found_to_hang(node: Node) -> None:
    with work(place(node)) as client:
        client.start()
        wait_for(lambda: len(client.ops) > 20)
        node.freeze()
        client.tell_to_stop()
        client.wait_for_callers(time.monotonic() + 0.5)
        assert client.hung
        for caller, since in client.hung.items():
            assert since == max((op.ended for op in client.ops if op.caller == caller), default=client.began)


@pytest.mark.parametrize("peer", ["pgdbpool", "pgdbpool, asyncio"])
def test_what_the_pool_believes_is_told_also_by_a_process_whose_callers_hang(peer: str, node: Node) -> None:
    with work(place(node), peer=peer) as client:
        client.start()
        node.freeze()
        (about,) = client.about()
        assert [endpoint["endpoint"] for endpoint in about["endpoints"]] == [f"127.0.0.1:{node.port}"]
        assert set(about["groups"]) == {"write", "read"}


def test_no_process_is_left_though_its_callers_hang(node: Node) -> None:
    before = set(psutil.Process().children())
    with work(place(node), peer="pgdbpool, non-threaded") as client:
        client.start()
        node.freeze()
        assert len(set(psutil.Process().children()) - before) == 4
    assert set(psutil.Process().children()) - before == set()


def test_a_process_ends_when_the_one_that_started_it_is_killed(node: Node) -> None:
    task = Task(Pgdbpool.name, [place(node)], callers(2), PAUSE)
    code = (
        "import sys, time\n"
        "from bench.failover.client import Client\n"
        "from bench.failover.worker import Task\n"
        "client = Client(Task.from_json(sys.argv[1])).start()\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, task.as_json()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        children = psutil.Process(parent.pid).children()
        assert len(children) == 1
        parent.send_signal(signal.SIGKILL)
        parent.wait(LIMIT)
        wait_for(lambda: not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE)


def test_a_peer_that_cannot_start_says_why(node: Node) -> None:
    task = Task(Pgdbpool.name, [place(node)], callers(2), PAUSE, {"read": {"balance": "nonsense"}})
    with Client(task) as client, pytest.raises(ClientError, match=r"groups\.read\.balance"):
        client.start()


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench.failover", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    file = tmp_path_factory.mktemp("bench") / "results.json"
    peers = ("--peer", "pgdbpool", "--peer", "hasql")
    printed = bench("--quick", "--only", "kill-primary", *peers, "--json", str(file))
    return file, json.loads(file.read_text()), printed


def test_every_peer_has_a_row_or_a_reason(results: tuple[Path, dict[str, Any], str]) -> None:
    _, content, _ = results
    (result,) = content["results"]
    assert {row["peer"] for row in result["rows"]} | set(result["missing"]) == {"pgdbpool", "hasql"}
    assert "pgdbpool" not in result["missing"], result["missing"]


def test_the_results_say_what_was_done_and_how_it_is_done_again(results: tuple[Path, dict[str, Any], str]) -> None:
    _, content, printed = results
    (result,) = content["results"]
    assert any("is killed" in told for told in result["told"])
    assert any("a healthy write is possible" in told for told in result["told"])
    assert content["environment"]["command"] == (
        'python -m bench.failover --quick --only kill-primary --peer "pgdbpool" --peer "hasql"'
    )
    assert "kill-primary, pgdbpool: failed operations" in printed


def test_earlier_results_are_shown_again(results: tuple[Path, dict[str, Any], str]) -> None:
    file, _, printed = results
    assert bench("--show", str(file)) == printed
