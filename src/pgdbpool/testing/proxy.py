"""A TCP proxy in front of a node: a network that can be bad on demand.

Each accepted connection becomes a `_Link` of two sides. What one side receives is queued with the time it is
due, and written to the other side then. All the proxy's faults are small changes to that: latency sets the
due time ahead, a stall stops both reading and writing (nothing is lost, it all arrives later), a drop throws
away what is received. A byte stream with a hole in it is of no use to anyone, so a connection that has lost
data never carries any again: it is the connection that a router on the way has forgotten.

A link is only touched by the loop's thread; the methods of `Proxy` are called by the tests' threads, and
return when what they ask for is in effect.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, cast

from pgdbpool.testing.address import Address
from pgdbpool.testing.errors import ClusterError
from pgdbpool.testing.loop import LoopThread, stop_listening
from pgdbpool.testing.ports import LOOPBACK, ReservedPort

END = b""  # in a queue: the sender has nothing more to say
RESET = None  # in a queue: the sender's connection is broken


class Proxy(Address):
    """A TCP proxy on 127.0.0.1 in front of ``target``: ``with node.proxy() as proxy: ...``

    Its ``port``, ``dsn``, ``conninfo()`` and ``endpoint()`` are like those of a node. If the target is down,
    connections are accepted and reset at once. Another loopback ``host`` and a ``port`` of choice make it one of
    several addresses of one name.
    """

    def __init__(self, target: Address, *, host: str = LOOPBACK, port: int | None = None) -> None:
        self.host = host
        self._given = port
        self.target = target
        self.login = target.login
        #: How many connections have been accepted so far.
        self.accepted = 0
        self.delay = 0.0  # seconds, in each direction
        self.stalled = False
        self.dropping = False
        self.links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._reserved = ReservedPort()
        self._loop = LoopThread(f"proxy of port {target.port}")
        self._loop.run(self._listen())
        self._closed = False

    @property
    def port(self) -> int:
        """The proxy's TCP port: the same for its whole life, also while it refuses connections."""
        return self._given or self._reserved.number

    @property
    def connections(self) -> int:
        """How many connections are open through the proxy now."""
        return len(self.links)

    def latency(self, seconds: float) -> None:
        """Make every round trip longer by this, half of it in each direction. 0 ends it."""
        if seconds < 0:
            raise ValueError(f"seconds: expected 0 or more, got {seconds}")
        self.delay = seconds / 2

    def stall(self) -> None:
        """Forward nothing, in both directions, until `resume`: as if all packets were lost and sent again.

        New connections are accepted, and get no answer. Nothing that is sent is lost, but nothing is read
        either.
        """
        self._change("stalled", True)

    def resume(self) -> None:
        """End a `stall`: all that waited is forwarded."""
        self._change("stalled", False)

    def drop(self, on: bool = True) -> None:
        """Swallow all data silently, in both directions, or stop doing so.

        A connection that has lost data stays a black hole for good; one that was silent meanwhile goes on.
        """
        self._change("dropping", on)

    def reset(self) -> None:
        """Break all open connections by a TCP RST to both sides. New ones are accepted as before."""
        self._run(self._break_links(with_reset=True))

    def refuse(self, on: bool = True) -> None:
        """Refuse new connections, or accept them again. Open ones go on."""
        self._run(self._stop_listening() if on else self._listen())

    def close(self) -> None:
        """Close all connections and the proxy. The context manager does this. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.run(self._stop_listening())
        self._loop.run(self._break_links(with_reset=False))
        self._loop.close()
        self._reserved.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        count = self.connections
        return f"<Proxy {self.host}:{self.port} to {self.target!r}, {count} connection{'' if count == 1 else 's'}>"

    # In the loop's thread

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
            raise ClusterError("the proxy has been closed")
        self._loop.run(work)

    def _change(self, fault: str, on: bool) -> None:
        async def change() -> None:
            setattr(self, fault, on)
            for link in list(self.links):
                link.update()

        self._run(change())

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Link(self).client, self.host, self.port, backlog=1024, reuse_address=True
            )

    async def _stop_listening(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await stop_listening(server)

    async def _break_links(self, with_reset: bool) -> None:
        while self.links:
            for link in list(self.links):
                link.abort(with_reset)
            await asyncio.sleep(0)  # sockets are closed in the loop's next round


class _Side(asyncio.Protocol):
    """One of the two connections of a link: what it receives goes into its queue, for the other side."""

    def __init__(self, link: "_Link") -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.other: _Side
        self.queue: deque[tuple[float, bytes | None]] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self.ended = False  # the other side has been told that this one has nothing more to say
        self.full = False  # the transport asks us to write no more for the moment

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.link.accepted |= self is self.link.client
        if self.link.aborted is not None:  # while this was under way
            self.link.abort(self.link.aborted)
            return
        self.link.connected |= self is self.link.server
        self.link.update()

    def data_received(self, data: bytes) -> None:
        self.put(data)

    def eof_received(self) -> bool:
        self.put(END)
        return True  # the other direction may still have something to say

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if error is not None:
            self.put(RESET)
        self.link.forget_if_over()

    def pause_writing(self) -> None:
        self.full = True
        self.link.update()

    def resume_writing(self) -> None:
        self.full = False
        self.link.update()

    def put(self, item: bytes | None) -> None:
        link = self.link
        if link.proxy.dropping:
            link.black_hole = True
        if link.black_hole:
            if item is not END and item is not RESET:
                return
            if self is link.client and link.server.transport is None:
                link.abort()  # nobody on the far side will miss it
            return
        due = asyncio.get_running_loop().time() + link.proxy.delay
        if self.queue:
            due = max(due, self.queue[-1][0])  # a latency that was lowered must not change the order
        self.queue.append((due, item))
        self.pump()

    def pump(self) -> None:
        """Forward what is due, and come back for the rest."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        loop = asyncio.get_running_loop()
        while self.queue and self.link.may_forward:
            due, item = self.queue[0]
            if due > loop.time():
                self.timer = loop.call_at(due, self.pump)
                return
            self.queue.popleft()
            self.forward(item)

    def forward(self, item: bytes | None) -> None:
        receiver = self.other.transport
        if item is RESET:
            self.link.abort(with_reset=True)
        elif item != END and receiver is not None and not receiver.is_closing():
            receiver.write(item)
        elif item == END:
            self.ended = True
            if receiver is not None and receiver.can_write_eof() and not receiver.is_closing():
                with suppress(OSError):  # it was reset, and nobody has told us yet
                    receiver.write_eof()
            if self.other.ended:
                self.link.close()


class _Link:
    """One connection through the proxy: its client's side, and its server's side once that is connected."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.black_hole = False
        self.client = _Side(self)
        self.server = _Side(self)
        self.client.other, self.server.other = self.server, self.client
        self.connecting: asyncio.Task[None] | None = None
        self.accepted = False  # the client's side has been connected, whether or not it still is
        self.connected = False  # the server's side has been
        self.aborted: bool | None = None  # whether with a reset
        proxy.accepted += 1
        proxy.links.add(self)

    @property
    def may_forward(self) -> bool:
        return not self.proxy.stalled and not self.black_hole and self.connected

    def update(self) -> None:
        """Do what the proxy's faults, which may just have changed, let us do."""
        proxy = self.proxy
        if self.connecting is None and not (proxy.stalled or proxy.dropping or self.black_hole):
            self.connecting = asyncio.get_running_loop().create_task(self.connect())
        for side in (self.client, self.server):
            if side.transport is not None and not side.transport.is_closing():
                # What is swallowed is read; else we read what we can forward, so that a fast sender has to
                # wait.
                swallow = (proxy.dropping or self.black_hole) and not proxy.stalled
                if swallow or (self.may_forward and not side.other.full):
                    side.transport.resume_reading()
                else:
                    side.transport.pause_reading()
            side.pump()

    async def connect(self) -> None:
        target = self.proxy.target
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, target.host, target.port)
        except OSError:
            self.abort(with_reset=True)

    def close(self) -> None:
        """Close both sides in peace: what has been written is still delivered."""
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.close()

    def abort(self, with_reset: bool = False) -> None:
        """Close both sides at once, if asked to in a way that the peers notice as a broken connection."""
        self.aborted = with_reset
        if self.connecting is not None:
            self.connecting.cancel()
        for side in (self.client, self.server):
            if side.timer is not None:
                side.timer.cancel()
            side.queue.clear()
            if side.transport is not None:
                if with_reset:
                    connection: socket.socket = side.transport.get_extra_info("socket")
                    # On, and no time to linger: the kernel sends RST instead of FIN.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                side.transport.abort()
        self.forget_if_over()

    def forget_if_over(self) -> None:
        if self.accepted and self.client.transport is None and self.server.transport is None:
            self.proxy.links.discard(self)
