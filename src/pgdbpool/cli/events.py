"""`pgdbpool events`: what happened to the servers, as the processes of an application noticed it.

What several processes notice at about the same time is one line, with how many they were. With ``--follow`` a line is
written a little after it happened, when the others had time to notice it too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import localtime, sleep, strftime, time

import msgspec
from rich.console import Console
from rich.text import Text

from pgdbpool.printable import one_line
from pgdbpool.publish import Happening, merged

from .application import nobody, workers_of
from .output import console, event_mark, json_of

LOOK_EVERY = 0.5  # s
SETTLED = 2.0  # s after which all processes have noticed
REMEMBERED = 3600.0  # s
SAME = 10.0  # s within which the same thing is noticed by all


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One event, as ``--json`` writes it."""

    application: str
    at: float
    kind: str
    endpoint: str
    message: str
    seconds: float | None
    group: str | None
    pools: int
    of: int


class Told:
    """Which events have been written already."""

    def __init__(self) -> None:
        self._told: list[Line] = []

    def new(self, lines: list[Line]) -> list[Line]:
        """Those of `lines` that have not been told; from now on they have.

        A process that writes later may have noticed an event earlier, so its time can still change.
        """
        untold = []
        left = list(self._told)
        for line in lines:
            same = next((old for old in left if _same(old, line)), None)
            if same is None:
                untold.append(line)
            else:
                left.remove(same)
        # A process that was silent for too long is not read for a while, and then again.
        self._told = [*lines, *(old for old in left if old.at > time() - REMEMBERED)]
        return untold


def _same(one: Line, two: Line) -> bool:
    alike = (one.application, one.kind, one.endpoint) == (two.application, two.kind, two.endpoint)
    return alike and abs(one.at - two.at) < SAME


def run(name: str | None, directory: Path | None, last: int, *, follow: bool, as_json: bool) -> int:
    """Write the last events, and with `follow` those to come; the exit code."""
    screen = console()
    if not workers_of(name, directory):
        print(f"pgdbpool events: {nobody(name)}", file=sys.stderr)
        if not follow:
            return 1
    told = Told()
    try:
        lines = told.new(_lines(name, directory, SETTLED if follow else 0.0))
        _write(lines[-last:] if last else [], screen, as_json=as_json)
        while follow:
            sleep(LOOK_EVERY)
            _write(told.new(_lines(name, directory, SETTLED)), screen, as_json=as_json)
    except KeyboardInterrupt:
        pass  # as good an end as any
    except BrokenPipeError:  # of `| head`
        sys.stderr.close()
    return 0


def _lines(name: str | None, directory: Path | None, age: float) -> list[Line]:
    """All events that are older than `age` seconds, the oldest first."""
    before = time() - age
    found = []
    for application, workers in workers_of(name, directory).items():
        summary = merged(workers)
        found += [
            _line(application, happening, summary.pools) for happening in summary.events if happening.event.at <= before
        ]
    return sorted(found, key=lambda line: line.at)


def _line(application: str, happening: Happening, pools: int) -> Line:
    event = happening.event
    return Line(
        application=application,
        at=event.at,
        kind=event.kind.value,
        endpoint=event.endpoint,
        message=event.message,
        seconds=event.seconds,
        group=event.group,
        pools=happening.pools,
        of=pools,
    )


def _write(lines: list[Line], screen: Console, *, as_json: bool) -> None:
    for line in lines:
        if as_json:
            print(json_of(line), flush=True)
            continue
        text = Text(strftime("%Y-%m-%d %H:%M:%S ", localtime(line.at)), "dim")
        text.append_text(event_mark(line.kind)).append(f" {one_line(line.message)}")
        text.append(f"  {line.application}" + (f", {line.pools} of {line.of} pools" if line.of > 1 else ""), "dim")
        screen.print(text)
    sys.stdout.flush()
