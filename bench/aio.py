"""The same questions for asyncio: what a checkout costs, and what happens with many tasks and few connections.

All pools live in one event loop, the plain one of asyncio. Who is served when can be seen exactly here: tasks ask one
after the other, and an operation is overtaken if somebody who asked later got a connection before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from bench.async_peers import AsyncPeer
from bench.peers import OURS, Limits, why_not
from bench.results import Column, Table
from bench.setting import Setting, summary
from bench.turns import Timer, quantile, ratio, rotated, settle, take_turns
from bench.uncontended import COLUMNS, fill

if TYPE_CHECKING:
    from pgdbpool.testing import Node

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

NAME = "asyncio"
CONNECTIONS = 10
TASKS = (100, 1000)
SQL = "select 1"
STORM_COLUMNS = [
    Column("throughput", "operations/s", "{:,.0f}"),
    Column("ratio", "{reference} does", "{:.2f}x"),
    Column("p50", "wait p50 ms", "{:.2f}"),
    Column("p99", "wait p99 ms", "{:.2f}"),
    Column("longest", "longest ms", "{:,.0f}"),
    Column("fairness", "fewest/most", "{:.2f}"),
    Column("overtaken", "overtaken", "{:.2f} %"),
    Column("cpu", "CPU us/op", "{:.0f}"),
]


@dataclass(frozen=True)
class Storm:
    """What one storm of tasks on one pool came to. Times are in seconds."""

    throughput: float
    waits: list[float]
    fewest: int
    most: int
    overtaken: float
    """The share of the operations that somebody who asked later was served before."""
    cpu: float
    """Processor time of this process, per operation."""


async def storm(pool: AsyncPeer, tasks: int, seconds: float) -> Storm:
    """Run so many tasks on ``pool`` and count what they do in ``seconds``, once all of them are running."""
    done: list[list[tuple[float, float]]] = [[] for _ in range(tasks)]
    served: list[int] = []
    stop = False

    async def work(note: Callable[[tuple[float, float]], None], ask: Callable[[], int]) -> None:
        connection, run, clock = pool.connection, pool.run, time.perf_counter
        while not stop:
            number, asked = ask(), clock()
            async with connection() as it:
                got = clock()
                served.append(number)
                await run(it, SQL)
            note((asked, got))

    settle()
    ask = count().__next__
    working = [asyncio.ensure_future(work(notes.append, ask)) for notes in done]
    try:
        await asyncio.sleep(seconds / 4)
        start, before = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        end, after = time.perf_counter(), time.process_time()
    finally:
        stop = True
        await asyncio.wait(working, timeout=60)
    for task in working:
        task.result()
    counts = [sum(start <= got < end for _, got in notes) for notes in done]
    return Storm(
        throughput=sum(counts) / (end - start),
        waits=[min(got, end) - asked for notes in done for asked, got in notes if got >= start and asked < end],
        fewest=min(counts),
        most=max(counts),
        overtaken=overtaken(served),
        cpu=(after - before) / max(1, sum(counts)),
    )


def overtaken(numbers: Sequence[int]) -> float:
    """The share of those that stand behind a greater one.

    >>> overtaken([0, 1, 4, 2, 3])
    0.4
    """
    greatest, behind = -1, 0
    for number in numbers:
        if number < greatest:
            behind += 1
        else:
            greatest = number
    return behind / max(1, len(numbers))


@contextmanager
def pools(
    setting: Setting, nodes: Sequence[Node], limits: Limits, table: Table, run: Run[Any]
) -> Iterator[dict[str, AsyncPeer]]:
    """All peers open at once, by name, each with all its connections open and used."""
    opened: dict[str, AsyncPeer] = {}
    try:
        for peer in setting.async_peers:
            if reason := why_not(peer):
                table.missing[peer.name] = reason
                continue
            pool = peer()
            try:
                run(pool.open(nodes, limits))
                run(pool.warm(limits.least * (len(nodes) if peer.name == OURS else 1)))
                opened[peer.name] = pool
            except Exception as error:
                table.missing[peer.name] = f"it does not open: {summary(error)}"
        yield opened
    finally:
        for pool in opened.values():
            run(pool.close())


def measure(setting: Setting) -> list[Table]:
    if not setting.async_peers:
        return []
    with asyncio.Runner() as runner:
        return [uncontended(setting, runner.run), *(contended(setting, tasks, runner.run) for tasks in TASKS)]


def uncontended(setting: Setting, run: Run[Any]) -> Table:
    table = Table(
        "asyncio_with", "asyncio: checkout and return, uncontended: async with pool.connection(): pass", COLUMNS
    )
    table.notes = [
        "Median of many short blocks taken in turn, one task, four connections, all of them open.",
        "pgdbpool has three endpoints, four connections to each; its statistics and its checks are on.",
        "The others have one endpoint; hasql watches its role.",
    ]
    setting.say(table.title)
    with pools(setting, setting.cluster.nodes, Limits(4, 4), table, run) as opened:

        def timer(pool: AsyncPeer) -> Timer:
            return lambda loops: run(pool.with_blocks(loops))

        timers = {name: timer(pool) for name, pool in opened.items()}
        fill(table, take_turns(timers, setting.effort.block, setting.effort.uncontended_blocks), OURS)
    return table


def contended(setting: Setting, tasks: int, run: Run[Any]) -> Table:
    effort = setting.effort
    longer = tasks / 250  # many tasks need time to have several turns each
    seconds, rounds = effort.task_storm * max(1.0, longer), effort.task_rounds
    table = Table(f"asyncio_{tasks}", f"asyncio: {tasks:,} tasks on {CONNECTIONS} connections, {SQL}", STORM_COLUMNS)
    table.notes = [
        f"{rounds} rounds of {seconds:g} s in turn, the median of them; one endpoint for all. Tasks ask again at once.",
        "Overtaken: so many operations that somebody who asked later was served before.",
    ]
    storms: dict[str, list[Storm]] = {}
    limits = Limits(CONNECTIONS, CONNECTIONS)
    with pools(setting, setting.cluster.nodes[:1], limits, table, run) as opened:
        for number in range(rounds):
            setting.say(f"{table.title}, round {number + 1} of {rounds}")
            for name in rotated(list(opened), number):
                if name in table.missing:
                    continue
                try:
                    storms.setdefault(name, []).append(run(storm(opened[name], tasks, seconds)))
                except Exception as error:
                    table.missing[name] = summary(error)
                    storms.pop(name, None)
    rows(table, storms)
    return table


def rows(table: Table, storms: dict[str, list[Storm]]) -> None:
    """Turn storms by peer into the rows of a table."""
    p99 = {name: [quantile(one.waits, 0.99) for one in of] for name, of in storms.items()}
    own = storms.get(OURS, [])
    for name, of in storms.items():
        table.rows.append(
            {
                "peer": name,
                "throughput": median(one.throughput for one in of),
                "ratio": ratio([one.throughput for one in own], [one.throughput for one in of]) if own else None,
                "p50": median(quantile(one.waits, 0.5) or 0.0 for one in of) * 1e3,
                "p99": median(value or 0.0 for value in p99[name]) * 1e3,
                "longest": median(max(one.waits, default=0.0) for one in of) * 1e3,
                "p99_ratio": ratio(p99[OURS], p99[name]) if own else None,
                "fairness": median(one.fewest / one.most if one.most else 0.0 for one in of),
                "overtaken": median(one.overtaken for one in of) * 100,
                "cpu": median(one.cpu for one in of) * 1e6,
            }
        )
