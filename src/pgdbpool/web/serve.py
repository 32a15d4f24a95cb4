"""A server for the page alone, for `pgdbpool status`: the standard library's, with a thread for each request."""

from __future__ import annotations

import socket
from socketserver import TCPServer, ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from .guard import Guard, is_loopback
from .site import Site
from .view import View, everything, ours
from .wsgi import served


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer would look up the name of this machine, which may take long
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 30  # s, for a client that says nothing

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
