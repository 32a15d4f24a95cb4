"""The server was restarted, and the pool still has ten connections to the old one: when does it answer again?

The server is back before the clock starts, so all waiting is the pool's own. An operation is a checkout and a
``select 1``; it fails if either of them raises.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from bench.peers import Limits, Peer
from bench.results import Column, Table
from bench.setting import Setting, summary
from bench.turns import rotated

if TYPE_CHECKING:
    from pgdbpool.testing import Node

NAME = "restart"
CONNECTIONS = 10
AFTERWARDS = 20
"""So many more operations, to find the stale connections that are still left."""
REST = 0.7
"""Longer than the half second within which pgdbpool trusts a connection that has just been used."""
DOWN = 1.0
"""Long enough for a pool to notice by itself, to try to connect, and to be told that nobody is there."""
SHORT = 5.0
"""Patience in the other cases than that of idle connections: who always asks the server is the same in all."""
COLUMNS = [
    Column("first", "first answer after ms", "{:,.1f}"),
    Column("slowest", "slowest round ms", "{:,.1f}"),
    Column("failed", "failed before it", "{:.0f}"),
    Column("later", "failed later", "{:.0f}"),
    Column("longest", "longest wait ms", "{:,.1f}"),
]


@dataclass(frozen=True)
class Recovery:
    """Seconds to the first answer (None: none), operations that failed before and after it, longest one."""

    first: float | None
    failed: int
    later: int
    longest: float


@dataclass(frozen=True)
class Case:
    """One way to restart. Times in seconds: how long the connections rest before, and the server is down."""

    table: Table
    rest: float
    down: float
    patience: float


def recovery(pool: Peer, node: Node, case: Case) -> Recovery:
    """Restart the server under an open pool and use the pool until it answers."""
    patience = case.patience
    pool.warm(CONNECTIONS)
    time.sleep(case.rest)
    node.stop("fast")
    time.sleep(case.down)
    node.start()
    failed = later = 0
    first = None
    longest = 0.0
    start = time.perf_counter()
    while first is None and time.perf_counter() - start < patience:
        began = time.perf_counter()
        if succeeds(pool):
            first = time.perf_counter() - start
        else:
            failed += 1
        longest = max(longest, time.perf_counter() - began)
    for _ in range(AFTERWARDS if first is not None else 0):
        began = time.perf_counter()
        later += not succeeds(pool)
        longest = max(longest, time.perf_counter() - began)
        if longest > patience:
            break
    return Recovery(first, failed, later, longest)


def succeeds(pool: Peer) -> bool:
    """One operation."""
    try:
        with pool.connection() as connection:
            pool.run(connection, "select 1")
    except Exception:
        return False
    return True


def measure(setting: Setting) -> list[Table]:
    from pgdbpool.testing import Cluster

    patience = setting.effort.patience
    short = min(SHORT, patience)
    titles = {
        "restart_rested": f"After a quick restart, {CONNECTIONS} idle connections",
        "restart_used": f"After a quick restart, {CONNECTIONS} connections used just before it",
        "restart_down": f"After the server was down for {DOWN:g} s, {CONNECTIONS} connections",
    }
    rested, used, down = (Table(key, title, COLUMNS) for key, title in titles.items())
    cases = [Case(rested, REST, 0.0, patience), Case(used, 0.0, 0.0, short), Case(down, 0.0, DOWN, short)]
    with Cluster(standbys=0) as cluster:
        for case in cases:
            table, patience = case.table, case.patience
            table.missing.update(setting.absent)
            table.missing.update({peer.name: peer.blind for peer in setting.peers if peer.blind})
            table.notes = [
                "The time starts when the server accepts connections again.",
                "One operation (checkout and select 1) after the other, until one is answered.",
                f"After it come {AFTERWARDS} more.",
                "Median of the rounds; a pool that needed a second or more gets one round.",
                f"A pool may take {patience:g} s for a checkout (its timeout) and for the first answer.",
            ]
            if case.rest:
                table.notes.append(f"The connections had rested for {case.rest:g} s before the restart.")
            recoveries = all_rounds(setting, case, cluster.nodes[0])
            for name, of in recoveries.items():
                answered = [one.first for one in of if one.first is not None]
                if len(answered) < len(of):
                    table.notes.append(f"{name}: no answer within {patience:g} s.")
                table.rows.append(
                    {
                        "peer": name,
                        "first": median(answered) * 1e3 if len(answered) == len(of) else None,
                        "slowest": max(answered) * 1e3 if len(answered) == len(of) else None,
                        "failed": max(one.failed for one in of),
                        "later": max(one.later for one in of),
                        "longest": max(one.longest for one in of) * 1e3,
                    }
                )
    return [case.table for case in cases]


def all_rounds(setting: Setting, case: Case, node: Node) -> dict[str, list[Recovery]]:
    """The recoveries of each peer, in turns."""
    table = case.table
    recoveries: dict[str, list[Recovery]] = {}
    for number in range(setting.effort.restart_rounds):
        setting.say(f"{table.title}, round {number + 1} of {setting.effort.restart_rounds}")
        for peer in rotated(setting.peers, number):
            before = recoveries.get(peer.name, [])
            if peer.name in table.missing or any(one.longest >= 1 for one in before):
                continue
            try:
                pool = peer([node], Limits(CONNECTIONS, CONNECTIONS, case.patience))
                try:
                    recoveries.setdefault(peer.name, []).append(recovery(pool, node, case))
                finally:
                    pool.close()
            except Exception as error:
                recoveries.pop(peer.name, None)
                table.missing[peer.name] = summary(error)
    return {peer.name: recoveries[peer.name] for peer in setting.peers if peer.name in recoveries}
