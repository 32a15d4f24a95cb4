"""How a connection is meant to be, and what its user changes of that.

Whatever a user may set on a connection and the pool puts back says so in `altered`, so that a return of a connection on
which nothing was set has one number to look at. Nothing here asks the server: psycopg sends what it needs with the next
BEGIN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ref

import psycopg
from psycopg.adapt import AdaptersMap

from .private import Handlers, handlers, put_back_handlers

# What `altered` of a connection consists of: why it does not simply go back.
PROPERTIES = 1  # of its transactions were set
HALF_DONE = 2  # a pipeline or a two-phase transaction was begun, or notifications are waited for
INTERRUPTED = 4  # an exception that is not the server's answer ended a call
STYLE = 8  # what is on this side alone: factories, handlers, adapters, when to prepare


class Adopted(NamedTuple):
    """How a connection is meant to be."""

    autocommit: bool
    isolation_level: psycopg.IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    row_factory: Any
    cursor_factory: Any
    server_cursor_factory: Any
    prepare_threshold: int | None
    prepared_max: int | None
    handlers: Handlers
    adapters: AdaptersMap | None
    """None: psycopg's own for all."""


def adopt_as_it_is(conn: Any) -> None:
    """From now on it is meant to be as it is."""
    adapters = conn._adapters
    conn.adopted = Adopted(
        conn.autocommit,
        conn.isolation_level,
        conn.read_only,
        conn.deferrable,
        conn.row_factory,
        conn.cursor_factory,
        conn.server_cursor_factory,
        conn.prepare_threshold,
        conn.prepared_max,
        handlers(conn),
        adapters,
    )
    if adapters is not None:
        conn._adapters = _Adapters(adapters, conn, adapters)  # what was adopted stays as it is
    conn.altered = 0


def adopt_as_opened(conn: Any) -> None:
    """The same of one that no user has had yet, nor `configure`."""
    adopt_as_it_is(conn)
    conn.opened = conn.adopted


def restore_style(conn: Any) -> None:
    """Put back what is on this side alone. Sends nothing, and does not wait."""
    meant: Adopted = conn.adopted
    conn.row_factory = meant.row_factory
    conn.cursor_factory = meant.cursor_factory
    conn.server_cursor_factory = meant.server_cursor_factory
    conn.prepare_threshold = meant.prepare_threshold
    conn.prepared_max = meant.prepared_max
    put_back_handlers(conn, meant.handlers)
    adapters = conn._adapters
    if type(adapters) is _Adapters and (adapters.changed or adapters.adopted is not meant.adapters):
        conn._adapters = None if meant.adapters is None else _Adapters(meant.adapters, conn, meant.adapters)
    conn.altered &= ~STYLE


def style_restored(conn: Any) -> bool:
    """Put back what is on this side alone if that is all that was set. False: there is more."""
    if conn.altered != STYLE:
        return False
    restore_style(conn)
    return True


class _Noted:
    """An attribute that says so when it is set.

    It has no `__get__`: so reading is reading the instance, as without it.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __set__(self, conn: Any, value: Any) -> None:
        conn.__dict__[self._name] = value
        conn.altered |= STYLE


class _Adapters(AdaptersMap):
    """The adapters of one connection."""

    changed = False

    def __init__(self, template: AdaptersMap, conn: Any, adopted: AdaptersMap | None) -> None:
        super().__init__(template)
        self.adopted = adopted
        self._conn = ref(conn)  # which refers to this

    def register_dumper(self, cls: Any, dumper: Any) -> None:
        self._note()
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: Any, loader: Any) -> None:
        self._note()
        super().register_loader(oid, loader)

    def _note(self) -> None:
        self.changed = True
        conn = self._conn()
        if conn is not None:
            conn.altered |= STYLE


class Noting:
    """What our connections have in common: they note what their users set."""

    altered: int
    _adapters: AdaptersMap | None

    row_factory = _Noted("row_factory")
    cursor_factory = _Noted("cursor_factory")
    server_cursor_factory = _Noted("server_cursor_factory")

    @property
    def adapters(self) -> AdaptersMap:
        """The adapters of this connection, psycopg's own to begin with."""
        adapters = self._adapters
        if adapters is None:
            adapters = self._adapters = _Adapters(psycopg.adapters, self, None)
        return adapters

    @property
    def prepare_threshold(self) -> int | None:
        """As psycopg's."""
        return _threshold.__get__(self)  # type: ignore[no-any-return]

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        self.altered |= STYLE
        _threshold.__set__(self, value)

    @property
    def prepared_max(self) -> int | None:
        """As psycopg's."""
        return _max.__get__(self)  # type: ignore[no-any-return]

    @prepared_max.setter
    def prepared_max(self, value: int | None) -> None:
        self.altered |= STYLE
        _max.__set__(self, value)

    def add_notice_handler(self, callback: Callable[..., Any]) -> None:
        """As psycopg's."""
        self.altered |= STYLE
        super().add_notice_handler(callback)  # type: ignore[misc]

    def remove_notice_handler(self, callback: Callable[..., Any]) -> None:
        """As psycopg's."""
        self.altered |= STYLE
        super().remove_notice_handler(callback)  # type: ignore[misc]

    def add_notify_handler(self, callback: Callable[..., Any]) -> None:
        """As psycopg's."""
        self.altered |= STYLE
        super().add_notify_handler(callback)  # type: ignore[misc]

    def remove_notify_handler(self, callback: Callable[..., Any]) -> None:
        """As psycopg's."""
        self.altered |= STYLE
        super().remove_notify_handler(callback)  # type: ignore[misc]


_threshold: Any = psycopg.Connection.prepare_threshold
_max: Any = psycopg.Connection.prepared_max
