"""A server that lets everybody in, and does not stop talking; in a process of its own, so that nobody waits for it.

with Chatter("notices") as server:
    Pool(config(server.endpoint()))
"""

import contextlib
import socket
import struct
import subprocess
import sys
import threading
from typing import Any, Self

# What it says for ever, and when.
LIES = "lies"  # another kind: short answers, which nobody can read
KINDS = {
    "parameters": "after it has let us in the parameters of the session, again and again",
    "notices": "notices, in answer to a question",
    "rows": "rows of an answer",
    "gigabyte": "one value of a gigabyte",
}


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _notice() -> bytes:
    return message(b"N", b"SNOTICE\0VNOTICE\0C00000\0M" + b"blah " * 200 + b"\0\0")


def _parameter() -> bytes:
    return message(b"S", b"application_name\0" + b"x" * 1000 + b"\0")


def _column() -> bytes:
    return message(b"T", struct.pack("!h", 1) + b"x\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0))


def _row(size: int = 1000) -> bytes:
    return message(b"D", struct.pack("!hi", 1, size) + b"x" * size)


def _forever(conn: socket.socket, data: bytes) -> None:
    block = data * max(1, 65536 // len(data))
    while True:
        conn.sendall(block)


def serve(kind: str) -> None:
    """In the other process: the port on stdout, then whoever comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=_talk, args=(conn, kind), daemon=True).start()


def _talk(conn: socket.socket, kind: str) -> None:
    with conn, contextlib.suppress(OSError, struct.error):
        while True:
            (length,) = struct.unpack("!I", conn.recv(4, socket.MSG_WAITALL))
            (code,) = struct.unpack("!I", conn.recv(length - 4, socket.MSG_WAITALL)[:4])
            if code not in (80877103, 80877104):
                break
            conn.sendall(b"N")
        conn.sendall(message(b"R", struct.pack("!I", 0)))
        if kind == "parameters":
            _forever(conn, _parameter())
        said = "maybe" if kind == LIES else "off"
        for name, value in (("in_hot_standby", said), ("default_transaction_read_only", said)):
            conn.sendall(message(b"S", f"{name}\0{value}\0".encode()))
        conn.sendall(message(b"K", struct.pack("!ii", 1, 1)) + message(b"Z", b"I"))
        while kind == LIES:
            if not conn.recv(65536):
                return
            row = struct.pack("!hi", 1, 5) + b"maybe"
            conn.sendall(_column() + message(b"D", row) + message(b"C", b"SELECT 1\0") + message(b"Z", b"I"))
        conn.recv(65536)
        if kind == "notices":
            _forever(conn, _notice())
        conn.sendall(_column())
        if kind == "rows":
            _forever(conn, _row())
        conn.sendall(b"D" + struct.pack("!Ihi", 10 + (1 << 30), 1, 1 << 30))
        _forever(conn, b"x" * 65536)


class Chatter:
    """Such a server."""

    def __init__(self, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=app dbname=app"

    def endpoint(self, **more: Any) -> dict[str, Any]:
        return {"host": "127.0.0.1", "port": self.port, "name": "app", "user": "app", "ssl": "disable", **more}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    serve(sys.argv[1])
