"""psycopg_pool's own tests, run on this pool through a thin shim, and compared with the differences that are known.

    python -m tests.suites.run                      fetches psycopg's source from GitHub, with git
    python -m tests.suites.run --source FOLDER      takes it from a folder that is there already

Exit code 0: it differs where it is known to, and nowhere else. 1: it does not. 2: there is no source to be had.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

HERE = Path(__file__).parent
REPOSITORY, TAG = "https://github.com/psycopg/psycopg", "pool-3.3.0"
FILES = ("pool/test_pool.py", "pool/test_pool_common.py")  # those of asyncio are the same tests
HELPERS = ("utils.py", "acompat.py")
LIMIT = 60  # s for one test
CONFTEST = """
import sys
from tests.suites import psycopg_pool_shim
sys.modules["psycopg_pool"] = psycopg_pool_shim
from tests.suites.fixtures import *
from tests.suites.fixtures import pytest_configure, pytest_pyfunc_call
"""


class Differences(NamedTuple):
    """What is known: reasons by a pattern of names of tests."""

    reasons: Mapping[str, str]

    def of(self, test: str) -> str | None:
        """Why this test is known to fail; None: it is not."""
        return next((reason for pattern, reason in self.reasons.items() if fnmatch.fnmatchcase(test, pattern)), None)


def known() -> Differences:
    """Those in ``differences.toml``, where each reason has a list of patterns."""
    found = tomllib.loads((HERE / "differences.toml").read_text())
    patterns = [pattern for each in found["difference"] for pattern in each["tests"]]
    assert len(patterns) == len(set(patterns)), "a pattern stands there twice"
    return Differences({pattern: each["reason"] for each in found["difference"] for pattern in each["tests"]})


def judge(outcomes: Mapping[str, bool], differences: Differences) -> list[str]:
    """What is not as it is known to be, in words. `outcomes`: whether each test has passed."""
    words = [f"fails: {test}" for test, passed in outcomes.items() if not passed and differences.of(test) is None]
    words += [
        f"passes, and is known to fail: {test}" for test, passed in outcomes.items() if passed and differences.of(test)
    ]
    for pattern in differences.reasons:
        if not any(fnmatch.fnmatchcase(test, pattern) for test in outcomes):
            words.append(f"is known to fail, and there is no such test: {pattern}")
    return words


def outcomes_in(report: Path) -> dict[str, bool]:
    """Of a JUnit file: whether each test has passed; those that were skipped are left out."""
    found: dict[str, bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        if case.find("skipped") is None:
            passed = case.find("failure") is None and case.find("error") is None
            found[name] = found.get(name, True) and passed
    return found


def fetch(folder: Path) -> Path | None:
    """psycopg's source, by git. None: it could not be had."""
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", TAG, REPOSITORY, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
        return None
    return folder


def run(source: Path, folder: Path, arguments: Sequence[str]) -> dict[str, bool]:
    """Run the tests of this source in this folder."""
    pool = folder / "suite" / "pool"
    pool.mkdir(parents=True)
    for package in (folder / "suite", pool):
        (package / "__init__.py").touch()
    for name in (*FILES, *HELPERS):
        if (source / "tests" / name).exists():
            shutil.copy(source / "tests" / name, folder / "suite" / name)
    (folder / "suite" / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(f"[pytest]\nfaulthandler_timeout = {LIMIT}\n")
    report = folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not timing",
        "-p",
        "no:cacheprovider",
        f"--junit-xml={report}",
    ]
    environment = {"PYTHONPATH": str(HERE.parent.parent)}
    subprocess.run([*command, *arguments, "suite"], cwd=folder, env={**os.environ, **environment}, check=False)
    return outcomes_in(report)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.suites.run", description=__doc__.partition("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--source", type=Path, help="psycopg's source; without it git fetches it")
    parser.add_argument("arguments", nargs="*", help="for pytest")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="psycopg-pool-tests-") as name:
        source = given.source or fetch(Path(name, "psycopg"))
        if source is None:
            print(f"not run: {REPOSITORY} is out of reach; say PSYCOPG=FOLDER, where its source is", file=sys.stderr)
            return 2
        outcomes = run(source, Path(name), given.arguments)
    words = judge(outcomes, known())
    print(f"{sum(outcomes.values())} of {len(outcomes)} tests of psycopg_pool pass on pgdbpool")
    for each in words:
        print(each)
    return 1 if words else 0


if __name__ == "__main__":
    sys.exit(main())
