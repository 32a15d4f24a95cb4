"""A password and its like, hidden from everything but libpq.

Tools that report errors collect the variables of each frame, loggers print what they are given, and settings are
written out as JSON. So what must not be seen there is held in an object that shows itself as ``'***'``, from the moment
at which it is read to the call into libpq.
"""

from __future__ import annotations

from typing import Any, NoReturn, Self

__all__ = ["Secret"]


class Secret:
    """Text that is shown by `reveal()` alone. It equals the same text, and cannot be pickled."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself. Not to be kept in a variable."""
        return self._text

    def quoted(self) -> str:
        """The text as it stands in a connection string of libpq's."""
        return "'" + self._text.replace("\\", r"\\").replace("'", r"\'") + "'"

    def __repr__(self) -> str:
        return "'***'"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Secret):
            return self._text == other._text
        return self._text == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "settings with a password in them cannot be pickled; give the other process the configuration as it was "
            "written, or leave the password to a callable or to libpq's password file"
        )
