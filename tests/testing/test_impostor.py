"""The fake server, seen by a real client."""

import socket
import time

import psycopg
import pytest

from pgdbpool.testing import Impostor


@pytest.mark.parametrize(
    ("sqlstate", "message"),
    [("53300", "too many clients already"), ("57P03", "starting up"), ("XX000", "error XX000")],
)
def test_a_client_gets_the_wanted_error(sqlstate: str, message: str) -> None:
    with Impostor(sqlstate) as server, pytest.raises(psycopg.OperationalError, match=message):
        psycopg.connect(server.dsn)


def test_the_sqlstate_travels_on_the_wire() -> None:
    with Impostor("57P03", "come back later") as server:
        with socket.create_connection((server.host, server.port)) as client:
            client.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")  # SSLRequest
            assert client.recv(1) == b"N"
            client.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x30")  # GSSENCRequest
            assert client.recv(1) == b"N"
            client.sendall(b"\x00\x00\x00\x12\x00\x03\x00\x00user\x00bob\x00\x00")
            answer = b""
            while part := client.recv(100):
                answer += part
        assert answer.startswith(b"E")
        assert b"\0C57P03\0Mcome back later\0" in answer
        assert dict(server.attempts[0].parameters) == {"user": "bob"}


def test_attempts_are_counted_with_their_time_and_parameters() -> None:
    with Impostor() as server:
        start = time.monotonic()
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(server.conninfo(application_name="counted"))
        assert [attempt.parameters["application_name"] for attempt in server.attempts] == ["counted"] * 3
        times = [start, *(attempt.at for attempt in server.attempts), time.monotonic()]
        assert times == sorted(times)


def test_the_answer_can_be_changed() -> None:
    with Impostor("53300") as server:
        server.answer("28P01", "no, not you")
        with pytest.raises(psycopg.OperationalError, match="no, not you"):
            psycopg.connect(server.dsn)
    with pytest.raises(ValueError, match="sqlstate: expected five letters or digits"):
        server.answer("533")


def test_a_hanging_impostor_gives_no_answer() -> None:
    with Impostor() as server:
        server.hang()
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(server.conninfo(connect_timeout=2))
        assert len(server.attempts) == 1
        server.hang(False)
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            psycopg.connect(server.dsn)


def test_a_closed_impostor_refuses_connections() -> None:
    with Impostor() as server:
        pass
    server.close()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(server.dsn)


def test_a_pool_endpoint_can_be_an_impostor() -> None:
    with Impostor() as server:
        assert server.endpoint() == {"host": "127.0.0.1", "port": server.port, "name": "app", "user": "app"}
