"""Copies of what other threads change at the same time, without a lock.

Python says so by an error when a container changes while it is copied. Without a global interpreter lock that can
happen at any time, with one when the garbage collector runs a finalizer. Each attempt takes microseconds, and one that
fails means that another thread got on with its work; so the copy is simply made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

_MOST = 1000  # attempts: should an error have another cause it is not hidden


def snapshot(things: Iterable[T]) -> list[T]:
    """What is in a container at one moment."""
    for _ in range(_MOST):
        try:
            return list(things)
        except (RuntimeError, KeyError):  # KeyError: from an OrderedDict
            continue
    return list(things)
