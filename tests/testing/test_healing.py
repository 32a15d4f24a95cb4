"""Whatever a test did to the shared cluster, the next one finds it whole."""

import time
from collections.abc import Callable

import pytest

from pgdbpool.testing import Cluster
from pgdbpool.testing.healing import is_healthy


def kill_all(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.kill()


def split_brain(cluster: Cluster) -> None:
    old = cluster.primary
    cluster.standbys[0].promote()
    old.execute("CREATE TABLE IF NOT EXISTS lost_in_a_split_brain (i int)")


def alter_system(cluster: Cluster) -> None:
    cluster.standbys[0].execute("ALTER SYSTEM SET max_connections = 101")


DAMAGES: dict[str, Callable[[Cluster], object]] = {
    "a frozen primary": lambda cluster: cluster.primary.freeze(),
    "a stopped standby": lambda cluster: cluster.standbys[0].stop(),
    "a killed primary": lambda cluster: cluster.primary.kill(),
    "all nodes killed": kill_all,
    "a failover": lambda cluster: cluster.failover(),
    "a split brain": split_brain,
    "a promotion by SQL": lambda cluster: cluster.standbys[0].execute("SELECT pg_promote()"),
    "a primary that refuses writes": lambda cluster: cluster.primary.refuse_writes(),
    "synchronous standbys": lambda cluster: cluster.set_synchronous(2),
    "another setting": lambda cluster: cluster.primary.configure(work_mem="1MB"),
    "a setting that needs a restart": alter_system,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_the_cluster_is_healed_after(damage: Callable[[Cluster], object], pg_cluster: Cluster) -> None:
    damage(pg_cluster)
    assert not is_healthy(pg_cluster)
    pg_cluster.heal()
    assert is_healthy(pg_cluster)
    primary = pg_cluster.primary
    assert primary.execute("SHOW default_transaction_read_only") == [("off",)]
    assert primary.execute("SHOW synchronous_standby_names") == [("",)]
    assert not any(node.execute("SELECT 1 FROM pg_settings WHERE pending_restart") for node in pg_cluster.nodes)
    primary.execute("CREATE TABLE IF NOT EXISTS healed (i int)")
    primary.execute("INSERT INTO healed VALUES (1)")
    pg_cluster.wait_for_replication()
    assert len({node.execute("SELECT count(*) FROM healed")[0] for node in pg_cluster.nodes}) == 1


def test_healing_a_healthy_cluster_costs_next_to_nothing(pg_cluster: Cluster) -> None:
    fastest = 60.0
    for _ in range(5):
        start = time.perf_counter()
        pg_cluster.heal()
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 0.1  # about 5 ms on a quiet machine
