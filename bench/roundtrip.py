"""What the pool adds to one query: checkout, ``select 1``, its row, return, against a bare connection.

The pool's share is one or two microseconds. A round trip takes 25 us if the kernel happens to put client
and server on one processor, and 75 us if it wakes another one, and it changes its mind from connection to
connection. So both are measured apart, with client and server kept where they are. The case with two
processors is nearer to an application and its database; that with one is the hardest for a pool.

The blocks are short, and each block of a pool stands between one of each of two bare connections of the same
driver, over TCP to the same server as the pools; it is compared with the mean of the two. Two
server processes are never quite alike, so there are many rounds with new connections, and what counts is
the median of the rounds. A third bare connection is measured against the two like the pools are: its
figure should be 0, and what it is instead is the resolution.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.peers import Limits, Peer, Psycopg2, bare
from bench.results import Column, Table
from bench.setting import Setting
from bench.turns import Timer, calibrate, rotated, settle

if TYPE_CHECKING:
    from pgdbpool.testing import Node

NAME = "roundtrip"
SQL = "select 1"
Turn = Callable[[], float]
AGAIN = ", again"
COLUMNS = [
    Column("us", "us", "{:.1f}"),
    Column("added", "added us", "{:+.1f}"),
    Column("over", "over bare", "{:+.1f} %"),
    Column("lowest", "lowest round", "{:+.1f} %"),
    Column("highest", "highest round", "{:+.1f} %"),
]


COMPARED = [column.key for column in COLUMNS[1:]]


class Block(NamedTuple):
    """One block of a pool, and those of bare connections around it: seconds per query."""

    before: float
    this: float
    after: float

    @property
    def bare(self) -> float:
        return (self.before + self.after) / 2


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
        (
            Table("roundtrip_same", "One select 1, client and server on one processor", COLUMNS),
            {first},
            max(1, rounds // 6),
        ),
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
        "Checkout, execute, fetch, return, against bare connections of the same driver that are kept open.",
        f"Median of {count} rounds with new connections each, and the lowest and the highest of them.",
        "The bare connection that is measured again should show 0 %: what it shows instead is the resolution.",
    ]
    rounds: list[dict[str, list[Block]]] = []
    for number in range(count):
        setting.say(f"{table.title}, round {number + 1} of {count}")
        rounds.append(one_round(setting, table, node, number))
    for name in rounds[0]:
        of_each = [each[name] for each in rounds if name in each]
        blocks = [block for of_one in of_each for block in of_one]
        over = [(median(block.this / block.bare for block in of_one) - 1) * 100 for of_one in of_each]
        if name.endswith(AGAIN):
            plain = median(block.bare for block in blocks) * 1e6
            table.rows.append({"peer": name.removesuffix(AGAIN), "us": plain} | dict.fromkeys(COMPARED))
        table.values[name] = [block.this for block in blocks]
        table.rows.append(
            {
                "peer": name,
                "us": median(table.values[name]) * 1e6,
                "added": median(block.this - block.bare for block in blocks) * 1e6,
                "over": median(over),
                "lowest": min(over),
                "highest": max(over),
            }
        )


def one_round(setting: Setting, table: Table, node: Node, number: int) -> dict[str, list[Block]]:
    """The blocks by peer, on connections that did not exist before."""
    effort = setting.effort
    connections: list[Any] = []
    try:
        with setting.pools([node], Limits(1, 1), [table]) as pools:
            drivers = dict.fromkeys(["psycopg", *(pool.driver for pool in pools.values())])
            plain: dict[str, list[Turn]] = {}
            for driver in drivers:
                three = [bare(driver, node.dsn) for _ in range(3)]
                connections += three
                plain[driver] = [turn(kept(connection), effort.block) for connection in three]
            turns = {f"bare {driver}{AGAIN}": (driver, third) for driver, (*_, third) in plain.items()}
            turns |= {
                name: (pool.driver, turn(partial(pool.queries, SQL), effort.block)) for name, pool in pools.items()
            }
            settle()
            blocks: dict[str, list[Block]] = {name: [] for name in turns}
            for block in range(effort.roundtrip_blocks):
                for name in rotated(list(turns), number + block):
                    driver, this = turns[name]
                    first, second, _ = plain[driver]
                    before, after = (first, second) if block % 2 else (second, first)
                    blocks[name].append(Block(before(), this(), after()))
            return blocks
    finally:
        for connection in connections:
            connection.close()


def turn(timer: Timer, seconds: float) -> Turn:
    """One block of about so many seconds; gives the seconds per query."""
    loops = calibrate(timer, seconds)
    return lambda: timer(loops) / loops


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
