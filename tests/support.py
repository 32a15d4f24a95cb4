"""More for the tests of the pool: a go-between that understands the protocol, and small helpers."""

import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from typing import Any, Self

import psycopg
import pytest

from pgdbpool import Pool, lifecycle
from pgdbpool.core.stats import GroupStats
from pgdbpool.testing.address import Address
from pgdbpool.testing.impostor import CANCEL, GSSAPI, SSL

LIMIT = 30.0


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """Closes what a test has taken by `getconn` and not returned, so that no other test hears of it.

    For the tests of every module that imports it.
    """
    yield
    for pool in list(lifecycle._pools):
        for slot in list(getattr(pool, "_out", {}).values()):
            slot.conn.close()


def stats(pool: Pool, group: str = "default") -> GroupStats:
    """What a group is doing, and has counted."""
    return pool.stats().groups[group]


def pid(conn: psycopg.Connection[Any]) -> int:
    """Which server process a connection belongs to."""
    return conn.info.backend_pid


def port(conn: psycopg.Connection[Any]) -> int:
    """Which endpoint it leads to."""
    return int(conn.info.port)


def one(conn: psycopg.Connection[Any], sql: str, params: Any = None) -> Any:
    """The first column of the first row."""
    row = conn.execute(sql, params).fetchone()
    assert row is not None
    return row[0]


def start(function: Callable[..., Any], *args: Any, **more: Any) -> "Future[Any]":
    """Call it in a thread of its own; ``.result(LIMIT)`` gives its result, or raises what it raised."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args, **more))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"test {getattr(function, '__name__', '')}", daemon=True).start()
    return future


def in_turn(*steps: Callable[[], Any]) -> None:
    """One after the other, as one statement."""
    for step in steps:
        step()


def hold(pool: Pool, count: int, group: str = "default", timeout: float = LIMIT) -> list[psycopg.Connection[Any]]:
    """So many connections at the same time."""
    return [pool.getconn(group, timeout=timeout) for _ in range(count)]


def put(pool: Pool, *conns: psycopg.Connection[Any]) -> None:
    """Return them."""
    for conn in conns:
        pool.putconn(conn)


def grow(pool: Pool, count: int, group: str = "default") -> set[int]:
    """Have so many connections open and idle; returns their backends."""
    conns = hold(pool, count, group)
    pids = {pid(conn) for conn in conns}
    put(pool, *conns)
    return pids


class Wire(Address):
    """A go-between that understands the protocol, as a pooler does: ``with Wire(node) as wire: ...``

    It writes down what clients ask, and can leave out reported parameters (`hide`), refuse startup options as
    PgBouncer does (`refuse_options`), and lose the connection at a COMMIT: with `cut` = "before" the server never
    sees it, with "after" the server has carried it out and its answer is lost.
    """

    host = "127.0.0.1"

    def __init__(self, target: Address, *, hide: Collection[str] = (), refuse_options: bool = False) -> None:
        self.target = target
        self.login = target.login
        self.hide = set(hide)
        self.refuse_options = refuse_options
        self.cut: str | None = None
        self.cut_at: tuple[str, ...] = ("COMMIT",)  # beginnings of the statements at which it does
        #: The parameters of each startup packet, the statements in the order in which they came.
        self.startups: list[dict[str, str]] = []
        self.statements: list[str] = []
        self._listener = socket.create_server((self.host, 0))
        self._port = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._spawn(self._accept)

    @property
    def port(self) -> int:
        return int(self._port)

    @property
    def of_users(self) -> list[str]:
        """The statements without the question with which the pool opens a session, and the monitor probes."""
        return [sql for sql in self.statements if "pg_control_system" not in sql]

    def reset(self) -> None:
        """Break all open connections. New ones are accepted as before."""
        for each in list(self._sockets):
            self._shut(each)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed = True
        self._shut(self._listener)
        self.reset()
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        self._listener.close()
        for each in list(self._sockets):
            each.close()

    def _spawn(self, function: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=function, args=args, name="wire", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _keep(self, sock: socket.socket) -> None:
        self._sockets.add(sock)
        if self._closed:  # and `reset` may have come too early for this one
            self._shut(sock)

    @staticmethod
    def _shut(sock: socket.socket) -> None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._keep(client)
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """What one client says, up to its end."""
        server = None
        try:
            packet = self._startup(client)
            if packet is None:
                return
            server = socket.create_connection((self.target.host, self.target.port))
            self._keep(server)
            lost = threading.Event()
            self._spawn(self._answer, server, client, lost)
            server.sendall(packet)
            while True:
                kind, body = self._message(client)
                if kind in b"QP":
                    sql = body.split(b"\0")[1 if kind == b"P" else 0].decode()
                    self.statements.append(sql)
                    if self.cut and sql.upper().startswith(self.cut_at):
                        if self.cut == "before":
                            return
                        lost.set()
                server.sendall(kind + struct.pack("!I", len(body) + 4) + body)
        except OSError:
            pass
        finally:
            self._shut(client)
            if server is not None:
                self._shut(server)

    def _startup(self, client: socket.socket) -> bytes | None:
        while True:
            head = self._exactly(client, 8)
            length, code = struct.unpack("!II", head)
            body = self._exactly(client, length - 8)
            if code in (SSL, GSSAPI):
                client.sendall(b"N")
                continue
            if code == CANCEL:
                return None
            words = body.decode().split("\0")
            parameters = {name: value for name, value in zip(words[::2], words[1::2], strict=False) if name}
            self.startups.append(parameters)
            if self.refuse_options and "options" in parameters:
                fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
                client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
                return None
            return head + body

    def _answer(self, server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        """What the server says to it."""
        try:
            while True:
                kind, body = self._message(server)
                if kind == b"S" and body.split(b"\0")[0].decode() in self.hide:
                    continue
                if lost.is_set():
                    if kind == b"Z":
                        return
                    continue
                client.sendall(kind + struct.pack("!I", len(body) + 4) + body)
        except OSError:
            pass
        finally:
            self._shut(client)
            self._shut(server)

    def _message(self, sock: socket.socket) -> tuple[bytes, bytes]:
        head = self._exactly(sock, 5)
        return head[:1], self._exactly(sock, struct.unpack("!I", head[1:])[0] - 4)

    @staticmethod
    def _exactly(sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = sock.recv(size - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return data
