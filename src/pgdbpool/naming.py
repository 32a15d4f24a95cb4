"""What pools are called in the log, in metrics, and in the names of threads: each of a process has its own name."""

from __future__ import annotations

from itertools import count

from .config.keys import nature
from .errors import ConfigError

_LONGEST = 60  # characters
_numbers = count(1)
_taken: dict[str, object] = {}  # in this process, ever: numbers of two pools must not be taken for those of one


def name_of_pool(wanted: str | None) -> str:
    """A name that no other pool of this process has or had: ``pgdbpool-1``; or the one wanted, or ``shop-2`` for it.

    Raises ConfigError for what can be no name.
    """
    if wanted is None:
        return next(name for number in _numbers if _take(name := f"pgdbpool-{number}"))
    if not isinstance(wanted, str):
        raise ConfigError(f"name: expected a string, got {nature(wanted)}")
    if not wanted.strip() or not wanted.isprintable() or len(wanted) > _LONGEST:
        raise ConfigError(f"name: expected up to {_LONGEST} printable characters")
    if _take(wanted):
        return wanted
    return next(name for number in count(2) if _take(name := f"{wanted}-{number}"))


def _take(name: str) -> bool:
    mine = object()
    return _taken.setdefault(name, mine) is mine  # in one step, so that of several threads one gets it
