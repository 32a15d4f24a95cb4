"""The status page for ASGI servers. The files are read in a thread, so that a disk cannot hold up the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from .site import Request, Site, as_root, longest_body, make_site
from .wsgi import _prefix

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def asgi(
    *,
    beside: Application | None = None,
    at: str = "/status",
    name: str | None = None,
    directory: str | None = None,
    token: str | None = None,
    protect: bool = True,
) -> Application:
    """The status page as an ASGI application; with `beside` in front of that one, answering below the path `at`.

    All arguments are those of `wsgi`.
    """
    site = make_site(name, directory, token, protect)
    return served(site) if beside is None else _both(served(site), beside, at)


def served(site: Site) -> Application:
    """A site as an ASGI application."""

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        else:
            response = await asyncio.to_thread(site.respond, await _request(scope, receive))
            headers = [(key.lower().encode(), value.encode()) for key, value in response.headers]
            await send({"type": "http.response.start", "status": response.status.value, "headers": headers})
            await send({"type": "http.response.body", "body": response.body})

    return page


async def _live(receive: Receive, send: Send) -> None:
    """Nothing to do at the beginning, and nothing at the end."""
    for what in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{what}.complete"})


async def _request(scope: Scope, receive: Receive) -> Request:
    headers = _headers(scope["headers"])
    root = scope.get("root_path", "").rstrip("/")
    path = scope["path"]
    if root and (path == root or path.startswith(root + "/")):  # whether it is part of it depends on the server
        path = path[len(root) :]
    body = b""
    if scope["method"] == "POST":
        body = await _body(receive, longest_body(headers))
    return Request(
        method=scope["method"],
        root=as_root(root.encode(errors="replace")),
        path=path,
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=headers,
        client=(scope.get("client") or ("",))[0],
        http_version=scope.get("http_version", ""),
        secure=scope.get("scheme") == "https",
        body=body,
    )


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """By lower-case names. HTTP/2 may send each cookie in a header of its own (RFC 9113, 8.2.3): they are joined."""
    headers: dict[str, str] = {}
    for name, value in pairs:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}; {text}" if key == "cookie" and key in headers else text
    return headers


async def _body(receive: Receive, length: int) -> bytes:
    body, more = b"", True
    while more and len(body) < length:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body[:length]


def _both(page: Application, app: Application, at: str) -> Application:
    prefix = _prefix(at)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "")
        path = scope.get("path", "").removeprefix(root)
        if scope["type"] != "http" or (path != prefix and not path.startswith(prefix + "/")):
            await app(scope, receive, send)
        else:
            await page({**scope, "root_path": root + prefix, "path": root + path}, receive, send)

    return application
