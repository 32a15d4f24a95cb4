"""Requests from outside, many at a time, and what became of each.

Every write has a key of its own. A client never repeats a request: what it got for an answer is what happened, or may
have happened.
"""

from __future__ import annotations

import http.client
import itertools
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from .server import Server

BATCH = 50  # rows
_MIX = ("read",) * 6 + ("write",) * 3 + ("transaction",) * 2 + ("batch",)


@dataclass(frozen=True, slots=True)
class Operation:
    """One request. `status` is 0 where there was no answer: `answer` is the exception then."""

    kind: str
    key: str
    began: float
    ended: float
    status: int
    answer: Any

    @property
    def good(self) -> bool:
        return self.status == 200

    @property
    def rows(self) -> int:
        """How many rows it has written, if it has written."""
        return {"read": 0, "write": 1, "transaction": 2, "batch": BATCH}[self.kind]


class Load:
    """So many clients at work: ``with Load(server) as load: ...``"""

    def __init__(self, server: Server, clients: int = 8) -> None:
        self.server = server
        self.clients = clients
        self.operations: list[Operation] = []  # only ever appended to
        self._numbers = itertools.count(1)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(random.Random(number),), name=f"client {number}", daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each client end its request, and wait for that. No request may hang."""
        self._over.set()
        for thread in self._threads:
            thread.join(90.0)
            assert not thread.is_alive(), f"{self.server.row.name}: {thread.name} hangs"

    def _client(self, random: random.Random) -> None:
        while not self._over.is_set():
            kind = random.choice(_MIX)
            key = "" if kind == "read" else f"{kind}-{next(self._numbers)}"
            path = {"read": "/read", "batch": f"/batch?key={key}&rows={BATCH}"}.get(kind, f"/{kind}?key={key}")
            began = time.monotonic()
            try:
                status, answer = self.server.ask("GET" if kind == "read" else "POST", path)
                if status == 200 and not isinstance(answer, dict):
                    raise http.client.RemoteDisconnected("cut off in the middle of the answer")
            except (OSError, http.client.HTTPException, ValueError) as error:
                status, answer = 0, error
                self._over.wait(0.01)  # nobody listens perhaps: no storm
            self.operations.append(Operation(kind, key, began, time.monotonic(), status, answer))

    # -- looking on ---------------------------------------------------------------------------------------------

    def wait_for(self, count: int, what: str, wanted: Callable[[Operation], bool] = lambda op: True) -> None:
        """Wait until so many good operations of that kind, begun from now on, have ended."""
        now = time.monotonic()

        def enough() -> bool:
            good = sum(op.began >= now and op.good and wanted(op) for op in self.operations)
            return good >= count

        self.server.wait(enough, what)

    def wait_for_each(self, count: int, what: str) -> None:
        """Wait until so many good operations of each kind, begun from now on, have ended."""
        now = time.monotonic()

        def enough() -> bool:
            kinds = [op.kind for op in self.operations if op.began >= now and op.good]
            return all(kinds.count(kind) >= count for kind in set(_MIX))

        self.server.wait(enough, what)

    def failed(self, since: float = 0.0, until: float = float("inf")) -> list[Operation]:
        """Operations without a good answer that ended in that time."""
        return [op for op in self.operations if not op.good and since <= op.ended and op.began <= until]
