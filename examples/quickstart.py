"""The quickstart of the manual, as one program.

    python examples/quickstart.py postgresql://app:secret@db1,db2/app
    python examples/quickstart.py

Without a URL it starts a primary and a standby of its own, which takes the extra `testing`. It makes a table `visits`.
"""

import sys

from pgdbpool import Pool
from pgdbpool.config import load_url

GROUPS = {
    "read": {"connection_count": 15, "target_session_attrs": "prefer-standby"},
    "write": {"connection_count": 5, "target_session_attrs": "primary", "autocommit": False},
}


def run(url: str) -> None:
    with Pool(load_url(url, groups=GROUPS)) as pool:
        pool.wait(timeout=10)

        with pool.connection("write") as conn:  # one transaction, committed when the block is left
            conn.execute("create table if not exists visits (path text)")
            conn.execute("insert into visits (path) values (%s)", ("/",))

        try:
            with pool.connection("write") as conn:
                conn.execute("insert into visits (path) values ('/lost')")
                raise RuntimeError("left by an exception")
        except RuntimeError as error:
            print(f"rolled back: {error}")

        with pool.connection("write") as conn:
            print("visits on the primary:", conn.execute("select count(*) from visits").fetchone()[0])

        with pool.connection("read") as conn:
            standby = conn.execute("select pg_is_in_recovery()").fetchone()[0]
            print("reads go to a", "standby" if standby else "primary")

        for endpoint in pool.endpoints():
            print(f"{endpoint.endpoint}: {endpoint.role}, {endpoint.health}, {endpoint.open} connections")


def main() -> None:
    if len(sys.argv) > 1:
        run(sys.argv[1])
        return
    from pgdbpool.testing import Cluster

    with Cluster(standbys=1) as cluster:
        hosts = ",".join(f"{node.host}:{node.port}" for node in cluster.nodes)
        run(f"postgresql://app@{hosts}/app")


if __name__ == "__main__":
    main()
