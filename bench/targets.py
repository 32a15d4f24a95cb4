"""What pgdbpool has to reach. Judged here, shown in the report, never asserted in a test: machines differ."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.observed import OFF
from bench.peers import OURS, NoPool, PsycopgPool, SQLAlchemyRaw
from bench.results import Table


@dataclass(frozen=True)
class Target:
    """``reached`` is None if it was not measured."""

    what: str
    needed: str
    measured: str
    reached: bool | None


def targets(tables: Mapping[str, Table]) -> list[Target]:
    """All targets whose measures were run."""
    found = []
    if table := tables.get("uncontended_with"):
        for peer, times in ((PsycopgPool, 4), (SQLAlchemyRaw, 5)):
            found.append(
                at_least(f"with pool.connection(): compared with {peer.name}", table, peer.name, "ratio", times)
            )
    for key in [key for key in tables if key.startswith("contended")]:
        if table := tables.get(key):
            found += contended(table)
    if table := tables.get("asyncio_with"):
        found.append(
            at_least("async with pool.connection(): compared with psycopg_pool", table, PsycopgPool.name, "ratio", 2)
        )
    for key in [key for key in tables if key.startswith("asyncio") and key != "asyncio_with"]:
        found += tasks(tables[key])
    if table := tables.get("observed_checkout"):
        what = "Statistics and status page switched on: added to a checkout"
        found.append(at_most(what, table, "status", "added", 0.2, "{:+.2f} us"))
    if table := tables.get("observed_throughput"):
        what = "Statistics and status page switched on: throughput, of that without"
        found.append(at_least(what, table, "status", "ratio", 0.97, "{:.3f}x"))
    if table := tables.get("roundtrip_apart"):
        found.append(at_most(f"{table.title}: over bare", table, OURS, "over", 3, "{:+.1f} %"))
    for key in [key for key in tables if key.startswith("restart")]:
        if table := tables.get(key):
            found += restart(table)
    return found


def contended(table: Table) -> list[Target]:
    """How much, how fair, how long."""
    return [
        throughput(table),
        at_least(f"{table.title}: fewest/most per thread", table, OURS, "fairness", 0.9, "{:.2f}"),
        at_most(f"{table.title}: p99 wait, of psycopg_pool's", table, PsycopgPool.name, "p99_ratio", 1, "{:.2f}x"),
    ]


def throughput(table: Table) -> Target:
    """Compared with psycopg_pool's, where it is the pool that sets the limit."""
    what, peer = f"{table.title}: throughput, of psycopg_pool's", PsycopgPool.name
    target = at_least(what, table, peer, "ratio", 1.2)
    most, theirs = figure(table, NoPool.name, "throughput"), figure(table, peer, "throughput")
    if not most or not theirs or most / theirs >= 1.2:
        return target
    return Target(what, f"there is no more than {most / theirs:.2f}x", target.measured, None)


def tasks(table: Table) -> list[Target]:
    """How long, how fair, and in which order."""
    return [
        at_most(f"{table.title}: p99 wait, of psycopg_pool's", table, PsycopgPool.name, "p99_ratio", 1, "{:.2f}x"),
        at_least(f"{table.title}: fewest/most per task", table, OURS, "fairness", 0.9, "{:.2f}"),
        at_most(f"{table.title}: overtaken by a later one", table, OURS, "overtaken", 1, "{:.2f} %"),
    ]


def restart(table: Table) -> list[Target]:
    """Soon, and without a failure."""
    row = table.row(OURS)
    if not row:
        return [Target(f"{table.title}: first answer, slowest round", "under 100 ms", "-", None)]
    failed = int(row["failed"] or 0) + int(row["later"] or 0)
    first = row["slowest"]
    return [
        Target(
            f"{table.title}: first answer, slowest round",
            "under 100 ms",
            "none" if first is None else f"{first:.1f} ms",
            isinstance(first, float) and first < 100,
        ),
        Target(f"{table.title}: failed operations", "none", str(failed), failed == 0),
    ]


def at_least(what: str, table: Table, peer: str, key: str, least: float, format: str = "{:.2f}x") -> Target:
    """A figure that has to be high."""
    value = figure(table, peer, key)
    shown = "-" if value is None else format.format(value)
    return Target(what, f"at least {format.format(least)}", shown, None if value is None else value >= least)


def at_most(what: str, table: Table, peer: str, key: str, most: float, format: str) -> Target:
    """A figure that has to be low."""
    value = figure(table, peer, key)
    shown = "-" if value is None else format.format(value)
    return Target(what, f"at most {format.format(most)}", shown, None if value is None else value <= most)


def figure(table: Table, peer: str, key: str) -> float | None:
    """A number of a row; None where there is none, or without pgdbpool, which all ratios are about."""
    value = table.row(peer).get(key) if table.row(OURS) or table.row(OFF) else None
    return float(value) if isinstance(value, int | float) else None
