"""Many threads, few connections: how much gets done, how long a thread waits, do all get their turn."""

import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.peers import Limits, NoPool, Peer, Psycopg2
from bench.results import Column, Table
from bench.setting import Setting, summary
from bench.storms import COLUMNS, CPU, Note, Storm, counted, fill
from bench.turns import rotated, settle

NAME = "contended"
CONNECTIONS = 4
THREADS = (16, 64)


@dataclass(frozen=True)
class Query:
    name: str
    sql: str
    longer: int
    """So many times longer storms: slow queries need time to be counted."""
    fewer: int
    """So many times fewer of them."""


QUERIES = (Query("select 1", "select 1", 1, 1), Query("2 ms query", "select pg_sleep(0.002)", 3, 5))
TABLE_COLUMNS = [*COLUMNS, CPU, Column("switches", "switches/op", "{:.1f}")]


def storm(pool: Peer, threads: int, sql: str, seconds: float) -> Storm:
    """Run so many threads on ``pool`` and count what they do in ``seconds``, once all of them are running.

    The extra figure is that of changes of the running thread.
    """
    done: list[list[Note]] = [[] for _ in range(threads)]
    failures: list[BaseException] = []
    ready = threading.Barrier(threads + 1)
    stop = threading.Event()

    def work(note: Callable[[Note], None]) -> None:
        connection, run, clock, stopped = pool.connection, pool.run, time.perf_counter, stop.is_set
        try:
            ready.wait(60)
            while not stopped():
                asked = clock()
                with connection() as it:
                    got = clock()
                    run(it, sql)
                note((asked, got))
        except BaseException as error:
            failures.append(error)
            ready.abort()

    workers = [threading.Thread(target=work, args=(notes.append,), daemon=True) for notes in done]
    settle()
    for worker in workers:
        worker.start()
    try:
        ready.wait(60)
        time.sleep(max(0.05, seconds / 5))
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        time.sleep(seconds)
        end, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    except threading.BrokenBarrierError:
        pass
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)
    if failures:
        raise failures[0]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    switches = after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw
    return counted(done, start, end, cpu, lambda total: switches / total)


def measure(setting: Setting) -> list[Table]:
    tables = {
        (threads, query): Table(
            f"contended_{threads}_{query.name.split()[0]}",
            f"{threads} threads on {CONNECTIONS} connections, {query.name}",
            TABLE_COLUMNS,
        )
        for query in QUERIES
        for threads in THREADS
    }
    limits = Limits(CONNECTIONS, CONNECTIONS)
    with setting.pools(setting.cluster.nodes[:1], limits, list(tables.values()), (NoPool,)) as pools:
        for (threads, query), table in tables.items():
            rounds = max(1, setting.effort.storm_rounds // query.fewer)
            seconds = setting.effort.storm * query.longer
            table.notes = [
                f"{rounds} rounds of {seconds:g} s in turn, the median of them; one endpoint for all.",
                "A pool that serves some threads and starves the others can do more: see fewest/most.",
                "Threads ask again at once. CPU time and context switches are those of the client process.",
            ]
            table.notes.append(
                f"{NoPool.name}: {CONNECTIONS} threads, each with its own connection: about the most there is."
            )
            if Psycopg2.name in pools:
                table.notes.append("psycopg2's pool does not wait: here a semaphore in front of it does.")
            storms: dict[str, list[Storm]] = {name: [] for name in pools}
            for number in range(rounds):
                setting.say(f"{table.title}, round {number + 1} of {rounds}")
                for name in rotated(list(pools), number):
                    if name in table.missing:
                        continue
                    count = CONNECTIONS if name == NoPool.name else threads
                    try:
                        storms[name].append(storm(pools[name], count, query.sql, seconds))
                    except Exception as error:
                        table.missing[name] = summary(error)
            left = {name: of for name, of in storms.items() if name not in table.missing}
            fill(table, left, setting.reference, "switches")
    return list(tables.values())
