"""The fixtures, as a test sees them."""

from pgdbpool.testing import Cluster, Node


def test_the_cluster_fixture_has_a_primary_and_two_standbys(pg_cluster: Cluster) -> None:
    assert [node.is_in_recovery() for node in pg_cluster.nodes].count(True) == 2
    assert len(pg_cluster.standbys) == 2


def test_the_node_fixture_is_a_single_writable_server(pg_node: Node) -> None:
    assert pg_node.execute("SELECT pg_is_in_recovery(), 1 + %s", (1,)) == [(False, 2)]
