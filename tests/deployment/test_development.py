"""The development servers of Flask and Django: one process watches the files, the other serves and is replaced."""

from pathlib import Path

import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .harness import at_work

ROWS = load()


@pytest.mark.parametrize("name", ["flask-development", "django-development"])
def test_a_reload_leaves_no_connection_behind(cluster: Cluster, tmp_path: Path, name: str) -> None:
    with at_work(ROWS[name], cluster, tmp_path) as work:
        assert work.connections_of(work.server.pid) == set(), "the process that watches has no pool that is open"
        work.check_status_page()
        work.lose_a_standby()
        work.lose_the_primary()
        for _ in range(2):
            work.reload()
        assert work.connections_of(work.server.pid) == set()
    work.check(excused=lambda op: True)  # requests in flight are cut off, and for a moment nobody listens
