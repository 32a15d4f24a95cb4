"""`pgdbpool check`: is this configuration right, are its servers there, and do they have room for it?

The way through this package: `look` asks each endpoint, all at the same time; `judge` tells the pool's own core what
was seen and reads the routes off it; `fit` says whether the servers have room; `report` holds what comes out; `screen`
shows it.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from time import monotonic

from rich.console import Console

from pgdbpool.cli.output import console, print_json
from pgdbpool.config import EndpointSettings, GroupSettings, Settings
from pgdbpool.core.evidence import Fault

from .judge import judge
from .look import ANSWER, Look, look
from .screen import show

__all__ = ["run"]


def run(settings: Settings, processes: int | None, threads: int | None, memory: int | None, *, as_json: bool) -> int:
    """Check, and say what was found; the exit code. `memory` in bytes."""
    screen = console(stderr=as_json)
    report = judge(settings, _look_at_all(settings, screen), processes, threads, memory)
    if as_json:
        print_json(report)
    else:
        show(report, screen)
    return 0 if report.ok else 1


def _look_at_all(settings: Settings, screen: Console) -> list[Look]:
    """Look at all endpoints at the same time, each in a thread of its own, and none for ever."""
    groups = list(settings.groups.values())
    found: dict[int, Look] = {}
    threads = [
        threading.Thread(target=_look_at, args=(number, where, groups, found), daemon=True)
        for number, where in enumerate(settings.db)
    ]
    words = f"asking {len(threads)} endpoint{'s' if len(threads) > 1 else ''}"
    with screen.status(words) if screen.is_terminal else nullcontext():
        began = monotonic()
        for thread in threads:
            thread.start()
        for thread, where in zip(threads, settings.db, strict=True):
            # The system's lookup of a name is not bounded by us.
            limit = (len(groups) + 1) * (where.connect_timeout + ANSWER) + ANSWER
            thread.join(max(0.0, began + limit - monotonic()))
    late = Look(fault=Fault.TIMEOUT, error="no answer in time")
    return [found.get(number, late) for number in range(len(threads))]


def _look_at(number: int, where: EndpointSettings, groups: list[GroupSettings], found: dict[int, Look]) -> None:
    found[number] = look(where, groups)
