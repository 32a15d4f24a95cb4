"""A PostgreSQL connection pool and load balancer that lives inside a Python web or application server.

The names are imported when they are first used (PEP 562): so whoever reads a configuration, catches an error or loads
the pytest plugin does not load the driver.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        WrongModelError,
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
    "WrongModelError",
]

_HOMES = {
    "AsyncLease": "aio",
    "AsyncPool": "aio",
    "Connection": "pool",
    "Event": "core.events",
    "EventKind": "core.events",
    "Handler": "pool",
    "Holder": "holders",
    "Lease": "sync",
    "Pool": "sync",
    "Query": "pool",
    "Row": "pool",
    "Settings": "config",
}
_MODULES = ("errors", "pool")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("." + _HOMES.get(name, "errors"), __name__), name)
    globals()[name] = value  # next time without the detour
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
