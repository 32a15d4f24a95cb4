"""Many threads, few connections: how much gets done, how long a thread waits, do all get their turn."""

import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.peers import Limits, NoPool, Peer, Psycopg2
from bench.results import Column, Table
from bench.setting import Setting, summary
from bench.turns import quantile, ratio, rotated, settle

NAME = "contended"
CONNECTIONS = 4
THREADS = (16, 64)


@dataclass(frozen=True)
class Query:
    name: str
    sql: str
    longer: int
    """So many times longer storms, and fewer of them: slow queries need time to be counted."""


QUERIES = (Query("select 1", "select 1", 1), Query("2 ms query", "select pg_sleep(0.002)", 3))
COLUMNS = [
    Column("throughput", "operations/s", "{:,.0f}"),
    Column("ratio", "{reference} does", "{:.2f}x"),
    Column("p50", "wait p50 ms", "{:.2f}"),
    Column("p99", "wait p99 ms", "{:.2f}"),
    Column("longest", "longest ms", "{:,.0f}"),
    Column("fairness", "fewest/most", "{:.2f}"),
    Column("cpu", "CPU us/op", "{:.0f}"),
    Column("switches", "switches/op", "{:.1f}"),
]


@dataclass(frozen=True)
class Storm:
    """What one storm of threads on one pool came to. Waits are in seconds."""

    throughput: float
    waits: list[float]
    fewest: int
    most: int
    cpu: float
    """Seconds of processor time of this process, per operation."""
    switches: float
    """Changes of the running thread, per operation."""

    @property
    def fairness(self) -> float:
        return self.fewest / self.most if self.most else 0.0


def storm(pool: Peer, threads: int, sql: str, seconds: float) -> Storm:
    """Run so many threads on ``pool`` and count what they do in ``seconds``, once all of them are running."""
    done: list[list[tuple[float, float]]] = [[] for _ in range(threads)]
    failures: list[BaseException] = []
    ready = threading.Barrier(threads + 1)
    stop = threading.Event()

    def work(note: Callable[[tuple[float, float]], None]) -> None:
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
    counts = [sum(start <= got < end for _, got in notes) for notes in done]
    total = max(1, sum(counts))
    return Storm(
        throughput=sum(counts) / (end - start),
        # A thread that never had its turn counts too: its wait goes on to the end.
        waits=[min(got, end) - asked for notes in done for asked, got in notes if got >= start and asked < end],
        fewest=min(counts),
        most=max(counts),
        cpu=(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / total,
        switches=(after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw) / total,
    )


def measure(setting: Setting) -> list[Table]:
    tables = {
        (threads, query): Table(
            f"contended_{threads}_{query.name.split()[0]}",
            f"{threads} threads on {CONNECTIONS} connections, {query.name}",
            COLUMNS,
        )
        for query in QUERIES
        for threads in THREADS
    }
    limits = Limits(CONNECTIONS, CONNECTIONS)
    with setting.pools(setting.cluster.nodes[:1], limits, list(tables.values()), (NoPool,)) as pools:
        for (threads, query), table in tables.items():
            rounds = max(1, setting.effort.storm_rounds // query.longer)
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
            fill(
                table,
                {name: of for name, of in storms.items() if name not in table.missing},
                setting.reference,
            )
    return list(tables.values())


def fill(table: Table, storms: dict[str, list[Storm]], reference: str) -> None:
    """Turn storms by peer into the rows of a table."""
    p99 = {name: [quantile(one.waits, 0.99) for one in of] for name, of in storms.items()}
    own = storms.get(reference, [])
    for name, of in storms.items():
        table.rows.append(
            {
                "peer": name,
                "throughput": median(one.throughput for one in of),
                "ratio": ratio([one.throughput for one in own], [one.throughput for one in of]) if own else None,
                "p50": milliseconds(median(quantile(one.waits, 0.5) or 0.0 for one in of)),
                "p99": milliseconds(median(value or 0.0 for value in p99[name])),
                "longest": milliseconds(median(max(one.waits, default=0.0) for one in of)),
                "p99_ratio": ratio(p99[reference], p99[name]) if own else None,
                "fairness": median(one.fairness for one in of),
                "cpu": median(one.cpu for one in of) * 1e6,
                "switches": median(one.switches for one in of),
            }
        )


def milliseconds(seconds: float) -> float:
    return seconds * 1e3
