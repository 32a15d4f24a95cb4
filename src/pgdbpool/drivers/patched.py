"""What other tools have put around psycopg's `connect`: tracing, most often.

Instrumentation replaces `psycopg.Connection.connect` and `psycopg.AsyncConnection.connect`, and either has the new
connection use a cursor of its own, or returns an object in the place of the connection. The pool connects by libpq, see
`steps`, so none of that would happen. Therefore, where `connect` is not psycopg's own, it is called all the same, by a
class whose connecting is to hand over the connection that is there. Where it is psycopg's own, nothing is done.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator
from contextvars import ContextVar
from functools import lru_cache, partial
from types import MethodType
from typing import Any

from ..habitat import say_once
from .adopted import adopt_as_opened

# psycopg connects by these if it does not ask our class: to nothing.
_NOWHERE = {"host": "/", "hostaddr": "", "port": "1", "target_session_attrs": "any", "gssencmode": "prefer"}


class _Handover:
    """A connection on its way through a patched `connect`."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn
        self.asked = False


_handover: ContextVar[_Handover] = ContextVar("pgdbpool_handover")


class _Front:
    """In front of the class of a connection: its connecting is to hand over the connection that is there."""

    @classmethod
    def _connect_gen(cls, *args: Any, **more: Any) -> Generator[Any, Any, Any]:
        handover = _handover.get()
        handover.asked = True
        return handover.conn
        yield

    @classmethod
    def _get_connection_params(cls, *args: Any, **more: Any) -> dict[str, str]:
        return _NOWHERE.copy()


class _FrontLater(_Front):
    """The same for asyncio."""

    @classmethod
    async def _get_connection_params(cls, *args: Any, **more: Any) -> dict[str, str]:  # type: ignore[override]
        return _NOWHERE.copy()


@lru_cache(maxsize=256)
def _front_of(cls: Any) -> Any:
    front = _FrontLater if inspect.iscoroutinefunction(cls._get_connection_params) else _Front
    return type(cls.__name__, (front, cls), {"__module__": cls.__module__})


def is_patched(cls: type) -> bool:
    """Whether `connect` of a class of connections is not psycopg's own."""
    return not _is_psycopgs(inspect.getattr_static(cls, "connect"))


def _is_psycopgs(connect: Any) -> bool:
    if type(connect) not in (classmethod, MethodType):  # the latter is left by some that were there and are gone
        return False
    return str(getattr(connect.__func__, "__globals__", {}).get("__name__")).startswith("psycopg.")


def _bound(connect: Any, front: Any) -> Callable[..., Any]:
    """`connect`, as it is found in a class, such that psycopg's own in the middle of it asks `front`."""
    if _is_psycopgs(connect):
        return partial(connect.__func__, front)
    wrapper, inner = getattr(connect, "_self_wrapper", None), getattr(connect, "__wrapped__", None)
    if wrapper is None or inner is None:
        return connect.__get__(None, front)  # type: ignore[no-any-return]
    # Of wrapt. Where one was put around what another has left, psycopg's own would ask psycopg's own class.
    within = _bound(inner, front)
    return lambda *args, **more: wrapper(within, front, args, more)


def shown(conn: Any) -> Any:
    """What is handed out in the place of a connection: the connection itself, or what a patched `connect` returns."""
    cls: Any = type(conn)
    if not is_patched(cls):
        return conn
    handover = _Handover(conn)
    token = _handover.set(handover)
    try:
        around = _bound(inspect.getattr_static(cls, "connect"), _front_of(cls))(conn.info.dsn, **_arguments(conn))
        if not handover.asked:
            around.close()
            raise NotImplementedError
    except Exception as error:
        around = _unpatched(conn, error)
    finally:
        _handover.reset(token)
    adopt_as_opened(conn)
    return around


async def shown_later(conn: Any) -> Any:
    """The same for asyncio."""
    cls: Any = type(conn)
    if not is_patched(cls):
        return conn
    handover = _Handover(conn)
    token = _handover.set(handover)
    try:
        around = await _bound(inspect.getattr_static(cls, "connect"), _front_of(cls))(conn.info.dsn, **_arguments(conn))
        if not handover.asked:
            await around.close()
            raise NotImplementedError
    except Exception as error:
        around = _unpatched(conn, error)
    finally:
        _handover.reset(token)
    adopt_as_opened(conn)
    return around


def _arguments(conn: Any) -> dict[str, Any]:
    """Those of `connect`, such that it leaves the connection as it is."""
    return {
        "autocommit": conn.autocommit,
        "prepare_threshold": conn.prepare_threshold,
        "row_factory": conn.row_factory,
        "cursor_factory": conn.cursor_factory,
    }


def _unpatched(conn: Any, error: Exception) -> Any:
    words = "what has replaced psycopg's connect failed, so its tool sees nothing of this pool's connections"
    say_once(logging.WARNING, f"{words}: {type(error).__name__}", of=words)
    return conn
