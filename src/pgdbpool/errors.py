"""All exceptions of pgdbpool, in one hierarchy.

Catch `Error` for everything that the pool itself raises. Where a built-in exception says the same thing
(`ValueError`, `LookupError`, `TimeoutError`) ours is one too, so code that knows nothing of pgdbpool handles
it well.

Inside a `connection()` block the driver's own exceptions are seen; `DBQueryError` comes from `Handler`.

Everything here can be pickled (worker processes send exceptions to their parents), and nothing here ever
carries a password.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

__all__ = [
    "ConfigError",
    "ConfigWarning",
    "DBConnectionError",
    "DBOfflineError",
    "DBQueryError",
    "Error",
    "OutcomeUnknown",
    "PoolClosed",
    "PoolExhausted",
    "PoolTimeout",
    "TimeoutReason",
    "TooManyWaiting",
    "UnconfiguredGroupError",
    "WrongModelError",
]

TimeoutReason = Literal["exhausted", "connecting", "unreachable", "paused"]

# How a sentence goes on after "no connection of group 'read' after 5.0 s: ".
_REASONS = {
    "exhausted": "all connections are in use",
    "connecting": "no further connection could be opened in time",
    "unreachable": "no endpoint could be reached",
    "paused": "the pool is paused",
}


class Error(Exception):
    """The base of all exceptions that pgdbpool raises."""


class ConfigWarning(UserWarning):
    """Something in a configuration has no effect any more. The pool works without it."""


class ConfigError(Error, ValueError):
    """A configuration is wrong. Nothing has been opened.

    `str()` has one line for each mistake, every line with the path of the key and the fix;
    `problems` has the same lines as a tuple.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each mistake."""
        return tuple(self.args)

    def __str__(self) -> str:
        return "\n".join(self.args)


class UnconfiguredGroupError(Error, LookupError):
    """A connection was asked of a group that is not in the configuration.

    `group` is the name asked for, `known` the names there are.
    """

    def __init__(self, group: str, known: Iterable[str] = ()) -> None:
        self.group = group
        self.known = tuple(known)
        super().__init__(group, self.known)

    def __str__(self) -> str:
        near = difflib.get_close_matches(str(self.group), self.known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        return f"no group {self.group!r} is configured{hint} Known groups: {', '.join(self.known) or 'none'}"


class WrongModelError(Error, RuntimeError):
    """The pool's threading model does not suit the server it runs in; the message says what does."""


class PoolClosed(Error):
    """The pool is closed, or was closed while the caller waited."""


class PoolTimeout(Error, TimeoutError):
    """No connection could be had in time.

    `group` is the group asked for, `waited` the seconds spent waiting, and `reason` one of

    - `"exhausted"`: all connections are in use; the message says who holds them and since when,
    - `"connecting"`: a connection could have been opened, and that took too long or failed; the message says where,
    - `"unreachable"`: no endpoint could be reached; the message has the last error of each,
    - `"paused"`: the pool is paused.
    """

    group: str
    waited: float
    reason: TimeoutReason

    def __init__(
        self,
        message: str = "",
        *,
        group: str = "",
        waited: float = 0.0,
        reason: TimeoutReason = "exhausted",
    ) -> None:
        self.group = group
        self.waited = waited
        self.reason = reason
        super().__init__(message or self._default_message())

    def _default_message(self) -> str:
        return f"no connection of group {self.group!r} after {self.waited:.1f} s: {_REASONS[self.reason]}"


class TooManyWaiting(PoolTimeout):
    """As many callers as `max_waiting` allows wait already, so this one was turned away at once."""


class PoolExhausted(PoolTimeout):
    """The non-threaded model is at its limit.

    It raises at once: waiting for a connection that only the caller itself can return would never end.
    """


class DBConnectionError(Error):
    """A connection could not be opened, or was lost, or a block left it in such a state that it had to be closed.

    Raised on leaving a block it means: what had not been committed before is not committed, and may be repeated.
    """


class DBOfflineError(DBConnectionError):
    """No connection can be had on any endpoint that the group may use, and waiting would not help.

    No server lets us in: a wrong password, say, or our own key. Or one does, and the connection cannot be made ready
    for the group, since its `configure` raises, or `sqlprepare` fails. The message says which, with the words of the
    servers, of libpq, or of `configure`. Where no endpoint can be reached, callers wait, and then get
    `PoolTimeout`.
    """


class OutcomeUnknown(DBConnectionError):
    """COMMIT was sent and its answer is lost: the transaction may or may not have happened.

    Raised for the pool's COMMIT and for one of the block's own, by whatever way it was sent. The pool never repeats it.
    Look into the database before you do.
    """


class DBQueryError(Error):
    """A statement failed. `__cause__` is the driver's exception, `sqlstate` its five-letter code, if any."""

    sqlstate: str | None

    def __init__(self, message: str = "", *, sqlstate: str | None = None) -> None:
        self.sqlstate = sqlstate
        super().__init__(message)
