"""`make examples`: a deployment for somebody who wants to try it."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from examples.rows import load
from pgdbpool.testing.ports import ReservedPort

from . import ROOT
from .server import LIMIT, PLAIN

RUN = [sys.executable, "-m", "examples.run"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_deployment_runs_until_it_is_ended_and_leaves_nothing_behind(tmp_path: Path, signum: signal.Signals) -> None:
    port = ReservedPort()
    port.release()
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", PLAIN, *RUN, "gunicorn-threads", "--port", str(port.number)],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        answer = None
        deadline = time.monotonic() + LIMIT
        while answer is None:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            try:
                with urlopen(f"http://127.0.0.1:{port.number}/read", timeout=LIMIT) as response:
                    answer = json.load(response)
            except OSError:
                time.sleep(0.05)
        assert answer["count"] == 0
        process.send_signal(signum)
        assert process.wait(LIMIT) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()
    text = output.read_text()
    assert "Traceback" not in text
    toml = re.search(r"the configuration +(\S+)", text)
    assert toml is not None
    assert not Path(toml[1]).exists()
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://127.0.0.1:{port.number}/read", timeout=LIMIT)


def test_without_a_row_they_are_listed() -> None:
    done = subprocess.run(RUN, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(load())


def test_a_row_that_does_not_exist_is_said_with_those_that_do() -> None:
    done = subprocess.run([*RUN, "gunicorm"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (2, "there is no row 'gunicorm'; there are:\n")
    assert "gunicorn-threads" in done.stdout
