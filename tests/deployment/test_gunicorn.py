"""Gunicorn: threads in one process, or processes without threads, preloaded or not."""

from pathlib import Path

import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .harness import at_work

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
