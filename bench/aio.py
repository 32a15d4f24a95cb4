"""The same questions for asyncio: what a checkout costs, and what happens with many tasks and few connections.

All pools live in one event loop, the plain one of asyncio. Who is served when can be seen exactly here: tasks ask one
after the other, and an operation is overtaken if somebody who asked later got a connection before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from bench import storms
from bench.async_peers import AsyncPeer
from bench.peers import OURS, Limits, why_not
from bench.results import Column, Table
from bench.setting import Setting, summary
from bench.storms import Note, Storm, counted
from bench.turns import Timer, rotated, settle, take_turns
from bench.uncontended import COLUMNS, fill

if TYPE_CHECKING:
    from pgdbpool.testing import Node

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

NAME = "asyncio"
CONNECTIONS = 10
TASKS = (100, 1000)
SQL = "select 1"
STORM_COLUMNS = [*storms.COLUMNS, Column("overtaken", "overtaken", "{:.2f} %"), storms.CPU]


async def storm(pool: AsyncPeer, tasks: int, seconds: float) -> Storm:
    """Run so many tasks on ``pool`` and count what they do in ``seconds``, once all of them are running.

    The extra figure is the share of operations that somebody who asked later was served before, in per cent.
    """
    done: list[list[Note]] = [[] for _ in range(tasks)]
    served: list[int] = []
    stop = False

    async def work(note: Callable[[Note], None], ask: Callable[[], int]) -> None:
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
    return counted(done, start, end, after - before, lambda total: 100 * overtaken(served))


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
    found: dict[str, list[Storm]] = {}
    limits = Limits(CONNECTIONS, CONNECTIONS)
    with pools(setting, setting.cluster.nodes[:1], limits, table, run) as opened:
        for number in range(rounds):
            setting.say(f"{table.title}, round {number + 1} of {rounds}")
            for name in rotated(list(opened), number):
                if name in table.missing:
                    continue
                try:
                    found.setdefault(name, []).append(run(storm(opened[name], tasks, seconds)))
                except Exception as error:
                    table.missing[name] = summary(error)
                    found.pop(name, None)
    storms.fill(table, found, OURS, "overtaken")
    return table
