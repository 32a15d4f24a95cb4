"""The results as tables on a terminal, as plain lines, as JSON, and as the tables of the documentation."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.async_peers import ASYNC_PEERS
from bench.peers import PEERS
from bench.results import Column, Table
from bench.targets import Target


@dataclass(frozen=True)
class Report:
    environment: dict[str, Any]
    reference: str
    tables: Sequence[Table]
    targets: Sequence[Target]

    # JSON

    def write_json(self, file: Path) -> None:
        content = {
            "environment": self.environment,
            "reference": self.reference,
            "peers": {peer.name: peer.settings for peer in PEERS},
            "asyncio_peers": {peer.name: peer.settings for peer in ASYNC_PEERS},
            "tables": [table.as_json() for table in self.tables],
            "targets": [asdict(target) for target in self.targets],
        }
        file.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read_json(cls, file: Path) -> "Report":
        content = json.loads(file.read_text())
        tables = [
            Table(**(table | {"columns": [Column(**column) for column in table["columns"]]}))
            for table in content["tables"]
        ]
        targets = [Target(**target) for target in content["targets"]]
        return cls(content["environment"], content["reference"], tables, targets)

    def write_pyperf(self, file: Path) -> None:
        """The single values of the measures in blocks, for pyperf's `stats`, `hist` and `compare_to`."""
        import pyperf

        benchmarks = []
        for table in self.tables:
            for peer, values in table.values.items():
                about = {"name": f"{table.key}: {peer}", "unit": "second"}
                run = pyperf.Run(values, metadata=about, collect_metadata=False)
                benchmarks.append(pyperf.Benchmark([run]))
        pyperf.BenchmarkSuite(benchmarks).dump(str(file), replace=True)

    # Tables

    def heading(self, table: Table) -> list[str]:
        return ["pool", *(column.title.format(reference=self.reference) for column in table.columns)]

    def lines(self, table: Table) -> list[list[str]]:
        """The rows as text, in the order of the peers."""
        names = dict.fromkeys(peer.name for peer in (*PEERS, *ASYNC_PEERS))
        order = {name: place for place, name in enumerate(names)}
        rows = sorted(table.rows, key=lambda row: order.get(str(row["peer"]), -1))
        return [[str(row["peer"]), *(shown(row.get(column.key), column) for column in table.columns)] for row in rows]

    def verdicts(self) -> list[list[str]]:
        word = {True: "reached", False: "NOT REACHED", None: "not judged"}
        return [[one.what, one.needed, one.measured, word[one.reached]] for one in self.targets]

    def about(self) -> list[str]:
        """On what it was measured, in a few lines."""
        there = self.environment
        packages = ", ".join(f"{name} {version}" for name, version in there["packages"].items() if version)
        return [
            f"{there['python']}, PostgreSQL {there['postgresql']}, {packages}",
            f"{there['cpus']} processors ({there['cpu']}), {there['system']}, {there['date']}",
            f"Command: {there['command']} ({there['effort']} effort)",
            *(
                [f"The machine was busy with other things (load {there['load_before']} before the run)."]
                if there["load_before"] > there["cpus"] / 4
                else []
            ),
        ]

    def print(self) -> None:
        """To the standard output: with rich on a terminal, else plain lines."""
        printer = rich_table if sys.stdout.isatty() and has_rich() else plain_table
        print("\n".join(self.about()))
        for table in self.tables:
            printer(table.title, self.heading(table), self.lines(table))
            for name, reason in table.missing.items():
                print(f"  {name}: {reason}")
        if self.targets:
            printer("Targets", ["what", "needed", "measured", ""], self.verdicts())

    def write_rst(self, file: Path) -> None:
        """What docs/benchmarks.rst includes."""
        parts = ["..", "   Written by `python -m bench`; do not edit.", ""]
        parts += [f"| {line}" for line in self.about()] + [""]
        if self.targets:
            parts += ["What it has to reach", "--------------------", ""]
            parts += rst_table(["What", "Needed", "Measured", ""], self.verdicts())
        for table in self.tables:
            parts += [table.title, "-" * len(table.title), ""]
            parts += rst_table(self.heading(table), self.lines(table))
            parts += [f"- {note}" for note in table.notes]
            parts += [f"- {name}: not measured, {reason}." for name, reason in table.missing.items()]
            parts += [f"- Again: ``python -m bench --only {table.key.partition('_')[0]}``", ""]
        parts += ["How each pool was used", "----------------------", ""]
        for peer in PEERS:
            parts += [f"{peer.name}", f"    {peer.settings}", ""]
        for peer in ASYNC_PEERS:
            parts += [f"{peer.name}, asyncio", f"    {peer.settings}", ""]
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(parts).rstrip() + "\n")


def shown(value: float | int | str | None, column: Column) -> str:
    return "-" if value is None else value if isinstance(value, str) else column.format.format(value)


def rst_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A list-table; figures need no other care."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [heading, *rows]:
        lines += [f"   {'*' if not place else ' '} - {cell}".rstrip() for place, cell in enumerate(row)]
    return [*lines, ""]


def plain_table(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(heading, *rows, strict=True)]
    print(f"\n{title}")
    for row in [heading, *rows]:
        cells = [
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())


def rich_table(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(heading):
        drawn.add_column(name, justify="right" if place else "left")
    for row in rows:
        style = {"NOT REACHED": "red", "reached": "green"}.get(row[-1])
        drawn.add_row(*row, style=style or ("bold" if row[0] == "pgdbpool" else None))
    console = Console()
    console.print()
    console.print(drawn)


def has_rich() -> bool:
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True
