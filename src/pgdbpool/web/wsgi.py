"""The status page for WSGI servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .site import Request, Site, as_root, longest_body, make_site

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


def wsgi(
    *,
    beside: Application | None = None,
    at: str = "/status",
    name: str | None = None,
    directory: str | None = None,
    token: str | None = None,
    protect: bool = True,
) -> Application:
    """The status page as a WSGI application; with `beside` in front of that one, answering below the path `at`.

    Publishes the pools of this process that have no `status` in their configuration, as the application `name`
    (default ``default``) and in `directory`. Shows that application; without a `name` those that the pools of this
    process belong to.

    Answers requests from this machine only; with a `token`, of 16 characters or more, whoever shows it. With
    ``protect=False`` it answers everybody: for those who have the application decide who may look.
    """
    site = make_site(name, directory, token, protect)
    return served(site) if beside is None else _both(served(site), beside, at)


def served(site: Site) -> Application:
    """A site as a WSGI application."""

    def page(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        response = site.respond(_request(environ))
        start_response(f"{response.status.value} {response.status.phrase}", response.headers)
        return [response.body]

    return page


def _request(environ: Environ) -> Request:
    headers = {key[5:].replace("_", "-").lower(): value for key, value in environ.items() if key.startswith("HTTP_")}
    headers["content-length"] = environ.get("CONTENT_LENGTH") or "0"
    method = environ["REQUEST_METHOD"]
    length = longest_body(headers) if method == "POST" else 0
    return Request(
        method=method,
        root=as_root(environ.get("SCRIPT_NAME", "").encode("latin-1", "replace")),  # PEP 3333: bytes, as latin-1
        path=environ.get("PATH_INFO", ""),
        query=environ.get("QUERY_STRING", ""),
        headers=headers,
        client=environ.get("REMOTE_ADDR", ""),
        http_version=environ.get("SERVER_PROTOCOL", "").removeprefix("HTTP/"),
        secure=environ.get("wsgi.url_scheme") == "https",
        body=environ["wsgi.input"].read(length) if length else b"",
    )


def _both(page: Application, app: Application, at: str) -> Application:
    prefix = _prefix(at)

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path != prefix and not path.startswith(prefix + "/"):
            return app(environ, start_response)
        inner = environ | {"SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + prefix, "PATH_INFO": path[len(prefix) :]}
        return page(inner, start_response)

    return application


def _prefix(at: str) -> str:
    prefix = at.rstrip("/")
    if not prefix.startswith("/"):
        raise ValueError(f'at: expected a path such as "/status", got {at!r}')
    return prefix
