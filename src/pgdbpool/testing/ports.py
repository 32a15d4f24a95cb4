"""A port of our own, kept for as long as we like.

Choosing a free port and using it later is a race: in between, anybody may take it, and while a server is down
even the client side of some connection may be given its port (a client that tries it again and again can then
end up connected to itself). On Linux the race is closed by a socket that is bound, but never listens: the
kernel gives the port to nobody who did not ask for it by number, a connection to it is refused, and the
server can still bind it because both sides set SO_REUSEADDR. Elsewhere the second bind would fail, so there
the port is only chosen, and a server that finds it taken is given another one.
"""

import socket
import sys

LOOPBACK = "127.0.0.1"


class ReservedPort:
    """A free port on 127.0.0.1: ``.number``, until `release`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((LOOPBACK, 0))
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self._socket.close()

    def release(self) -> None:
        """Give the port back to the system. May be called twice."""
        self._socket.close()
