"""Looks at pg_stat_activity of all servers, again and again, while a server is at work.

What counts is what stays: a connection that is being closed is still seen by its server for a moment, when the next is
open already.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple, Self

import psycopg

from pgdbpool.testing import Cluster

from .server import backends

PERIOD = 0.1  # s
STAYS = 2.0  # s


class Look(NamedTuple):
    """What one look saw, by the name of the node."""

    at: float
    seen: dict[str, dict[int, str]]


class Watch:
    """``with Watch(cluster) as watch: ...``, then ask it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.looks: list[Look] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(60.0)

    def _run(self) -> None:
        while not self._over.wait(PERIOD):
            began = time.monotonic()
            try:
                self.looks.append(Look(began, backends(self._cluster)))
            except psycopg.Error:  # a server that is just going down, or coming up
                pass

    def most(self, group: str = "", since: float = 0.0, until: float = float("inf")) -> int:
        """The most connections that were open to one server at the same time, and stayed; perhaps of one group only."""
        most = 0
        looks = [look for look in self.looks if since <= look.at <= until]
        later = 0
        for look in looks:
            while later < len(looks) and looks[later].at < look.at + STAYS:
                later += 1
            if later == len(looks):
                break
            for node, pids in look.seen.items():
                stayed = pids.items() & looks[later].seen.get(node, {}).items()
                most = max(most, sum(not group or name == group for _, name in stayed))
        return most
