"""What callers may get wrong: the time limits that they give, and the order of entering and leaving."""

from __future__ import annotations

from typing import TypeVar

from .config.keys import nature
from .errors import Error

Limit = TypeVar("Limit", float, float | None)


def seconds_of(timeout: Limit) -> Limit:
    """A limit as it was given, as a number; None stays None. Infinity is no limit.

    Raises TypeError for what is no number, and ValueError for nan: a wait with either would end at no time at all.
    """
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)):
        if not hasattr(timeout, "__float__"):  # as a string, which `float` would take
            raise TypeError(f"timeout: expected a number of seconds, got {nature(timeout)}")
        timeout = float(timeout)
    if timeout != timeout:
        raise ValueError("timeout: expected a number of seconds, got nan")
    return timeout


def not_entered(group: str) -> Error:
    """For a lease that is left and has no connection."""
    return Error(f"this lease of group {group!r} is not in use: it was left before, or never entered")
