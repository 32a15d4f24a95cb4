"""`leak_threshold`: a lease that lasts too long is reported once, with who has it and where it was taken."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import monotonic
from typing import Any
from unittest.mock import Mock

import pytest
from aio_support import run_plain, until  # noqa: F401
from conftest import LIMIT, config, python, wait_for
from support import put, start, stats, tidy  # noqa: F401

from pgdbpool import AsyncPool, Event, EventKind
from pgdbpool import pool as dbpool
from pgdbpool.leaks import NOTE_EVERY

THRESHOLD = 0.1
HOUR = 3600.0


def here(function: Any, line: int) -> str:
    """A place in this file: so many lines below the head of a function."""
    code = function.__code__
    return f"{__file__}:{code.co_firstlineno + line} ({code.co_qualname})"


@pytest.fixture
def heard() -> list[Event]:
    """Where a test has the events collected."""
    return []


def leaks(heard: list[Event]) -> list[Event]:
    return [event for event in list(heard) if event.kind is EventKind.LEAK_SUSPECTED]


def ended(heard: list[Event]) -> list[Event]:
    return [event for event in list(heard) if event.kind is EventKind.LEAK_ENDED]


def look(pool: Any) -> None:
    """Look at leases of a `leak_threshold` of an hour as if it had passed: they are where the test wants them to be."""
    pool._keeper.look_for_leaks(monotonic() + HOUR)
    pool._keeper.wake()


def wait_here(ready: threading.Event, over: threading.Event) -> None:
    assert (ready.set(), over.wait(LIMIT)) == (None, True)


def test_a_lease_that_lasts_too_long_is_reported_with_its_holder(pg_node, open_pool, heard):
    pool = open_pool(config(pg_node, leak_threshold=HOUR))
    pool.on_event(heard.append)
    ready, over = threading.Event(), threading.Event()

    def user() -> None:
        with pool.connection(timeout=LIMIT) as conn:
            conn.execute("select 1")
            wait_here(ready, over)

    holding = start(user)
    assert ready.wait(LIMIT)
    look(pool)
    [leak] = wait_for(lambda: leaks(heard))
    over.set()
    holding.result(LIMIT)
    assert (leak.group, leak.endpoint) == ("default", f"127.0.0.1:{pg_node.port}")
    assert leak.seconds >= HOUR
    assert f"{here(user, 3)} in test user for" in leak.message
    assert "(leak_threshold 3600 s)" in leak.message
    assert "idle; server up" in leak.message


def test_the_report_has_the_stack_of_the_checkout_and_that_of_the_holder_now(pg_node, open_pool, heard):
    pool = open_pool(config(pg_node, leak_threshold=HOUR))
    pool.on_event(heard.append)
    ready, over = threading.Event(), threading.Event()

    def outside() -> None:
        user()

    def user() -> None:
        with pool.connection(timeout=LIMIT):
            wait_here(ready, over)

    holding = start(outside)
    assert ready.wait(LIMIT)
    look(pool)
    [leak] = wait_for(lambda: leaks(heard))
    over.set()
    holding.result(LIMIT)
    taken, now = leak.details.split("now at:")
    assert taken.startswith("taken at:\n  ")
    taken_lines, now_lines = taken.split("\n"), now.split("\n")
    assert [line.strip() for line in taken_lines if __file__ in line] == [here(outside, 1), here(user, 1)]
    assert [line.strip() for line in now_lines if __file__ in line] == [
        here(outside, 1),
        here(user, 2),
        here(wait_here, 1),
    ]
    assert "pgdbpool/sync.py" not in leak.details


def test_each_lease_is_reported_once_and_its_end_as_well(pg_node, open_pool, heard):
    pool = open_pool(config(pg_node, leak_threshold=THRESHOLD, connection_count=2))
    pool.on_event(heard.append)
    first = pool.getconn(timeout=LIMIT)
    wait_for(lambda: leaks(heard))
    second = pool.getconn(timeout=LIMIT)
    wait_for(lambda: len(leaks(heard)) == 2)
    assert ended(heard) == []
    put(pool, first)
    wait_for(lambda: len(ended(heard)) == 1)
    again = pool.getconn(timeout=LIMIT)
    wait_for(lambda: len(leaks(heard)) == 3)
    put(pool, second, again)
    wait_for(lambda: len(ended(heard)) == 3)
    assert len(leaks(heard)) == 3
    assert stats(pool).counters.leaks == 3
    assert pool.stats().events["leak-suspected"] == 3
    assert all(event.seconds >= THRESHOLD for event in ended(heard))


def test_a_short_lease_is_not_reported(pg_node, open_pool, heard):
    groups = {"watched": {"leak_threshold": 3600}, "also": {"leak_threshold": THRESHOLD}, "not": {}}
    pool = open_pool(config(pg_node, groups=groups))
    pool.on_event(heard.append)
    held = [pool.getconn(group, timeout=LIMIT) for group in groups]
    wait_for(lambda: leaks(heard))
    wait_for(lambda: stats(pool, "not").longest_use > 3 * THRESHOLD)
    put(pool, *held)
    assert [leak.group for leak in leaks(heard)] == ["also"]
    assert [stats(pool, group).counters.leaks for group in groups] == [0, 1, 0]


def test_the_log_has_it_with_both_stacks(pg_node, open_pool, caplog):
    caplog.set_level(logging.INFO, "pgdbpool")
    pool = open_pool(config(pg_node, leak_threshold=THRESHOLD))

    def user() -> Any:
        return pool.getconn(timeout=LIMIT)

    def records() -> list[Any]:
        return [record for record in caplog.records if "leak_threshold" in record.message]

    held = user()
    wait_for(records)
    put(pool, held)
    [record] = records()
    assert record.levelno == logging.WARNING
    assert "taken at:\n  " in record.message
    assert here(user, 1) in record.message
    assert "now at:\n  " in record.message
    wait_for(lambda: [record for record in caplog.records if "has ended" in record.message])


def test_a_handler_is_reported_as_well(pg_node, heard):
    pool = dbpool.Connection.init(config(pg_node, leak_threshold=THRESHOLD))
    pool.on_event(heard.append)
    try:

        def user() -> None:
            with dbpool.Handler(timeout=LIMIT):
                wait_for(lambda: leaks(heard))

        user()
        [leak] = leaks(heard)
        assert here(user, 1) in leak.details.split("now at:")[0]
    finally:
        dbpool.Connection.close()


def test_a_block_on_no_stack_is_named_by_its_checkout(pg_node, open_pool, heard):
    pool = open_pool(config(pg_node, leak_threshold=HOUR))
    pool.on_event(heard.append)

    @contextmanager
    def session() -> Iterator[Any]:
        with pool.connection(timeout=LIMIT):
            yield

    with session():
        look(pool)
        [leak] = wait_for(lambda: leaks(heard))
        [holder] = pool.holders()
    assert here(session.__wrapped__, 2) in leak.message  # type: ignore[attr-defined]
    assert (holder.where, holder.thread) == (here(session.__wrapped__, 2), "MainThread")  # type: ignore[attr-defined]
    assert any("test_a_block_on_no_stack" in line for line in holder.checkout)


def test_a_lease_that_nobody_has_any_more_is_ended(pg_node, open_pool, heard, caplog):
    pool = open_pool(config(pg_node, leak_threshold=THRESHOLD, connection_count=1))
    pool.on_event(heard.append)

    def user() -> None:
        pool.getconn(timeout=LIMIT)

    user()
    [leak] = wait_for(lambda: leaks(heard))
    assert here(user, 1) in leak.message
    wait_for(lambda: stats(pool).counters.closed.get("lost"))
    with pool.connection(timeout=LIMIT) as conn:
        conn.execute("select 1")
    assert "nobody holds it any more" in caplog.text


def test_it_is_reported_also_if_the_holders_cannot_be_found(pg_node, open_pool, heard, monkeypatch):
    pool = open_pool(config(pg_node, leak_threshold=THRESHOLD))
    pool.on_event(heard.append)
    monkeypatch.setattr("pgdbpool.holders._Search", Mock(side_effect=SystemError("a bug elsewhere")))
    with pool.connection(timeout=LIMIT):
        [leak] = wait_for(lambda: leaks(heard))
    assert leak.message.endswith("(leak_threshold 0.1 s)")
    assert "test_it_is_reported_also" in leak.details


def test_where_many_check_out_a_sample_notes_its_stack(pg_node, open_pool):
    pool = open_pool(config(pg_node, leak_threshold=3600))
    [slot] = wait_for(lambda: list(pool._groups["default"].lanes[0].slots))
    noted = set()
    count = 0
    while len(noted) < 3:
        with pool.connection(timeout=LIMIT):
            count += 1
        noted.add(slot.stack.taken)
        assert slot.stack.taken <= slot.taken
    times = sorted(noted)
    assert all(later - sooner >= NOTE_EVERY for sooner, later in pairwise(times))


def test_where_nobody_watches_nothing_is_noted(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    with pool.connection(timeout=LIMIT):
        [holder] = pool.holders()
    assert holder.checkout == ()
    assert all(slot.stack is None for slot in pool._groups["default"].lanes[0].slots)


# -- the other models -------------------------------------------------------------------------------------------------


def test_without_threads_it_is_found_by_whoever_uses_the_pool_next(pg_node, open_pool, heard):
    pool = open_pool(config(pg_node, type="non-threaded", leak_threshold=THRESHOLD, connection_count=2))
    pool.on_event(heard.append)

    def user() -> Any:
        return pool.getconn(timeout=LIMIT)

    held = user()

    def look() -> list[Event]:
        with pool.connection(timeout=LIMIT):
            pass
        return leaks(heard)

    [leak] = wait_for(look)
    put(pool, held)
    assert here(user, 1) in leak.message
    assert here(user, 1) in leak.details
    wait_for(lambda: look() and ended(heard))
    assert stats(pool).counters.leaks == 1


def test_without_threads_it_is_reported_when_it_is_over_if_nobody_could_before(pg_node, open_pool, heard):
    pool = open_pool(config(pg_node, type="non-threaded", leak_threshold=1.0))
    pool.on_event(heard.append)

    def user() -> None:
        with pool.connection(timeout=LIMIT):
            wait_for(lambda: stats(pool).longest_use > 1.1)

    user()
    [leak] = leaks(heard)
    assert leak.message.endswith("(leak_threshold 1 s), and is over")
    assert leak.seconds > 1.1
    assert here(user, 1) in leak.details
    with pool.connection(timeout=LIMIT):
        pass
    assert stats(pool).counters.leaks == len(leaks(heard)) == 1


def test_a_task_that_holds_for_too_long_is_reported(pg_node, run_plain, heard):  # noqa: F811
    async def user(pool: AsyncPool, over: asyncio.Event) -> None:
        async with pool.connection(timeout=LIMIT):
            await over.wait()

    async def story(open_pool: Callable[..., AsyncPool]) -> None:
        pool = open_pool(config(pg_node, leak_threshold=THRESHOLD))
        pool.on_event(heard.append)
        over = asyncio.Event()
        task = asyncio.create_task(user(pool, over), name="the user")
        await until(lambda: leaks(heard))
        over.set()
        await task
        await until(lambda: ended(heard))
        conn = await pool.getconn(timeout=LIMIT)
        await until(lambda: len(leaks(heard)) == 2)
        await pool.putconn(conn)

    run_plain(story)
    with_block, by_getconn = leaks(heard)
    assert f"{here(user, 2)} in task the user" in with_block.message
    taken, now = with_block.details.split("now at:")
    assert here(user, 1) in taken
    assert here(user, 2) in now
    assert "test_leaks.py" in by_getconn.details


def test_a_forked_child_watches_its_own(pg_node):
    program = """
        import json, os, sys, time
        from pgdbpool import Pool
        pool = Pool(json.loads(sys.argv[1]))
        counters = lambda: pool.stats().groups["default"].counters
        def leak():
            with pool.connection(timeout=20):
                deadline = time.monotonic() + 20
                while not counters().leaks:
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
        leak()
        pid = os.fork()
        if not pid:
            assert counters().leaks == 0
            leak()
            print("child", counters().leaks)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print("parent", counters().leaks)
    """
    process = python(program, json.dumps(config(pg_node, leak_threshold=THRESHOLD)))
    with process:
        out, err = process.communicate(timeout=LIMIT)
    assert out == "child 1\nparent 1\n", err
