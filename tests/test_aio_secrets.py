"""An AsyncPool tells no password, nor do its tasks; and not an event loop in debug mode, which logs what it calls."""

import asyncio
import logging
import traceback
from typing import Any

import pytest
from aio_support import OpenPool, Stage, hold, outcome, put, run
from conftest import LIMIT, config

from pgdbpool.testing import Node

__all__ = ["run"]

SECRET = "aio-s3cr3t-w0rd"


def token() -> str:
    return SECRET


async def token_later() -> str:
    await asyncio.sleep(0)
    return SECRET


def no_token() -> str:
    raise ValueError(f"{SECRET} is no longer valid")


@pytest.mark.parametrize(
    "told", [SECRET, token, token_later, no_token], ids=["text", "function", "coroutine", "raises"]
)
def test_no_secret_is_in_any_repr_log_or_error_of_tasks(
    told: Any, pg_node: Node, run: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    async def story(open_pool: OpenPool) -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 0.0  # each callback is logged
        place: dict[str, Any] = {**pg_node.endpoint(ssl="disable"), "pass": told}
        for each in (place, {**place, "name": "nowhere"}):
            pool = open_pool(config(each, connection_count=2))
            task = asyncio.create_task(outcome(hold(pool, 1)))
            while not task.done():
                texts.extend(map(repr, asyncio.all_tasks()))
                await asyncio.sleep(0)
            result = task.result()
            if isinstance(result, BaseException):
                texts.extend([*traceback.format_exception(result), repr(result)])
            else:
                texts.append(repr(pool.holders()))
                await put(pool, *result)
            texts.extend([repr(pool), repr(pool._settings), repr(pool.stats()), repr(pool.endpoints())])
            await pool.close()

    run(story, limit=2 * LIMIT)
    everything = "\n".join([*texts, caplog.text, *(str(record.__dict__) for record in caplog.records)])
    words = "callable given as pass raised ValueError" if told is no_token else 'database "nowhere" does not exist'
    assert words in everything
    assert SECRET not in everything
