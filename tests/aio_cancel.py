"""Cancels a task at one certain point: where its coroutine suspends for the n-th time.

Two moments matter at each of these points::

    early   the cancellation comes before what is waited for: `Task.cancel` cancels the future
    late    what is waited for has come, and the task has not run yet: so it is cancelled with the result in its hands
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Literal

Moment = Literal["early", "late"]
MOMENTS: tuple[Moment, Moment] = ("early", "late")


class Cancelled:
    """Awaits a coroutine, and has its task cancelled at the n-th point. `hit`: whether there was one."""

    def __init__(self, work: Coroutine[Any, Any, Any], point: int, moment: Moment) -> None:
        self._work = work
        self._point = point
        self._moment = moment
        self.hit = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        error: BaseException | None = None
        point = 0
        while True:
            try:
                waits_for = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration as end:
                return end.value
            if point == self._point:
                self.hit = True
                if self._moment == "early" or waits_for is None:
                    task.cancel()  # we run, so it takes effect at the `yield` below
                else:
                    waits_for.add_done_callback(lambda _: task.cancel())  # before that which wakes the task
            point += 1
            try:
                error = None
                yield waits_for
            except BaseException as thrown:
                error = thrown


async def cancelled_at(work: Coroutine[Any, Any, Any], point: int, moment: Moment) -> tuple[bool, Any]:
    """Whether there was such a point, and what came of the task: its result, or what it raised."""
    cancelled = Cancelled(work, point, moment)

    async def whole() -> Any:
        return await cancelled

    task = asyncio.ensure_future(whole())
    (result,) = await asyncio.gather(task, return_exceptions=True)
    return cancelled.hit, result
