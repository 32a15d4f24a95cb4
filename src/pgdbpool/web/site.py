"""A request in, a response out; and nothing of the server that brings the one and takes the other.

    GET  /            the page
    GET  /FILE        what the page consists of
    GET  /data        the news, as JSON: ?app=NAME&since=SECONDS
    POST /login       a token typed into the form: sets the cookie

Nothing can be changed from here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import NamedTuple
from urllib.parse import parse_qs, quote

from ..publish import publish_all
from .guard import Guard
from .view import View, ours

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_SHOWN_TO_ALL = ("style.css", "icon.svg")
_LONGEST_FORM = 4096  # bytes
_MOST_FIELDS = 10  # of a form or query

# Nothing from elsewhere, nothing inline, nobody's frame.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
_SAFETY = [
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]

_STRANGER = """\
The status page answers requests from this machine only, and not through a proxy.
To see it from elsewhere give it a token, or let the application decide who may look: see "Status page" in the manual.
"""


class Request(NamedTuple):
    """What a server was asked."""

    method: str
    root: str
    """Where the page is mounted, without the slash at the end; as in an address, so it may stand in a header."""
    path: str
    """Below that."""
    query: str
    headers: Mapping[str, str]
    """By lower-case names."""
    client: str
    """Address of the other end; empty if it has none."""
    http_version: str
    secure: bool
    body: bytes = b""


class Response(NamedTuple):
    """What it is to answer."""

    status: HTTPStatus
    headers: list[tuple[str, str]]
    body: bytes


class Site:
    """The page. `guard` None: the application around it decides who may look. Safe in any thread."""

    def __init__(self, view: View, guard: Guard | None) -> None:
        self._view = view
        self._guard = guard

    def respond(self, request: Request) -> Response:
        """Never raises because of what was asked."""
        response = self._respond(request)
        if request.method == "HEAD":
            return response._replace(body=b"")
        return response

    def _respond(self, request: Request) -> Response:
        if request.path == "/login" and request.method == "POST":
            return self._login(request)
        if request.method not in ("GET", "HEAD"):
            return _plain(
                HTTPStatus.METHOD_NOT_ALLOWED, "The status page can only be looked at.\n", ("Allow", "GET, HEAD")
            )
        if request.path == "":
            return _see_other(request.root + "/", HTTPStatus.PERMANENT_REDIRECT)
        name = request.path.removeprefix("/") or "index.html"
        if name not in _SHOWN_TO_ALL and not self._admits(request):
            return self._turn_away(name)
        if name == "data":
            return self._data(request)
        return _file(name, request)

    def _admits(self, request: Request) -> bool:
        guard = self._guard
        return guard is None or guard.admits(request.client, request.http_version, request.headers)

    def _turn_away(self, name: str, *, mistaken: bool = False) -> Response:
        if self._guard is None or not self._guard.has_token:
            return _plain(HTTPStatus.FORBIDDEN, _STRANGER)
        if name != "index.html":
            return _plain(HTTPStatus.UNAUTHORIZED, "A token is needed.\n", ("WWW-Authenticate", "Bearer"))
        page, _ = _asset("login.html")
        said = b"That is not the token." if mistaken else b""
        headers = [("WWW-Authenticate", "Bearer"), ("Cache-Control", "no-store")]
        return _answer(HTTPStatus.UNAUTHORIZED, "text/html", page.replace(b"{mistake}", said), *headers)

    def _login(self, request: Request) -> Response:
        """The token comes in the body, which nobody logs, and not in the address, which everybody does."""
        guard = self._guard
        if guard is None or not guard.has_token:
            return _plain(HTTPStatus.NOT_FOUND, "There is nothing to log in to.\n")
        try:
            token = parse_qs(request.body.decode(), max_num_fields=_MOST_FIELDS).get("token", [""])[0]
        except ValueError:
            token = ""
        if not guard.accepts(token.strip()):
            return self._turn_away("index.html", mistaken=True)
        cookie = f"{guard.COOKIE}={guard.ticket}; Path={request.root}/; HttpOnly; SameSite=Strict"
        return _see_other(
            request.root + "/", HTTPStatus.SEE_OTHER, ("Set-Cookie", cookie + ("; Secure" if request.secure else ""))
        )

    def _data(self, request: Request) -> Response:
        asked: dict[str, list[str]] = {}
        try:
            asked = parse_qs(request.query, max_num_fields=_MOST_FIELDS)
            since = float(asked.get("since", ["0"])[0])
        except ValueError:
            since = 0.0
        if not math.isfinite(since):
            since = 0.0
        try:
            body = self._view.answer(asked.get("app", [""])[0], since)
        except PermissionError as error:
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n")
        return _answer(HTTPStatus.OK, "application/json", body, ("Cache-Control", "no-store"))


def _file(name: str, request: Request) -> Response:
    if name not in _shown() or name == "login.html":
        return _plain(HTTPStatus.NOT_FOUND, "There is no such page.\n")
    kind = _TYPES[name[name.rfind(".") :]]
    content, tag = _asset(name)
    # A new version of the package has new files under the same names: always ask, and mostly be told "as before".
    headers = [("ETag", tag), ("Cache-Control", "no-cache")]
    if request.headers.get("if-none-match") == tag:
        return _answer(HTTPStatus.NOT_MODIFIED, kind, b"", *headers)
    return _answer(HTTPStatus.OK, kind, content, *headers)


@cache
def _shown() -> frozenset[str]:
    """What there is to show. A name that comes with a request is looked up here, and never in the file system."""
    names = (each.name for each in files(__package__).joinpath("static").iterdir())
    return frozenset(name for name in names if name[name.rfind(".") :] in _TYPES)


@cache
def _asset(name: str) -> tuple[bytes, str]:
    """A file and its tag."""
    content = files(__package__).joinpath("static", name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def _plain(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Response:
    return _answer(status, "text/plain", text.encode(), ("Cache-Control", "no-store"), *headers)


def _see_other(where: str, status: HTTPStatus, *headers: tuple[str, str]) -> Response:
    return _answer(status, "text/plain", b"", ("Location", where), ("Cache-Control", "no-store"), *headers)


def _answer(status: HTTPStatus, kind: str, body: bytes, *headers: tuple[str, str]) -> Response:
    return Response(
        status,
        [
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            *_SAFETY,
            *headers,
        ],
        body,
    )


def as_root(path: bytes) -> str:
    """Where the page is mounted, as `Request.root` has it: nothing in it can end a header or a cookie's attribute."""
    inside = path.strip(b"/")  # two slashes at the beginning would name another host
    return "/" + quote(inside, safe="/!$&'()*+,:=@~") if inside else ""


def longest_body(headers: Mapping[str, str]) -> int:
    """How much of a body to read: what it is said to have, and no more than a form needs."""
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return 0
    return min(int(length), _LONGEST_FORM) if len(length) < 10 else _LONGEST_FORM


def make_site(name: str | None, directory: str | None, token: str | None, protect: bool) -> Site:
    """The site of a mounted page."""
    if token is not None and not protect:
        raise ValueError("token: makes no sense with protect=False")
    guard = Guard(token) if protect else None
    publish_all(name or "default", directory)
    return Site(View(ours(name), directory), guard)
