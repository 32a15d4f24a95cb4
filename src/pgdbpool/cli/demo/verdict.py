"""What the database has of what was acknowledged. The workers' own records are compared with the rows, one by one.

lost     acknowledged, and not there
torn     there, but not with all its parts
twice    there, with more rows than it has parts
phantom  reported as failed, so that an application would repeat it, and yet there
"""

import json
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from pgdbpool.testing import Cluster

from .load import GROUPS, PARTS
from .measure import Measure, Outcome
from .scenario import Scenario

NEXT = """
Next: see what a pool would make of your own servers; this writes nothing there:

    pgdbpool check postgresql://USER@HOST,HOST/DATABASE"""
NOT_OK = """
Next: pgdbpool demo --json says the same in full; please report it."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of a demo."""

    ok: bool
    acknowledged: int
    found: int
    lost: int
    torn: int
    twice: int
    phantom: int
    in_doubt: int
    in_doubt_found: int
    reads: int
    failed: dict[str, int]
    longest_stall: dict[str, float]
    stalled_at: dict[str, float]
    resumed: dict[str, bool]
    """Whether the group got anything done after the failover."""
    without_primary: float
    until_confirmed: float
    """From the death of the primary until commits could be confirmed by a standby again."""
    hung: list[str]
    errors: dict[str, int]
    events: list[tuple[float, str]]


def check(cluster: Cluster, measure: Measure, scenario: Scenario) -> Summary:
    """Ask the present primary."""
    rows = cluster.primary.execute("SELECT id, count(*) FROM ledger GROUP BY id")
    return compare({int(number): int(rows) for number, rows in rows}, measure, scenario)


def compare(stored: dict[int, int], measure: Measure, scenario: Scenario) -> Summary:
    """Compare the rows of each number with what its worker was told."""
    writes = {number: end for number, end in measure.writes.items() if PARTS[end[0]]}
    by_outcome = {outcome: {n for n, (_, end) in writes.items() if end is outcome} for outcome in Outcome}
    acknowledged, failed, doubt = (by_outcome[outcome] for outcome in (Outcome.DONE, Outcome.FAILED, Outcome.DOUBT))
    parts = {number: PARTS[group] for number, (group, _) in writes.items()}
    lost = len(acknowledged - stored.keys())
    torn = sum(rows < parts.get(number, 0) for number, rows in stored.items())
    twice = sum(rows > parts.get(number, 0) for number, rows in stored.items())
    phantom = len(failed & stored.keys())
    resumed = {group: measure.groups[group].last_done > scenario.recovered_at for group in GROUPS}
    tallies = {group: measure.groups[group] for group in GROUPS}
    return Summary(
        ok=not (lost or torn or twice or phantom or measure.hung) and bool(acknowledged) and all(resumed.values()),
        acknowledged=len(acknowledged),
        found=len(acknowledged & stored.keys()),
        lost=lost,
        torn=torn,
        twice=twice,
        phantom=phantom,
        in_doubt=len(doubt),
        in_doubt_found=len(doubt & stored.keys()),
        reads=tallies["READ"].ended[Outcome.DONE],
        failed={group: tally.ended[Outcome.FAILED] for group, tally in tallies.items()},
        longest_stall={group: round(tally.stall, 3) for group, tally in tallies.items()},
        stalled_at={group: round(tally.stalled_at, 1) for group, tally in tallies.items()},
        resumed=resumed,
        without_primary=round(scenario.without_primary, 3),
        until_confirmed=round(scenario.recovered_at - scenario.killed_at, 3),
        hung=list(measure.hung),
        errors=dict(measure.errors.most_common()),
        events=[(round(event.at, 1), event.text) for event in scenario.events],
    )


def as_json(summary: Summary) -> str:
    """The summary for programs."""
    return json.dumps(asdict(summary), indent=2)


def lines(summary: Summary) -> list[tuple[str, str, bool]]:
    """The summary for people: what, how much, and whether that is as it should be."""

    def each(values: dict[str, int] | dict[str, float], unit: str = "") -> str:
        return ", ".join(
            f"{group} {value:.2f}{unit}" if unit else f"{group} {value}" for group, value in values.items()
        )

    missing = [group for group, went_on in summary.resumed.items() if not went_on]
    result = [
        ("acknowledged writes", f"{summary.acknowledged}", summary.acknowledged > 0),
        ("found", f"{summary.found}", summary.found == summary.acknowledged),
        ("lost", f"{summary.lost}", not summary.lost),
        ("done twice", f"{summary.twice}", not summary.twice),
        ("done in part", f"{summary.torn}", not summary.torn),
        ("failed, and yet there", f"{summary.phantom}", not summary.phantom),
        ("in doubt", f"{summary.in_doubt}, of which {summary.in_doubt_found} were done", True),
        ("reads", f"{summary.reads}", summary.reads > 0),
        ("failed operations", f"{sum(summary.failed.values())}: {each(summary.failed)}", True),
        ("longest stall", each(summary.longest_stall, " s"), True),
        (
            "without a primary",
            f"{summary.without_primary:.2f} s; {summary.until_confirmed:.2f} s until a standby confirmed commits again",
            True,
        ),
        ("went on after the failover", f"no: {', '.join(missing)}" if missing else "all groups", not missing),
    ]
    if summary.hung:
        result.append(("workers that hang", ", ".join(summary.hung), False))
    return result


def show(console: Console, summary: Summary) -> None:
    """Print the summary."""
    console.print("\n[bold]Counted in the database[/]", highlight=False)
    table = Table.grid(padding=(0, 1))
    for name, value, good in lines(summary):
        table.add_row(" ", "[green]✓[/]" if good else "[bold red]✗[/]", name, value)
    console.print(table, highlight=False)
    words = "[bold green]nothing acknowledged was lost[/]" if summary.ok else "[bold red]not as it should be[/]"
    console.print(words, highlight=False)
    console.print(NEXT if summary.ok else NOT_OK, highlight=False, markup=False, soft_wrap=True)
