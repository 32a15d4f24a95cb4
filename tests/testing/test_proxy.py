"""The proxy: each fault of the network, and that everything else goes on."""

import socket
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from pgdbpool.testing import ClusterError, Node, Proxy
from pgdbpool.testing.waiting import wait_for


@pytest.fixture
def proxy(pg_node: Node) -> Iterator[Proxy]:
    with pg_node.proxy() as proxy:
        yield proxy


Connection = psycopg.Connection[tuple[object, ...]]


def connect(proxy: Proxy, **parameters: object) -> Connection:
    return psycopg.connect(proxy.conninfo(**parameters), autocommit=True)


def ask(connection: Connection) -> tuple[threading.Thread, list[object]]:
    """Ask a question in the background; its answer comes in the list."""
    answers: list[object] = []

    def work() -> None:
        try:
            answers.append(connection.execute("SELECT 1").fetchone())
        except psycopg.OperationalError as error:
            answers.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, answers


def test_the_proxy_leads_to_the_node(pg_node: Node, proxy: Proxy) -> None:
    assert proxy.port != pg_node.port
    assert proxy.endpoint(weight=3) == pg_node.endpoint(weight=3, port=proxy.port)
    with psycopg.connect(proxy.dsn) as connection:
        assert connection.execute("SHOW port").fetchone() == (str(pg_node.port),)


def test_much_data_goes_through_in_both_directions(proxy: Proxy) -> None:
    text = "x" * 5_000_000
    with connect(proxy) as connection:
        assert connection.execute("SELECT %s || %s", (text, "y")).fetchone() == (text + "y",)


def test_hundreds_of_connections_at_once_are_counted(proxy: Proxy) -> None:
    sockets = [socket.create_connection((proxy.host, proxy.port)) for _ in range(300)]
    try:
        wait_for(lambda: proxy.accepted == proxy.connections == 300, "all connections accepted", 20)
    finally:
        for connection in sockets:
            connection.close()
    wait_for(lambda: proxy.connections == 0, "all connections closed", 20)
    assert proxy.accepted == 300


def test_latency_is_added_to_each_round_trip(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.latency(0.2)
        start = time.perf_counter()
        connection.execute("SELECT 1")
        assert time.perf_counter() - start >= 0.2
        proxy.latency(0)
        fastest = 60.0
        for _ in range(5):
            start = time.perf_counter()
            connection.execute("SELECT 1")
            fastest = min(fastest, time.perf_counter() - start)
        assert fastest < 0.1
    with pytest.raises(ValueError, match="seconds: expected 0 or more"):
        proxy.latency(-1)


def test_what_waited_during_a_stall_arrives_when_it_ends(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.stall()
        asker, answers = ask(connection)
        asker.join(0.2)
        assert answers == []
        proxy.resume()
        asker.join(20)
        assert answers == [(1,)]


def test_a_stalled_proxy_accepts_new_connections_without_an_answer(proxy: Proxy) -> None:
    proxy.stall()
    with pytest.raises(psycopg.OperationalError, match="timeout"):
        connect(proxy, connect_timeout=2)
    with socket.create_connection((proxy.host, proxy.port)):
        proxy.resume()
    with connect(proxy) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_connection_that_lost_data_is_a_black_hole_for_good(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.drop()
        asker, answers = ask(connection)
        asker.join(0.2)
        proxy.drop(False)
        with connect(proxy) as another:
            assert another.execute("SELECT 1").fetchone() == (1,)
        asker.join(0.2)
        assert answers == []
        proxy.reset()
        asker.join(20)
        assert isinstance(answers[0], psycopg.OperationalError)


def test_a_connection_that_was_silent_while_data_was_dropped_goes_on(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.drop()
        proxy.drop(False)
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_reset_breaks_open_connections_at_both_ends(pg_node: Node, proxy: Proxy) -> None:
    with socket.create_connection((proxy.host, proxy.port)) as plain, connect(proxy, application_name="rst"):
        proxy.reset()
        assert proxy.connections == 0
        with pytest.raises(ConnectionResetError):
            plain.recv(1)
        wait_for(lambda: not pg_node.backends("rst"), "the session's end", 20)
    with connect(proxy) as connection:
        connection.execute("SELECT 1")


def test_a_proxy_that_refuses_keeps_open_connections_and_its_port(proxy: Proxy) -> None:
    port = proxy.port
    with connect(proxy) as connection:
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            connect(proxy)
        assert connection.execute("SELECT 1").fetchone() == (1,)
    proxy.refuse(False)
    assert proxy.port == port
    connect(proxy).close()


def test_a_killed_server_is_noticed_through_the_proxy(pg_node: Node, proxy: Proxy) -> None:
    with connect(proxy) as connection:
        pg_node.kill()
        with pytest.raises(psycopg.OperationalError, match="closed the connection"):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        connect(proxy)


def test_a_client_that_leaves_ends_its_session(pg_node: Node, proxy: Proxy) -> None:
    connect(proxy, application_name="leaves").close()
    wait_for(lambda: not pg_node.backends("leaves") and proxy.connections == 0, "the session's end", 20)


def test_a_closed_proxy_leaves_no_thread_and_no_port(pg_node: Node) -> None:
    before = set(threading.enumerate())
    proxy = pg_node.proxy()
    with connect(proxy) as connection:
        proxy.close()
        proxy.close()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert set(threading.enumerate()) <= before
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(proxy)
    with pytest.raises(ClusterError, match="has been closed"):
        proxy.stall()


def test_a_proxy_can_be_at_another_address_and_the_same_port(pg_node: Node, proxy: Proxy) -> None:
    with pg_node.proxy(host="127.0.0.2", port=proxy.port) as other:
        assert (other.host, other.port) == ("127.0.0.2", proxy.port)
        with psycopg.connect(other.dsn) as connection:
            assert connection.execute("SHOW port").fetchone() == (str(pg_node.port),)
        assert (proxy.accepted, other.accepted) == (0, 1)
