"""One server of a cluster, with what can be asked of it by talking to it: its role, its sessions, its
position.

Everything goes through a connection of its own as superuser over the server's Unix socket, opened and closed
for each call: so it works while the TCP side is full or behind a proxy, and is never in the way of a
shutdown.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pgdbpool.testing import replication
from pgdbpool.testing.address import Address, Login
from pgdbpool.testing.binaries import Programs
from pgdbpool.testing.errors import ClusterError, ClusterTimeout, ServerStartError
from pgdbpool.testing.ports import LOOPBACK
from pgdbpool.testing.server import Server, Setting
from pgdbpool.testing.waiting import wait_for

if TYPE_CHECKING:
    import psycopg

    from pgdbpool.testing.proxy import Proxy

SUPERUSER = "postgres"


class Node(Server, Address):
    """A server of a `Cluster`, which makes it.

    - ``name``: "node1", "node2", ...
    - ``host``, ``port``: where it listens, 127.0.0.1 and a free port, which stays the same.
    - ``socket_dir``: the folder of its Unix socket, which works as ``host`` too.
    - ``data``: its data folder.
    - ``following``: the node it replicates from; None if it is, or was, a primary.
    """

    def __init__(self, name: str, programs: Programs, settings: Mapping[str, Setting], login: Login) -> None:
        super().__init__(name, programs, settings)
        self.login = login
        self.following: Node | None = None
        # When it last became a primary: of two nodes that follow nobody, the later is the cluster's primary.
        self.promoted_at = 0.0

    def __repr__(self) -> str:
        state = "frozen" if self.is_frozen else "running" if self.is_running else "down"
        return f"<Node {self.name} {self.host}:{self.port} {state}>"

    # SQL as superuser

    def execute(
        self, sql: str, params: Any = None, *, database: str | None = None, timeout: float = 30.0
    ) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, with autocommit, on a connection of its own, and return its rows.

        ``database`` is the cluster's own by default; ``timeout`` bounds connect and statement, in seconds
        each. Raises psycopg's errors.
        """
        with self._admin(database, timeout) as connection:
            cursor = connection.execute(sql, params)
            return cursor.fetchall() if cursor.description else []

    def _admin(self, database: str | None, timeout: float) -> "psycopg.Connection[tuple[Any, ...]]":
        import psycopg  # here, so that the pytest plugin costs nothing when it is not used

        return psycopg.connect(
            host=self.socket_dir,
            port=self.port,
            user=SUPERUSER,
            dbname=self.login.database if database is None else database,
            connect_timeout=max(2, round(timeout)),
            options=f"-c statement_timeout={round(timeout * 1000)}",
            application_name="pgdbpool.testing",
            autocommit=True,
        )

    def _value(self, sql: str) -> Any:
        return self.execute(sql)[0][0]

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server accepts connections (and, if it is a standby, receives from its primary)."""
        deadline = time.monotonic() + timeout
        self.wait_accepting(timeout)
        if self.following is not None:
            left = max(0.0, deadline - time.monotonic())
            wait_for(self.is_streaming, f"{self.name} receiving from {self.following.name}", left)

    # Replication

    def is_in_recovery(self) -> bool:
        """Whether the server is a standby at this moment."""
        return bool(self._value("SELECT pg_is_in_recovery()"))

    def receivers(self) -> list[str]:
        """The names of the nodes that receive from this one now; none if this is not a primary."""
        rows = self.execute(
            "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' AND NOT pg_is_in_recovery()"
        )
        return [name for (name,) in rows]

    def is_streaming(self) -> bool:
        """Whether the primary that this node follows sends it what is written there."""
        primary = self.following
        if primary is None or not primary.is_running or primary.is_frozen:
            return False
        return self.name in primary.receivers()

    def wal_position(self) -> int:
        """Bytes of write-ahead log that the server has: made durable by a primary, received by a standby."""
        # Not a primary's insert position: behind a page's header nothing comes before the next record is written.
        return int(
            self._value(
                "SELECT CASE WHEN pg_is_in_recovery() "
                "THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) "
                "ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn"
            )
        )

    def replayed_position(self) -> int:
        """Bytes of write-ahead log that a standby's queries can see."""
        return int(self._value("SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn"))

    def wait_replayed(self, position: int, timeout: float = 30.0) -> None:
        """Wait until what was written up to ``position`` can be read here (seconds)."""
        wait_for(
            lambda: self.replayed_position() >= position,
            f"{self.name} having replayed up to {position}",
            timeout,
        )

    def wait_drained(self, timeout: float = 30.0) -> None:
        """If the primary of this standby is down, wait until all it had sent has been received (seconds)."""
        if self.following is not None and not self.following.is_running:
            wait_for(
                lambda: not self._value("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'"),
                f"{self.name} done with its lost primary",
                timeout,
            )

    def timeline(self) -> int:
        """The server's timeline: raised by one at each promotion, taken over by the standbys that follow."""
        # The first eight hexadecimal digits of the names of WAL files. Some of a standby's files may be left from
        # older timelines, and the newest has no file before something is written to it. (What the control file of
        # a standby says is only true at its next restart point.)
        return int(
            self._value(
                "SELECT greatest(('x' || left(name, 8))::bit(32)::int, "
                "(SELECT received_tli FROM pg_stat_wal_receiver)) "
                "FROM (SELECT CASE WHEN pg_is_in_recovery() "
                "THEN (SELECT max(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$') "
                "ELSE pg_walfile_name(pg_current_wal_lsn()) END AS name) AS latest"
            )
        )

    def follow(self, primary: "Node") -> None:
        """Have this node's data folder be that of a standby of ``primary``, from its next start on."""
        (self.data / "standby.signal").touch()
        self._programs.own(self.data / "standby.signal")
        # Over the Unix socket: the TCP ports are left to the tests.
        self._settings["primary_conninfo"] = (
            f"host={primary.socket_dir} port={primary.port} user={SUPERUSER} application_name={self.name}"
        )
        self.following = primary

    def promote(self, timeout: float = 30.0) -> None:
        """Make this standby a primary and wait until it is one (seconds).

        It becomes ``cluster.primary``. The old primary, if it lives, is not told: that is what a split brain
        is.
        """
        self.execute("SELECT pg_promote(true, %s)", (round(timeout),), timeout=timeout + 5)
        wait_for(lambda: not self.is_in_recovery(), f"{self.name} promoted", timeout)
        self.following = None
        self.promoted_at = time.monotonic()

    def rejoin(self, primary: "Node", timeout: float = 60.0) -> None:
        """Have this node follow ``primary``, whatever it was before, and wait until it does (seconds).

        A standby that has only what ``primary`` has too goes on with its data; any other node (an old
        primary, a diverged standby, one whose missing WAL is gone) gets a fresh copy, and loses what only it
        had. Open sessions survive the first, not the second. Raises `ClusterError` if ``primary`` does not
        run.
        """
        if self is primary:
            raise ValueError(f"{self.name} cannot follow itself")
        if not primary.is_running or primary.is_frozen:
            raise ClusterError(f"{self.name} cannot rejoin {primary.name}, which is not running; start or thaw it")
        self.thaw()
        if self._fits(primary):
            self.follow(primary)
            if self.is_running:
                self.configure()
            try:
                self.start(timeout=timeout)
                wait_for(self.is_streaming, f"{self.name} receiving from {primary.name}", min(5.0, timeout))
                return
            except (ServerStartError, ClusterTimeout):
                pass  # most likely the WAL it needs is gone: copy
        replication.copy_data(self, primary)
        self.start(timeout=timeout)
        self.wait_ready(timeout)

    def _fits(self, primary: "Node") -> bool:
        """Whether this node can go on from ``primary`` with the data it has. Asked before it tries to."""
        if self.following is None or (self.is_running and not self.is_in_recovery()):
            return False  # it was promoted: by us, or by somebody who did not tell us
        if self.following is primary:
            return True
        return self.is_running and replication.history_contains(primary, self)

    # Writes and sessions

    def refuse_writes(self, on: bool = True, timeout: float = 30.0) -> None:
        """Have the server refuse writes (SQLSTATE 25006), or take them again, and wait until it does
        (seconds).

        Sets ``default_transaction_read_only`` by ALTER SYSTEM: open sessions stay open, and follow with their
        next transaction. Unlike a standby, the server still says that it is not in recovery.
        """
        if on:
            self.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        else:
            self.execute("ALTER SYSTEM RESET default_transaction_read_only")
        self.execute("SELECT pg_reload_conf()")
        # The postmaster tells its children before it starts the session that shows us the new value.
        wanted = "on" if on else "off"
        wait_for(
            lambda: self._value("SHOW default_transaction_read_only") == wanted,
            f"{self.name} {'refusing' if on else 'taking'} writes",
            timeout,
        )

    def backends(self, application_name: str | None = None) -> list[dict[str, Any]]:
        """What pg_stat_activity says of all clients, or of those with this ``application_name``.

        A list of dictionaries; our own connection is left out.
        """
        from psycopg.rows import dict_row

        sql = (
            "SELECT * FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
            "AND coalesce(application_name = %s, true) ORDER BY backend_start, pid"
        )
        with self._admin(None, 30.0) as connection, connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(sql, (application_name,)).fetchall()

    def terminate_backends(self, where: str = "true", params: Any = None) -> int:
        """End sessions of clients (SQLSTATE 57P01), wait until they are gone, return their number.

        ``where`` is an SQL condition on pg_stat_activity: ``node.terminate_backends("state = 'idle'")``.
        """
        sql = (
            "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity "
            f"WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND ({where})"
        )
        return int(self.execute(sql, params)[0][0])

    # Proxy

    def proxy(self, *, host: str = LOOPBACK, port: int | None = None) -> "Proxy":
        """A TCP proxy in front of this node that can be slow, stall, drop and reset: a context manager."""
        from pgdbpool.testing.proxy import Proxy

        return Proxy(self, host=host, port=port)
