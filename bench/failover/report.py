"""The results as tables on a terminal, as plain lines, as JSON, and as the tables of the documentation."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.failover.figures import Figures
from bench.failover.peers import PEERS
from bench.failover.targets import seconds, targets
from bench.report import has_rich, plain_table, rich_table, rst_table
from bench.targets import Target

HEADING = (
    "pool",
    "failed",
    "in flight",
    "hung",
    "longest s",
    "first write s",
    "first read s",
    "reads by server",
    "connects",
    "lost",
    "twice",
)


@dataclass(frozen=True)
class Result:
    """One scenario: what was done in the first of its performances, and the worst figures of each peer."""

    name: str
    title: str
    told: list[str] = field(default_factory=list)
    rows: list[Figures] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Who was not measured, and why."""

    @property
    def targets(self) -> list[Target]:
        return targets(self.name, self.rows)

    @property
    def notes(self) -> list[str]:
        """What the table has no room for."""
        late = [
            f"{one.peer} {f'for {one.stale:.2f} s' if one.stale else 'no'}"
            for one in self.rows
            if one.stale is not None
        ]
        what = "Writes that reached the old primary after the new one had let the pool in"
        return [f"{what}: {', '.join(late)}"] if late else []

    def lines(self) -> list[list[str]]:
        order = [peer.name for peer in PEERS]
        return [line(one) for one in sorted(self.rows, key=lambda one: order.index(one.peer))]


def line(one: Figures) -> list[str]:
    """One row of a table."""
    return [
        one.peer,
        str(one.failed),
        str(one.in_flight),
        str(one.hung),
        f"over {one.longest:.0f}" if one.hung else f"{one.longest:.2f}",
        seconds(one.first_write).removesuffix(" s"),
        seconds(one.first_read).removesuffix(" s"),
        shares(one.reads),
        str(one.connects),
        str(one.lost),
        str(one.twice),
    ]


def shares(reads: dict[str, int] | Any) -> str:
    """The part of the reads of each server."""
    total = sum(reads.values())
    return ", ".join(f"{name} {count / total:.0%}".replace("%", " %") for name, count in reads.items()) or "none"


@dataclass(frozen=True)
class Report:
    environment: dict[str, Any]
    results: Sequence[Result]

    # JSON

    def write_json(self, file: Path) -> None:
        results = [asdict(one) | {"rows": [row.as_json() for row in one.rows]} for one in self.results]
        content = {
            "environment": self.environment,
            "peers": {peer.name: peer.settings for peer in PEERS},
            "results": results,
            "targets": [asdict(target) for target in self.targets],
        }
        file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read_json(cls, file: Path) -> Report:
        content = json.loads(file.read_text())
        results = [
            Result(**(one | {"rows": [Figures.from_json(row) for row in one["rows"]]})) for one in content["results"]
        ]
        return cls(content["environment"], results)

    # Tables

    @property
    def targets(self) -> list[Target]:
        return [target for result in self.results for target in result.targets]

    def verdicts(self) -> list[list[str]]:
        return [
            [one.what, one.needed, one.measured, "reached" if one.reached else "NOT REACHED"] for one in self.targets
        ]

    def about(self) -> list[str]:
        """On what it was measured, in a few lines."""
        there = self.environment
        packages = ", ".join(f"{name} {version}" for name, version in there["packages"].items() if version)
        return [
            f"{there['python']}, PostgreSQL {there['postgresql']}, {packages}",
            f"{there['cpus']} processors ({there['cpu']}), {there['system']}, {there['date']}",
            f"Command: {there['command']} ({there['effort']} effort, {there['rounds']} of each)",
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
        for result in self.results:
            printer(f"{result.name}: {result.title}", HEADING, result.lines())
            for name, reason in result.missing.items():
                print(f"  {name}: {reason}")
            for note in result.notes:
                print(f"  {note}")
        printer("Targets", ["what", "needed", "measured", ""], self.verdicts())

    def write_rst(self, file: Path) -> None:
        """What docs/failover-benchmarks.rst includes."""
        parts = ["..", "   Written by `python -m bench.failover`; do not edit.", ""]
        parts += [f"| {line}" for line in self.about()] + [""]
        for result in self.results:
            parts += [result.title, "-" * len(result.title), ""]
            parts += rst_table(HEADING, result.lines())
            parts += [f"- {name}: not measured, {reason}" for name, reason in result.missing.items()]
            parts += [f"- {note}." for note in result.notes]
            parts += [
                f"- {one.what}: {one.needed}; {one.measured}{'' if one.reached else ', **not reached**'}"
                for one in result.targets
            ]
            parts += [f"- What was done: {'; '.join(result.told)}."] if result.told else []
            parts += [f"- Again: ``python -m bench.failover --only {result.name}``", ""]
        parts += ["How each pool was used", "----------------------", ""]
        for peer in PEERS:
            parts += [f"{peer.name}", f"    {peer.settings}.", ""]
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(parts).rstrip() + "\n")
