"""`pgdbpool demo`: a real cluster, real load, two failures, and a count in the database at the end.

    load      workers that read and write through the pool, and what each promises
    measure   what the workers met: answers, failures, stalls
    scenario  what is done to the servers, and when
    ctrl_c    keeps Ctrl-C until nothing is half done
    screen    the live table for a terminal; `lines` says the same in plain lines
    verdict   what the database has of what was acknowledged

The scenario runs in the main thread, where Ctrl-C arrives; the workers and the display run in others.
"""

import logging
import sys

from rich.console import Console

from pgdbpool import Pool
from pgdbpool.testing import BinariesNotFound, Cluster

from . import load, verdict
from .ctrl_c import CtrlC
from .lines import Lines
from .measure import Measure
from .scenario import Scenario
from .screen import Screen

INTERRUPTED = 130


def run(duration: float, standbys: int, *, as_json: bool = False) -> int:
    """The whole demo; returns the exit code. Whatever happens, no server and no folder is left."""
    console = Console(stderr=as_json)
    logging.getLogger("pgdbpool").setLevel(logging.CRITICAL)  # what happens to the servers is shown by the demo itself
    try:
        with CtrlC() as ctrl_c:
            return _run(console, duration, standbys, as_json, ctrl_c)
    except BinariesNotFound as error:
        print(f"pgdbpool: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; the servers are stopped and their folder is removed", highlight=False)
        return INTERRUPTED


def _run(console: Console, duration: float, standbys: int, as_json: bool, ctrl_c: CtrlC) -> int:
    console.print(f"starting a primary and {standbys} standbys; each commit waits for one of them", highlight=False)
    with Cluster(standbys=standbys, synchronous=1) as cluster:
        ctrl_c.check()
        load.prepare(cluster)
        measure = Measure(load.GROUPS)
        with Pool(load.config(cluster)) as pool:
            pool.wait(10)
            ctrl_c.check()
            scenario = Scenario(cluster, measure, duration, ctrl_c.sleep)
            display = (Screen if console.is_terminal else Lines)(console, cluster, pool, measure, scenario)
            with display, load.Load(pool, measure):
                scenario.play()
        summary = verdict.check(cluster, measure, scenario)
    verdict.show(console, summary)
    if as_json:
        print(verdict.as_json(summary))
    return 0 if summary.ok else 1
