"""What each key of a configuration accepts: one line per key.

A `Kind` judges one value on its own. What several keys must agree on is looked at in `check.py`. A key stands in three
more places, which a test looks after: `settings.py`, `typed.py` for type checkers, and what `Pool` says of itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import msgspec

from pgdbpool.config.named import NotFound, is_name, named
from pgdbpool.config.settings import Balance, Check, Model, Pooler, Reset, SslMode, TargetSessionAttrs

__all__ = [
    "ENDPOINT",
    "GROUP",
    "MONITOR",
    "RENAMED_ENDPOINT",
    "RENAMED_GROUP",
    "RETIRED",
    "STATUS",
    "STATUS_NAME",
    "TOP",
    "Kind",
    "Unfit",
    "is_variable",
    "nature",
    "param_text",
]

_INT32 = 2**31 - 1
# Waiting longer than this overflows in the operating system. It is about 31 years.
_MOST_SECONDS = 1_000_000_000
# A server cannot have more connections (its MAX_BACKENDS).
_MOST_CONNECTIONS = 262_143
_NUMBER = re.compile(r"[-+]?\d{1,20}(\.\d{1,20})?")


class Unfit(Exception):
    """A value does not fit. The text goes after "path: "."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What one key accepts: the type msgspec converts to without coercion, and the limits of a number."""

    type: Any
    noun: str
    """How a sentence goes on after "expected "."""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    optional: bool = False
    function: bool = False
    """A callable is accepted too."""
    thing: Callable[[Any], bool] | None = None
    """What this is true of is accepted too."""
    named: bool = False
    """Such a callable or thing may be given by its name."""
    never: bool = False
    """False is accepted, and means None."""
    secret: bool = False
    """No value may appear in a message."""

    def fit(self, value: Any) -> Any:
        """The value as the settings hold it. Raises `Unfit`."""
        if value is None and self.optional:
            return None
        if self.never and value is False:
            return None
        if self._is_thing(value):
            return value
        if self.named and is_name(value):
            return self._found(value)
        try:
            fitting = msgspec.convert(value, self.type, strict=True)
        except (msgspec.ValidationError, ValueError, OverflowError, SystemError):
            # The last by msgspec before 0.22, of a number of hundreds of digits.
            fitting = _NOTHING
        # Not raised above: msgspec's message may have the value in it, and would be shown as the context.
        if fitting is _NOTHING:
            raise Unfit(f"expected {self.noun}, got {self._shown(value)}")
        if isinstance(fitting, (int, float)) and (limit := self._beyond(fitting)):
            raise Unfit(f"expected {limit}, got {self._shown(value)}")
        return _plain(fitting, self.noun)

    def _found(self, name: str) -> Any:
        try:
            value = named(name)
        except NotFound as problem:
            raise Unfit(str(problem)) from None
        if not self._is_thing(value):
            raise Unfit(f"expected {self.noun}, got the name of {nature(value)}")
        return value

    def _is_thing(self, value: Any) -> bool:
        return (self.function and callable(value)) or (self.thing is not None and self.thing(value))

    def _beyond(self, number: float) -> str:
        """The limit that a number does not keep, or an empty string."""
        if isinstance(number, float) and not math.isfinite(number):
            return "a finite number"
        if self.ge is not None and number < self.ge:
            return f"{self.ge} or more"
        if self.gt is not None and number <= self.gt:
            return f"more than {self.gt}"
        if self.le is not None and number > self.le:
            return f"{self.le} or less"
        return ""

    def _shown(self, value: Any) -> str:
        """The value if it says something and cannot be a secret in the wrong place, else its nature."""
        if self.secret:
            return nature(value)
        if value is None or isinstance(value, bool):
            return repr(value)
        if isinstance(value, (int, float)):
            return _number(value)
        if isinstance(value, str):
            is_word = self.noun.startswith("one of ") and len(value) <= 20 and value.isprintable()
            return repr(str.__str__(value)) if is_word or _NUMBER.fullmatch(value) else nature(value)
        return nature(value)


_NOTHING = object()


def _number(value: float) -> str:
    # Python refuses to print integers of thousands of digits.
    return repr(value) if isinstance(value, float) or abs(value) < 10**30 else "a far larger number"


def _plain(value: Any, noun: str) -> Any:
    """Text checked for what neither libpq nor a terminal can take, lists frozen."""
    if isinstance(value, list):
        return frozenset(_plain(item, noun) for item in value) if noun == _WORDS else value
    if not isinstance(value, str):
        return value
    if noun != _PASSWORD and not value.strip():
        raise Unfit(f"expected {noun}, got an empty string")
    if "\0" in value:
        raise Unfit(f"expected {noun}, got a string with a NUL character in it")
    if not _encodable(value):
        raise Unfit(f"expected {noun}, got a string that is not valid Unicode")
    return str.__str__(value)  # not a subclass of str, whose methods could change the value


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def nature(value: Any) -> str:
    """What sort of thing a value is, without the value itself."""
    if value is None:
        return "None"
    for types, noun in _NATURES:
        if isinstance(value, types):
            return noun
    if callable(value):
        return "a callable"
    return f"an object of type {type(value).__name__}"


_NATURES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "a string"),
    ((bytes, bytearray), "bytes"),
    (Mapping, "a dict"),
    ((list, tuple, set, frozenset), "a list"),
)

_PASSWORD = "a string or a callable"
_WORDS = "a list of words"


def _words(choices: Any, **more: Any) -> Kind:
    words = ", ".join(get_args(choices))
    return Kind(choices, f"one of {words}" + (" or a callable" if more.get("function") else ""), **more)


def _whole(ge: int | None = None, le: int = _INT32, **more: Any) -> Kind:
    return Kind(int, "a whole number", ge=ge, le=le, **more)


def _seconds(**limits: Any) -> Kind:
    return Kind(float, "a number of seconds", le=_MOST_SECONDS, **limits)


_TEXT = Kind(str, "a string")
_FLAG = Kind(bool, "True or False")
_FUNCTION = Kind(None, "a callable", function=True, named=True, optional=True)
_TAGS = Kind(list[str], _WORDS)
_QUERY_TIMEOUT = _whole(ge=0, optional=True)  # ms
_TMP_BUFFER = _whole(ge=1, le=8_388_607, optional=True)  # MB: temp_buffers counts blocks of 8 kB in an int


def _is_class(value: Any) -> bool:
    return isinstance(get_origin(value) or value, type)


def _has_adapters(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "adapters")


ENDPOINT: dict[str, Kind] = {
    "host": _TEXT,  # absent it is libpq's choice, but None may be a variable that is not set: that leads nowhere
    "port": _whole(ge=1, le=65535),
    "name": Kind(str, "a string", optional=True),
    "user": Kind(str, "a string", optional=True),
    "pass": Kind(str, _PASSWORD, optional=True, function=True, secret=True),
    "pass_env": Kind(str, "the name of an environment variable", optional=True, secret=True),
    "ssl": _words(SslMode),
    "connect_timeout": _seconds(gt=0),
    "query_timeout": _QUERY_TIMEOUT,
    "session_tmp_buffer": _TMP_BUFFER,
    "pooler": _words(Pooler, optional=True),
    "keepalives": _FLAG,
    "keepalives_idle": _whole(ge=0, le=32767),  # the kernel's own limits: more would fail at each connect
    "keepalives_interval": _whole(ge=0, le=32767),
    "keepalives_count": _whole(ge=0, le=127),
    "tcp_user_timeout": _whole(ge=0),
    "priority": _whole(ge=-_INT32),
    "weight": Kind(float, "a number", gt=0, le=_INT32),
    "tags": _TAGS,
    "params": Kind(dict, "a dict", secret=True),
}

GROUP: dict[str, Kind] = {
    "connection_count": _whole(ge=1, le=_MOST_CONNECTIONS),
    "total_count": _whole(ge=1, optional=True),
    "min_count": _whole(ge=0),
    "autocommit": _FLAG,
    "target_session_attrs": _words(TargetSessionAttrs),
    "balance": _words(Balance, function=True, named=True),
    "acquire_timeout": _seconds(ge=0),
    "max_waiting": _whole(ge=0),
    "max_lifetime": _seconds(ge=0),
    "max_idle": _seconds(ge=0),
    "check": _words(Check, function=True, named=True),
    "configure": _FUNCTION,
    "reset": _words(Reset, function=True, named=True, optional=True),
    "reconnect_failed": _FUNCTION,
    "reconnect_timeout": _seconds(ge=0),
    "leak_threshold": _seconds(ge=0),
    "query_timeout": _QUERY_TIMEOUT,
    "session_tmp_buffer": _TMP_BUFFER,
    "tags": _TAGS,
    "spill": _FLAG,
    "sqlprepare": _FLAG,
    "connection_class": Kind(None, "a class of connections", thing=_is_class, named=True, optional=True),
    "cursor_factory": _FUNCTION,
    "row_factory": _FUNCTION,
    "context": Kind(None, "an object with adapters", thing=_has_adapters, named=True, optional=True),
    "prepare_threshold": _whole(ge=0, optional=True, never=True),
    "close_returns": _FLAG,
}

MONITOR: dict[str, Kind] = {
    "interval": _seconds(gt=0),
    "timeout": _seconds(gt=0),
    "fall": _whole(ge=1, le=1000),
    "max_lifetime": _seconds(gt=0),
    "slow_start": _seconds(ge=0),
}

STATUS_NAME = r"[A-Za-z0-9][\w-]{0,59}"  # it becomes part of a file's name

STATUS: dict[str, Kind] = {
    "name": _TEXT,
    "directory": Kind(str, "a string", optional=True),
    "interval": _seconds(ge=0.1),
}

TOP: dict[str, Kind] = {
    "type": _words(Model),
    "monitor": Kind(dict | bool, "a dict, True or False"),
    "status": Kind(dict | bool, "a dict, True or False"),
    "db": Kind(dict | list, "a dict or a list of dicts", secret=True),
    "groups": Kind(dict, "a dict of groups", secret=True),
}


def is_variable(name: str) -> bool:
    """Whether this can be the name of an environment variable."""
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name))


_PARAM = Kind(str, "a string or a whole number", secret=True)


def param_text(value: Any) -> str:
    """The value of a libpq parameter as libpq takes it. Raises `Unfit`, which never shows it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int) and abs(value) <= _INT32:
        return str(int(value))
    if value == "":
        return ""  # means "not given" to libpq
    return str(_PARAM.fit(value))


# What others call it -> what it is called here.
RENAMED_ENDPOINT = {
    "dbname": "name",
    "database": "name",
    "db": "name",
    "hostname": "host",
    "username": "user",
    "password": "pass",
    "passwd": "pass",
    "sslmode": "ssl",
    "statement_timeout": "query_timeout",
    "temp_buffers": "session_tmp_buffer",
}
RENAMED_GROUP = {
    "min_size": "min_count",
    "max_size": "connection_count",
    "pool_size": "connection_count",
    "timeout": "acquire_timeout",
    "pool_timeout": "acquire_timeout",
    "pool_recycle": "max_lifetime",
    "statement_timeout": "query_timeout",
    "temp_buffers": "session_tmp_buffer",
}

# Keys of older pools, which other programs still write: accepted anywhere, without effect.
RETIRED = {
    "connection_retry_sleep": "the pool tries again by itself, with growing pauses; how long a caller waits "
    "is acquire_timeout of a group, and how long one attempt may take is connect_timeout in db",
}
