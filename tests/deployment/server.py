"""A real server, run as its row of `examples/rows.toml` says, in a copy of the folder `examples`.

It is started as the leader of a session of its own, so that all its processes can be found, and ended, by that. What it
writes goes to a file, which is shown when something fails.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from examples.programs import PATH, missing, virtual_environment
from examples.rows import FOLDER, Row, configuration
from pgdbpool.testing import Cluster
from pgdbpool.testing.ports import ReservedPort

T = TypeVar("T")
LIMIT = 30.0  # s: only ever reached when something is wrong
ANSWER_LIMIT = 60.0  # s: longer than the pool makes anybody wait

# Tests that run in the background have Ctrl-C ignored, and the server would inherit that.
PLAIN = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"


class Server:
    """One server at work: ``with Server(row, cluster, tmp_path) as server: ...``

    `groups` and `environment` are put in the place of the row's, or added; `command` too. `root` is where the
    application is found.
    """

    def __init__(
        self,
        row: Row,
        cluster: Cluster,
        folder: Path,
        *,
        groups: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        command: str = "",
        model: str = "",
        root: str = "",
    ) -> None:
        if problem := missing(row):
            pytest.skip(problem)
        self.row = replace(row, groups=groups or row.groups, command=command or row.command, model=model or row.model)
        self._environment = dict(environment or {})
        self._cluster = cluster
        self._root = root
        self.folder = folder / "examples"
        self._log = folder / "server.log"
        self._port = ReservedPort()
        self.port = self._port.number
        self._process: subprocess.Popen[bytes] | None = None

    # -- life -------------------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> Self:
        """Start it, and wait until it answers."""
        if not self.folder.exists():
            shutil.copytree(FOLDER, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        (self.folder / "pool.toml").write_text(configuration(self.row, self._cluster.endpoints(ssl="disable")))
        self._port.release()  # not every server shares a port that is only reserved
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PLAIN, *self._words()],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait(self._answers, "its first answer")
        return self

    def environment(self) -> dict[str, str]:
        """What the server is started with."""
        own = {
            "PATH": PATH,
            "PWD": str(self.folder),
            "VIRTUAL_ENV": str(virtual_environment(self.row)),
            "PGDBPOOL_CONFIG": str(self.folder / "pool.toml"),
            "PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
        }
        return {**os.environ, **self.row.environment, **own, **self._environment}

    def _words(self, command: str = "") -> list[str]:
        return self.row.words(self.port, self.environment(), command)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        try:
            if kind is None:
                self.stop()
            else:
                print(f"--- what the server wrote ---\n{self.log()[-4000:]}")
        finally:
            self.end()

    def stop(self) -> None:
        """End it as one does, and see that nothing of it is left: no process, no connection."""
        process = self._running()
        self.tell_to_end()
        self.wait(lambda: process.poll() is not None, "its end", alive=False)
        self.wait(lambda: not self.processes(), "the end of all its processes", alive=False)
        self.wait(lambda: not backends(self._cluster), "the end of its connections", alive=False)

    def tell_to_end(self) -> None:
        """As one does; does not wait for it."""
        how, *name = self.row.stop.split()
        if how == "ctrl-c":
            os.killpg(self._running().pid, signal.SIGINT)
        else:
            self._running().send_signal(getattr(signal, f"SIG{name[0]}"))

    def end(self) -> None:
        """End it by force, whatever state it is in."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait(LIMIT)
            # A test that failed must not leave its connections to the next.
            deadline = time.monotonic() + LIMIT
            while backends(self._cluster) and time.monotonic() < deadline:
                time.sleep(0.02)

    def reload(self, how: str = "") -> None:
        """Have new workers take over, as the row says or in another way; does not wait for it."""
        how, what = (how or self.row.reload).split(maxsplit=1)
        if how == "signal":
            self._running().send_signal(getattr(signal, f"SIG{what}"))
        elif how == "edit":
            path = self.folder / what
            path.write_text(path.read_text() + "\n")
        else:
            subprocess.run(self._words(what), cwd=self.folder, env=self.environment(), check=True, timeout=LIMIT)

    # -- what can be seen of it ---------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._running().pid

    def exit_code(self) -> int | None:
        """None while its first process runs."""
        return self._running().poll()

    def processes(self) -> set[int]:
        """All its processes that live."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    state, _, _, session = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:4]
                except OSError:
                    continue
                if int(session) == self.pid and state not in b"ZX":
                    found.add(int(entry.name))
        return found

    def threads(self, pid: int) -> int:
        """How many threads one of its processes has, those of C libraries included."""
        return len(os.listdir(f"/proc/{pid}/task"))

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text(errors="replace")

    def wait(self, condition: Callable[[], T], what: str, *, alive: bool = True) -> T:
        """Ask again and again until the answer is true."""
        deadline = time.monotonic() + LIMIT
        while not (answer := condition()):
            ended = alive and self._running().poll() is not None
            if ended or time.monotonic() >= deadline:
                words = "has ended" if ended else f"not within {LIMIT:g} s"
                pytest.fail(f"{self.row.name}: {what}: {words}\n{self.log()[-4000:]}")
            time.sleep(0.02)
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server has not been started"
        return self._process

    # -- asking it ------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str) -> tuple[int, Any]:
        """One request on a connection of its own: status and JSON. Raises OSError and HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_LIMIT)
        try:
            connection.request(method, self._root + path, headers={"Connection": "close"})
            answer = connection.getresponse()
            body = answer.read()
            if "Content-Type" not in answer.headers:  # which looks like an answer to http.client
                raise http.client.RemoteDisconnected("cut off in the middle of the headers")
            return answer.status, json.loads(body) if answer.headers.get_content_type().endswith("json") else body
        finally:
            connection.close()

    def read(self) -> Any:
        """The answer to GET /read, which must be a good one."""
        status, answer = self.ask("GET", "/read")
        assert status == 200, answer
        return answer

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0):
                pass
            return self.ask("GET", "/read")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


def backends(cluster: Cluster) -> dict[str, dict[int, str]]:
    """The server processes that serve pools now, and whom, by the name of the node; nodes without any are left out."""
    found = {}
    for node in cluster.nodes:
        if node.is_running and not node.is_frozen:
            rows = node.execute(
                "select pid, application_name from pg_stat_activity where application_name like 'pgdbpool:%'"
            )
            if rows:
                found[node.name] = {pid: name.removeprefix("pgdbpool:") for pid, name in rows}
    return found


def held_up(cluster: Cluster) -> int:
    """Sessions of pools that wait for a lock."""
    waiting = (
        "select count(*) from pg_stat_activity where application_name like 'pgdbpool:%' and wait_event_type = 'Lock'"
    )
    return int(cluster.primary.execute(waiting)[0][0])
