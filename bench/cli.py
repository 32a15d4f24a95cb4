"""The command line: ``python -m bench``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import aio, contended, effort, growth, observed, restart, roundtrip, uncontended
from bench.async_peers import ASYNC_PEERS
from bench.environment import environment
from bench.peers import PEERS, why_not
from bench.report import Report
from bench.results import Table
from bench.setting import Setting
from bench.targets import targets

MEASURES = {module.NAME: module for module in (uncontended, roundtrip, contended, aio, observed, growth, restart)}
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
DOCUMENTATION = HERE.parent / "docs" / "_generated" / "benchmarks.inc"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    # Pools log lost connections as warnings; without a handler Python would print them between our lines.
    logging.getLogger().addHandler(logging.NullHandler())
    report = Report.read_json(options.show) if options.show else run(options)
    report.print()
    keep(report, options)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Compare pgdbpool with other pools, side by side, on a real cluster. A full run takes"
        " about a quarter of an hour and writes bench/results.json and the tables of the documentation.",
    )
    parser.add_argument("--quick", action="store_true", help="less exact, in about a minute")
    parser.add_argument(
        "--only",
        action="append",
        choices=MEASURES,
        metavar="NAME",
        help=f"one of {', '.join(MEASURES)}; may be repeated",
    )
    parser.add_argument(
        "--peer",
        action="append",
        choices=list(dict.fromkeys(peer.name for peer in (*PEERS, *ASYNC_PEERS))),
        metavar="NAME",
        help="only this pool; may be repeated",
    )
    parser.add_argument("--scale", type=float, default=1.0, metavar="FACTOR", help="go on longer, or less long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--pyperf", type=Path, metavar="FILE", help="write single values for pyperf's commands")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show the results of an earlier run")
    return parser


def run(options: argparse.Namespace) -> Report:
    """Start the servers and take all measures that were asked for."""
    from pgdbpool.testing import Cluster

    amount = effort.QUICK if options.quick else effort.FULL
    if options.scale != 1:
        amount = amount.scaled(options.scale)
    wanted = [peer for peer in PEERS if not options.peer or peer.name in options.peer]
    wanted_async = [peer for peer in ASYNC_PEERS if not options.peer or peer.name in options.peer]
    absent = {peer.name: reason for peer in wanted if (reason := why_not(peer))}
    say("starting a primary and two standbys")
    tables: list[Table] = []
    with Cluster(standbys=2, settings={"max_connections": 200}) as cluster:
        there = environment(
            command(options), cluster.primary.execute("show server_version")[0][0], [*wanted, *wanted_async]
        )
        able = [peer for peer in wanted if peer.name not in absent]
        setting = Setting(cluster, able, wanted_async, absent, amount, say)
        for name, module in MEASURES.items():
            if not options.only or name in options.only:
                tables += module.measure(setting)
    say("")
    return Report(
        there | {"effort": amount.name},
        setting.reference,
        tables,
        targets({table.key: table for table in tables}),
    )


def keep(report: Report, options: argparse.Namespace) -> None:
    """Write what is to be written. Only a full run of everything goes into the repository."""
    if options.json:
        report.write_json(options.json)
    elif command(options) == "python -m bench" and not options.show:
        report.write_json(RESULTS)
    if (options.show and options.show.resolve() == RESULTS) or (
        command(options) == "python -m bench" and not options.json and not options.show
    ):
        report.write_rst(DOCUMENTATION)
    if options.pyperf:
        report.write_pyperf(options.pyperf)


def command(options: argparse.Namespace) -> str:
    """The command that measures the same again, without where its output goes."""
    words = ["python -m bench"]
    words += ["--quick"] * options.quick
    words += [f"--only {name}" for name in options.only or ()]
    words += [f'--peer "{name}"' for name in options.peer or ()]
    words += [f"--scale {options.scale:g}"] * (options.scale != 1)
    return " ".join(words)


def say(what: str) -> None:
    """Progress, where it is not in the way of the results."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{what}", end="", file=sys.stderr, flush=True)
    elif what:
        print(what, file=sys.stderr, flush=True)
