"""One PostgreSQL server as the operating system sees it: a data folder, a configuration file, some processes.

No SQL here: everything in this file works, and means the same, when the server is broken. `Node` adds what is
asked of a server by talking to it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from pgdbpool.testing import processes
from pgdbpool.testing.binaries import Programs
from pgdbpool.testing.errors import ClusterError, PortTaken, ServerStartError
from pgdbpool.testing.ports import LOOPBACK, ReservedPort
from pgdbpool.testing.waiting import wait_for

Setting = str | int | float | bool

STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# What makes a server quick to start and to fail over; a user's `settings` come on top.
DEFAULTS: Mapping[str, Setting] = MappingProxyType(
    {
        "fsync": False,
        "full_page_writes": False,
        "shared_buffers": "16MB",
        "max_connections": 100,
        "wal_level": "replica",
        "hot_standby": True,
        "max_wal_senders": 10,
        "wal_init_zero": False,
        "wal_keep_size": "256MB",  # a standby that was away finds what it missed
        "wal_retrieve_retry_interval": "100ms",  # and asks for it again soon
        "wal_receiver_status_interval": "1s",
        "wal_sender_timeout": "10s",  # a primary that shuts down waits this long for a frozen standby
        "wal_receiver_timeout": "10s",
        "lc_messages": "C",
        "log_line_prefix": "%m [%p] ",
    }
)

# What the cluster itself decides.
RESERVED = frozenset(
    {
        "cluster_name",
        "data_directory",
        "dynamic_shared_memory_type",
        "hba_file",
        "listen_addresses",
        "log_destination",
        "logging_collector",
        "port",
        "primary_conninfo",
        "synchronous_standby_names",
        "unix_socket_directories",
    }
)


def quote_literal(value: str) -> str:
    """``value`` between single quotes, for SQL and for postgresql.conf."""
    return "'" + value.replace("'", "''") + "'"


def quote_identifier(name: str) -> str:
    """``name`` between double quotes, for SQL."""
    return '"' + name.replace('"', '""') + '"'


class Server:
    """The process side of a node: `start`, `stop`, `kill`, `freeze`, `thaw`, `log`."""

    host = LOOPBACK

    def __init__(self, name: str, programs: Programs, settings: Mapping[str, Setting]) -> None:
        self.name = name
        self.folder = programs.folder / name
        self.data = self.folder / "data"
        self.socket_dir = str(self.folder)
        self.log_file = self.folder / "log"
        self._programs = programs
        self._settings: dict[str, Setting] = dict(DEFAULTS)
        if programs.version >= 18:
            self._settings["io_method"] = "sync"  # three processes fewer to start
        self._settings |= settings
        self._first_settings = dict(self._settings)
        self._mark = f"{programs.folder.name}/{name}"
        self._port = ReservedPort()
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._log_start = 0  # where in its log the last start begins
        self.folder.mkdir(mode=0o700)
        programs.own(self.folder)

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1: the same as long as the cluster lives, also while the server is down."""
        return self._port.number

    @property
    def is_running(self) -> bool:
        """Whether the server's main process lives (a frozen one does)."""
        if self._process is None or self._owner == os.getpid():
            return self._process is not None and self._process.poll() is None
        return bool(processes.find(self._mark))  # we are a forked child, and the server is not ours to wait for

    @property
    def is_frozen(self) -> bool:
        """Whether the server was frozen and not thawed since."""
        return self._frozen and self.is_running

    def start(self, wait: bool = True, timeout: float = 30.0) -> None:
        """Start the server; does nothing if it runs.

        With ``wait``, return when it accepts connections, within ``timeout`` seconds. A killed server
        recovers its data by itself. Raises `ServerStartError` with the tail of the server's log.
        """
        if not self.is_running:
            if self._owner != os.getpid():
                raise ClusterError(f"{self.name} can only be started by the process that made the cluster")
            # Helpers of a server that died alone may still be there, and its lock file may name a reused pid.
            self._forget_lock_file(processes.kill(self._mark))
            self.write_configuration()
            self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
            with self.log_file.open("ab") as log:
                self._process = self._programs.spawn("postgres", "-D", str(self.data), stdout=log)
            self._frozen = False
        if wait:
            self.wait_accepting(timeout)

    def wait_accepting(self, timeout: float = 30.0) -> None:
        """Wait until the server says that it accepts connections. Raises `ServerStartError`."""
        deadline = time.monotonic() + timeout
        while not self._says_ready():
            if not self.is_running:
                raise self._start_error("ended instead of accepting connections")
            if time.monotonic() > deadline:
                raise self._start_error(f"does not accept connections after {timeout:g} s")
            time.sleep(0.005)

    def _says_ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        ours = self._process is not None and lines[:1] == [str(self._process.pid)]
        return ours and len(lines) > 7 and lines[7].strip() == "ready"

    def _start_error(self, what: str) -> ServerStartError:
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            tail = "\n".join(log.read().decode(errors="replace").splitlines()[-20:])
        kind = PortTaken if "could not bind" in tail else ServerStartError
        return kind(f"{self.name} {what}; the end of its log:\n{tail}")

    def stop(self, mode: str = "fast", timeout: float = 60.0) -> None:
        """Stop the server in an orderly way and wait for its end; does nothing if it is down.

        ``mode`` is "smart" (waits for all clients to go), "fast" (disconnects them) or "immediate" (does not
        write a checkpoint; recovery at the next start). A frozen server is thawed first. Raises
        `ClusterTimeout` if it has not stopped after ``timeout`` seconds.
        """
        if mode not in STOP_SIGNALS:
            raise ValueError(f"mode: expected one of {', '.join(STOP_SIGNALS)}, got {mode!r}")
        if self._process is None or not self.is_running:
            return
        if self._frozen:
            self.thaw()
        processes.send(self._process.pid, STOP_SIGNALS[mode])
        wait_for(
            lambda: not self.is_running and not processes.find(self._mark),
            f"{self.name} stopped ({mode})",
            timeout,
        )

    def kill(self) -> None:
        """SIGKILL every process of the server, as if its machine had lost power. Frozen ones too.

        When this returns all its sockets are closed; the port stays reserved and refuses connections.
        """
        killed = processes.kill(self._mark)
        if self._process is not None:
            self._process.wait()  # in a forked child this returns at once
        self._frozen = False
        self._forget_lock_file(killed)

    def _forget_lock_file(self, killed: Collection[int]) -> None:
        processes.remove_shared_memory(self.data, killed)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def freeze(self) -> None:
        """SIGSTOP every process of the server: connections stay, new ones are accepted by the kernel, none is
        answered.

        Raises `ClusterError` if the server is down.
        """
        if not self.is_running:
            raise ClusterError(f"{self.name} is not running, so it cannot be frozen")
        processes.freeze(self._mark)
        self._frozen = True

    def thaw(self) -> None:
        """SIGCONT every process of the server; does nothing if it is not frozen."""
        processes.thaw(self._mark)
        self._frozen = False

    def log(self) -> str:
        """All the server has logged so far, over all its starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def write_configuration(self) -> None:
        """Write postgresql.conf. A running server takes it at its next reload (some settings: start)."""
        settings = self._settings | {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": self.socket_dir,
            "cluster_name": self._mark,  # how its processes are found
            "dynamic_shared_memory_type": "mmap",  # files in the data folder: they go when it goes
            "logging_collector": False,
        }
        lines = [f"{name} = {quote_literal(_text(value))}\n" for name, value in settings.items()]
        file = self.data / "postgresql.conf"
        file.write_text("".join(lines))
        self._programs.own(file)

    def configure(self, **settings: Setting) -> None:
        """Change settings in postgresql.conf, and have a running server read it again."""
        self._settings |= settings
        self.write_configuration()
        if self._process is not None and self.is_running:
            processes.send(self._process.pid, signal.SIGHUP)

    def settings_changed(self) -> bool:
        """Whether somebody changed settings since the cluster was built, with `configure` or ALTER SYSTEM."""
        ours = {**self._settings, "primary_conninfo": ""}
        return ours != {**self._first_settings, "primary_conninfo": ""} or self._altered()

    def _altered(self) -> bool:
        lines = (self.data / "postgresql.auto.conf").read_text().splitlines()
        return any(line.strip() and not line.startswith("#") for line in lines)

    def restore_settings(self) -> bool:
        """Take back all changed settings, also in a running server, and tell whether there were any."""
        changed = self.settings_changed()
        if changed:
            (self.data / "postgresql.auto.conf").write_text("")
            following = self._settings.get("primary_conninfo")
            self._settings = dict(self._first_settings)
            self.configure(**({} if following is None else {"primary_conninfo": following}))
        return changed

    def run(self, *command: str) -> str:
        """Run one of PostgreSQL's programs, as the account the servers run as, and return what it wrote."""
        return self._programs.run(*command)

    def own(self, path: Path) -> None:
        """Give a file to the account the servers run as."""
        self._programs.own(path)

    def release(self) -> None:
        """Forget the server after its processes have been ended by the watchdog."""
        if self._process is not None:
            self._process.wait()
        self._port.release()


def _text(value: Setting) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
