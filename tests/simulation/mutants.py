"""Does the simulation find anything? Break core in one place at a time, and see within how many seeds it is noticed.

``python -m tests.simulation.mutants`` copies the package, applies one mutant at a time to the copy, and runs seeds
until one fails. The mutants are in ``mutants.txt``: a name, a file, and lines as in a diff, just enough of them to be
found in one place only. One that no longer applies says so.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIMIT = 900.0  # s for one mutant: it may make the simulation turn in a circle, which is found out as well


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


def read(text: str) -> list[Mutant]:
    """The mutants of a file."""
    mutants = []
    for part in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        name, file, *lines = part.rstrip().split("\n")
        old = "".join(line[1:] + "\n" for line in lines if not line.startswith("+"))
        new = "".join(line[1:] + "\n" for line in lines if not line.startswith("-"))
        mutants.append(Mutant(name, file.removeprefix("-- "), old, new))
    return mutants


MUTANTS = read(Path(__file__).with_name("mutants.txt").read_text())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many to try for each (default 1000)")
    parser.add_argument("--only", default="", help="only mutants with this in their name")
    parser.add_argument("--src", type=Path, default=ROOT / "src", help="the sources to break")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in mutant.name]
    survivors = 0
    with ThreadPoolExecutor(arguments.jobs) as jobs:
        for line, caught in jobs.map(partial(attempt, arguments.src, arguments.seeds), chosen):
            survivors += not caught
            print(line, flush=True)
    print(f"{len(chosen)} mutants, {survivors} survived {arguments.seeds} seeds")
    return int(survivors > 0)


def apply(mutant: Mutant, source: Path) -> bool:
    """Change the package below `source`. False: there is no such place, or more than one."""
    file = source / "pgdbpool" / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        return False
    file.write_text(text.replace(mutant.old, mutant.new))
    return True


def attempt(source: Path, seeds: int, mutant: Mutant) -> tuple[str, bool]:
    """What became of one mutant, in words; and whether it was caught."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        if not apply(mutant, Path(place)):
            return f"{mutant.name:<52} DOES NOT APPLY", False
        try:
            process = subprocess.run(
                [sys.executable, "-m", "tests.simulation", "--seeds", str(seeds)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": place},
                capture_output=True,
                text=True,
                check=False,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return f"{mutant.name:<52} hangs", True
    if process.returncode == 0:
        return f"{mutant.name:<52} survived", False
    lines = [line for line in process.stdout.splitlines() if line.startswith("seed ")]
    if not lines:
        return f"{mutant.name:<52} {process.stderr.strip()[-100:]}", True
    seed = lines[0].split(",")[0].removeprefix("seed ")
    return f"{mutant.name:<52} {seed:>5}  {lines[0].split(': ', 1)[-1][:110]}", True


if __name__ == "__main__":
    sys.exit(main())
