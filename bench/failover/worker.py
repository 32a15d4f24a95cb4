"""The child: the callers of one peer. It is told on standard input what to do, and answers on standard output.

The first line it reads is its `Task`, as JSON. Then ``stop`` lets the callers end after their present operation,
``about`` asks for what the pool believes, and the end of the input ends the process, wherever its callers may hang.
It writes one line for each operation, when it has ended (`ops.line`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from typing import Any

from bench.failover.ops import Caller, line
from bench.failover.peers import AsyncPeer, Peer, Place, SyncPeer, by_name

READ = "select inet_server_port(), count(*) from items where id = %s"
WRITE = "insert into items (id, caller) values (%s, %s) returning inet_server_port()"
LIMIT = 30.0  # s
FIRST_ID = 1_000_000_000
"""The ids of one caller begin at so many times its number."""


@dataclass(frozen=True)
class Task:
    """What a child is to do."""

    peer: str
    places: list[Place]
    callers: list[Caller]
    pause: float
    """Seconds a caller rests after each operation."""
    options: dict[str, Any] = field(default_factory=dict)
    """For the peer, where a scenario needs a setting."""

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        content = json.loads(text)
        content["places"] = [Place(**place) for place in content["places"]]
        content["callers"] = [Caller(*caller) for caller in content["callers"]]
        return cls(**content)


def say(what: str, *content: object) -> None:
    """One write, so that the lines of several threads do not mix."""
    os.write(1, line(what, *content))


class Work:
    """The callers, and what they share."""

    def __init__(self, task: Task, peer: Peer) -> None:
        self.task = task
        self.peer = peer
        self.stop = threading.Event()

    def report(self, caller: Caller, number: int, began: float, row: Any, error: Exception | None) -> None:
        ended = time.monotonic()
        outcome, words, server = "done", "", None
        if error is None:
            server = int(row[0])
        else:
            outcome = "doubt" if caller.kind == "write" and self.peer.in_doubt(error) else "failed"
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        say("op", caller.number, caller.kind, number, began, ended, outcome, server, words)

    def about(self) -> dict[str, Any]:
        return self.peer.about()

    def first(self, caller: Caller) -> int:
        return caller.number * FIRST_ID + 1

    def start_late(self, caller: Caller) -> float:
        """The callers do not march in step."""
        return self.task.pause * (caller.number % 8) / 8


class Threads(Work):
    """Each caller a thread."""

    peer: SyncPeer

    def run(self) -> None:
        for caller in self.task.callers:
            threading.Thread(target=self.call, args=(caller,), name=f"caller {caller.number}", daemon=True).start()

    def call(self, caller: Caller) -> None:
        number = self.first(caller)
        time.sleep(self.start_late(caller))
        while not self.stop.is_set():
            row = error = None
            began = time.monotonic()
            try:
                row = self.once(caller, number)
            except Exception as failure:
                error = failure
            self.report(caller, number, began, row, error)
            number += 1
            time.sleep(self.task.pause)
        say("end", caller.number)

    def once(self, caller: Caller, number: int) -> Any:
        if caller.kind == "write":
            return self.peer.write(WRITE, (number, caller.number))
        return self.peer.read(READ, (number,))


class Alone(Threads):
    """The one caller of a pool that only one thread may use: it opens it, and answers for it when it has ended."""

    def __init__(self, task: Task, make: type[SyncPeer]) -> None:
        self.task = task
        self.stop = threading.Event()
        self._make = make
        self._questions: SimpleQueue[SimpleQueue[Any]] = SimpleQueue()

    def run(self) -> None:
        opened: SimpleQueue[BaseException | None] = SimpleQueue()
        threading.Thread(target=self.serve, args=(opened,), name="caller", daemon=True).start()
        if (error := opened.get()) is not None:
            raise error

    def serve(self, opened: SimpleQueue[BaseException | None]) -> None:
        try:
            self.peer = self._make(self.task.places, self.task.options)
        except BaseException as error:
            opened.put(error)
            return
        opened.put(None)
        (caller,) = self.task.callers
        self.call(caller)
        while True:
            self._questions.get().put(self.peer.about())

    def about(self) -> dict[str, Any]:
        answer: SimpleQueue[Any] = SimpleQueue()
        self._questions.put(answer)
        return answer.get(timeout=LIMIT)


class Tasks(Work):
    """Each caller a task of one event loop, in a thread of its own: the main thread listens to the parent."""

    peer: AsyncPeer
    loop: asyncio.AbstractEventLoop

    def run(self) -> None:
        opened: list[BaseException | None] = []
        known = threading.Event()
        threading.Thread(target=asyncio.run, args=(self.serve(opened, known),), name="event loop", daemon=True).start()
        known.wait()
        if opened[0] is not None:
            raise opened[0]

    def about(self) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            return self.peer.about()

        return asyncio.run_coroutine_threadsafe(ask(), self.loop).result(LIMIT)

    async def serve(self, opened: list[BaseException | None], known: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        try:
            await self.peer.open()
            opened.append(None)
        except BaseException as error:
            opened.append(error)
            return
        finally:
            known.set()
        await asyncio.gather(*(self.call(caller) for caller in self.task.callers))
        await asyncio.Event().wait()  # the pool has to live on: the parent may ask about it

    async def call(self, caller: Caller) -> None:
        number = self.first(caller)
        await asyncio.sleep(self.start_late(caller))
        while not self.stop.is_set():
            row = error = None
            began = time.monotonic()
            try:
                row = await self.once(caller, number)
            except Exception as failure:
                error = failure
            self.report(caller, number, began, row, error)
            number += 1
            await asyncio.sleep(self.task.pause)
        say("end", caller.number)

    async def once(self, caller: Caller, number: int) -> Any:
        if caller.kind == "write":
            return await self.peer.write(WRITE, (number, caller.number))
        return await self.peer.read(READ, (number,))


def work_of(task: Task, make: type[Peer]) -> Work:
    if make.single:
        return Alone(task, make)
    peer = make(task.places, task.options)
    return Tasks(task, peer) if isinstance(peer, AsyncPeer) else Threads(task, peer)


def main() -> None:
    task = Task.from_json(sys.stdin.readline())
    work = work_of(task, by_name(task.peer))
    work.run()
    say("ready")
    for command in sys.stdin:
        match command.strip():
            case "stop":
                work.stop.set()
            case "about":
                try:
                    say("about", work.about())
                except Exception as error:
                    say("about", {"error": f"{type(error).__name__}: {error}"})
    os._exit(0)  # a caller that hangs must not keep us


if __name__ == "__main__":
    main()
