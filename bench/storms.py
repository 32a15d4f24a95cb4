"""A storm: many callers on one pool with few connections, threads or tasks; what it came to, and a table of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.results import Column, Table
from bench.turns import quantile, ratio

COLUMNS = [
    Column("throughput", "operations/s", "{:,.0f}"),
    Column("ratio", "{reference} does", "{:.2f}x"),
    Column("p50", "wait p50 ms", "{:.2f}"),
    Column("p99", "wait p99 ms", "{:.2f}"),
    Column("longest", "longest ms", "{:,.0f}"),
    Column("fairness", "fewest/most", "{:.2f}"),
]
CPU = Column("cpu", "CPU us/op", "{:.0f}")

Note = tuple[float, float]
"""One operation: when it was asked for, and when there was a connection."""


@dataclass(frozen=True)
class Storm:
    """What one storm came to. Times are in seconds."""

    throughput: float
    waits: list[float]
    fewest: int
    most: int
    cpu: float
    """Processor time of this process, per operation."""
    extra: float
    """Another figure, per operation: what it is, the table says."""

    @property
    def fairness(self) -> float:
        return self.fewest / self.most if self.most else 0.0


def counted(
    done: Sequence[Sequence[Note]], start: float, end: float, cpu: float, extra: Callable[[int], float]
) -> Storm:
    """Sum up what each caller has noted, as far as it lies between start and end."""
    counts = [sum(start <= got < end for _, got in notes) for notes in done]
    total = max(1, sum(counts))
    return Storm(
        throughput=sum(counts) / (end - start),
        # A caller that never had its turn counts too: its wait goes on to the end.
        waits=[min(got, end) - asked for notes in done for asked, got in notes if got >= start and asked < end],
        fewest=min(counts),
        most=max(counts),
        cpu=cpu / total,
        extra=extra(total),
    )


def fill(table: Table, storms: Mapping[str, Sequence[Storm]], reference: str, extra: str) -> None:
    """Turn storms by peer into the rows of a table; medians of the rounds."""
    p99 = {name: [quantile(one.waits, 0.99) for one in of] for name, of in storms.items()}
    own = storms.get(reference, [])
    for name, of in storms.items():
        table.rows.append(
            {
                "peer": name,
                "throughput": median(one.throughput for one in of),
                "ratio": ratio([one.throughput for one in own], [one.throughput for one in of]) if own else None,
                "p50": median(quantile(one.waits, 0.5) or 0.0 for one in of) * 1e3,
                "p99": median(value or 0.0 for value in p99[name]) * 1e3,
                "longest": median(max(one.waits, default=0.0) for one in of) * 1e3,
                "p99_ratio": ratio(p99[reference], p99[name]) if own else None,
                "fairness": median(one.fairness for one in of),
                "cpu": median(one.cpu for one in of) * 1e6,
                extra: median(one.extra for one in of),
            }
        )
