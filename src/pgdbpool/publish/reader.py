"""Reads the files of all processes of one host.

Reading changes nothing. A file whose process is dead is left out here, and removed by the next process that writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import time

from . import alive, heirs, place
from .record import Worker, decoded

_LARGEST = 8 * 2**20  # bytes: many times what a file ever has
_MOST = 10_000  # files
_UNFINISHED = 60.0  # s after which a file that was not written to its end never will be


def read(name: str | None = None, directory: str | os.PathLike[str] | None = None) -> list[Worker]:
    """The living processes of the application `name`, or of all; sorted by application and pid.

    `directory` is that of `status.directory`; without it all usual places are searched. What cannot be read, was not
    written by this user (or, read by root, by the owner of the directory), or is in the format of another version is
    left out. Raises PermissionError if `directory` may be written to by others. Safe in any thread.
    """
    now = time()
    found = [worker for path in files(directory, name) if (worker := _living(path, now)) is not None]
    return sorted(found, key=lambda worker: (worker.name, worker.identity))


def names(directory: str | os.PathLike[str] | None = None) -> list[str]:
    """The applications that have a living process."""
    return sorted({worker.name for worker in read(None, directory)})


def files(directory: str | os.PathLike[str] | None, name: str | None) -> Iterator[Path]:
    """The files of all processes, dead or alive."""
    for folder in place.searched(directory):
        try:
            entries = sorted(os.listdir(folder))[:_MOST]
        except OSError:
            continue
        for entry in entries:
            whose = place.application(entry)
            if whose is not None and name in (None, whose):
                yield folder / entry


def _living(path: Path, now: float) -> Worker | None:
    worker = decoded(place.content(path, _LARGEST) or b"")
    if worker is None or worker.name != place.application(path.name):
        return None
    return worker if is_alive(worker, now) else None


def is_alive(worker: Worker, now: float) -> bool:
    """Whether the process lives, at `now` in seconds since the epoch."""
    return alive.alive(worker.identity, now - worker.at, writes_by_itself=worker.by_itself)


def sweep(directory: Path, name: str) -> None:
    """Remove what dead processes of this application have left."""
    now = time()
    for path in files(directory, name):
        worker = decoded(place.content(path, _LARGEST) or b"")
        if worker is not None and not is_alive(worker, now):
            heirs.tell(worker, directory)
            place.remove(path)
    place.remove_unfinished(directory, now - _UNFINISHED)
