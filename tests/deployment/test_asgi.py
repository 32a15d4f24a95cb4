"""ASGI servers, each with an `AsyncPool` in every worker process."""

from dataclasses import replace
from pathlib import Path

import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .harness import at_work, check_rows
from .server import Server

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


AT_IMPORT = """
import os

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from notes import work_async
from pgdbpool import AsyncPool

pool = AsyncPool.from_toml(os.environ["PGDBPOOL_CONFIG"])


async def read(request):
    async with pool.connection("read") as conn:
        return JSONResponse(await work_async.read(conn))


app = Starlette(routes=[Route("/read", read)])
"""


def test_a_pool_that_was_made_before_there_was_a_loop_or_a_worker_opens_in_each_worker(
    cluster: Cluster, tmp_path: Path
) -> None:
    row = ROWS["gunicorn-uvicorn"]
    command = row.command.replace("notes.fastapi:app", "--preload at_import:app")
    server = Server(row, cluster, tmp_path, command=command, environment={"PYTHONPATH": str(tmp_path)})
    (tmp_path / "at_import.py").write_text(AT_IMPORT)
    with server:
        workers = set[int]()
        server.wait(lambda: workers.add(server.read()["worker"]) or len(workers) == row.processes, "all workers")
        assert server.pid not in workers
    assert "Traceback" not in server.log()


def all_on_one_page(server: Server, cluster: Cluster) -> bool:
    """Whether the status page, whichever worker answers, knows all of them and their database servers."""
    status, data = server.ask("GET", "/status/data")
    assert status == 200, data
    seen = {each["stats"]["endpoint"] for each in data["summary"]["endpoints"]}
    here = {f"{node.host}:{node.port}" for node in cluster.nodes}
    return here <= seen and data["summary"]["workers"] >= server.row.processes
