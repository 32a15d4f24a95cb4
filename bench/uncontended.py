"""What a checkout and a return cost when a connection is free: one thread, which does nothing else."""

from bench.peers import Limits, Peer
from bench.results import Column, Table
from bench.setting import Setting
from bench.turns import Timer, quantile, ratio, take_turns

NAME = "uncontended"
FORMS = {"with": Peer.with_blocks, "get": Peer.get_and_put}
COLUMNS = [
    Column("us", "us", "{:.2f}"),
    Column("low", "10 %", "{:.2f}"),
    Column("high", "90 %", "{:.2f}"),
    Column("ratio", "{reference} is faster by", "{:.2f}x"),
]


def measure(setting: Setting) -> list[Table]:
    tables = {
        "with": Table("uncontended_with", "Checkout and return, uncontended: with pool.connection(): pass", COLUMNS),
        "get": Table("uncontended_get", "Checkout and return, uncontended: putconn(getconn())", COLUMNS),
    }
    for table in tables.values():
        table.notes = [
            "Median of many short blocks taken in turn, one thread, four connections, all of them open.",
            "pgdbpool has three endpoints, four connections to each; its statistics and its checks are on.",
            "The others have one endpoint: they know no more than one.",
        ]
    effort = setting.effort
    with setting.pools(setting.cluster.nodes, Limits(4, 4), list(tables.values())) as pools:
        for form, table in tables.items():
            setting.say(f"checkout and return, {form}")
            timers: dict[str, Timer] = {}
            for name, pool in pools.items():
                if form == "with" and pool.no_with:
                    table.missing[name] = pool.no_with
                else:
                    timers[name] = getattr(pool, FORMS[form].__name__)
            fill(table, take_turns(timers, effort.block, effort.uncontended_blocks), setting.reference)
    return list(tables.values())


def fill(table: Table, values: dict[str, list[float]], reference: str) -> None:
    """Turn seconds by peer into the rows of a table."""
    table.values = values
    for name, seconds in values.items():
        table.rows.append(
            {
                "peer": name,
                "us": microseconds(quantile(seconds, 0.5)),
                "low": microseconds(quantile(seconds, 0.1)),
                "high": microseconds(quantile(seconds, 0.9)),
                "ratio": ratio(seconds, values[reference]) if reference in values else None,
            }
        )


def microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6
