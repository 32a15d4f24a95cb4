"""The display where nobody watches: one line a second, and one for each event."""

import threading
from types import TracebackType
from typing import Self

from rich.console import Console

from pgdbpool import Pool
from pgdbpool.testing import Cluster

from .load import GROUPS
from .measure import Measure
from .scenario import Scenario


class Lines:
    """Writes in a thread of its own, for the length of a ``with`` block."""

    def __init__(self, console: Console, cluster: Cluster, pool: Pool, measure: Measure, scenario: Scenario) -> None:
        self._file = console.file
        self._names = {node.port: node.name for node in cluster.nodes}
        self._pool = pool
        self._measure = measure
        self._scenario = scenario
        self._told = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        due = 1.0
        while not self._stop.wait(0.05):
            self._tell_events()
            if self._measure.elapsed() >= due:
                self._write(f"{self._measure.elapsed():5.1f} s  {self.status()}")
                due += 1.0
        self._tell_events()

    def _tell_events(self) -> None:
        for event in self._scenario.events[self._told :]:
            self._told += 1
            self._write(f"{event.at:5.1f} s  {'+++' if event.good else '---'} {event.text}")

    def status(self) -> str:
        """One moment of all endpoints and groups."""
        pace = self._measure.pace()
        endpoints = []
        for endpoint in self._pool.endpoints():
            port = int(endpoint.endpoint.rpartition(":")[2])
            rate = pace[port].rate if port in pace else 0.0
            words = f"{self._names[port]} {endpoint.role} {endpoint.health}"
            endpoints.append(words if endpoint.health == "down" else f"{words} {rate:.0f}/s")
        stats = self._pool.stats().groups
        groups = [f"{name} {self._done(name):.0f}/s {stats[name].waiting} waiting" for name in GROUPS]
        return " | ".join(endpoints) + " || " + " | ".join(groups)

    def _done(self, group: str) -> float:
        return self._measure.groups[group].rate(self._measure.elapsed())

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
