"""The pool does nothing that may wait for a server, and calls nothing of its user's, while it holds one of its locks.

All it asks of a server it asks by the functions of its driver, and the monitor by `steps.sighting`: each of them looks,
when it is called, whether the thread that calls it holds a lock of the pool.
"""

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from conftest import LIMIT, config, wait_for

from pgdbpool import DBConnectionError, Pool, PoolTimeout
from pgdbpool.drivers import blocking, steps
from pgdbpool.testing import Node

DRIVER = {
    "connect",
    "password_by_thread",
    "ping",
    "statement",
    "report",
    "sight",
    "says_read_only_itself",
    "commit",
    "rollback",
}
DRIVER |= {"within", "close", "abort", "quiet", "adopt", "restore"}
MUST_BE_SEEN = {"connect", "close", "quiet", "ping", "sight", "restore", "commit", "rollback", "sighting"}
OF_THE_USER = {"configure", "check", "reset", "pass"}


class Held(threading.local):
    """How many locks of the pool the present thread holds."""

    count = 0


class CountedLock:
    def __init__(self, held: Held) -> None:
        self._lock = threading.RLock()  # as the pool's own
        self._held = held

    def __enter__(self) -> None:
        self._lock.acquire()
        self._held.count += 1

    def __exit__(self, *exc: object) -> None:
        self._held.count -= 1
        self._lock.release()


def test_no_lock_is_held_during_any_io(pg_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    taken = set[int]()
    seen = set[str]()
    wrong = set[str]()

    def looked_at(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any, **more: Any) -> Any:
            seen.add(name)
            if held.count:
                wrong.add(name)
            return function(*args, **more)

        return look

    class Looked(Pool):
        def _new_lock(self) -> Any:
            lock = CountedLock(held)
            taken.add(id(lock))
            return lock

    for name in DRIVER:
        monkeypatch.setattr(blocking, name, looked_at(name, getattr(blocking, name)))
    monkeypatch.setattr(steps, "sighting", looked_at("sighting", steps.sighting))
    group = {
        "connection_count": 3,
        "min_count": 1,
        "configure": looked_at("configure", lambda conn: None),
        "reset": looked_at("reset", lambda conn: None),
        "max_lifetime": 0.2,
        "max_idle": 0.1,
    }
    place = {**pg_node.endpoint(ssl="disable"), "pass": looked_at("pass", lambda: "a word")}
    groups = {
        "a": {**group, "check": "ping"},
        "b": {**group, "check": looked_at("check", lambda conn: None), "autocommit": False},
    }
    over = threading.Event()
    errors: list[BaseException] = []

    def work(chance: random.Random) -> None:
        try:
            while not over.is_set():
                # A session is killed now and then: an error of the driver's, or of the pool's.
                with suppress(PoolTimeout, DBConnectionError, psycopg.OperationalError):
                    with pool.connection(chance.choice("ab"), timeout=LIMIT) as conn:
                        conn.execute("select 1")
                        if chance.random() < 0.1:
                            conn.execute("begin")
                    conn = pool.getconn("b", timeout=LIMIT)
                    try:
                        conn.execute("select 1")
                        if chance.random() < 0.1:
                            conn.execute("select pg_terminate_backend(pg_backend_pid())")
                    finally:
                        pool.putconn(conn)
        except BaseException as error:
            errors.append(error)

    with Looked(config(place, groups=groups)) as pool:
        threads = [threading.Thread(target=work, args=(random.Random(seed),)) for seed in range(8)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                pool.drain()
                pool.check()
                pool.resize("a", 1, 0)
                pool.resize("a", 3, 1)
                pool.pause()
                pool.stats()
                pool.resume()
            pg_node.kill()
            wait_for(lambda: pool.endpoints()[0].health != "up")
            pg_node.start()
            wait_for(lambda: errors or seen >= MUST_BE_SEEN | OF_THE_USER)
        finally:
            over.set()
            for thread in threads:
                thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors
    assert taken, "the pool has made its locks otherwise"
    assert not wrong
