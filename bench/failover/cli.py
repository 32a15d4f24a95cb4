"""The command line: ``python -m bench.failover``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

from bench.cli import say
from bench.environment import environment
from bench.failover import effort
from bench.failover.client import ClientError
from bench.failover.figures import Figures
from bench.failover.moves import MOVES
from bench.failover.oddities import ODDITIES
from bench.failover.peers import PEERS, why_not
from bench.failover.report import Report, Result
from bench.failover.run import Outcome, part, perform
from bench.failover.scenarios import SCENARIOS, Scenario
from bench.failover.story import Story

ALL: dict[str, Scenario] = {scenario.name: scenario for scenario in (*SCENARIOS, *ODDITIES, *MOVES)}
HERE = Path(__file__).resolve().parent.parent
RESULTS = HERE / "failover.json"
DOCUMENTATION = HERE.parent / "docs" / "_generated" / "failover.inc"
PROGRAM = "python -m bench.failover"
NOT_COMPARED = {"operations", "callers", "share", "writes_in_flight", "reads_in_flight", "seconds"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    report = Report.read_json(options.show) if options.show else run(options)
    report.print()
    keep(report, options)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="What callers notice when servers fail, with pgdbpool and with other pools. A full run takes"
        " less than twenty minutes and writes bench/failover.json and the tables of the documentation.",
    )
    parser.add_argument("--quick", action="store_true", help="less time for each scenario")
    parser.add_argument(
        "--only", action="append", choices=ALL, metavar="NAME", help=f"one of {', '.join(ALL)}; may be repeated"
    )
    parser.add_argument(
        "--peer",
        action="append",
        choices=[peer.name for peer in PEERS],
        metavar="NAME",
        help="only this pool; may be repeated",
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="play so often, and show the worst")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show the results of an earlier run")
    return parser


def run(options: argparse.Namespace) -> Report:
    """Play every scenario that was asked for, with every peer."""
    from pgdbpool.testing import Cluster

    amount = effort.QUICK if options.quick else effort.FULL
    wanted = [peer for peer in PEERS if not options.peer or peer.name in options.peer]
    absent = {peer.name: reason for peer in wanted if (reason := why_not(peer))}
    with Cluster(standbys=0) as cluster:
        version = cluster.primary.execute("show server_version")[0][0]
    there = environment(command(options), version, wanted)  # type: ignore[arg-type]
    results = []
    for scenario in ALL.values():
        if options.only and scenario.name not in options.only:
            continue
        result = Result(scenario.name, scenario.title, missing=dict(absent))
        if reason := scenario.why_not():
            result.missing.update({peer.name: reason for peer in wanted})
        there_are = [peer.name for peer in wanted if peer.name not in result.missing]
        for peer_name, outcomes in zip(there_are, played(scenario, there_are, amount, options.rounds), strict=True):
            if isinstance(outcomes, ClientError):
                result.missing[peer_name] = str(outcomes)
                continue
            result.rows.append(worst([figures for outcome in outcomes for figures in outcome.figures]))
            if not result.told:
                result.told.extend(retold(outcomes[0].story))
        results.append(result)
    say("")
    return Report(there | {"effort": amount.name, "rounds": options.rounds}, results)


def played(
    scenario: Scenario, peers: Sequence[str], amount: effort.Effort, rounds: int
) -> list[list[Outcome] | ClientError]:
    """The rounds of each peer, or why it could not be started."""

    def rounds_of(peer: str) -> list[Outcome] | ClientError:
        outcomes = []
        try:
            for number in range(rounds):
                say(f"{scenario.name}: {peer}" + f", round {number + 1}" * (rounds > 1))
                outcomes.append(perform(scenario, [part(peer, scenario)], amount))
        except ClientError as error:
            return error
        return outcomes

    if scenario.apart is None:
        return [rounds_of(peer) for peer in peers]
    apart = scenario.apart(amount)

    def begin_late(place: int, peer: str) -> list[Outcome] | ClientError:
        time.sleep(place * apart)
        return rounds_of(peer)

    with ThreadPoolExecutor(len(peers) or 1) as threads:
        return list(threads.map(begin_late, range(len(peers)), peers))


def retold(story: Story) -> list[str]:
    """What was done, with the seconds since the callers worked."""
    return [f"after {when - story.began:.2f} s {what}" for when, what in sorted(story.told)]


def worst(rounds: Sequence[Figures]) -> Figures:
    """The worst of each figure; what cannot be compared is that of the round with the longest operation."""
    chosen = max(rounds, key=lambda one: one.longest)
    values: dict[str, object] = {}
    for each in fields(Figures):
        of_all = [getattr(one, each.name) for one in rounds]
        if each.name not in NOT_COMPARED and all(isinstance(value, int | float) for value in of_all):
            values[each.name] = max(of_all)
    return replace(chosen, **values)  # type: ignore[arg-type]


def keep(report: Report, options: argparse.Namespace) -> None:
    """Write what is to be written. Only a full run of everything goes into the repository by itself."""
    whole = command(options).split(" --rounds")[0] == PROGRAM
    if options.json:
        report.write_json(options.json)
    elif whole and not options.show:
        report.write_json(RESULTS)
    if (options.show and options.show.resolve() == RESULTS) or (whole and not options.json and not options.show):
        report.write_rst(DOCUMENTATION)


def command(options: argparse.Namespace) -> str:
    """The command that measures the same again, without where its output goes."""
    words = [PROGRAM]
    words += ["--quick"] * options.quick
    words += [f"--only {name}" for name in options.only or ()]
    words += [f'--peer "{name}"' for name in options.peer or ()]
    words += [f"--rounds {options.rounds}"] * (options.rounds != 1)
    return " ".join(words)
