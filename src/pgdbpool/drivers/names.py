"""Looks up the addresses of a host, without anybody waiting who does not want to.

libpq would look by itself; but psycopg keeps the interpreter for itself meanwhile, and a name server that does not
answer would stop every thread of the process. So each connect looks anew, and libpq is told one
address at a time (see `race`). A thread that may wait calls `addresses_of`.

The resolver of the C library blocks, for half a minute where its servers do not answer, and cannot be interrupted. An
event loop's own `getaddrinfo` calls it in a thread that the application's other work waits for, and that the end of the
program waits for. So each look-up has a daemon thread; and there is one for a host at a time, however many connects and
probes ask for it, so that a resolver that hangs does not collect threads.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from ..background import Worker
from ..core.evidence import Fault
from . import ConnectFailed
from .sealed import Params, Sealed, sealed

Found = Future[list[str]]


class _LookUp(Future[list[str]]):
    worker: Worker | None = None


# By process too: a forked child does not have the thread. `setdefault` and `pop` are atomic, so there is no lock that a
# child could inherit while it is held.
_under_way: dict[tuple[int, str], _LookUp] = {}


def name_in(params: Params) -> str | None:
    """The host that has to be looked up; None: an address, or the folder of a socket."""
    host = str(params.get("host", ""))
    if not host or params.get("hostaddr") or host.startswith(("/", "@")) or _is_address(host):
        return None
    return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def places(params: Params, addresses: Sequence[str] | None) -> list[Sealed]:
    """What libpq is told: once, or for each address of the host, so that it need not look. Raises ConnectFailed."""
    # The name is still needed to verify the server's certificate, and to find a password in the passfile.
    each = [params] if addresses is None else [{**params, "hostaddr": address} for address in addresses]
    return list(map(sealed, each))


def unresolved(host: str, error: Exception) -> ConnectFailed:
    """What a failed look-up means, in libpq's words."""
    words = getattr(error, "strerror", None) or error
    return ConnectFailed(f'could not translate host name "{host}" to address: {words}', Fault.UNRESOLVED)


def addresses_of(host: str) -> list[str]:
    """The addresses of a host; waits for the resolver. Raises ConnectFailed."""
    try:
        return _addresses(host)
    except (OSError, UnicodeError) as error:  # the latter: it cannot be a name at all
        raise unresolved(host, error) from None


def _addresses(host: str) -> list[str]:
    infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def look_up(host: str) -> Found:
    """The addresses of a host, in the resolver's order, or its OSError. Not to be cancelled: others may wait for it."""
    key = (os.getpid(), host)
    mine = _LookUp()
    found = _under_way.setdefault(key, mine)
    if found is mine:
        try:
            mine.worker = Worker("pgdbpool lookup", _ask, key, mine)
            mine.worker.start()
        except (RuntimeError, MemoryError) as error:  # no thread to be had
            _under_way.pop(key, None)
            mine.set_exception(OSError(0, str(error)))
    elif found.worker is not None and found.worker.gone and not found.done():  # its thread has died: the next one asks
        _under_way.pop(key, None)
        with suppress(InvalidStateError):
            found.set_exception(OSError(0, "its thread has died"))
    return found


def _ask(key: tuple[int, str], found: Found) -> None:
    try:
        addresses = _addresses(key[1])
    except BaseException as error:
        _under_way.pop(key, None)
        found.set_exception(error)
    else:
        _under_way.pop(key, None)
        found.set_result(addresses)


def look_up_here(host: str) -> asyncio.Future[list[str]]:
    """The same for the running loop. May be cancelled: that ends the waiting, and not the look-up."""
    loop = asyncio.get_running_loop()
    here: asyncio.Future[list[str]] = loop.create_future()

    def end(found: Found) -> None:
        if here.done():
            return
        error = found.exception()
        if error is not None:
            here.set_exception(error)
        else:
            here.set_result(found.result())

    def ended(found: Found) -> None:
        try:
            loop.call_soon_threadsafe(end, found)
        except RuntimeError:  # the loop was closed: nobody waits
            pass

    look_up(host).add_done_callback(ended)
    return here
