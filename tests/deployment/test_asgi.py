"""ASGI servers, each with an `AsyncPool` in every worker process."""

import http.client
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .harness import at_work, check_rows
from .server import LIMIT, Server

ROWS = {name: row for name, row in load().items() if row.model == "asyncio"}


@pytest.mark.parametrize("name", ROWS)
def test_workers_outlive_the_loss_of_servers_and_are_replaced_under_load(
    name: str, cluster: Cluster, tmp_path: Path
) -> None:
    with at_work(ROWS[name], cluster, tmp_path) as work:
        work.wait_for_workers(work.row.processes)
        assert work.server.ask("GET", "/status/")[0] == 200
        work.server.wait(lambda: all_on_one_page(work.server, cluster), "a status page with all workers")
        work.lose_a_standby()
        work.lose_the_primary()
        began = work.load.operations[-1].ended
        work.reload()
        work.wait_for_workers(2 * work.row.processes)  # one that is told to end while it starts may not hear it
    # A worker told to end closes what it has accepted and not begun to read: no answer, and nothing done.
    refused = work.load.failed(began)
    assert {op.status for op in refused} <= {0}, refused
    check_rows(cluster, [op for op in work.load.operations if op not in refused])
    work.check(excused=lambda op: op.status == 0)


def test_starlette_in_one_process_of_uvicorn(cluster: Cluster, tmp_path: Path) -> None:
    row = replace(ROWS["uvicorn"], processes=1, command="uvicorn --host 127.0.0.1 --port 8000 notes.starlette:app")
    with at_work(row, cluster, tmp_path) as work:
        work.lose_a_standby()
        work.lose_the_primary()
        for path in ("/write", "/batch?key=a&rows=none", "/batch?key=a&rows=0"):
            assert work.server.ask("POST", path)[0] == 400
        assert work.server.ask("GET", "/nowhere")[0] == 404
    work.check()


@pytest.mark.parametrize("name", ROWS)
def test_a_worker_that_is_told_to_end_answers_the_requests_it_has_begun(
    name: str, cluster: Cluster, tmp_path: Path
) -> None:
    row = ROWS[name]
    paths = ["/write?key=a", "/transaction?key=b", "/batch?key=c&rows=50"]
    with Server(row, cluster, tmp_path) as server, psycopg.connect(cluster.primary.conninfo()) as other:
        server.wait(lambda: len(at_the_same_time(server)) == row.processes, "all workers")
        other.execute("lock table notes in exclusive mode")
        with ThreadPoolExecutor() as clients:
            begun = [clients.submit(server.ask, "POST", path) for path in paths]
            server.wait(lambda: held_up(cluster) == len(paths), "requests that wait for the table")
            os.kill(server.pid, signal.SIGTERM)
            server.wait(lambda: silent(server), "a server that begins no more requests")
            assert held_up(cluster) == len(paths)
            other.commit()
            answers = [request.result(LIMIT) for request in begun]
        assert [status for status, _ in answers] == [200] * len(paths)
    found = dict(cluster.primary.execute("select key, count(*) from notes group by key"))
    assert found == {"a": 1, "b": 2, "c": 50}


def all_on_one_page(server: Server, cluster: Cluster) -> bool:
    """Whether the status page, whichever worker answers, knows all of them and their database servers."""
    status, data = server.ask("GET", "/status/data")
    assert status == 200, data
    seen = {each["stats"]["endpoint"] for each in data["summary"]["endpoints"]}
    here = {f"{node.host}:{node.port}" for node in cluster.nodes}
    return here <= seen and data["summary"]["workers"] >= server.row.processes


def at_the_same_time(server: Server) -> set[int]:
    """The workers that answer some requests."""
    with ThreadPoolExecutor(8) as clients:
        return {answer["worker"] for answer in clients.map(lambda _: server.read(), range(8))}


def held_up(cluster: Cluster) -> int:
    """Sessions of pools that wait for a lock."""
    waiting = (
        "select count(*) from pg_stat_activity where application_name like 'pgdbpool:%' and wait_event_type = 'Lock'"
    )
    return int(cluster.primary.execute(waiting)[0][0])


def silent(server: Server) -> bool:
    """Whether it begins no more requests: it refuses a new connection, or leaves it where it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=1.0)
    try:
        connection.request("GET", "/read")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return True
    finally:
        connection.close()
    return False
