"""One cluster for all deployments: an acknowledged commit is on two servers, so a lost primary loses none."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.notes.work import TABLE
from pgdbpool.testing import Cluster


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    with Cluster(standbys=2, synchronous=1, settings={"max_connections": 200}) as cluster:
        yield cluster


@pytest.fixture
def cluster(_cluster: Cluster) -> Cluster:
    """A healthy primary with two standbys, and an empty table `notes`."""
    _cluster.heal()
    primary = _cluster.primary
    primary.execute("drop table if exists notes")
    primary.execute(TABLE)
    primary.execute(f"alter table notes owner to {primary.login.user}")
    _cluster.wait_for_replication()
    return _cluster


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user can read: Apache does its work as one of its own."""
    folder = Path(tempfile.mkdtemp(prefix="pgdbpool-examples-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
