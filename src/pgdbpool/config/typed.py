"""The keys of a configuration for editors and type checkers, which complete and check them::

    config: ConfigDict = {"db": {"host": "db1"}, "groups": {"default": {"connection_count": 5}}}

What a key accepts is judged by `keys.py`; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Required, TypedDict

from pgdbpool.config.settings import Balance, Check, Model, Pooler, Reset, SslMode, TargetSessionAttrs

__all__ = ["ConfigDict", "EndpointDict", "GroupDict", "MonitorDict", "StatusDict"]


# `pass` is a keyword, which the other way to write a TypedDict does not take.
_Pass = TypedDict("_Pass", {"pass": str | Callable[[], str | Awaitable[str | None] | None] | None}, total=False)


class EndpointDict(_Pass, total=False):
    """One entry of `db`: the address of a server with its settings."""

    host: str
    port: int
    name: str | None
    user: str | None
    pass_env: str | None
    ssl: SslMode
    connect_timeout: float
    query_timeout: int | None
    session_tmp_buffer: int | None
    pooler: Pooler | None
    keepalives: bool
    keepalives_idle: int
    keepalives_interval: int
    keepalives_count: int
    tcp_user_timeout: int
    priority: int
    weight: float
    tags: Collection[str]
    params: Mapping[str, str | int | bool]


class GroupDict(TypedDict, total=False):
    """One entry of `groups`: connections with the same behaviour. `connection_count` is per endpoint and process."""

    connection_count: int
    total_count: int | None
    min_count: int
    autocommit: bool
    target_session_attrs: TargetSessionAttrs
    balance: Balance | Callable[..., Any] | str
    acquire_timeout: float
    max_waiting: int
    max_lifetime: float
    max_idle: float
    check: Check | Callable[..., Any] | str
    configure: Callable[..., Any] | str | None
    reset: Reset | Callable[..., Any] | str | None
    reconnect_failed: Callable[..., Any] | str | None
    reconnect_timeout: float
    leak_threshold: float
    query_timeout: int | None
    session_tmp_buffer: int | None
    tags: Collection[str]
    spill: bool
    sqlprepare: bool
    connection_class: type | str | None
    cursor_factory: Callable[..., Any] | str | None
    row_factory: Callable[..., Any] | str | None
    context: Any
    prepare_threshold: int | None
    close_returns: bool


class MonitorDict(TypedDict, total=False):
    """How the endpoints are probed."""

    interval: float
    timeout: float
    fall: int
    max_lifetime: float
    slow_start: float


class StatusDict(TypedDict, total=False):
    """How this process shows others on the same host what its pools do."""

    name: str
    directory: str | None
    interval: float


class ConfigDict(TypedDict, total=False):
    """A whole configuration."""

    type: Model
    monitor: MonitorDict | bool
    status: StatusDict | bool
    db: Required[EndpointDict | list[EndpointDict]]
    groups: Required[dict[str, GroupDict]]
