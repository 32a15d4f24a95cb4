"""A cluster as a whole: how it is made, and how it fails over."""

import threading

import psycopg
import pytest

from pgdbpool.testing import Cluster, ClusterError, ClusterTimeout, Node, ServerStartError

from .helpers import DEBIAN, needs_debian


def roles(cluster: Cluster) -> list[bool]:
    return [node.is_in_recovery() for node in cluster.nodes]


def test_one_node_is_primary_and_the_others_follow_it(pg_cluster: Cluster) -> None:
    assert pg_cluster.primary not in pg_cluster.standbys
    assert {pg_cluster.primary, *pg_cluster.standbys} == set(pg_cluster.nodes)
    assert not pg_cluster.primary.is_in_recovery()
    assert all(node.is_in_recovery() and node.following is pg_cluster.primary for node in pg_cluster.standbys)
    assert sorted(pg_cluster.primary.receivers()) == sorted(node.name for node in pg_cluster.standbys)


def test_what_is_written_can_be_read_on_all_standbys(pg_cluster: Cluster) -> None:
    pg_cluster.primary.execute("CREATE TABLE replicated AS SELECT 42 AS answer")
    pg_cluster.wait_for_replication()
    assert [n.execute("SELECT answer FROM replicated") for n in pg_cluster.nodes] == [[(42,)]] * 3


def test_the_dsn_of_the_cluster_leads_to_the_primary(pg_cluster: Cluster) -> None:
    with psycopg.connect(pg_cluster.dsn, target_session_attrs="read-write") as connection:
        assert connection.info.port == pg_cluster.primary.port


def test_the_endpoints_of_the_cluster_are_a_configuration_of_all_nodes(pg_cluster: Cluster) -> None:
    endpoints = pg_cluster.endpoints(weight=2)
    assert [endpoint["port"] for endpoint in endpoints] == [node.port for node in pg_cluster.nodes]
    assert all(endpoint["weight"] == 2 for endpoint in endpoints)


def test_the_test_user_owns_its_database_and_is_no_superuser(pg_cluster: Cluster) -> None:
    with psycopg.connect(pg_cluster.primary.dsn) as connection:
        row = connection.execute("SELECT current_user, current_database(), current_setting('is_superuser')").fetchone()
        assert row == ("app", "app", "off")
        connection.execute("CREATE SCHEMA own")


def test_user_database_password_and_settings_can_be_chosen() -> None:
    password = "it's \\ a:secret@/"
    with Cluster(0, user="al'ice", database='my "db"', password=password, settings={"max_connections": 17}) as cluster:
        node = cluster.primary
        for where in (node.dsn, node.conninfo(), cluster.dsn):
            with psycopg.connect(where) as connection:
                assert connection.execute("SHOW max_connections").fetchone() == ("17",)
                assert (connection.info.user, connection.info.dbname) == ("al'ice", 'my "db"')
        assert node.endpoint()["pass"] == password
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(node.conninfo(password="wrong"))
        assert "secret" not in repr(node) + repr(node.login)


@needs_debian
def test_the_cluster_runs_from_the_folder_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDBPOOL_PG_BIN", str(DEBIAN))
    with Cluster(standbys=1) as cluster:
        assert cluster.primary.execute("SHOW server_version_num")[0][0].startswith("15")
        old = cluster.primary
        cluster.failover()
        old.rejoin(cluster.primary)
        assert old.timeline() == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"standbys": -1}, "standbys: expected 0 or more, got -1"),
        ({"standbys": 1, "synchronous": 2}, "synchronous: expected 0 to 1"),
        ({"settings": {"port": 5432}}, "settings: port is decided by the cluster"),
        ({"user": "postgres"}, "choose another name"),
    ],
)
def test_a_mistake_is_named_before_anything_is_started(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(**arguments)  # type: ignore[arg-type]


def test_a_server_that_does_not_start_says_why_in_its_own_words() -> None:
    with pytest.raises(ClusterError, match="nonsense"), Cluster(0, settings={"shared_buffers": "nonsense"}):
        pass


def test_a_server_that_ends_while_starting_shows_the_end_of_its_log(pg_node: Node) -> None:
    pg_node.stop()
    pg_node.configure(shared_preload_libraries="no_such_library")
    with pytest.raises(ServerStartError, match=r"(?s)node1 ended instead.*no_such_library"):
        pg_node.start()


def test_a_cluster_without_standbys_is_started_once_and_may_be_closed_twice() -> None:
    cluster = Cluster(standbys=0).start()
    assert cluster.nodes == (cluster.primary,)
    assert cluster.standbys == ()
    with pytest.raises(ClusterError, match="no standby is running"):
        cluster.most_advanced_standby()
    with pytest.raises(ClusterError, match="started already"):
        cluster.start()
    cluster.close()
    cluster.close()
    assert cluster.nodes == ()
    with pytest.raises(ClusterError, match="not been started, or is closed"):
        cluster.primary  # noqa: B018


def test_two_clusters_are_different_systems(pg_cluster: Cluster, pg_node: Node) -> None:
    sql = "SELECT system_identifier FROM pg_control_system()"
    assert pg_cluster.primary.execute(sql) != pg_node.execute(sql)


def test_the_most_advanced_standby_is_the_one_that_received_most(pg_cluster: Cluster) -> None:
    behind, ahead = pg_cluster.standbys
    behind.kill()
    pg_cluster.primary.execute("CREATE TABLE IF NOT EXISTS advance AS SELECT generate_series(1, 1000)")
    pg_cluster.wait_for_replication()
    pg_cluster.primary.kill()
    behind.start()
    assert behind.wal_position() < ahead.wal_position()
    assert pg_cluster.most_advanced_standby() is ahead


def test_failover_promotes_a_standby_and_the_others_follow_it(pg_cluster: Cluster) -> None:
    old, timeline = pg_cluster.primary, pg_cluster.primary.timeline()
    new = pg_cluster.failover()
    assert pg_cluster.primary is new
    assert new is not old
    assert not old.is_running
    assert new.timeline() == timeline + 1
    (other,) = pg_cluster.standbys
    new.execute("CREATE TABLE after_failover AS SELECT 1")
    pg_cluster.wait_for_replication()
    assert other.execute("SELECT count(*) FROM after_failover") == [(1,)]


def test_failover_goes_to_the_node_that_was_asked_for(pg_cluster: Cluster) -> None:
    wanted = pg_cluster.standbys[-1]
    assert pg_cluster.failover(to=wanted.name) is wanted
    with pytest.raises(ValueError, match="not a node of this cluster"):
        pg_cluster.failover(to="node99")


def test_with_a_synchronous_standby_a_commit_waits_for_one() -> None:
    with Cluster(standbys=1, synchronous=1) as cluster:
        (standby,) = cluster.standbys
        cluster.primary.execute("CREATE TABLE sync (i int)")
        standby.freeze()
        writer = threading.Thread(target=cluster.primary.execute, args=("INSERT INTO sync VALUES (1)",))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        standby.thaw()
        writer.join(20)
        assert not writer.is_alive()


def test_synchronous_standbys_can_be_switched_on_by_count_and_by_name(pg_cluster: Cluster) -> None:
    one, other = pg_cluster.standbys
    pg_cluster.set_synchronous(2)
    one.kill()
    states = pg_cluster.primary.execute("SELECT application_name, sync_state FROM pg_stat_replication")
    assert states == [(other.name, "quorum")]
    pg_cluster.set_synchronous([other])
    pg_cluster.primary.execute("CREATE TABLE by_name (i int)")
    pg_cluster.set_synchronous([one.name])
    assert pg_cluster.primary.execute("SHOW synchronous_standby_names") == [(f"ANY 1 ({one.name})",)]
    pg_cluster.set_synchronous(0)
    pg_cluster.primary.execute("CREATE TABLE with_none (i int)")


def test_waiting_for_replication_has_an_end(pg_cluster: Cluster) -> None:
    standby = pg_cluster.standbys[0]
    standby.execute("SELECT pg_wal_replay_pause()")
    try:
        pg_cluster.primary.execute("CREATE TABLE not_replayed (i int)")
        with pytest.raises(ClusterTimeout, match=f"{standby.name} having replayed"):
            pg_cluster.wait_for_replication(timeout=0.2)
    finally:
        standby.execute("SELECT pg_wal_replay_resume()")
    pg_cluster.wait_for_replication()
