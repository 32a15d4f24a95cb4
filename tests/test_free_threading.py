"""Without a global interpreter lock: not claimed, but nothing is read that another thread changes meanwhile.

The tests run on an interpreter that has one; the pool is told otherwise.
"""

import asyncio
import sys
import threading
from typing import Any

import pytest
from aio_support import OpenPool, Stage, run
from conftest import LIMIT, config, wait_for
from support import hold, put, start, stats, tidy  # noqa: F401

from pgdbpool import PoolTimeout, frames, interpreter, lost
from pgdbpool.clock import monotonic

__all__ = ["run"]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """No global interpreter lock, as far as the pool is told."""
    monkeypatch.setattr(interpreter, "_enabled", lambda: False)


def test_the_interpreter_is_asked_where_it_can_tell():
    assert interpreter.gil() is getattr(sys, "_is_gil_enabled", lambda: True)()


@pytest.fixture
def elsewhere(pg_node: Any, open_pool: Any) -> Any:
    """A pool with one connection, in the hands of another thread."""
    pool = open_pool(config(pg_node, connection_count=1))
    over = threading.Event()

    def user() -> None:
        with pool.connection(timeout=LIMIT) as conn:
            assert conn is not None
            assert over.wait(LIMIT)

    using = start(user)
    wait_for(lambda: stats(pool).leased == 1)
    yield pool
    over.set()
    using.result(LIMIT)


def test_with_a_lock_the_other_thread_is_found(elsewhere):
    if interpreter.gil():
        [holder] = elsewhere.holders()
        assert holder.where.endswith("user)")


def test_what_another_thread_holds_is_said_to_be_unknown(free, elsewhere):
    [holder] = elsewhere.holders()
    assert (holder.where, holder.thread, holder.stack) == ("unknown", "another thread", ())
    assert holder.state == "idle"
    with pytest.raises(PoolTimeout, match="held by unknown in another thread"):
        elsewhere.getconn(timeout=0.01)


def test_what_this_thread_holds_is_found(free, pg_node, open_pool):
    pool = open_pool(config(pg_node))
    with pool.connection(timeout=LIMIT) as conn:
        [holder] = pool.holders()
    assert conn is not None
    assert holder.where.endswith(f"({sys._getframe().f_code.co_qualname})")
    assert holder.thread == "MainThread"


def test_a_block_without_a_name_here_is_only_one_of_two_who_may_have_it(free, elsewhere):
    elsewhere.resize("default", 2)
    with elsewhere.connection(timeout=LIMIT):
        holders = elsewhere.holders()
    for holder in holders:
        assert holder.where.endswith(" or unknown")
        assert holder.thread == "MainThread or another thread"


def test_getconn_has_noted_who_called_it(free, pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    conn = start(pool.getconn, timeout=LIMIT).result(LIMIT)
    [holder] = pool.holders()
    pool.putconn(conn)
    assert "unknown" not in holder.where


def test_no_stack_of_another_thread_is_touched(free, elsewhere, monkeypatch):
    def touched() -> None:
        raise AssertionError("it was looked at")

    monkeypatch.setattr(sys, "_current_frames", touched)
    assert [name for name, _ in frames.threads()] == ["MainThread"]
    assert len(elsewhere.holders()) == 1


def test_nothing_is_taken_for_lost(free, pg_node, open_pool, monkeypatch):
    pool = open_pool(config(pg_node, connection_count=1))
    put(pool, *hold(pool, 1))
    assert pool._group("default").take(monotonic()) is not None  # and is thrown away
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.3)
    assert stats(pool).counters.closed == {}
    if lost.RELIABLE:
        monkeypatch.undo()
        put(pool, *hold(pool, 1))
        assert stats(pool).counters.closed == {"lost": 1}


def test_callers_that_wait_in_vain_are_counted_with_the_lock_held(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    group = pool._group("default")
    owned: list[bool] = []

    class Watched(type(group)):
        @property
        def vain_time(self) -> float:
            return self.__dict__["vain_time"]

        @vain_time.setter
        def vain_time(self, seconds: float) -> None:
            owned.append(self.lock._is_owned())
            self.__dict__["vain_time"] = seconds

    group.__class__ = Watched
    with pool.connection(timeout=LIMIT), pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.01)
    assert owned == [True]
    assert stats(pool).counters.timeouts == 1


def test_calls_are_ended_while_another_thread_begins_or_ends_to_make_a_connection_ready(pg_node, open_pool):
    class Changing(dict):
        left = 3

        def values(self):
            return Values()

    class Values:
        def __iter__(self):
            if Changing.left:
                Changing.left -= 1
                raise RuntimeError("dictionary changed size during iteration")
            return iter(())

    pool = open_pool(config(pg_node))
    pool._sessions._unready = Changing()
    pool._sessions.abort()


def test_tasks_are_looked_at_in_their_own_loop_only(free, pg_node, run: Stage) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(pg_node, connection_count=1))
        async with pool.connection(timeout=LIMIT) as conn:
            [here] = pool.holders()
            [there] = await asyncio.to_thread(pool.holders)
        assert conn is not None
        assert "story" in here.where
        assert there.where == "unknown"

    run(story)
