"""A PostgreSQL connection pool and load balancer that lives inside a Python web or application server."""

from .aio import AsyncLease, AsyncPool
from .config import Settings
from .core.events import Event, EventKind
from .errors import (
    ConfigError,
    ConfigWarning,
    DBConnectionError,
    DBOfflineError,
    DBQueryError,
    Error,
    OutcomeUnknown,
    PoolClosed,
    PoolExhausted,
    PoolTimeout,
    TooManyWaiting,
    UnconfiguredGroupError,
)
from .holders import Holder
from .pool import Connection, Handler, Query, Row
from .sync import Lease, Pool

__version__ = "2.0.0.dev0"

__all__ = [
    "AsyncLease",
    "AsyncPool",
    "ConfigError",
    "ConfigWarning",
    "Connection",
    "DBConnectionError",
    "DBOfflineError",
    "DBQueryError",
    "Error",
    "Event",
    "EventKind",
    "Handler",
    "Holder",
    "Lease",
    "OutcomeUnknown",
    "Pool",
    "PoolClosed",
    "PoolExhausted",
    "PoolTimeout",
    "Query",
    "Row",
    "Settings",
    "TooManyWaiting",
    "UnconfiguredGroupError",
]
