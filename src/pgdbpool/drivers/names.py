"""Looks up the addresses of a host, without anybody waiting who does not want to.

The resolver of the C library blocks, for half a minute where its servers do not answer, and cannot be interrupted. An
event loop's own `getaddrinfo` calls it in a thread that the application's other work waits for, and that the end of the
program waits for. So each look-up has a daemon thread; and there is one for a host at a time, however many connects and
probes ask for it, so that a resolver that hangs does not collect threads.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from concurrent.futures import Future

Found = Future[list[str]]

# By process too: a forked child does not have the thread. `setdefault` and `pop` are atomic, so there is no lock that a
# child could inherit while it is held.
_under_way: dict[tuple[int, str], Found] = {}


def look_up(host: str) -> Found:
    """The addresses of a host, in the resolver's order, or its OSError. Not to be cancelled: others may wait for it."""
    key = (os.getpid(), host)
    mine: Found = Future()
    found = _under_way.setdefault(key, mine)
    if found is mine:
        try:
            threading.Thread(target=_ask, args=(key, mine), name="pgdbpool lookup", daemon=True).start()
        except RuntimeError as error:  # no thread to be had
            _under_way.pop(key, None)
            mine.set_exception(OSError(0, str(error)))
    return found


def _ask(key: tuple[int, str], found: Found) -> None:
    try:
        infos = socket.getaddrinfo(key[1], None, type=socket.SOCK_STREAM)
    except BaseException as error:
        _under_way.pop(key, None)
        found.set_exception(error)
    else:
        _under_way.pop(key, None)
        found.set_result(list(dict.fromkeys(str(info[4][0]) for info in infos)))


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
