"""Who may look at the page.

Without a token: whoever asks from this machine, by one of its own names. That the other end is a loopback address is
not enough: behind a proxy on this machine everybody's is. A proxy gives itself away by the headers it adds, or by
speaking HTTP/1.0, as nginx does unless told otherwise and no browser does. The name in ``Host`` must be one of the
machine's own, or a page from elsewhere whose name was made to lead here could read along.

With a token: whoever shows it, wherever from. A program sends ``Authorization: Bearer``; a person types it into a form
once, and gets a cookie that is made from the token and does not reveal it. All workers of an application can check it,
since there is nothing to remember.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from ipaddress import ip_address

SHORTEST_TOKEN = 16

_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_MOST_COOKIES = 8  # of our name: a browser may have one for each path
_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Says who may look. `token`: None for everybody on this machine. Never shows the token."""

    COOKIE = "pgdbpool-status"

    def __init__(self, token: str | None) -> None:
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise ValueError(
                f"token: expected {SHORTEST_TOKEN} characters or more, got {len(token)}; "
                'make one with python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        self._token = token.encode() if token is not None else None
        self._ticket = hmac.digest(self._token, b"pgdbpool status page", "sha256").hex() if self._token else ""

    def __repr__(self) -> str:
        return f"<Guard {'with' if self._token else 'without'} a token>"

    @property
    def has_token(self) -> bool:
        """Whether somebody without permission could get it by showing a token."""
        return self._token is not None

    @property
    def ticket(self) -> str:
        """The value of the cookie that stands for the token."""
        return self._ticket

    def admits(self, client: str, http_version: str, headers: Mapping[str, str]) -> bool:
        """Whether to answer. `headers` by lower-case names."""
        if self._token is None:
            return is_local(client, http_version, headers)
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.accepts(shown.strip()):
            return True
        return any(self._is_ticket(shown) for shown in _cookies(headers.get("cookie", ""), self.COOKIE))

    def _is_ticket(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(errors="replace"), self._ticket.encode())

    def accepts(self, token: str) -> bool:
        """Whether it is the token. Takes the same time whatever is wrong with it."""
        return self._token is not None and hmac.compare_digest(token.encode(errors="replace"), self._token)


def is_local(client: str, http_version: str, headers: Mapping[str, str]) -> bool:
    """Whether somebody on this machine asks, and no proxy for somebody else."""
    if http_version == "1.0" or any(header in headers for header in _PROXIES):
        return False
    return is_loopback(client) and _host_name(headers.get("host", "")) in _OWN_NAMES


def is_loopback(address: str) -> bool:
    """Whether an address, or the name ``localhost``, leads to this machine only."""
    try:
        found = ip_address(address)
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)  # as a socket for both kinds of addresses sees one of the old kind
    return found.is_loopback if mapped is None else bool(mapped.is_loopback)


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _cookies(header: str, name: str) -> list[str]:
    """The values of the cookies of that name, a few at most: other applications of the same host set theirs beside it.

    RFC 6265, 5.4: pairs with a semicolon between them. What a pair of another name looks like is no concern of ours.
    """
    pairs = (pair.partition("=") for pair in header.split(";"))
    return [value.strip() for key, _, value in pairs if key.strip() == name][:_MOST_COOKIES]
