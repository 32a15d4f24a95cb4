"""A server for the page alone, for `pgdbpool status`: the standard library's, with a thread for each request.

A request takes milliseconds, so of more than `MOST_REQUESTS` at a time most are by clients that open connections and
say nothing. The oldest makes room for the next: however many there are, threads stay few and whoever asks is answered.
"""

from __future__ import annotations

import socket
import sys
import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from .guard import Guard, is_loopback
from .site import Site
from .view import View, everything, ours
from .wsgi import served

MOST_REQUESTS = 32


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any, **more: Any) -> None:
        self._lock = threading.Lock()  # guards the dictionary
        self._at_work: dict[Any, None] = {}  # sockets, the oldest first
        super().__init__(*args, **more)

    def process_request(self, request: Any, client_address: Any) -> None:
        oldest = None
        with self._lock:
            if len(self._at_work) >= MOST_REQUESTS:
                oldest = next(iter(self._at_work))
                del self._at_work[oldest]
            self._at_work[request] = None
        if oldest is not None:
            try:
                oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end of the request, and is done with it
            except OSError:
                pass  # it is over
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._at_work.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # else the client is gone, or said nothing for too long
            super().handle_error(request, client_address)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer would look up the name of this machine, which may take long
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10  # s, for a client that says nothing

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: one line a second would be no help."""


def make(host: str, port: int, *, name: str | None, directory: str | None, token: str | None) -> WSGIServer:
    """A server that listens, and serves once `serve_forever` is called.

    `name` None: all applications of this user can be chosen. Raises OSError if it cannot listen, ValueError for a
    `token` that is too short, or none where others than this machine could ask.
    """
    if token is None and not is_loopback(host):
        raise ValueError(f"a token is needed on {host}: others than this machine can reach it")
    choices = everything(directory) if name is None else ours(name)
    site = Site(View(choices, directory), Guard(token))
    server = _Server6 if ":" in host else _Server
    return make_server(host, port, served(site), server, _Quiet)
