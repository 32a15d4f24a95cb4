"""What may be said of an exception in a log, an endpoint's `last_error`, a status file, another caller's `PoolTimeout`.

What an application raises may have anything in its words, such as the parameters of the statement that failed. So of a
connection that was lost only the driver's own words are told, and of a statement that failed not its details.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from .drivers import ConnectFailed, Driver, DriverTimeout, Unanswered
from .errors import Error
from .seldom import places, say_seldom

__all__ = ["LeftOpen", "chain", "connections", "log_raised", "words_of", "words_raised"]

_OURS = (ConnectFailed, DriverTimeout, Unanswered, Error)
_LOOKED_THROUGH = 20  # exceptions of a chain or group
_LOST = "the connection was lost"


def words_of(error: BaseException | None, driver: Driver, *, lost: bool) -> str:
    """The words for an exception that ended a connection.

    If the connection was `lost` they are the driver's about that, or ours. Else one of the pool's callables, such as
    `configure`, did not like it, and may say so in its own words; but not in those of a statement that failed.
    """
    if isinstance(error, _OURS):
        return str(error)
    for each in chain(error):
        words = driver.words(each, lost=lost)
        if words is not None:
            return words
    if lost or error is None:
        return _LOST
    return str(error).strip() or type(error).__name__


class LeftOpen(RuntimeError):
    """One of the pool's callables has not left the connection at rest."""


def words_raised(who: str, error: BaseException, driver: Driver) -> str:
    """The words for what `who` has raised on a connection that is not lost: ``configure raised TypeError: ...``.

    With those of `words_of`. They are for the callers of the group whose callable it is, and for the log.
    """
    said = words_of(error, driver, lost=False)
    if isinstance(error, DriverTimeout):
        return f"{who}: {said}"
    if isinstance(error, LeftOpen):
        return f"{who} {said}"
    kind = type(error).__name__
    return f"{who} raised {kind}" if said == kind else f"{who} raised {kind}: {said}"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it was raised from or has in it as a group."""
    found = [error]
    for each in found:
        if each is None:
            continue
        yield each
        if len(found) < _LOOKED_THROUGH:
            found.append(each.__cause__ or each.__context__)
            found += each.exceptions if isinstance(each, BaseExceptionGroup) else ()


def log_raised(who: str, error: BaseException) -> None:
    """Log what a callable of the application's has raised, and where; without its words and variables.

    What it raises each time is said once in a while.
    """
    raised = f"{who} raised {type(error).__name__}"
    say_seldom(logging.ERROR, f"{raised}\n{places(error)}", of=raised)


def connections(count: int) -> str:
    """``1 connection``, ``4 connections``."""
    return "1 connection" if count == 1 else f"{count} connections"
