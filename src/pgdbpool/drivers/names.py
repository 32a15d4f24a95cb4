"""Where a host name leads to.

libpq would look it up itself, and psycopg keeps the interpreter to itself meanwhile: a name server that does not answer
would stop every thread of the process, for as long as the resolver waits. So it is done here, where other threads go
on, and libpq is told the addresses. Each connect looks anew.

`look_up` is for event loops. Its threads are daemons: a program does not wait for them at its end. Of one name there is
one lookup at a time, which all who ask for it share, so that a name server that is silent does not collect threads.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from ..core.evidence import Fault
from . import ConnectFailed

Params = Mapping[str, str | int]

_lock = threading.Lock()
_under_way: dict[str, Future[list[str]]] = {}  # by name; guarded by `_lock`


def name_in(params: Params) -> str | None:
    """The name that has to be looked up; None: an address, or the folder of a socket."""
    host = str(params.get("host", ""))
    if not host or "hostaddr" in params or host.startswith(("/", "@")) or _is_address(host):
        return None
    return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def addresses_of(name: str) -> list[str]:
    """Its addresses; waits for the resolver. Raises ConnectFailed."""
    try:
        infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or error
        raise ConnectFailed(f'could not translate host name "{name}" to address: {words}', Fault.UNRESOLVED) from None
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def look_up(name: str) -> Future[list[str]]:
    """The same, by a thread of its own."""
    with _lock:
        found = _under_way.get(name)
        if found is not None:
            return found
        future: Future[list[str]] = Future()
        future.set_running_or_notify_cancel()  # who gives up does so for himself alone

        def work() -> None:
            addresses: list[str] = []
            failure: BaseException | None = None
            try:
                addresses = addresses_of(name)
            except BaseException as error:
                failure = error
            with _lock:
                _under_way.pop(name, None)
            if failure is None:
                future.set_result(addresses)
            else:
                future.set_exception(failure)

        threading.Thread(target=work, name="pgdbpool lookup", daemon=True).start()
        _under_way[name] = future
        return future


def with_addresses(params: Params, name: str, addresses: Sequence[str]) -> dict[str, str | int]:
    """The parameters, so that libpq need not look."""
    # The name is still needed to verify the server's certificate, and to find a password in the passfile.
    return {**params, "hostaddr": ",".join(addresses), "host": ",".join([name] * len(addresses))}


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _under_way.clear()  # those threads are the parent's


os.register_at_fork(after_in_child=_after_fork)
