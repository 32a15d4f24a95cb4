"""Gunicorn: threads in one process, or processes without threads, preloaded or not."""

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .harness import at_work, check_rows
from .load import Load
from .server import LIMIT, Server, held_up

ROWS = load()


@pytest.mark.parametrize("size", [4, 8, 12], ids=["below", "at", "above"])
def test_threads_share_a_pool_sized_below_at_or_above_their_number(cluster: Cluster, tmp_path: Path, size: int) -> None:
    row = ROWS["gunicorn-threads"]
    groups = {"read": size, "write": size, "transaction": max(1, size // 2), "batch": 1}
    with at_work(row, cluster, tmp_path, clients=12, groups=groups) as work:
        work.lose_a_standby()
        work.lose_the_primary()
        work.reload()
    work.check()


@pytest.mark.parametrize("size", [4, 8, 12], ids=["below", "at", "above"])
def test_of_threads_that_all_want_the_database_so_many_get_it_as_there_are_connections_and_the_rest_waits(
    cluster: Cluster, tmp_path: Path, size: int
) -> None:
    row = ROWS["gunicorn-threads"]
    groups = {"read": 1, "write": size, "transaction": 1, "batch": 1}
    most = min(size, row.threads)
    with (
        Server(row, cluster, tmp_path, groups=groups) as server,
        psycopg.connect(cluster.primary.conninfo()) as other,
        ThreadPoolExecutor(row.threads) as clients,
    ):
        other.execute("lock table notes in exclusive mode")
        begun = [clients.submit(server.ask, "POST", f"/write?key={number}") for number in range(row.threads)]
        server.wait(lambda: held_up(cluster) == most, "those that have a connection")
        wait(begun, timeout=0.5)
        assert held_up(cluster) == most, "and nobody has got one more"
        other.commit()
        assert [request.result(LIMIT)[0] for request in begun] == [200] * row.threads


def test_processes_without_threads_each_have_connections_of_their_own(cluster: Cluster, tmp_path: Path) -> None:
    with at_work(ROWS["gunicorn-processes"], cluster, tmp_path) as work:
        work.check_status_page()
        assert work.threads() == {1}
        work.lose_a_standby()
        work.lose_the_primary()
        work.reload()
        assert work.threads() == {1}
    work.check()


def test_a_worker_that_ends_after_max_requests_takes_its_connections_with_it(cluster: Cluster, tmp_path: Path) -> None:
    row = ROWS["gunicorn-processes"]
    often = row.command.replace("--max-requests 1000 --max-requests-jitter 100", "--max-requests 20")
    assert often != row.command
    with at_work(row, cluster, tmp_path, command=often) as work:
        work.wait_for_workers(7)
    work.check()


def test_workers_forked_from_a_process_that_made_the_pool_have_connections_of_their_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    with at_work(ROWS["gunicorn-preload"], cluster, tmp_path) as work:
        work.lose_a_standby()
        work.lose_the_primary()
        work.reload()
        assert work.threads() == {1}
    work.check()


def test_workers_forked_from_a_process_that_has_used_the_pool_leave_its_connections_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    with at_work(ROWS["gunicorn-preload"], cluster, tmp_path, environment={"NOTES_WAIT": "1"}) as work:
        inherited = work.connections_of(work.server.pid)
        assert len(inherited) >= 4, "one of each group"
        work.reload()
        assert work.connections_of(work.server.pid) == inherited
    work.check(others=1)


def test_a_threaded_pool_that_was_used_before_the_fork_serves_each_worker(cluster: Cluster, tmp_path: Path) -> None:
    row = replace(ROWS["gunicorn-preload"], model="threaded")
    with at_work(row, cluster, tmp_path, environment={"NOTES_WAIT": "1"}) as work:
        work.wait_for_workers(row.processes)
        assert all(count > 1 for count in work.threads())
        work.reload()
    work.check(others=1)


def test_a_non_threaded_pool_in_a_server_with_threads_refuses_the_second_thread_and_says_so_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    with Server(ROWS["gunicorn-threads"], cluster, tmp_path, model="non-threaded") as server:
        with Load(server) as load:
            server.wait(lambda: any(op.answer == {"error": "WrongModelError"} for op in load.operations), "the refusal")
            load.wait_for(5, "answers of the pool's own thread")
        lines = [line for line in server.log().splitlines() if "two threads use this pool" in line]
        assert len([line for line in lines if line.startswith("pgdbpool-1: ")]) == 1, "beside what the application says"
    check_rows(cluster, load.operations)
