"""Tells when an event loop is about to end.

No loop has a callback for that. But `asyncio.run`, its relatives and the application servers have their loop close the
asynchronous generators that began in it (`shutdown_asyncgens`), after they have cancelled its tasks and before they
close it. So a generator that only waits to be closed hears of the end at the right moment, and can still clean up. It
costs nothing meanwhile, and is no task that somebody may cancel or wait for.

A loop that is closed without more ado does none of this. But it drops its timers: so a mark that only a timer knows
vanishes then, and with it, at the latest, one hears of the end. There is nothing to await any more.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

from .background import nobodys

_NEVER = 1e9  # s


class LoopEnd:
    """Calls `at_end` once, when the loop that runs now ends, and awaits it. To be kept for as long as it is wanted.

    If the loop is just closed, `at_close` is called instead, by whoever closes it.
    """

    def __init__(self, at_end: Callable[[], Awaitable[None]], at_close: Callable[[], None]) -> None:
        self._at_end: Callable[[], Awaitable[None]] | None = at_end
        self._generator = self._sleep()
        with suppress(StopIteration):  # its first step waits for nothing
            self._generator.__anext__().send(None)
        mark = _Mark()
        # Known weakly: a timer that we knew would keep the mark.
        self._timer = weakref.ref(asyncio.get_running_loop().call_later(_NEVER, mark.passed, context=nobodys()))
        self._closed = weakref.finalize(mark, at_close)
        self._closed.atexit = False

    def forget(self) -> None:
        """Do not call them any more."""
        self._at_end = None
        self._closed.detach()
        if (timer := self._timer()) is not None:
            timer.cancel()
        with suppress(StopIteration, RuntimeError):  # nor does its last step; RuntimeError: it is being called
            self._generator.aclose().send(None)

    async def _sleep(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            at_end, self._at_end = self._at_end, None
            if at_end is not None:
                await at_end()


class _Mark:
    def passed(self) -> None:
        """Never."""
