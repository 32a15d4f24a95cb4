"""uWSGI: processes without threads, forked after the application was loaded, or before."""

from dataclasses import replace
from pathlib import Path

import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .harness import at_work
from .server import Server

ROWS = load()


@pytest.mark.parametrize("name", ["uwsgi", "uwsgi-lazy-apps"])
def test_each_process_has_connections_of_its_own_and_one_thread(cluster: Cluster, tmp_path: Path, name: str) -> None:
    with at_work(ROWS[name], cluster, tmp_path) as work:
        work.wait_for_workers(work.row.processes)  # one that still loads does not hear that it is to end
        assert work.threads() == {1}
        work.check_status_page()
        work.lose_a_standby()
        work.lose_the_primary()
        work.reload()
        assert work.threads() == {1}
        work.wait_for_workers(2 * work.row.processes)
    work.check()


def test_workers_forked_from_a_process_that_has_used_the_pool_leave_its_connections_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    with at_work(ROWS["uwsgi"], cluster, tmp_path, environment={"NOTES_WAIT": "1"}) as work:
        inherited = work.connections_of(work.server.pid)
        assert len(inherited) >= 4, "one of each group"
        work.lose_the_primary()
        work.wait_for_workers(work.row.processes)
        assert work.connections_of(work.server.pid) <= inherited
    work.check(others=1)


def test_the_second_application_of_one_uwsgi_too_leaves_the_connections_of_the_first_process_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    # It is in a sub-interpreter, which uWSGI does not tell that it has forked.
    row = ROWS["uwsgi"]
    two = row.command.replace(
        "--module notes.wsgi:application",
        "--manage-script-name --pythonpath . --mount /one=notes/wsgi.py --mount /two=notes/wsgi.py",
    )
    with at_work(row, cluster, tmp_path, command=two, root="/two", environment={"NOTES_WAIT": "1"}) as work:
        inherited = work.connections_of(work.server.pid)
        assert len(inherited) >= 2 * 4, "one of each group of each application"
        work.reload()  # the new workers have requests to answer from their first moment
        work.lose_the_primary()
        work.wait_for_workers(2 * work.row.processes)
    work.check(others=2)


def test_a_threaded_pool_that_is_loaded_before_the_fork_starts_its_threads_after_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    row = replace(ROWS["uwsgi"], model="threaded")
    server = Server(row, cluster, tmp_path, command=row.command + " --enable-threads")
    server.start()
    try:
        assert server.threads(server.pid) == 1
        workers = set()
        server.wait(lambda: workers.add(server.read()["worker"]) or len(workers) == row.processes, "all workers")
        assert all(server.threads(pid) > 1 for pid in workers)
        assert server.threads(server.pid) == 1
    finally:
        server.end()


def test_a_threaded_pool_that_is_used_before_the_fork_is_warned_of_in_the_log(cluster: Cluster, tmp_path: Path) -> None:
    row = replace(ROWS["uwsgi"], model="threaded")
    environment = {"NOTES_WAIT": "1"}
    server = Server(row, cluster, tmp_path, command=row.command + " --enable-threads", environment=environment)
    server.start(wait=False)  # its workers may hang
    try:
        server.wait(lambda: "spawned uWSGI worker 3" in server.log(), "its workers")
        assert server.log().count("start uWSGI with --lazy-apps") == 1
    finally:
        server.end()


def test_a_threaded_pool_where_no_thread_runs_is_warned_of_in_the_log(cluster: Cluster, tmp_path: Path) -> None:
    server = Server(ROWS["uwsgi"], cluster, tmp_path, model="threaded")
    server.start(wait=False)
    try:
        server.wait(lambda: "uWSGI gives no time to threads" in server.log(), "the warning")
        assert "--enable-threads" in server.log()
    finally:
        server.end()


def test_a_threaded_pool_where_threads_run_is_none_to_warn_of(cluster: Cluster, tmp_path: Path) -> None:
    row = ROWS["uwsgi-lazy-apps"]
    server = Server(row, cluster, tmp_path, model="threaded", command=row.command + " --enable-threads")
    server.start()
    try:
        assert server.read()["count"] == 0
        assert "gives no time" not in server.log()
    finally:
        server.end()  # and not gently: now and then a uWSGI worker with threads does not end before uWSGI's own mercy
