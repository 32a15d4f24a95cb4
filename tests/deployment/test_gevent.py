"""Gunicorn with gevent workers: refused, with a word on what to do instead.

What was seen without the refusal: requests are answered, until a database server is killed. Then libev's assertion "I/O
watcher with invalid fd found in epoll_ctl" ends the worker with all its requests, in three of four runs.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .server import Server

THREADS = load()["gunicorn-threads"]
ROW = replace(THREADS, name="gunicorn-gevent", command=THREADS.command.replace("--threads 8", "--worker-class gevent"))


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_pool_in_a_gevent_worker_says_at_once_what_to_do_instead(
    cluster: Cluster, tmp_path: Path, model: str
) -> None:
    server = Server(ROW, cluster, tmp_path, model=model)
    server.start(wait=False)
    try:
        server.wait(lambda: server.exit_code() is not None, "its end", alive=False)
        assert server.exit_code() != 0
        assert "gevent has patched this process" in server.log()
        assert "--worker-class gthread" in server.log()
    finally:
        server.end()
