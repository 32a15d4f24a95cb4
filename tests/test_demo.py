"""`pgdbpool demo`: it runs on a real cluster, says what happened, and leaves nothing behind."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import wait_for
from rich.console import Console

from pgdbpool import OutcomeUnknown, Pool
from pgdbpool.cli.demo import load, verdict
from pgdbpool.cli.demo.lines import Lines
from pgdbpool.cli.demo.measure import Measure, Outcome
from pgdbpool.cli.demo.scenario import Event, Scenario
from pgdbpool.cli.demo.screen import Screen
from pgdbpool.core.evidence import Health

# Whoever runs the tests in the background may have Ctrl-C ignored, and a child inherits that.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = [sys.executable, "-W", "error", "-c", f"{HEARS_CTRL_C}; from pgdbpool.cli import main; main()"]


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command in a process of its own, with `folder` for temporary files."""
    folder.chmod(0o755)  # the servers may run as another user
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *arguments], stdout=pipe, stderr=pipe, text=True, env=environment)


def runs(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has asked about is none."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def folder() -> Any:
    """A short path for temporary files: the path of a Unix socket may not be long."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as name:
        yield Path(name)
        assert list(Path(name).iterdir()) == [], "the demo left its folder"


def test_it_runs_and_loses_nothing(folder: Path) -> None:
    process = start(folder, "demo", "--duration", "9", "--json")
    children: set[int] = set()
    while process.poll() is None:
        try:
            children |= {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, f"{out}\n{err}"

    summary = json.loads(out)
    assert summary["ok"]
    assert summary["acknowledged"] == summary["found"] > 100
    assert summary["reads"] > 100
    assert (summary["lost"], summary["twice"], summary["torn"], summary["phantom"]) == (0, 0, 0, 0)
    assert all(summary["resumed"].values())
    assert set(summary["longest_stall"]) == set(load.GROUPS)
    assert len(summary["events"]) == 6
    # What was in flight when a server died, and no more: at most one operation of each worker for each death.
    assert sum(summary["failed"].values()) + summary["in_doubt"] <= 2 * sum(kind.workers for kind in load.KINDS)

    assert "\x1b" not in err
    assert len(re.findall(r"^ *\d+\.0 s  node1 ", err, re.MULTILINE)) >= 7
    assert "node1, the primary, is killed" in err
    assert re.search(r"lost +0 *$", err, re.MULTILINE)

    assert len(children) > 10, "the servers were seen"
    wait_for(lambda: not any(map(runs, children)))


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("starting a primary", id="while the servers start"),
        pytest.param(r" *\d+\.\d s  node1 ", id="under load"),
        pytest.param("node3, a standby, is killed", id="after a standby was killed"),
        pytest.param("node1, the primary, is killed", id="in the middle of the failover"),
    ],
)
def test_ctrl_c_leaves_nothing(folder: Path, moment: str) -> None:
    process = start(folder, "demo", "--duration", "8")
    assert process.stdout is not None
    assert any(re.search(moment, line) for line in process.stdout)
    wait_for(lambda: list(folder.iterdir()))
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "interrupted" in out
    wait_for(lambda: not any(map(runs, children)))


def test_one_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from pgdbpool.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'pgdbpool[cli]'" in done.stderr


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version(argument: str) -> None:
    done = subprocess.run([*COMMAND, argument], capture_output=True, text=True, check=True)
    assert "pgdbpool" in done.stdout


# -- the displays, without servers ------------------------------------------------------------------------------


def display(kind: type, console: Console) -> Any:
    """A display of a pool that is configured and not open, in the middle of a run."""
    nodes = [SimpleNamespace(port=40001 + number, name=f"node{number + 1}") for number in range(3)]
    endpoints = [{"host": "127.0.0.1", "port": node.port, "name": "app", "user": "app"} for node in nodes]
    cluster: Any = SimpleNamespace(nodes=nodes, endpoints=lambda **more: [entry | more for entry in endpoints])
    measure = Measure(load.GROUPS)
    scenario = Scenario(cluster, measure, 30)
    scenario.events.append(Event(3.5, "node3, a standby, is killed", good=False))
    for _ in range(30):
        measure.answered(40001, 0.004)
    for _ in range(10):
        measure.answered(40002, 0.002)
    measure.finished("READ", 1, Outcome.DONE)
    return kind(console, cluster, Pool(load.config(cluster), open=False), measure, scenario)


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_has_its_columns(width: int) -> None:
    console = Console(record=True, width=width, height=24, file=io.StringIO(), force_terminal=True)
    console.print(display(Screen, console).render())
    text = console.export_text()
    for words in (
        r"endpoint +role +state +conn +queries/s +share +p50 ms +p99 ms",
        r"node1 :40001 +unknown +suspect +0 +\d+ +█+ 75% +4\.0 +4\.0",
        r"node2 :40002 .* 25% +2\.0 +2\.0",
        r"group +in use +idle +waiting +done/s +failed",
        r"READ +0 +0 +0",
        r"BATCH +0 +0 +0",
        r"3\.5 s ▼ node3, a standby, is killed",
    ):
        assert re.search(words, text), f"{words}\n{text}"
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 24, "a terminal of 24 lines has room for it"
    assert "…" not in text


def heads(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r" *(endpoint|group) ", line)]


def test_the_columns_of_the_screen_stay_where_they_are_when_the_numbers_grow() -> None:
    console = Console(record=True, width=80, height=24, file=io.StringIO(), force_terminal=True)
    screen = display(Screen, console)
    console.print(screen.render())
    before = heads(console.export_text())
    measure = screen._measure
    for _ in range(100_000):
        measure.answered(40001, 12.345)
        measure.finished("READ", 1, Outcome.FAILED, RuntimeError("no"))
    console.print(screen.render())
    text = console.export_text()
    assert heads(text) == before
    assert len(before) == 2
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("kind", [Screen, Lines])
def test_a_server_that_is_down_has_no_rate(kind: Any) -> None:
    console = Console(record=True, width=120, height=24, file=io.StringIO(), force_terminal=True)
    shown = display(kind, console)
    shown._pool._topology.endpoints[0].health = Health.DOWN
    if kind is Lines:
        text = shown.status()
        assert re.search(r"node1 unknown down \| node2 unknown suspect \d+/s", text), text
    else:
        console.print(shown.render())
        text = console.export_text()
        assert re.search(r"node1 :40001 +unknown +down +0 *$", text, re.MULTILINE), text
        assert re.search(r"node2 :40002 .* 25% +2\.0 +2\.0", text), text


def test_the_summary_ends_with_what_to_do_next() -> None:
    for summary, words in ((compared(GOOD), "pgdbpool check"), (replace(compared(GOOD), ok=False), "--json")):
        console = Console(file=io.StringIO(), width=80)
        verdict.show(console, summary)
        last = console.file.getvalue().rstrip()  # type: ignore[attr-defined]
        assert words in last.partition("Next: ")[2]


def test_a_plain_line_has_every_endpoint_and_group() -> None:
    status = display(Lines, Console(file=io.StringIO())).status()
    assert all(name in status for name in ("node1", "node2", "node3", *load.GROUPS))


# -- the verdict ------------------------------------------------------------------------------------------------


def compared(stored: dict[int, int]) -> verdict.Summary:
    """The verdict on five writes and one read, all groups having gone on."""
    measure = Measure(load.GROUPS)
    cluster: Any = SimpleNamespace()
    scenario = Scenario(cluster, measure, 30)
    scenario.killed_at = scenario.recovered_at = -1.0
    measure.finished("READ", 1, Outcome.DONE)
    measure.finished("WRITE", 2, Outcome.DONE)
    measure.finished("TRANSACTION", 3, Outcome.DONE)
    measure.finished("BATCH", 4, Outcome.DONE)
    measure.finished("WRITE", 5, Outcome.FAILED, RuntimeError("no"))
    measure.finished("WRITE", 6, Outcome.DOUBT, RuntimeError("perhaps"))
    return verdict.compare(stored, measure, scenario)


GOOD = {2: 1, 3: 2, 4: load.PARTS["BATCH"]}


def test_all_there_is_good() -> None:
    summary = compared(GOOD)
    assert summary.ok
    assert (summary.acknowledged, summary.found, summary.reads) == (3, 3, 1)
    assert (summary.in_doubt, summary.in_doubt_found) == (1, 0)


def test_a_write_in_doubt_may_be_there() -> None:
    summary = compared({**GOOD, 6: 1})
    assert (summary.ok, summary.in_doubt_found) == (True, 1)


@pytest.mark.parametrize(
    ("stored", "field"),
    [
        ({3: 2, 4: 30}, "lost"),
        ({**GOOD, 2: 2}, "twice"),
        ({**GOOD, 6: 2}, "twice"),
        ({**GOOD, 99: 1}, "twice"),
        ({**GOOD, 3: 1}, "torn"),
        ({**GOOD, 5: 1}, "phantom"),
    ],
)
def test_what_is_wrong_is_found(stored: dict[int, int], field: str) -> None:
    summary = compared(stored)
    assert not summary.ok
    assert getattr(summary, field) == 1


def test_a_bad_summary_is_shown_as_such() -> None:
    console = Console(file=io.StringIO(), width=80)
    bad = replace(compared(GOOD), ok=False, lost=1, hung=["WRITE 1"])
    verdict.show(console, bad)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "✗ lost" in shown
    assert "WRITE 1" in shown
    assert "not as it should be" in shown


def test_an_unknown_outcome_is_never_called_failed() -> None:
    assert all(load.in_doubt(kind, OutcomeUnknown("?")) for kind in load.KINDS)
