"""How often a server that is gone is asked, counted where it was."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from pgdbpool import Error, Pool

GONE = 10.0  # s, before it is counted
COUNTED = 4.0  # s


def test_pools_whose_callers_wait_ask_a_server_that_is_gone_a_few_times_a_second(open_pool):
    """Each attempt may be two connects: the first of them may have met the very end of the server."""
    asked: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def turn_away() -> None:
            with suppress(OSError):
                while True:
                    conn, _ = server.accept()
                    asked.append(time.monotonic())
                    conn.close()

        def wait_for_it(pool: Pool) -> None:
            with suppress(Error), pool.connection("g"):
                pass

        counting = threading.Thread(target=turn_away, daemon=True)
        counting.start()
        where = {"host": "127.0.0.1", "port": server.getsockname()[1], "name": "x", "user": "x", "pass": "x"}
        groups = {"g": {"acquire_timeout": GONE + COUNTED + 1}}
        pools = [open_pool({"db": [where], "groups": groups}) for _ in range(3)]
        waiting = [threading.Thread(target=wait_for_it, args=[pool], daemon=True) for pool in pools]
        for each in waiting:
            each.start()
        time.sleep(GONE + COUNTED)
        end = time.monotonic()
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        for each in waiting:
            each.join(30)
    lately = [at for at in asked if end - COUNTED <= at < end]
    assert 1 <= len(lately) <= 6 * COUNTED
