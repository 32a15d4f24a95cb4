"""The PgBouncer of the harness: it leads to the server, is told what to do, and leaves nothing behind."""

from pathlib import Path

import psycopg
import pytest

from pgdbpool.testing import BinariesNotFound, Cluster, Node, PgBouncer, ServerStartError, processes
from pgdbpool.testing.waiting import wait_for
from tests.testing.helpers import needs_pgbouncer

pytestmark = needs_pgbouncer


def backend(conn: psycopg.Connection[tuple[int]]) -> int:
    row = conn.execute("select pg_backend_pid()", prepare=False).fetchone()
    assert row is not None
    return row[0]


def test_it_leads_to_the_node_and_its_sessions_are_not_the_servers(pg_node: Node) -> None:
    with PgBouncer(pg_node) as pooler:
        assert pooler.endpoint(weight=3) == pg_node.endpoint(weight=3, port=pooler.port)
        with psycopg.connect(pooler.dsn) as conn:
            assert backend(conn) != conn.info.backend_pid
            assert conn.execute("show port").fetchone() == (str(pg_node.port),)


def test_in_session_mode_a_session_keeps_its_backend_and_in_transaction_mode_it_does_not(pg_node: Node) -> None:
    for mode, same in (("session", True), ("transaction", False)):
        with PgBouncer(pg_node, mode) as pooler, psycopg.connect(pooler.dsn, autocommit=True) as one:
            first = backend(one)
            with psycopg.connect(pooler.dsn) as two:
                other = backend(two)  # in a transaction: holds its backend
                assert (backend(one) == first) is same or other == first
                assert (other != first) is same


def test_with_a_password_it_asks_for_it() -> None:
    with Cluster(standbys=0, password='p "w') as cluster, PgBouncer(cluster.primary) as pooler:
        with psycopg.connect(pooler.dsn) as conn:
            assert backend(conn)
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            psycopg.connect(pooler.conninfo(password="wrong"))


def test_pause_holds_statements_until_resume(pg_node: Node) -> None:
    with PgBouncer(pg_node) as pooler, psycopg.connect(pooler.dsn, autocommit=True) as conn:
        pooler.pause()
        conn.pgconn.send_query(b"select 1")
        wait_for(lambda: any(row["cl_waiting"] for row in pooler.admin("SHOW POOLS")), "a waiting client", 20)
        pooler.resume()
        assert conn.pgconn.get_result() is not None
        assert conn.pgconn.get_result() is None


def test_it_leads_elsewhere_when_told(pg_node: Node) -> None:
    with (
        pg_node.proxy() as proxy,
        PgBouncer(pg_node) as pooler,
        psycopg.connect(pooler.dsn, autocommit=True, prepare_threshold=None) as conn,
    ):
        backend(conn)
        pooler.lead_to(proxy)
        backend(conn)
        wait_for(lambda: proxy.connections == 1, "a connection by the new way", 20)
        pooler.reconnect()
        backend(conn)
        wait_for(lambda: proxy.accepted == 2, "a second connection by the new way", 20)


def test_it_can_be_killed_started_frozen_and_thawed(pg_node: Node) -> None:
    with PgBouncer(pg_node, settings={"default_pool_size": 3}) as pooler:
        port = pooler.port
        pooler.freeze()
        assert pooler.is_running
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(pooler.conninfo(connect_timeout=2))
        pooler.thaw()
        pooler.kill()
        assert not pooler.is_running
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(pooler.dsn)
        pooler.start()
        assert pooler.port == port
        (size,) = (row["value"] for row in pooler.admin("SHOW CONFIG") if row["key"] == "default_pool_size")
        assert size == "3"


def test_nothing_is_left_of_it(pg_node: Node) -> None:
    with PgBouncer(pg_node) as pooler:
        folder = pooler.log_file.parent.parent
        assert processes.find(f"{folder.name}/")
    pooler.close()
    assert not folder.exists()
    assert not processes.find(f"{folder.name}/")


def test_mistakes_are_told(pg_node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pool_mode: expected one of transaction, session, statement, got 'none'"):
        PgBouncer(pg_node, "none")
    with pytest.raises(ValueError, match="settings: listen_port is decided"):
        PgBouncer(pg_node, settings={"listen_port": 1})
    with (
        pytest.raises(ServerStartError, match="no_such_setting"),
        PgBouncer(pg_node, settings={"no_such_setting": 1, "max_client_conn": "many"}),
    ):
        pass
    monkeypatch.setenv("PGDBPOOL_PGBOUNCER", str(tmp_path / "nowhere"))
    with pytest.raises(BinariesNotFound, match=r"nowhere \(from PGDBPOOL_PGBOUNCER\) is no program"):
        PgBouncer(pg_node)
