"""TLS that was there stays.

With `prefer` libpq makes a connection without TLS where the server offers none. So whoever answers in the place of a
server that was lost would get the password, and the writes, in plain text. Therefore an endpoint that has spoken TLS
once is not used without it again in this process: by no pool, no group and no probe. Where that is not wanted the
configuration or the environment says `disable` or `allow`.

That is no proof of who answers. Only `verify-ca` and `verify-full` are.
"""

from __future__ import annotations

from typing import NamedTuple

from ..config.environment import Refused, libpq_choice
from ..core.evidence import Fault
from . import ConnectFailed, Params

NONE_OFFERED = "SSL, but SSL was required"  # how libpq puts it


class Place(NamedTuple):
    """An endpoint, as libpq is told of it."""

    host: str
    port: str


_spoken: set[Place] = set()  # a child that is forked inherits what its parent knows


def place_of(params: Params) -> Place:
    """Where a connection with these parameters leads to."""
    host = str(params.get("host", ""))
    # A name is there once for each of its addresses.
    return Place(host if host.startswith(("/", "@")) else host.partition(",")[0].lower(), str(params.get("port", "")))


def note(place: Place) -> None:
    """A connection speaks TLS there."""
    _spoken.add(place)


def must_stay(params: Params, place: Place) -> bool:
    """Whether libpq would do without TLS at a place that has spoken it."""
    if place not in _spoken:
        return False
    mode = params.get("sslmode")
    if mode is None:
        try:
            mode = libpq_choice(params).values.get("sslmode")
        except Refused:  # the connect will say so
            return False
    return mode == "prefer"


def explained(error: ConnectFailed, place: Place) -> ConnectFailed:
    """What it means that a connect failed for which TLS had to stay."""
    if NONE_OFFERED not in str(error):
        if error.fault is not Fault.MISCONFIGURED or error.sqlstate:
            return error
        words = f"{error} (and not without TLS, which {place.host}:{place.port} has spoken before)"  # in any language
        return ConnectFailed(words, error.fault)
    return ConnectFailed(
        f"{place.host}:{place.port} has spoken TLS before and offers none now, so it gets neither password nor writes: "
        'is it another server? If its TLS was turned off on purpose, restart this process, or set ssl to "allow"',
        Fault.MISCONFIGURED,
        sqlstate=error.sqlstate,
    )
