"""What a connection takes in memory: ``python -m bench.memory``. Linux only.

Not part of the comparison with other pools: the memory is that of the driver and of PostgreSQL. It is here for the page
"Sizing" of the manual. Counted is what a process has for itself alone (``Private_Dirty``), before and after.
"""

import gc
import sys
from pathlib import Path

from pgdbpool import Pool
from pgdbpool.testing import Cluster

COUNT = 100
# Fills a session's caches a little, as work does.
QUERY = "select count(*) from pg_class join pg_attribute on attrelid = pg_class.oid"


def main() -> int:
    """Measure and print."""
    with Cluster(0, settings={"max_connections": COUNT + 10}) as cluster:
        node = cluster.primary
        config = {"db": node.endpoint(ssl="disable"), "groups": {"default": {"connection_count": COUNT + 1}}}
        with Pool(config) as pool:
            conns = [pool.getconn()]  # what comes with the first one is not counted
            before = private("self")
            conns += [pool.getconn() for _ in range(COUNT)]
            idle, pids = private("self"), [conn.info.backend_pid for conn in conns]
            servers = sum(map(private, pids)) / len(pids)
            for conn in conns:
                conn.execute(QUERY).fetchall()
            used, busy_servers = private("self"), sum(map(private, pids)) / len(pids)
            for conn in conns:
                pool.putconn(conn)
        print(f"PostgreSQL {node.execute('show server_version')[0][0]}, {COUNT} connections, memory of each, in kB")
    print(f"  in the application's process: {(idle - before) / COUNT:.0f}, after a query {(used - before) / COUNT:.0f}")
    print(f"  on the server:                {servers:.0f}, after a query {busy_servers:.0f}")
    return 0


def private(pid: int | str) -> int:
    """kB that a process shares with nobody."""
    gc.collect()
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


if __name__ == "__main__":
    sys.exit(main())
