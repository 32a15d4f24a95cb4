"""What the pool adds to one query: checkout, ``select 1``, its row, return, against a bare connection.

The pool's share is one or two microseconds. A round trip takes 25 us if the kernel happens to put client
and server on one processor, and 75 us if it wakes another one, and it changes its mind from connection to
connection. So both are measured apart, with client and server kept where they are. The case with two
processors is nearer to an application and its database; that with one is the hardest for a pool.

The blocks are short, all take turns, each block is compared with the bare connection's block next to it,
and there are several rounds with new connections. A second bare connection is measured against the first
like the pools are: its figure should be 0, and what it is instead is the resolution.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bench.peers import Limits, Peer, Psycopg2, bare
from bench.results import Column, Table
from bench.setting import Setting
from bench.turns import Timer, ratio, rotated, take_turns

if TYPE_CHECKING:
    from pgdbpool.testing import Node

NAME = "roundtrip"
SQL = "select 1"
COLUMNS = [
    Column("us", "us", "{:.1f}"),
    Column("added", "added us", "{:+.1f}"),
    Column("over", "over bare", "{:+.1f} %"),
    Column("lowest", "lowest round", "{:+.1f} %"),
    Column("highest", "highest round", "{:+.1f} %"),
]


def pooled(pool: Peer) -> Timer:
    """Times queries, each with its own checkout."""
    connection, run = pool.connection, pool.run

    def timer(loops: int) -> float:
        start = perf_counter()
        for _ in repeat(None, loops):
            with connection() as it:
                run(it, SQL)
        return perf_counter() - start

    return timer


def kept(connection: Any) -> Timer:
    """Times queries on a connection that is kept, sent in the same way."""
    run = Peer.run if hasattr(connection, "execute") else Psycopg2.run

    def timer(loops: int) -> float:
        start = perf_counter()
        for _ in repeat(None, loops):
            run(connection, SQL)
        return perf_counter() - start

    timer(10)
    return timer


def measure(setting: Setting) -> list[Table]:
    everywhere = processors()
    first, last = min(everywhere), max(everywhere)
    rounds = setting.effort.roundtrip_rounds
    cases = [
        (
            Table("roundtrip_apart", "One select 1, client and server on two processors", COLUMNS),
            {last},
            rounds,
        ),
        (Table("roundtrip_same", "One select 1, client and server on one processor", COLUMNS), {first}, 2),
    ]
    try:
        for table, server, count in cases if first != last else cases[1:]:
            with pinned_cluster(server) as node:
                pin({first})
                one_case(setting, table, node, count)
    finally:
        pin(everywhere)
    return [table for table, *_ in cases if table.rows]


def one_case(setting: Setting, table: Table, node: Node, count: int) -> None:
    """All rounds of one table."""
    table.notes = [
        "Checkout, execute, fetch, return, against a bare connection of the same driver that is kept open.",
        f"Median of {count} rounds with new connections each.",
        "The second bare connection should show 0 %: what it shows instead is the resolution.",
    ]
    rounds: list[dict[str, list[float]]] = []
    for number in range(count):
        setting.say(f"{table.title}, round {number + 1} of {count}")
        rounds.append(one_round(setting, table, node, number))
    drivers = {peer.name: peer.driver for peer in setting.peers}
    for name in rounds[0]:
        seconds = [each.get(name, []) for each in rounds]
        plain = [each[of_bare(name, drivers)] for each in rounds]
        over = [percent(ratio(these, those)) for these, those in zip(seconds, plain, strict=True) if these]
        added = [
            this - that
            for these, those in zip(seconds, plain, strict=True)
            for this, that in zip(these, those, strict=False)
        ]
        table.values[name] = [value for each in seconds for value in each]
        table.rows.append(
            {
                "peer": name,
                "us": median(table.values[name]) * 1e6,
                "added": median(added) * 1e6,
                "over": median(over),
                "lowest": min(over),
                "highest": max(over),
            }
        )


def one_round(setting: Setting, table: Table, node: Node, number: int) -> dict[str, list[float]]:
    """Seconds per query by peer, on connections that did not exist before."""
    effort = setting.effort
    drivers = dict.fromkeys(["psycopg", *(peer.driver for peer in setting.peers)])
    connections = []
    try:
        with setting.pools([node], Limits(1, 1), [table]) as pools:
            timers = {}
            for driver in drivers:
                names = [f"bare {driver}"] + ([f"bare {driver}, again"] if driver == "psycopg" else [])
                for name in names:
                    connections.append(bare(driver, node.dsn))
                    timers[name] = kept(connections[-1])
            timers |= {name: pooled(pool) for name, pool in pools.items()}
            order: Sequence[str] = rotated(list(timers), number)
            values = take_turns({name: timers[name] for name in order}, effort.block, effort.roundtrip_blocks)
            return {name: values[name] for name in timers}
    finally:
        for connection in connections:
            connection.close()


@contextmanager
def pinned_cluster(server: set[int]) -> Iterator[Node]:
    """A server of its own that runs only on these processors: it inherits them from us."""
    from pgdbpool.testing import Cluster

    pin(server)
    with Cluster(standbys=0) as cluster:
        yield cluster.nodes[0]


def processors() -> set[int]:
    """Those that we may use; only Linux can say and choose."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


def pin(to: set[int]) -> None:
    """Keep this thread, and what it starts from now on, on these processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, to)


def of_bare(name: str, drivers: dict[str, str]) -> str:
    """The bare connection that this is compared with."""
    return f"bare {drivers.get(name) or name.removeprefix('bare ').removesuffix(', again')}"


def percent(value: float | None) -> float:
    return ((value or 1.0) - 1) * 100
