"""Who is told of the last numbers of a process or pool, before its file goes or no longer has them.

Whoever adds up what processes have counted would miss what they counted since they were last looked at. So it is told
when a pool is closed, when a process ends, and when the file of one that was killed is removed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from ..seldom import say_seldom
from .record import Worker


class Heir(Protocol):
    """Who is told."""

    def inherit(self, worker: Worker, directory: Path) -> None:
        """These are about to vanish, and their file is there. It may know all of it already, or more."""


_heirs: WeakSet[Heir] = WeakSet()


def add(heir: Heir) -> None:
    """From now on tell it, in this process and its children, as long as somebody knows it."""
    _heirs.add(heir)


def tell(worker: Worker, directory: Path) -> None:
    """These are about to vanish. Never raises an `Exception`."""
    for heir in tuple(_heirs):
        try:
            heir.inherit(worker, directory)
        except Exception as error:
            say_seldom(logging.ERROR, f"the last numbers of process {worker.pid} could not be kept", error=error)
