"""An asyncio event loop in a thread of its own: the engine of the proxy and of the impostor.

The tests are ordinary code and call plain methods; the work is done in the loop's thread, one thing at a
time, so the servers below need no locks.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines in a background thread until it is closed."""

    def __init__(self, name: str) -> None:
        # Not new_event_loop(): the tests may have installed another kind of loop, whose sockets behave
        # differently.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 30.0) -> T:
        """Run ``work`` in the loop and return its result; raises TimeoutError after ``timeout`` seconds."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def close(self) -> None:
        """Cancel what still runs, stop the loop and wait for the thread's end. May be called twice."""
        if self._loop.is_closed():
            return
        self.run(self._cancel_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _cancel_tasks() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were closed close their sockets in the next round


async def stop_listening(server: asyncio.Server) -> None:
    """Close a server's listening sockets; its open connections go on."""
    # What has been accepted already must find its server still open, or nobody would own it.
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # Not wait_closed(): that waits for the open connections too.
    server.close()
