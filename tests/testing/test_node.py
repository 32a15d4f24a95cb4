"""What can be done to a single node, and what it says."""

import socket
import subprocess
import threading
import time

import psycopg
import pytest

from pgdbpool.testing import Cluster, ClusterError, Node
from pgdbpool.testing.processes import find


def connect(node: Node, **parameters: object) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(node.conninfo(**parameters), autocommit=True)


# How to connect


def test_an_endpoint_has_the_shape_of_the_configuration(pg_node: Node) -> None:
    assert pg_node.endpoint(priority=1) == {
        "host": "127.0.0.1",
        "port": pg_node.port,
        "name": "app",
        "user": "app",
        "priority": 1,
    }


def test_dsn_conninfo_and_socket_lead_to_the_node(pg_node: Node) -> None:
    for where in (pg_node.dsn, pg_node.conninfo(), pg_node.conninfo(host=pg_node.socket_dir)):
        with psycopg.connect(where) as connection:
            assert connection.execute("SHOW port").fetchone() == (str(pg_node.port),)


def test_execute_is_superuser_with_parameters_rows_and_autocommit(pg_node: Node) -> None:
    assert pg_node.execute("SELECT %s::int + 1, current_user::text", (1,)) == [(2, "postgres")]
    assert pg_node.execute("CREATE TABLE by_execute (i int)") == []
    assert pg_node.execute("INSERT INTO by_execute VALUES (1) RETURNING i") == [(1,)]
    assert pg_node.execute("SELECT count(*) FROM by_execute") == [(1,)]
    assert pg_node.execute("SELECT current_database()", database="postgres") == [("postgres",)]


# Start and stop


def test_a_stopped_node_comes_back_on_the_same_port(pg_node: Node) -> None:
    port = pg_node.port
    for mode in ("fast", "smart", "immediate"):
        pg_node.stop(mode)
        assert not pg_node.is_running
        with pytest.raises(psycopg.OperationalError, match="refused"):
            connect(pg_node)
        pg_node.start()
        assert pg_node.is_running
        assert pg_node.port == port
        connect(pg_node).close()


def test_stopping_a_stopped_node_and_starting_a_running_one_do_nothing(pg_node: Node) -> None:
    pg_node.start()
    pg_node.stop()
    pg_node.stop()
    with pytest.raises(ValueError, match="mode: expected one of smart, fast, immediate"):
        pg_node.stop("gently")


def test_a_start_that_is_not_waited_for_can_be_waited_for_later(pg_node: Node) -> None:
    pg_node.stop()
    pg_node.start(wait=False)
    pg_node.wait_ready()
    assert pg_node.execute("SELECT 1") == [(1,)]


def test_the_port_of_a_node_that_is_down_is_given_to_nobody(pg_node: Node) -> None:
    pg_node.kill()
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind((pg_node.host, pg_node.port))


# Kill


def test_a_killed_node_leaves_no_process_and_its_sockets_die(pg_node: Node) -> None:
    with connect(pg_node) as connection:
        pg_node.kill()
        assert find(pg_node._mark) == []
        with pytest.raises(psycopg.OperationalError, match="server closed the connection"):
            connection.execute("SELECT 1")
    assert not pg_node.is_running
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(pg_node)


def test_a_killed_node_recovers_what_was_committed(pg_node: Node) -> None:
    pg_node.execute("CREATE TABLE survives AS SELECT 7 AS i")
    pg_node.kill()
    pg_node.start()
    assert pg_node.execute("SELECT i FROM survives") == [(7,)]
    assert "was not properly shut down" in pg_node.log()


def test_a_frozen_node_can_be_killed_and_can_be_stopped(pg_node: Node) -> None:
    pg_node.freeze()
    pg_node.kill()
    assert not pg_node.is_running
    pg_node.start()
    pg_node.freeze()
    pg_node.stop()
    assert not pg_node.is_running
    assert not pg_node.is_frozen


# Freeze


def test_a_frozen_node_accepts_connections_and_answers_nothing(pg_node: Node) -> None:
    with connect(pg_node) as connection:
        pg_node.freeze()
        assert pg_node.is_frozen
        assert pg_node.is_running
        assert all(process.stopped for process in find(pg_node._mark))
        answers: list[object] = []
        asker = threading.Thread(target=lambda: answers.append(connection.execute("SELECT 1").fetchone()))
        asker.start()
        with socket.create_connection((pg_node.host, pg_node.port)):
            pass
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            connect(pg_node, connect_timeout=2)
        assert answers == []
        pg_node.thaw()
        asker.join(20)
        assert answers == [(1,)]
        assert not pg_node.is_frozen


def test_freezing_catches_children_that_are_just_being_born(pg_node: Node) -> None:
    over = threading.Event()

    def connect_all_the_time() -> None:
        while not over.is_set():
            try:
                connect(pg_node, connect_timeout=10).close()
            except psycopg.OperationalError:
                pass

    clients = [threading.Thread(target=connect_all_the_time) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for _ in range(5):
            pg_node.freeze()
            assert all(process.stopped for process in find(pg_node._mark))
            before = {process.pid for process in find(pg_node._mark)}
            time.sleep(0.02)
            assert {process.pid for process in find(pg_node._mark)} == before
            pg_node.thaw()
    finally:
        over.set()
        pg_node.thaw()
        for client in clients:
            client.join(20)


def test_a_node_that_is_down_cannot_be_frozen(pg_node: Node) -> None:
    pg_node.stop()
    with pytest.raises(ClusterError, match="is not running, so it cannot be frozen"):
        pg_node.freeze()


# Roles


def test_a_promoted_standby_is_a_primary_on_a_new_timeline(pg_cluster: Cluster) -> None:
    old, new = pg_cluster.primary, pg_cluster.standbys[0]
    timeline = new.timeline()
    assert timeline == old.timeline()
    old.kill()
    new.promote()
    assert not new.is_in_recovery()
    assert new.timeline() == timeline + 1
    assert pg_cluster.primary is new
    assert old not in pg_cluster.standbys
    new.execute("CREATE TABLE on_the_new_primary (i int)")


def test_a_standby_knows_its_timeline_when_its_primary_is_gone(pg_cluster: Cluster) -> None:
    for _ in range(2):
        old = pg_cluster.primary
        new = pg_cluster.failover()
        timeline = new.timeline()
        old.rejoin(new)
        new.execute("SELECT pg_switch_wal()")
        pg_cluster.wait_for_replication()
        new.kill()
        assert [node.timeline() for node in pg_cluster.standbys] == [timeline, timeline]
        new.start()


def test_a_killed_primary_rejoins_as_a_standby(pg_cluster: Cluster) -> None:
    old = pg_cluster.primary
    new = pg_cluster.failover()
    old.rejoin(new)
    assert old in pg_cluster.standbys
    assert old.is_in_recovery()
    assert old.is_streaming()
    assert old.timeline() == new.timeline()


def test_an_old_primary_that_wrote_on_loses_only_what_it_wrote_alone(pg_cluster: Cluster) -> None:
    old, new = pg_cluster.primary, pg_cluster.standbys[0]
    old.execute("CREATE TABLE before_the_split AS SELECT 1")
    pg_cluster.wait_for_replication()
    new.promote()
    old.execute("CREATE TABLE on_the_wrong_side AS SELECT 1")
    old.rejoin(new)
    tables = "SELECT to_regclass('before_the_split') IS NULL, to_regclass('on_the_wrong_side') IS NULL"
    assert old.execute(tables) == [(False, True)]


def test_a_standby_follows_a_new_primary_without_ending_its_sessions(pg_cluster: Cluster) -> None:
    one, other = pg_cluster.standbys
    with connect(one) as to_one, connect(other) as to_other:
        new = pg_cluster.failover()  # to the most advanced one: the other can have nothing that this one lacks
        assert {one.following, other.following} == {None, new}
        assert to_one.execute("SELECT pg_is_in_recovery()").fetchone() == (new is not one,)
        assert to_other.execute("SELECT pg_is_in_recovery()").fetchone() == (new is not other,)


def test_a_standby_that_is_ahead_of_the_new_primary_gets_a_copy(pg_cluster: Cluster) -> None:
    behind, ahead = pg_cluster.standbys
    behind.kill()
    pg_cluster.primary.execute("CREATE TABLE only_ahead AS SELECT generate_series(1, 1000)")
    pg_cluster.wait_for_replication()
    pg_cluster.primary.kill()
    behind.start()
    behind.promote()
    ahead.rejoin(behind)
    assert ahead.execute("SELECT to_regclass('only_ahead') IS NULL") == [(True,)]
    assert ahead.is_streaming()


def test_a_killed_standby_rejoins_with_what_it_missed(pg_cluster: Cluster) -> None:
    standby = pg_cluster.standbys[0]
    standby.kill()
    pg_cluster.primary.execute("CREATE TABLE missed AS SELECT 1")
    standby.rejoin(pg_cluster.primary)
    pg_cluster.wait_for_replication()
    assert standby.execute("SELECT count(*) FROM missed") == [(1,)]


def test_a_node_cannot_rejoin_itself_or_one_that_is_down(pg_cluster: Cluster) -> None:
    primary, standby = pg_cluster.primary, pg_cluster.standbys[0]
    with pytest.raises(ValueError, match="cannot follow itself"):
        primary.rejoin(primary)
    primary.kill()
    with pytest.raises(ClusterError, match="which is not running; start or thaw it"):
        standby.rejoin(primary)


def test_the_wal_position_grows_with_each_write(pg_cluster: Cluster) -> None:
    primary, standby = pg_cluster.primary, pg_cluster.standbys[0]
    before = primary.wal_position()
    primary.execute("CREATE TABLE grows AS SELECT generate_series(1, 100)")
    assert primary.wal_position() > before
    pg_cluster.wait_for_replication()
    assert standby.wal_position() > before


# Writes and sessions


def test_a_node_that_refuses_writes_keeps_its_sessions(pg_node: Node) -> None:
    with connect(pg_node) as connection:
        connection.execute("CREATE TABLE written (i int)")
        pg_node.refuse_writes()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("INSERT INTO written VALUES (1)")
        assert not pg_node.is_in_recovery()
        pg_node.refuse_writes(False)
        connection.execute("INSERT INTO written VALUES (1)")


def test_backends_are_told_apart_by_application_name(pg_node: Node) -> None:
    with connect(pg_node, application_name="mine") as mine, connect(pg_node, application_name="other"):
        (row,) = pg_node.backends("mine")
        assert (row["pid"], row["state"], row["usename"]) == (mine.info.backend_pid, "idle", "app")
        assert {row["application_name"] for row in pg_node.backends()} >= {"mine", "other"}


def test_terminated_backends_are_gone_and_the_others_stay(pg_node: Node) -> None:
    with connect(pg_node, application_name="goes") as goes, connect(pg_node, application_name="stays") as stays:
        assert pg_node.terminate_backends("application_name = %s", ("goes",)) == 1
        assert pg_node.backends("goes") == []
        with pytest.raises(psycopg.errors.AdminShutdown):
            goes.execute("SELECT 1")
        stays.execute("SELECT 1")
        assert pg_node.terminate_backends() >= 1
        assert pg_node.backends("stays") == []


def test_the_log_is_what_the_server_wrote(pg_node: Node) -> None:
    with connect(pg_node) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM nowhere_to_be_found")
    assert 'relation "nowhere_to_be_found" does not exist' in pg_node.log()


def test_the_repr_says_where_and_in_which_state(pg_node: Node) -> None:
    assert repr(pg_node) == f"<Node node1 127.0.0.1:{pg_node.port} running>"
    pg_node.freeze()
    assert repr(pg_node).endswith("frozen>")
    pg_node.kill()
    assert repr(pg_node).endswith("down>")


def test_no_program_of_the_user_is_taken_for_a_server(pg_node: Node) -> None:
    with subprocess.Popen(["tail", "-f", str(pg_node.log_file)], stdout=subprocess.DEVNULL) as reader:
        try:
            pg_node.kill()
            assert reader.poll() is None
        finally:
            reader.kill()
