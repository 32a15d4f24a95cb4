"""A real PostgreSQL cluster to test failover on.

    from pgdbpool.testing import Cluster

    with Cluster(standbys=2) as cluster:
        cluster.primary.kill()
        cluster.most_advanced_standby().promote()

The names are imported when they are first used, so that the pytest plugin, which every pytest of a user
loads, is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgdbpool.testing.cluster import Cluster
    from pgdbpool.testing.errors import (
        BinariesNotFound,
        ClusterError,
        ClusterTimeout,
        PortTaken,
        ServerStartError,
    )
    from pgdbpool.testing.impostor import Attempt, Impostor
    from pgdbpool.testing.node import Node
    from pgdbpool.testing.pgbouncer import PgBouncer
    from pgdbpool.testing.proxy import Proxy

_HOMES = {
    "Cluster": "cluster",
    "Node": "node",
    "PgBouncer": "pgbouncer",
    "Proxy": "proxy",
    "Impostor": "impostor",
    "Attempt": "impostor",
    "BinariesNotFound": "errors",
    "ClusterError": "errors",
    "ClusterTimeout": "errors",
    "PortTaken": "errors",
    "ServerStartError": "errors",
}

__all__ = [
    "Attempt",
    "BinariesNotFound",
    "Cluster",
    "ClusterError",
    "ClusterTimeout",
    "Impostor",
    "Node",
    "PgBouncer",
    "PortTaken",
    "Proxy",
    "ServerStartError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
