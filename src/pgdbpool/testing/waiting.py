"""Waiting for a condition: the only kind of waiting this package does."""

import time
from collections.abc import Callable
from typing import TypeVar

from pgdbpool.testing.errors import ClusterTimeout

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, timeout: float, interval: float = 0.01) -> T:
    """Ask ``condition`` again and again until it answers something true, and return that answer.

    ``timeout`` and ``interval`` are in seconds. Raises `ClusterTimeout` naming ``what``.
    """
    deadline = time.monotonic() + timeout
    while True:
        if answer := condition():
            return answer
        if time.monotonic() >= deadline:
            raise ClusterTimeout(f"{what}: not within {timeout:g} s")
        time.sleep(interval)
