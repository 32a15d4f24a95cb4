"""A server that is told to end, or to reload, answers the requests that it has begun, however long they take.

The development servers are left out: they cut requests off.
"""

import http.client
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .server import LIMIT, Server, held_up

ROWS = {name: row for name, row in load().items() if row.stop != "ctrl-c"}


@pytest.mark.parametrize("name", ROWS)
def test_a_server_that_is_told_to_end_answers_the_requests_it_has_begun(
    name: str, cluster: Cluster, open_folder: Path
) -> None:
    row = ROWS[name]
    paths = ["/write?key=a", "/transaction?key=b", "/batch?key=c&rows=50"]
    with Server(row, cluster, open_folder) as server, psycopg.connect(cluster.primary.conninfo()) as other:
        server.wait(lambda: len(at_the_same_time(server)) == row.processes, "all workers")
        other.execute("lock table notes in exclusive mode")
        with ThreadPoolExecutor() as clients:
            begun = [clients.submit(server.ask, "POST", path) for path in paths]
            server.wait(lambda: held_up(cluster) == len(paths), "requests that wait for the table")
            server.tell_to_end()
            server.wait(lambda: silent(server), "a server that begins no more requests")
            assert held_up(cluster) == len(paths)
            other.commit()
            answers = [request.result(LIMIT) for request in begun]
        assert [status for status, _ in answers] == [200] * len(paths)
    found = dict(cluster.primary.execute("select key, count(*) from notes group by key"))
    assert found == {"a": 1, "b": 2, "c": 50}


def test_a_process_of_mod_wsgi_that_is_replaced_has_more_than_five_seconds_for_a_request(
    cluster: Cluster, open_folder: Path
) -> None:
    row = ROWS["apache-daemon"]
    with Server(row, cluster, open_folder) as server, psycopg.connect(cluster.primary.conninfo()) as other:
        server.wait(lambda: len(at_the_same_time(server)) == row.processes, "all workers")
        other.execute("lock table notes in exclusive mode")
        with ThreadPoolExecutor() as clients:
            begun = clients.submit(server.ask, "POST", "/batch?key=b&rows=2")
            server.wait(lambda: held_up(cluster) == 1, "a request that waits for the table")
            old = at_the_same_time(server)
            server.reload()
            # Both processes see with a request that the script is a new one; the one that is busy does so last.
            server.wait(lambda: not at_the_same_time(server) & old, "answers of new processes only")
            with pytest.raises(TimeoutError):
                begun.result(7.0)
            other.commit()
            assert begun.result(LIMIT)[0] == 200
    assert cluster.primary.execute("select count(*) from notes") == [(2,)]


def at_the_same_time(server: Server) -> set[int]:
    """The workers that answer some requests."""
    with ThreadPoolExecutor(8) as clients:
        return {answer["worker"] for answer in clients.map(lambda _: server.read(), range(8))}


def silent(server: Server) -> bool:
    """Whether it begins no more requests: it refuses a new connection, or leaves it where it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=1.0)
    try:
        connection.request("GET", "/read")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return True
    finally:
        connection.close()
    return False
