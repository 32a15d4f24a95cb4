"""Reads the files of all processes of one host.

Reading changes nothing. A file whose process is dead is left out here, and removed by the next process that writes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from time import time

from . import alive, heirs, place
from .record import Worker, decoded

logger = logging.getLogger("pgdbpool")

_LARGEST = 8 * 2**20  # bytes: many times what a file ever has
_MOST = 10_000  # files
_UNFINISHED = 60.0  # s after which a file that was not written to its end never will be


def read(name: str | None = None, directory: str | os.PathLike[str] | None = None) -> list[Worker]:
    """The living processes of the application `name`, or of all; sorted by application and pid.

    `directory` is that of `status.directory`; without it all usual places are searched. What cannot be read, was not
    written by this user (or, read by root, by the owner of the directory), or is in the format of another version is
    left out; of a file with nonsense in it the log says so once. Raises PermissionError if `directory` may be written
    to by others. Safe in any thread.
    """
    now = time()
    found = [
        worker
        for folder in place.searched(directory)
        for _, worker in _written(folder, name)
        if worker is not None and is_alive(worker, now)
    ]
    return sorted(found, key=lambda worker: (worker.name, worker.identity))


def names(directory: str | os.PathLike[str] | None = None) -> list[str]:
    """The applications that have a living process."""
    return sorted({worker.name for worker in read(None, directory)})


def _written(folder: Path, name: str | None) -> Iterator[tuple[str, Worker | None]]:
    """The files of all processes of that application or of all, dead or alive, and what is in them."""
    try:
        with place.opened(folder) as here:
            for entry in here.names()[:_MOST]:
                whose = place.application(entry)
                if whose is not None and name in (None, whose):
                    yield entry, _worker(folder / entry, whose, here.content(entry, _LARGEST))
    except OSError:  # it is gone, or somebody has changed it at this moment
        return


def _worker(path: Path, whose: str, data: bytes | None) -> Worker | None:
    if data is None:
        return None
    try:
        worker = decoded(data)
    except ValueError as error:
        _say_once(path, str(error))
        return None
    return worker if worker is not None and worker.name == whose else None


def _say_once(path: Path, words: str) -> None:
    if path not in _said and len(_said) < _MOST:
        _said.add(path)
        logger.warning("%s is left out, since it is no file of a process: %s", path, words)


_said: set[Path] = set()


def is_alive(worker: Worker, now: float) -> bool:
    """Whether the process lives, at `now` in seconds since the epoch."""
    return alive.alive(worker.identity, now - worker.at, writes_by_itself=worker.by_itself)


def sweep(directory: Path, name: str) -> None:
    """Remove what dead processes of this application have left."""
    now = time()
    dead = [(entry, worker) for entry, worker in _written(directory, name) if worker and not is_alive(worker, now)]
    with place.opened(directory) as here:
        for entry, worker in dead:
            heirs.tell(worker, directory)
            here.remove(entry)
        here.remove_unfinished(now - _UNFINISHED)
