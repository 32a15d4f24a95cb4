"""A real PgBouncer in front of a node, a proxy or whatever else has an address.

Applications often reach their servers through a pooler, and a pooler changes what a failover looks like: it accepts
logins while the server behind it is gone, it says of every server what the first one said, and in transaction mode
each transaction may run in another session. This one is made, driven and removed as a cluster's servers are.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pgdbpool.testing import processes
from pgdbpool.testing.address import Address
from pgdbpool.testing.binaries import Account, server_account
from pgdbpool.testing.errors import BinariesNotFound, ClusterError, ServerStartError
from pgdbpool.testing.place import temporary_folder
from pgdbpool.testing.ports import LOOPBACK, ReservedPort
from pgdbpool.testing.waiting import wait_for
from pgdbpool.testing.watchdog import Watchdog

ENVIRONMENT_VARIABLE = "PGDBPOOL_PGBOUNCER"
MODES = ("transaction", "session", "statement")
ADMIN = "pgbouncer"  # who may use the admin console
# What the harness itself decides.
RESERVED = frozenset({"admin_users", "auth_file", "auth_type", "listen_addr", "listen_port", "logfile", "pool_mode"})


def find_pgbouncer() -> Path:
    """PgBouncer's program: $PGDBPOOL_PGBOUNCER, else the one of the system. Raises `BinariesNotFound`."""
    told = os.environ.get(ENVIRONMENT_VARIABLE)
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which(told or "pgbouncer", path=path)
    if found is None:
        where = f"{told} (from {ENVIRONMENT_VARIABLE}) is no program" if told else "no PgBouncer to run"
        raise BinariesNotFound(
            f"{where}: install it (apt-get install pgbouncer), or let {ENVIRONMENT_VARIABLE} name the program"
        )
    return Path(found)


class PgBouncer(Address):
    """A real PgBouncer on 127.0.0.1 in front of ``target``: ``with PgBouncer(node) as pooler: ...``

    - ``target``: a node, a proxy, or another address.
    - ``pool_mode``: "transaction", "session" or "statement".
    - ``settings``: settings of pgbouncer.ini, such as ``{"default_pool_size": 5}``.

    Its ``port``, ``dsn``, ``conninfo()`` and ``endpoint()`` are like those of a node, and work while it is down.
    Needs PgBouncer: ``apt-get install pgbouncer``, or $PGDBPOOL_PGBOUNCER names the program. As root it runs as
    ``nobody``. Raises `BinariesNotFound`, and `ServerStartError` with PgBouncer's own words.
    """

    host = LOOPBACK

    def __init__(
        self,
        target: Address,
        pool_mode: str = "transaction",
        *,
        settings: Mapping[str, str | int | float] | None = None,
    ) -> None:
        if pool_mode not in MODES:
            raise ValueError(f"pool_mode: expected one of {', '.join(MODES)}, got {pool_mode!r}")
        if reserved := RESERVED.intersection(settings or ()):
            raise ValueError(f"settings: {', '.join(sorted(reserved))} is decided by PgBouncer's harness")
        self.target = target
        self.login = target.login
        self.pool_mode = pool_mode
        self._settings = dict(settings or {})
        self._program = find_pgbouncer()
        self._admin_password = secrets.token_hex(8)
        self._account: Account | None = server_account()
        self._process: subprocess.Popen[bytes] | None = None
        self._reserved = ReservedPort()
        base = temporary_folder()
        self._watchdog = Watchdog(base)  # from here on nothing can be left behind
        self._mark = f"{base.name}/pgbouncer"
        self._folder = base / "pgbouncer"
        self._folder.mkdir(mode=0o700)
        self.log_file = self._folder / "log"
        for path in (base, self._folder):
            self._own(path)

    @property
    def port(self) -> int:
        """Its TCP port on 127.0.0.1: the same for its whole life, also while it is down."""
        return self._reserved.number

    # Life

    def start(self, timeout: float = 30.0) -> Self:
        """Start it, if it does not run, and wait until it accepts connections (seconds)."""
        if not self.is_running:
            self._write_configuration()
            with self.log_file.open("ab") as log:
                self._process = subprocess.Popen(
                    [str(self._program), str(self._folder / "pgbouncer.ini")],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder,
                    start_new_session=True,  # Ctrl-C at the terminal is for the tests
                    user=self._account.uid if self._account else None,
                    group=self._account.gid if self._account else None,
                    extra_groups=[] if self._account else None,
                )
        deadline = time.monotonic() + timeout
        while not self._answers():
            if not self.is_running or time.monotonic() > deadline:
                tail = "\n".join(self.log().splitlines()[-20:])
                raise ServerStartError(f"PgBouncer does not accept connections; the end of its log:\n{tail}")
            time.sleep(0.005)
        return self

    def _answers(self) -> bool:
        import psycopg

        try:
            self.admin("SHOW VERSION", timeout=2)
        except psycopg.Error:
            return False
        return True

    @property
    def is_running(self) -> bool:
        """Whether its process lives (a frozen one does)."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: all its connections, to clients and to servers, break. The port stays reserved."""
        processes.kill(self._mark)
        if self._process is not None:
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay and new ones are accepted by the kernel, but nothing is answered."""
        if not self.is_running:
            raise ClusterError("PgBouncer is not running, so it cannot be frozen")
        processes.freeze(self._mark)

    def thaw(self) -> None:
        """SIGCONT; does nothing if it is not frozen."""
        processes.thaw(self._mark)

    def close(self) -> None:
        """End it and remove its files. The context manager does this. May be called twice."""
        self._watchdog.finish()
        if self._process is not None:
            self._process.wait()
        self._reserved.release()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self.is_running else "down"
        return f"<PgBouncer {self.host}:{self.port} {self.pool_mode} to {self.target!r} {state}>"

    # The admin console

    def admin(self, command: str, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Give a command to the admin console, and return its rows, if it has any, as dictionaries.

        For example ``admin("SHOW POOLS")``, ``admin("RELOAD")``. ``timeout`` in seconds bounds the connect.
        Raises psycopg's errors.
        """
        import psycopg  # here, so that the pytest plugin costs nothing when it is not used
        from psycopg.rows import dict_row

        # The console understands only the simple protocol, which a client-side cursor speaks.
        with (
            psycopg.connect(
                host=self.host,
                port=self.port,
                user=ADMIN,
                password=self._admin_password,
                dbname="pgbouncer",
                sslmode="disable",
                connect_timeout=max(2, round(timeout)),
                autocommit=True,
                cursor_factory=psycopg.ClientCursor,
            ) as connection,
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            cursor.execute(command.encode())
            return list(cursor.fetchall()) if cursor.description else []

    def pause(self) -> None:
        """PAUSE: waits until running statements are done, and holds all that come later until `resume`."""
        self.admin("PAUSE")

    def resume(self) -> None:
        """RESUME: end a `pause`, or what ``admin("KILL app")`` has done."""
        self.admin("RESUME")

    def reconnect(self) -> None:
        """RECONNECT: use new connections to the server from now on, old ones until what runs on them is done."""
        self.admin("RECONNECT")

    def configure(self, **settings: str | int | float) -> None:
        """Change settings of pgbouncer.ini, and have it read them again."""
        self._settings |= settings
        self._write_configuration()
        if self.is_running:
            self.admin("RELOAD")

    def lead_to(self, target: Address) -> None:
        """Lead to another address from now on; connections to the old one end with what runs on them."""
        self.target = target
        self.configure()

    def log(self) -> str:
        """All it has logged so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def wait_servers(self, count: int = 0, timeout: float = 30.0) -> None:
        """Wait until it has so many connections to its servers (seconds)."""
        wait_for(lambda: len(self.admin("SHOW SERVERS")) == count, f"{count} connections to servers", timeout)

    # Files

    def _write_configuration(self) -> None:
        login = self.login
        users = self._folder / "users"
        users.write_text(
            f'"{ADMIN}" "{self._admin_password}"\n'
            f"{_quoted(login.user)} {_quoted('' if login.password is None else login.password)}\n"
        )
        # Who has no password is let in all the same; the console asks for one.
        hba = self._folder / "hba"
        own = "trust" if login.password is None else "scram-sha-256"
        hba.write_text(f"host pgbouncer {ADMIN} {LOOPBACK}/32 scram-sha-256\nhost all all {LOOPBACK}/32 {own}\n")
        settings: dict[str, str | int | float] = {
            "unix_socket_dir": "",
            **self._settings,
            "listen_addr": self.host,
            "listen_port": self.port,
            "auth_type": "hba",
            "auth_hba_file": str(hba),
            "auth_file": str(users),
            "admin_users": ADMIN,
            "pool_mode": self.pool_mode,
            "logfile": "",
        }
        file = self._folder / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n{login.database} = host={self.target.host} port={self.target.port} "
            f"dbname={login.database}\n\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        for path in (users, hba, file):
            path.chmod(0o600)
            self._own(path)

    def _own(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, *self._account)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
