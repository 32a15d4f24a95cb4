"""A cluster as good as new, for the next test.

What a test may have done: frozen, stopped or killed nodes, promoted a standby or two, changed settings. The
look that finds nothing wrong is cheap: a few files, and one query to the primary. The data, and open
sessions, are not touched, and the present primary stays the primary: which node that is, tests ask the
cluster.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgdbpool.testing.cluster import Cluster
    from pgdbpool.testing.node import Node


def heal(cluster: "Cluster") -> None:
    """Bring every node of the cluster back into service, with the settings it was made with."""
    if is_healthy(cluster):
        return
    primary = cluster.primary
    for node in (primary, *(node for node in cluster.nodes if node is not primary)):
        node.thaw()
        settings_changed = node.restore_settings()
        if node is primary:
            node.start()
        elif node.following is not primary or not node.is_running or not _receives(primary, node):
            node.rejoin(primary)
        if settings_changed and _needs_restart(node):
            node.stop()
            node.start()
    cluster.wait_ready()


def is_healthy(cluster: "Cluster") -> bool:
    """Whether there is nothing to heal."""
    primary = cluster.primary
    for node in cluster.nodes:
        if not node.is_running or node.is_frozen or node.settings_changed():
            return False
        if node is not primary and node.following is not primary:
            return False
    return set(primary.receivers()) >= {node.name for node in cluster.standbys}


def _receives(primary: "Node", node: "Node") -> bool:
    return node.name in primary.receivers()


def _needs_restart(node: "Node") -> bool:
    return bool(node.execute("SELECT 1 FROM pg_settings WHERE pending_restart LIMIT 1"))
