"""The settings themselves: frozen values, each with its type, unit and default.

They are made by `load` and its relatives, which check everything first. Making one directly is fine in tests:
the constructors freeze what they are given, but check nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec.structs import force_setattr

from pgdbpool.config.secret import Secret

__all__ = ["EndpointSettings", "FrozenMap", "GroupSettings", "MonitorSettings", "Settings", "StatusSettings"]

V = TypeVar("V")

Model = Literal["threaded", "non-threaded"]
SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
TargetSessionAttrs = Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby", "prefer-primary"]
Balance = Literal["least-busy", "round-robin", "random", "latency"]
Check = Literal["auto", "off", "ping"]
Pooler = Literal["transaction", "session"]
Reset = Literal["none", "state"]


class FrozenMap(Mapping[str, V]):
    """A read-only mapping. Unlike `types.MappingProxyType` it owns its content, can be hashed and pickled."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._items: dict[str, V] = dict(items or {})

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def _hidden(value: Any) -> Any:
    return Secret(value) if isinstance(value, str) else value


def is_secret(param: str) -> bool:
    """Whether the value of this libpq parameter must never be shown."""
    return "password" in param or "secret" in param or param.startswith("scram_")


class EndpointSettings(msgspec.Struct, kw_only=True, frozen=True):
    """One PostgreSQL server address with its settings: one entry of `db`."""

    host: str
    """Host name, address, or the directory of a Unix socket (begins with `/`, or `@` for an abstract one). Where the
    configuration names none, `load` has asked libpq, whose choice is `PGHOST`, a service's, or as it was built."""
    port: int = 5432
    """As for `host`: `PGPORT`, ..."""
    name: str | None = None
    """The database. None: libpq's choice, which is `PGDATABASE` or the user's name."""
    user: str | None = None
    password: Secret | Callable[[], str] | None = None
    """Config key `pass`. A callable is asked at each connect. None: libpq's passfile and environment."""
    ssl: SslMode | None = None
    """libpq's `sslmode`. None: libpq's choice, which is `PGSSLMODE`, a service's, or `prefer`."""
    connect_timeout: float = 10.0
    """Seconds one attempt to connect may take, TLS and login included. The system's name lookup has its own limit."""
    query_timeout: int | None = None
    """Milliseconds a statement may run (`statement_timeout`); 0: no limit. None: the server's own."""
    session_tmp_buffer: int | None = None
    """MB of memory for temporary tables of a session (`temp_buffers`). None: the server's own."""
    pooler: Pooler | None = None
    """The mode of a pooler in between, such as PgBouncer. None: found out, and taken for "transaction"."""
    keepalives: bool = True
    keepalives_idle: int = 10
    """Seconds of silence before the kernel asks whether the other side is still there."""
    keepalives_interval: int = 3
    """Seconds between these questions."""
    keepalives_count: int = 3
    """How many of them may go unanswered."""
    tcp_user_timeout: int = 10_000
    """Milliseconds that sent data may stay unacknowledged. 0: the system's own limit."""
    priority: int = 0
    """Lower is preferred."""
    weight: float = 1.0
    """Share of the load among equals."""
    tags: frozenset[str] = frozenset()
    params: Mapping[str, str | Secret] = msgspec.field(default_factory=FrozenMap)
    """Any other libpq parameters."""
    chosen: Mapping[str, str] = msgspec.field(default_factory=FrozenMap)
    """Which of the above the environment or a service has decided, and what did: `{"host": "PGHOST"}`."""

    def __post_init__(self) -> None:
        force_setattr(self, "tags", frozenset(self.tags))
        force_setattr(self, "password", _hidden(self.password))
        force_setattr(
            self, "params", FrozenMap({key: _hidden(v) if is_secret(key) else v for key, v in self.params.items()})
        )
        force_setattr(self, "chosen", FrozenMap(self.chosen))

    @property
    def is_socket(self) -> bool:
        """Whether this is a Unix socket."""
        return self.host.startswith(("/", "@"))

    @property
    def label(self) -> str:
        """The name in errors, logs and statistics: `host:port`, `[::1]:port`, `/socket/dir:port`."""
        host = f"[{self.host}]" if ":" in self.host and not self.is_socket else self.host
        return f"{host}:{self.port}"

    # rich prints by __rich_repr__, which msgspec defines too: both must hide the secrets.
    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = {field: getattr(self, field) for field in self.__struct_fields__}
        if callable(self.password):
            shown["password"] = "***"  # even its name may tell something
        return list(shown.items())

    def __repr__(self) -> str:
        return f"EndpointSettings({', '.join(f'{key}={value!r}' for key, value in self.__rich_repr__())})"


class GroupSettings(msgspec.Struct, kw_only=True, frozen=True):
    """A named set of connections with the same behaviour: one entry of `groups`."""

    name: str
    connection_count: int = 10
    """The most connections on each endpoint, in one process."""
    total_count: int | None = None
    """The most connections over all endpoints, in one process. None: no limit of its own."""
    min_count: int = 1
    """Connections kept warm."""
    autocommit: bool = True
    target_session_attrs: TargetSessionAttrs = "any"
    """Where the configuration has none, `load` has asked libpq, whose choice is `PGTARGETSESSIONATTRS`, ..."""
    balance: Balance | Callable[..., Any] = "least-busy"
    acquire_timeout: float = 30.0
    """Seconds a checkout may take. 0: do not wait."""
    max_waiting: int = 0
    """The most callers that may wait. One that had its turn and got a connection that was no good is never turned away.
    0: no limit."""
    max_lifetime: float = 3600.0
    """Seconds after which a connection is replaced, up to 10 % earlier at random. 0: no limit."""
    max_idle: float = 600.0
    """Seconds after which an unused connection above `min_count` is closed. 0: no limit."""
    check: Check | Callable[..., Any] = "auto"
    configure: Callable[..., Any] | None = None
    reset: Reset | Callable[..., Any] | None = "none"
    """What is put back when a connection is returned, beside what always is. "state": all that its borrower may have
    changed in the session. A callable is given the connection."""
    reconnect_failed: Callable[..., Any] | None = None
    reconnect_timeout: float = 300.0
    """Seconds of failing to connect after which `reconnect_failed(endpoint, error)` is called."""
    leak_threshold: float = 0.0
    """Seconds after which a lease that has not ended is reported. 0: never."""
    query_timeout: int | None = None
    """Milliseconds; as for an endpoint, whose value it replaces. None: the endpoint's."""
    session_tmp_buffer: int | None = None
    """MB; as for an endpoint, whose value it replaces. None: the endpoint's."""
    tags: frozenset[str] = frozenset()
    """Only endpoints that bear one of these are used. Empty: all."""
    spill: bool = False
    """Use the next tier when all connections of the preferred one are busy, instead of waiting."""
    sqlprepare: bool = False
    """Call `"SQLPrepare"."PrepareQueries"()` on each new connection."""
    connection_class: Any = None
    """A subclass of `psycopg.Connection`, in an `AsyncPool` of `psycopg.AsyncConnection`."""
    cursor_factory: Callable[..., Any] | None = None
    """Of the cursors. None: that of `connection_class`."""
    row_factory: Callable[..., Any] | None = None
    """Of the rows. None: tuples."""
    context: Any = None
    """What has the `adapters` of new connections, such as a `psycopg.adapt.AdaptersMap`. None: psycopg's own."""
    prepare_threshold: int | Literal["auto"] | None = "auto"
    """After how many executions a statement is prepared by itself. None: never. "auto": psycopg's choice, which is 5,
    and through a pooler in transaction mode never."""
    close_returns: bool = False
    """Whether `close` of a connection gives it back, in the place of closing it."""
    chosen: Mapping[str, str] = msgspec.field(default_factory=FrozenMap)
    """As that of an endpoint: `{"target_session_attrs": "PGTARGETSESSIONATTRS"}`."""

    def __post_init__(self) -> None:
        force_setattr(self, "tags", frozenset(self.tags))
        force_setattr(self, "reset", "none" if self.reset is None else self.reset)
        force_setattr(self, "chosen", FrozenMap(self.chosen))


class MonitorSettings(msgspec.Struct, kw_only=True, frozen=True):
    """How the endpoints are probed. A dead server is found out after `interval * 1.1 + timeout * (fall + 1) / 2`."""

    interval: float = 1.0
    """Seconds between two probes of an endpoint, up to 10 % more or less at random. Ten a second while a wanted role
    is missing."""
    timeout: float = 1.0
    """Seconds a server may take to answer."""
    fall: int = 2
    """How many probes must fail in a row before an endpoint is taken for dead and calls in flight on it are ended."""
    max_lifetime: float = 60.0
    """Seconds after which, at the latest, a probe is a new connection: what the endpoint's name leads to now."""
    slow_start: float = 10.0
    """Seconds over which an endpoint that came back gets its share of the load back. 0: all of it at once."""


class StatusSettings(msgspec.Struct, kw_only=True, frozen=True):
    """How this process shows others on the same host what its pools do: see `pgdbpool.publish`."""

    name: str = "default"
    """Of the application: what its processes have in common."""
    directory: str | None = None
    """Where each process has its file. None: a directory of the user's own for what runs now, such as
    `$XDG_RUNTIME_DIR/pgdbpool`."""
    interval: float = 1.0
    """Seconds between two writings; at least 1 in the non-threaded model."""


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """A whole configuration, checked."""

    type: Model = "threaded"
    monitor: MonitorSettings | None = MonitorSettings()
    """None: no background thread probes the endpoints. In the non-threaded model none ever does."""
    status: StatusSettings | None = None
    """None: this process is seen by others only if it has a status page mounted."""
    db: tuple[EndpointSettings, ...]
    groups: Mapping[str, GroupSettings]

    def __post_init__(self) -> None:
        force_setattr(self, "db", tuple(self.db))
        force_setattr(self, "groups", FrozenMap(self.groups))
