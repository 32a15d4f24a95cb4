"""A signal handler that raises in the event loop, whatever the pool is doing there, does not leave the pool deaf.

asyncio's own handler cancels the main task instead; others (a task queue's time limit, say) raise where they are.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aio_support import OpenPool, Stage, passes, run_plain
from conftest import LIMIT, SOON, config
from interruption import interrupt, traced

from pgdbpool import AsyncPool

__all__ = ["run_plain"]


def wake(pool: AsyncPool) -> Callable[[], None]:
    """Have the pool looked after soon."""
    return pool._keeper.wake


def look_after(pool: AsyncPool) -> Callable[[], None]:
    """Look after the pool, as the loop does now and then."""
    return pool._keeper._round


@traced
@pytest.mark.parametrize("work", [wake, look_after])
def test_a_pool_interrupted_at_any_moment_of_its_work_still_opens_connections(
    pg_node: Any, run_plain: Stage, work: Callable[[AsyncPool], Callable[[], None]]
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, monitor=False))
        await pool.wait(LIMIT)
        at, place = 0, ""
        while place is not None:
            at += 1
            place = interrupt(work(pool), at)
            pool.drain()  # so that one has to be opened
            try:
                await pool.putconn(await pool.getconn(timeout=SOON))
            except TimeoutError:
                pytest.fail(f"deaf since {place}")
            await passes()  # what it has to do is done
        assert at > 2

    run_plain(story)


@traced
def test_a_pool_interrupted_while_it_is_looked_after_will_be_looked_after_again(pg_node: Any, run_plain: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1, monitor=False))
        await pool.wait(LIMIT)
        keeper, loop = pool._keeper, asyncio.get_running_loop()
        itself = ("Tasks._round", "Tasks._sleep")  # one that is interrupted while it sets the timer has set none
        at, place = 0, ""
        while place is not None:
            at += 1
            assert keeper._timer is not None
            keeper._timer.cancel()  # as if it had rung
            place = interrupt(keeper._round, at)
            if place is None or not place.startswith(itself):
                assert not keeper._timer.cancelled(), f"not after an interruption in {place}"
                assert keeper._timer.when() <= loop.time() + 5.0
        assert at > 20

    run_plain(story)
