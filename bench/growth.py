"""A pool with one open connection meets ten callers at once: how long until all of them have one?"""

from __future__ import annotations

import threading
import time
from statistics import median
from typing import TYPE_CHECKING

from bench.peers import Limits, Peer
from bench.results import Column, Table
from bench.setting import Setting, summary
from bench.turns import ratio, rotated, settle

if TYPE_CHECKING:
    from pgdbpool.testing import Node

NAME = "growth"
HOLDERS = 10
COLUMNS = [
    Column("half", "five have one, ms", "{:.1f}"),
    Column("all", "all ten, ms", "{:.1f}"),
    Column("ratio", "{reference} is faster by", "{:.2f}x"),
]


def growth(pool: Peer, holders: int = HOLDERS) -> list[float]:
    """When each holder had its connection, in seconds from the common start, in order.

    Nobody lets go before all have one.
    """
    got: list[float] = []
    failures: list[BaseException] = []
    start = 0.0

    def go() -> None:
        nonlocal start
        start = time.perf_counter()

    ready = threading.Barrier(holders, action=go)
    full = threading.Barrier(holders)

    def hold() -> None:
        try:
            ready.wait(60)
            with pool.connection():
                got.append(time.perf_counter() - start)
                full.wait(60)
        except BaseException as error:
            failures.append(error)
            full.abort()

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(holders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    if failures:
        raise failures[0]
    return sorted(got)


def measure(setting: Setting) -> list[Table]:
    table = Table("growth", f"Growth from 1 to {HOLDERS} connections", COLUMNS)
    table.notes = [
        f"{HOLDERS} threads ask at the same moment and hold what they get.",
        f"A new pool each round, median of {setting.effort.growth_rounds} rounds.",
        "Server and clients share the machine, and connecting costs no network round trips here.",
        "SQLAlchemy connects in the thread of each caller, as many at a time as there are callers.",
        "psycopg2 and DBUtils connect in the threads of the callers, one after the other.",
        "psycopg_pool connects in the background, one after the other.",
        "pgdbpool connects in the background, at most two at a time to an endpoint, to spare the server.",
    ]
    table.missing.update(setting.absent)
    rounds: dict[str, list[list[float]]] = {}
    settle()
    for number in range(setting.effort.growth_rounds):
        setting.say(f"{table.title}, round {number + 1} of {setting.effort.growth_rounds}")
        for peer in rotated(setting.peers, number):
            if peer.name not in table.missing:
                try:
                    rounds.setdefault(peer.name, []).append(one_round(peer, setting.cluster.nodes[0]))
                except Exception as error:
                    table.missing[peer.name] = summary(error)
    full = {name: [times[-1] for times in of] for name, of in rounds.items() if name not in table.missing}
    for peer in setting.peers:
        if (name := peer.name) in full:
            table.rows.append(
                {
                    "peer": name,
                    "half": median(times[len(times) // 2 - 1] for times in rounds[name]) * 1e3,
                    "all": median(full[name]) * 1e3,
                    "ratio": ratio(full[name], full[setting.reference]) if setting.reference in full else None,
                }
            )
    return [table]


def one_round(peer: type[Peer], node: Node) -> list[float]:
    pool = peer([node], Limits(1, HOLDERS))
    try:
        pool.warm(1)
        return growth(pool)
    finally:
        pool.close()
