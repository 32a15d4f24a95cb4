"""Apache with mod_wsgi, as Debian has them: in Apache's own processes, or in processes beside them."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .harness import at_work
from .server import Server

ROWS = load()


@pytest.mark.parametrize("name", ["apache-embedded", "apache-daemon"])
def test_threads_of_each_process_share_a_pool(cluster: Cluster, open_folder: Path, name: str) -> None:
    with at_work(ROWS[name], cluster, open_folder) as work:
        work.wait_for_workers(2)
        work.check_status_page()
        work.lose_a_standby()
        work.lose_the_primary()
        work.reload()
    work.check()


def test_a_graceful_restart_of_apache_ends_daemon_processes_and_their_connections(
    cluster: Cluster, open_folder: Path
) -> None:
    with at_work(ROWS["apache-daemon"], cluster, open_folder) as work:
        work.reload("run apache2 -d $PWD -f apache/daemon.conf -k graceful")
    # Until its new processes are there mod_wsgi answers with 503; the application fails nobody.
    work.check(excused=lambda op: not isinstance(op.answer, dict))


def test_processes_of_apache_without_threads_each_have_connections_of_their_own(
    cluster: Cluster, open_folder: Path
) -> None:
    one = {"read": 1, "write": 1, "transaction": 1, "batch": 1}
    prefork = "apache2 -d $PWD -f apache/prefork.conf -DPREFORK"
    row = replace(ROWS["apache-embedded"], processes=3, threads=1, groups=one, command=f"{prefork} -DFOREGROUND")
    with at_work(row, cluster, open_folder) as work:
        work.wait_for_workers(3)
        work.lose_the_primary()
        work.reload(f"run {prefork} -k graceful")
    work.check()


@pytest.mark.parametrize(
    "interpreters", [("", "/main", "/one", "/two"), ("/two", "/one", "/main", "")], ids=["main first", "main last"]
)
def test_each_interpreter_has_a_pool_of_its_own_that_finds_the_new_primary(
    cluster: Cluster, open_folder: Path, interpreters: tuple[str, ...]
) -> None:
    daemon = ROWS["apache-daemon"]
    row = replace(daemon, command=daemon.command.replace("daemon.conf", "interpreters.conf"))
    with Server(row, cluster, open_folder) as server:

        def write(interpreter: str) -> Any:
            status, answer = server.ask("POST", f"{interpreter}/write?key=after{interpreter[1:]}")
            return answer if status == 200 else None

        before = {interpreter: server.ask("GET", f"{interpreter}/read")[1] for interpreter in interpreters}
        workers = {interpreter: answer["worker"] for interpreter, answer in before.items()}
        assert workers[""] != workers["/main"] == workers["/one"] == workers["/two"]
        assert len({answer["backend"] for answer in before.values()}) == 4, "four pools"
        new = cluster.failover()
        for interpreter in interpreters:
            answer = server.wait(partial(write, interpreter), f"a write through {interpreter}")
            assert answer["server"] == f"{new.host}:{new.port}"
        log = server.log()
        assert "Traceback" not in log
        for words in ("the sub-interpreter 'one'", "the sub-interpreter 'two'", "a process that has sub-interpreters"):
            assert log.count(f"in {words}") == 1
    assert new.execute("select count(distinct key) from notes") == [(4,)]
