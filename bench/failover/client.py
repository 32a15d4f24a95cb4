"""The parent's side of a peer at work: its process, or its processes, and what they tell.

::

    start ──ready──▶ working ──stop──▶ callers end one by one ──▶ close (ended by its id, whoever still hangs)

`ops` grows while the peer works: a reader thread for each process appends what it hears, and `list.append` is all
they share. `hung` is known after `wait_for_callers`.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

from bench.failover.ops import Kind, Op
from bench.failover.peers import by_name
from bench.failover.worker import Task

ROOT = Path(__file__).resolve().parent.parent.parent
START_LIMIT = 60.0  # s: eight processes may have to load, on a busy machine
ABOUT_LIMIT = 5.0  # s
NUMBERS = itertools.count(1)
LATEST = 2000  # operations that are looked through for the first success


class ClientError(Exception):
    """A peer could not be started."""


class Client:
    """A peer at work. ``prefix`` goes in front of the command, for a process in surroundings of its own."""

    def __init__(self, task: Task, prefix: Sequence[str] = ()) -> None:
        self.peer = by_name(task.peer)
        self.callers = task.callers
        self.ops: list[Op] = []
        self.hung: dict[int, float] = {}
        """After `wait_for_callers`: those that did not end, and since when they have been in an operation."""
        self.began = 0.0
        parts = [[caller] for caller in task.callers] if self.peer.single else [task.callers]
        self.processes = [f"bench-{next(NUMBERS)}" for _ in parts]
        """Their names in the servers' logs (`application_name`)."""
        self._children = [
            _Child(name, replace(task, callers=part), prefix, self.ops.append)
            for name, part in zip(self.processes, parts, strict=True)
        ]

    def start(self) -> Self:
        """Wait until the pools are open and the callers work."""
        deadline = time.monotonic() + START_LIMIT
        for child in self._children:
            if not child.ready.wait(max(0.0, deadline - time.monotonic())) or not child.working:
                raise ClientError(f"{self.peer.name} did not start: {child.complaint()}")
        self.began = time.monotonic()
        return self

    def tell_to_stop(self) -> None:
        """Have the callers end after their present operation."""
        for child in self._children:
            child.tell("stop")

    def wait_for_callers(self, deadline: float) -> None:
        """Wait until they have; who has not at the deadline hangs."""
        last: dict[int, float] = {}
        for child in self._children:
            child.over.wait(max(0.0, deadline - time.monotonic()))
        for op in list(self.ops):
            last[op.caller] = max(op.ended, last.get(op.caller, 0.0))
        ended = set().union(*(child.ended for child in self._children))
        self.hung = {
            caller.number: last.get(caller.number, self.began) for caller in self.callers if caller.number not in ended
        }

    def about(self) -> list[dict[str, Any]]:
        """What the pools believe and have counted, one entry for each process that answers."""
        for child in self._children:
            child.about = None
            child.tell("about")
        deadline = time.monotonic() + ABOUT_LIMIT
        for child in self._children:
            child.told.wait(max(0.0, deadline - time.monotonic()))
        return [child.about for child in self._children if child.about is not None]

    def done(self, kind: Kind, since: float, server: int | None = None) -> bool:
        """Whether an operation of this kind was done after ``since``, by ``server`` if that matters."""
        return any(
            op.kind == kind and op.outcome == "done" and op.ended >= since and server in (None, op.server)
            for op in self.ops[-LATEST:]
        )

    def close(self) -> None:
        """End the processes. May be called twice."""
        for child in self._children:
            child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Child:
    """One process."""

    def __init__(self, name: str, task: Task, prefix: Sequence[str], note: Callable[[Op], None]) -> None:
        self.ready = threading.Event()
        self.over = threading.Event()
        self.told = threading.Event()
        self.working = False
        self.ended: set[int] = set()
        self.about: dict[str, Any] | None = None
        self._count = len(task.callers)
        self._note = note
        self._closed = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed in `close`
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "bench.failover.worker"],
            cwd=ROOT,
            # The user's PGHOST and the like are meant for other servers.
            env={key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"PGAPPNAME": name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C at the terminal is for us, and we end it
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self.tell(task.as_json())

    def tell(self, command: str) -> None:
        self.told.clear()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it has ended; that is seen elsewhere
            pass

    def _read(self, stream: IO[bytes]) -> None:
        for text in stream:
            what, *content = json.loads(text)
            match what:
                case "op":
                    self._note(Op(*content))
                case "end":
                    self.ended.add(content[0])
                    if len(self.ended) == self._count:
                        self.over.set()
                case "about":
                    self.about = content[0]
                    self.told.set()
                case "ready":
                    self.working = True
                    self.ready.set()
        for event in (self.ready, self.over, self.told):  # nothing more will come
            event.set()

    def complaint(self) -> str:
        """The end of what it wrote on standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or f"no answer within {START_LIMIT:g} s"

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._process.kill()
        self._process.wait()
        self._reader.join(START_LIMIT)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # a command that was never read
                    pass
