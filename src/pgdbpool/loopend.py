"""Tells when an event loop is about to end.

No loop has a callback for that. But `asyncio.run`, its relatives and the application servers have their loop close the
asynchronous generators that began in it (`shutdown_asyncgens`), after they have cancelled its tasks and before they
close it. So a generator that only waits to be closed hears of the end at the right moment, and can still clean up. It
costs nothing meanwhile, and is no task that somebody may cancel or wait for.

A loop that is closed without more ado tells nobody.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress


class LoopEnd:
    """Calls `at_end` once, when the loop that runs now ends, and awaits it. To be kept for as long as it is wanted."""

    def __init__(self, at_end: Callable[[], Awaitable[None]]) -> None:
        self._at_end: Callable[[], Awaitable[None]] | None = at_end
        self._generator = self._sleep()
        with suppress(StopIteration):  # its first step waits for nothing
            self._generator.__anext__().send(None)

    def forget(self) -> None:
        """Do not call it any more."""
        self._at_end = None
        with suppress(StopIteration, RuntimeError):  # nor does its last step; RuntimeError: it is being called
            self._generator.aclose().send(None)

    async def _sleep(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            at_end, self._at_end = self._at_end, None
            if at_end is not None:
                await at_end()
