"""What a group wants of the objects that psycopg makes: classes, factories, adapters.

The connections of a pool have classes of their own, see `blocking.Pooled`. Where a group wants another class, one that
is both is made, once for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, get_origin

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.cursor import Cursor
from psycopg.cursor_async import AsyncCursor

from . import Misfit, Style


@lru_cache(maxsize=256)
def combined(own: Any, wanted: Any) -> Any:
    """A class that is both: the methods of `wanted` are called first, and those of ours by its `super()`.

    Raises TypeError where Python cannot make one.
    """
    if wanted is None or issubclass(own, wanted):
        return own
    names = {"__module__": wanted.__module__, "__qualname__": wanted.__qualname__, "__doc__": wanted.__doc__}
    return type(wanted.__name__, (wanted, own), names)


def wanted_class(style: Style) -> Any:
    """The class that is meant: of `psycopg.Connection[DictRow]` that in front."""
    return get_origin(style.connection_class) or style.connection_class


def made(own: type, style: Style, pgconn: Any) -> Any:
    """A connection of this class and style, over a session of libpq's. Raises Misfit."""
    wanted = wanted_class(style)
    conn: Any
    try:
        conn = combined(own, wanted)(pgconn)
    except Exception as error:
        pgconn.finish()
        if wanted is None:
            raise
        raise Misfit(f"connection_class {_name(wanted)} raised {type(error).__name__}") from error
    conn.style = style
    if style.cursor_factory is not None:
        conn.cursor_factory = style.cursor_factory
    if style.row_factory is not None:
        conn.row_factory = style.row_factory
    if style.context is not None:
        conn._adapters = AdaptersMap(style.context.adapters)
    if style.prepare_threshold != "auto":
        conn.prepare_threshold = style.prepare_threshold
    return conn


def misfits(own: type, style: Style) -> Iterator[tuple[str, str]]:
    """What does not fit to connections of this class of ours: the key, and what is wrong with it."""
    asynchronous = issubclass(own, psycopg.AsyncConnection)
    connection: type = psycopg.AsyncConnection if asynchronous else psycopg.Connection
    cursor, other = (AsyncCursor, Cursor) if asynchronous else (Cursor, AsyncCursor)
    pool = "an AsyncPool" if asynchronous else "a Pool"
    wanted = wanted_class(style)
    if wanted is not None and not _is_subclass(wanted, connection):
        yield "connection_class", f"expected a subclass of psycopg.{connection.__name__} in {pool}, got {_name(wanted)}"
    elif wanted is not None:
        try:
            combined(own, wanted)
        except TypeError as error:
            yield "connection_class", f"{_name(wanted)} cannot be combined with the pool's own class: {error}"
    factory = style.cursor_factory
    if _is_subclass(factory, other):
        yield "cursor_factory", f"expected a subclass of psycopg.{cursor.__name__} in {pool}, got {_name(factory)}"
    if style.context is not None and not isinstance(getattr(style.context, "adapters", None), AdaptersMap):
        wants = "a psycopg.adapt.AdaptersMap, or an object that has one as adapters"
        yield "context", f"expected {wants}, got {_name(style.context)}"


def _is_subclass(thing: Any, of: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, of)


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}" if isinstance(thing, type) else f"a {type(thing).__name__}"
