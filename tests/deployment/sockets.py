"""Which process has which connection to a database server, as the kernel knows it (Linux).

A forked child that let go of what it inherited is not among those that have it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from pgdbpool.testing import Cluster

Connection = tuple[int, int]  # the ports of its two ends: the server's, and ours


def connections(processes: Collection[int], cluster: Cluster) -> dict[Connection, set[int]]:
    """For each connection to a node, the processes that have it."""
    servers = {node.port for node in cluster.nodes}
    sockets = {inode: ports for inode, ports in _established().items() if ports[0] in servers}
    found = defaultdict(set)
    for pid in processes:
        try:
            links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:  # it has ended, or just closed one
            continue
        for link in links:
            ports = sockets.get(link.removeprefix("socket:[").removesuffix("]"))
            if ports is not None:
                found[ports].add(pid)
    return found


def _established() -> dict[str, Connection]:
    """By inode."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote, state = fields[1:4]
        if state == "01":
            found[fields[9]] = (int(remote.split(":")[1], 16), int(local.split(":")[1], 16))
    return found
