"""A server that only knows how to say no: for what a real one cannot be made to do at will.

It speaks just as much of PostgreSQL's protocol as is needed to refuse a client properly: it says no to TLS
and GSSAPI encryption, reads the startup packet, answers with an error of the wanted SQLSTATE, and hangs up.
"""

import asyncio
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self

from pgdbpool.testing.address import Address, Login
from pgdbpool.testing.loop import LoopThread, stop_listening
from pgdbpool.testing.ports import LOOPBACK, ReservedPort

CANCEL, SSL, GSSAPI = 80877102, 80877103, 80877104

MESSAGES: Mapping[str, str] = MappingProxyType(
    {
        "28P01": "password authentication failed",
        "3D000": "database does not exist",
        "53300": "sorry, too many clients already",
        "57P01": "terminating connection due to administrator command",
        "57P03": "the database system is starting up",
    }
)


@dataclass(frozen=True)
class Attempt:
    """One attempt of a client to connect."""

    #: When it was made, on the clock of ``time.monotonic()``.
    at: float
    #: What the client's startup packet said: user, database, application_name, options.
    parameters: Mapping[str, str]


class Impostor(Address):
    """A fake server on 127.0.0.1 that answers every attempt to connect with an error.

    ``with Impostor("53300") as server: ...``. ``sqlstate``: five characters. ``message``: by default the
    words that PostgreSQL itself uses for some common codes. Its ``port``, ``dsn``, ``conninfo()`` and
    ``endpoint()`` are like those of a node.
    """

    host = LOOPBACK

    def __init__(self, sqlstate: str = "53300", message: str | None = None, *, login: Login | None = None) -> None:
        self.login = login or Login()
        #: All attempts so far, oldest first.
        self.attempts: list[Attempt] = []
        self._silent = False
        self._closed = False
        self.answer(sqlstate, message)
        self._reserved = ReservedPort()
        self._loop = LoopThread("impostor")
        self._server = self._loop.run(self._listen())

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._reserved.number

    def answer(self, sqlstate: str, message: str | None = None) -> None:
        """From now on, answer with this error."""
        if len(sqlstate) != 5 or not sqlstate.isalnum():
            raise ValueError(f"sqlstate: expected five letters or digits, got {sqlstate!r}")
        text = message if message is not None else MESSAGES.get(sqlstate, f"error {sqlstate}")
        fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": text}
        body = b"".join(f"{kind}{value}\0".encode() for kind, value in fields.items()) + b"\0"
        self._error = b"E" + struct.pack("!I", len(body) + 4) + body

    def hang(self, on: bool = True) -> None:
        """Give no answer at all to attempts from now on, and keep their connections open; or answer again."""
        self._silent = on

    def close(self) -> None:
        """Close the server and all its connections. The context manager does this. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.run(stop_listening(self._server))
            self._loop.close()
            self._reserved.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # In the loop's thread

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, self.host, self.port, backlog=1024, reuse_address=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (length,) = struct.unpack("!I", await reader.readexactly(4))
                packet = await reader.readexactly(length - 4)
                (code,) = struct.unpack("!I", packet[:4])
                if code not in (SSL, GSSAPI):
                    break
                writer.write(b"N")
            if code == CANCEL:
                return
            self.attempts.append(Attempt(time.monotonic(), _parameters(packet[4:])))
            if self._silent:
                await reader.read()  # until the client gives up
            else:
                writer.write(self._error)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client is gone
        finally:
            writer.close()


def _parameters(data: bytes) -> Mapping[str, str]:
    words = data.decode(errors="replace").split("\0")
    return {name: value for name, value in zip(words[::2], words[1::2], strict=False) if name}
