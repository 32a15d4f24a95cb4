"""Runs the command as a user does: in a process of its own, its output in a pipe or in a terminal."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from pgdbpool.testing.address import Address

LIMIT = 60.0
# Whoever runs the tests in the background may have Ctrl-C ignored, and a child inherits that.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = [sys.executable, "-W", "error", "-c", f"{HEARS_CTRL_C}; from pgdbpool.cli import main; main()"]


class Done(NamedTuple):
    """How it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would change how the output looks."""
    unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PGDBPOOL_CONFIG")
    return {key: value for key, value in os.environ.items() if key not in unset} | more


def run(*arguments: str | Path, **more: str) -> Done:
    """Run it to its end, with pipes, and with `more` in the environment."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Terminal:
    """The command in a terminal of 80 columns: what it writes can be read, and keys can be pressed."""

    def __init__(self, *arguments: str | Path, **more: str) -> None:
        self._master, slave = pty.openpty()
        env = environment(TERM="xterm-256color", COLUMNS="80", LINES="24", **more)
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
        )
        os.close(slave)
        self.written = ""

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read(self, until: str | None = None) -> str:
        """Read on until something appears, or to the end; all that was written so far."""
        deadline = time.monotonic() + LIMIT
        while until is None or until not in self.written:
            assert time.monotonic() < deadline, f"{until!r} did not come in {LIMIT} s:\n{self.written[-2000:]}"
            ready, _, _ = select.select([self._master], [], [], LIMIT)
            assert ready, f"nothing more in {LIMIT} s, still waiting for {until!r}:\n{self.written}"
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other side is closed
                data = b""
            if not data:
                assert until is None, f"ended without {until!r}:\n{self.written}"
                break
            self.written += data.decode(errors="replace")
        return self.written

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def toml(folder: Path, *places: Address | dict[str, Any], groups: str = "[groups.default]", top: str = "") -> Path:
    """A configuration file for these servers."""
    lines = [top]
    for place in places:
        entry = place.endpoint(ssl="disable") if isinstance(place, Address) else place
        lines.append("[[db]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    path = folder / "pool.toml"
    path.write_text("\n".join([*lines, groups, ""]))
    return path
