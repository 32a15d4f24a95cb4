"""What the caller is told about its work when its connection comes back as it should not.

A block of a transaction group that ends normally has committed, or raises. Here are the words and the classes for the
ways in which it has not, and the log lines for what only the log hears of.
"""

from __future__ import annotations

import logging
from typing import Any

from .core.lane import Slot
from .drivers import COMMIT_NOTE, Doubt, Driver, Status
from .errors import DBConnectionError, OutcomeUnknown
from .seldom import say_seldom

_UNCOMMITTED = "what had not been committed before is not committed"
_UNKNOWN = "the transaction may or may not have been committed"
LEFT_INSIDE = f"pgdbpool: the block ended inside a transaction() block or a two-phase transaction: {_UNCOMMITTED}"
_LOST = frozenset({Status.BROKEN, Status.CLOSED})
_OPEN = "an interrupted call, or an open stream(), COPY or pipeline"


def lost_in_commit(slot: Slot, status: Status) -> OutcomeUnknown:
    """COMMIT may have been sent, and its answer has not come: the connection was lost, or left before."""
    how = (
        "was left in the middle of a statement that may be a COMMIT (an interrupted call, an open pipeline, or another "
        "task or thread)"
    )
    return OutcomeUnknown(f"{_where(slot)} {'was lost during COMMIT' if status in _LOST else how}; {_UNKNOWN}")


def lost_before_commit(slot: Slot, words: object) -> DBConnectionError:
    """The session was gone when COMMIT would have been sent."""
    first = str(words).strip().partition("\n")[0]
    return DBConnectionError(f"{_where(slot)} was lost before COMMIT was sent ({first}): {_UNCOMMITTED}")


def of_block(slot: Slot, status: Status, driver: Driver) -> DBConnectionError | None:
    """What leaving a block raises that ended normally, with its connection in this state. None: nothing was lost."""
    doubt = driver.in_doubt(slot.conn)
    if doubt is Doubt.COMMIT:
        return lost_in_commit(slot, status)
    if slot.lane.group.settings.autocommit:
        return None  # each statement stands for itself, and whoever sent it has heard of it
    if status not in _LOST and status is not Status.BUSY:
        return None
    if doubt is Doubt.STATEMENT:
        return OutcomeUnknown(
            f"{_where(slot)} was lost in the middle of a statement that was not part of a transaction; it may or may "
            "not have taken effect"
        )
    if status is Status.BUSY:
        return DBConnectionError(
            f"{_where(slot)}: the block ended in the middle of a statement ({_OPEN}): {_UNCOMMITTED}"
        )
    if status is Status.BROKEN:
        return DBConnectionError(f"{_where(slot)} was lost inside the block: {_UNCOMMITTED}")
    if driver.closed_in_peace(slot.conn):
        return None
    return DBConnectionError(f"{_where(slot)} was closed inside the block: {_UNCOMMITTED}")


def of_commit(slot: Slot, status: Status, driver: Driver) -> DBConnectionError | None:
    """What a call for a COMMIT raises where there is no transaction to commit. None: the driver knows what to say."""
    if status in _LOST or driver.in_doubt(slot.conn) is Doubt.COMMIT:
        return of_block(slot, status, driver)
    return None


def note_on(error: BaseException, slot: Slot, driver: Driver) -> None:
    """Have the exception that ends a block say so where a COMMIT before it is in doubt."""
    if driver.in_doubt(slot.conn) is Doubt.COMMIT and COMMIT_NOTE not in getattr(error, "__notes__", ()):
        error.add_note(COMMIT_NOTE)


def log_return(slot: Slot, status: Status) -> None:
    """Say in the log in what state a connection came back."""
    match status:
        case Status.IN_TRANSACTION:
            how = "in a transaction, which is rolled back"
            if slot.lane.group.settings.autocommit:
                how += ": in a group with autocommit, a block that begins one has to commit it"
        case Status.BUSY:
            how = f"in the middle of a statement ({_OPEN})"
        case Status.PREPARED:
            how = (
                "half-way through a two-phase commit, and is closed: the transaction stays prepared on the server "
                "until COMMIT PREPARED or ROLLBACK PREPARED"
            )
        case Status.BROKEN | Status.CLOSED:
            how = status.value
        case _:
            return
    say_seldom(logging.WARNING, f"{_where(slot)} came back {how}", of=("came back", _where(slot), status))


def _where(slot: Any) -> str:
    return f"group {slot.lane.group.name!r}: the connection to {slot.lane.endpoint.label}"
