"""Finds out when a healthy answer is possible, by asking the server directly until it gives one."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from bench.failover.ops import Kind
from bench.failover.story import Possible

if TYPE_CHECKING:
    from pgdbpool.testing import Node, Proxy

LIMIT = 60.0  # s
EVERY = 0.005  # s between two questions
ASK: dict[Kind, str] = {"write": "insert into observed default values", "read": "select count(*) from observed"}


class Observer:
    """Asks as soon as it is made, in a thread of its own; ``with Observer(node, "write") as it: ...; it.answer()``.

    Over the Unix socket, so that it is not counted among the connects; or ``through`` a proxy, where it is the network
    that was bad: one connection that worked.
    """

    def __init__(self, node: Node, kind: Kind, through: Proxy | None = None) -> None:
        self._node = node
        self._where = node.conninfo(host=node.socket_dir) if through is None else through.conninfo()
        self._sql = ASK[kind]
        self._after = time.monotonic()
        self._at: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name=f"observer of {node.name}", daemon=True)
        self._thread.start()

    def answer(self) -> Possible:
        """Wait for the first answer."""
        self._thread.join(LIMIT)
        if self._at is None:
            raise TimeoutError(f"{self._node.name} gave no healthy answer within {LIMIT:g} s")
        return Possible(self._after, self._at)

    @property
    def answered(self) -> bool:
        return self._at is not None

    def _ask(self) -> None:
        import psycopg

        where = f"{self._where} connect_timeout=2"
        while not self._stop.is_set():
            try:
                with psycopg.connect(where, autocommit=True) as connection:
                    while not self._stop.is_set():
                        try:
                            connection.execute(self._sql)
                            self._at = time.monotonic()
                            return
                        except psycopg.errors.ReadOnlySqlTransaction:
                            self._stop.wait(EVERY)
            except psycopg.Error:
                self._stop.wait(EVERY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()


def first(observers: list[Observer]) -> Possible:
    """The first answer of several servers."""
    deadline = time.monotonic() + LIMIT
    while not any(observer.answered for observer in observers) and time.monotonic() < deadline:
        time.sleep(EVERY)
    return min((observer.answer() for observer in observers if observer.answered), key=lambda possible: possible.at)
