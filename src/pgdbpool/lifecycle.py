"""What happens to the pools of a process when it forks, and when it ends.

A child that inherits a pool must neither talk on its parent's sockets nor end its parent's sessions, which is what
closing them would do: a goodbye on a shared socket reaches the same server process. So in the child every inherited
descriptor is pointed at the null device before it is let go of, and the pool starts empty.
"""

from __future__ import annotations

import atexit
from typing import Protocol
from weakref import WeakSet

from . import forks
from .core.stats import PoolStats


class Living(Protocol):
    """A pool, as far as this module and the integrations know it."""

    @property
    def name(self) -> str: ...

    @property
    def closed(self) -> bool: ...

    def stats(self, *, all_time: bool = False) -> PoolStats: ...

    def _after_fork(self) -> None: ...

    def _at_exit(self) -> None: ...


_pools: WeakSet[Living] = WeakSet()
_ending = False  # whether the process is, as far as we have been told


def register(pool: Living) -> None:
    """From now on look after this pool; it is forgotten when nobody else knows it any more."""
    _pools.add(pool)


def pools() -> list[Living]:
    """All that somebody still knows."""
    while True:
        try:
            return list(_pools)
        except RuntimeError:  # another thread has just made one
            continue


def ending() -> bool:
    """Whether the pools were told that the process ends; see `pgdbpool.ending`."""
    return _ending


def is_ending(error: Exception) -> bool:
    """Whether a thread could not be started because the main thread has ended, which is no news (Python 3.12)."""
    return "interpreter shutdown" in str(error)


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork()


def _at_exit() -> None:
    global _ending
    _ending = True
    for pool in list(_pools):
        pool._at_exit()


forks.in_child(_after_fork_in_child)
atexit.register(_at_exit)
