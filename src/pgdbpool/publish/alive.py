"""Whether the process that wrote a file still lives.

A pid alone proves nothing: it may have been given to another process since. Together with the moment at which its
process began it names one process for as long as the machine runs. A process in another pid namespace, such as that of
a container, cannot be looked up from here; it is believed for as long as it writes, and so is everybody where there is
no ``/proc``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_SILENT = 30.0  # s without a word after which a process that cannot be looked up is taken for dead
_SILENT_ON_THE_WAY = 600.0  # ... if it writes only when it is used

_PROC = Path("/proc")


class Identity(NamedTuple):
    """Which process: all of it together belongs to one process only."""

    boot: str
    """Which run of which machine; empty where that cannot be known."""
    namespace: str
    """In which the pid is a pid."""
    pid: int
    began: int
    """When, in ticks since the boot; 0 where that cannot be known."""


def myself() -> Identity:
    """This process."""
    pid = os.getpid()
    return Identity(_boot(), _namespace(), pid, _began(pid) or 0)


def alive(who: Identity, silent_for: float, *, writes_by_itself: bool) -> bool:
    """Whether that process lives, having written `silent_for` seconds ago."""
    if who.boot != _boot():
        return False
    if who.began and who.namespace == _namespace():
        return _began(who.pid) == who.began
    return silent_for < (_SILENT if writes_by_itself else _SILENT_ON_THE_WAY)


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """When the process began; None if there is none, or nothing of it but what its parent has not collected yet."""
    try:
        # The name of the program is in brackets, and may have brackets and blanks in it.
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19]) if fields[0] not in (b"Z", b"X") else None
    except (OSError, IndexError, ValueError):
        return None
