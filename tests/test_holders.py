"""Who holds a connection, where it has no name: ``with pool.connection():``."""

import ast
import asyncio
import json
import linecache
import sys
import threading
import weakref
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from conftest import LIMIT, config, output, python, wait_for
from support import Wire, hold, put, start, stats, tidy  # noqa: F401

from pgdbpool import AsyncPool, PoolExhausted, PoolTimeout, reasons
from pgdbpool import pool as dbpool
from pgdbpool.holders import holders
from pgdbpool.session import Sessions
from pgdbpool.unnamed import holds_unnamed


def here(function: Any, line: int) -> str:
    """A place in this file: so many lines below the head of a function."""
    code = function.__code__
    return f"{__file__}:{code.co_firstlineno + line} ({code.co_qualname})"


def test_a_block_that_gives_its_connection_no_name_is_found_all_the_same(pg_node, open_pool):
    pool = open_pool(config(pg_node))

    def user() -> Any:
        with pool.connection(timeout=LIMIT):
            return pool.holders()

    [holder] = user()
    assert (holder.where, holder.thread) == (here(user, 2), "MainThread")


def test_so_is_a_handler(pg_node):
    pool = dbpool.Connection.init(config(pg_node))
    try:

        def user() -> Any:
            with dbpool.Handler(timeout=LIMIT):
                return pool.holders()

        [holder] = user()
        assert holder.where == here(user, 2)
    finally:
        dbpool.Connection.close()


def test_a_lease_that_is_just_being_made_holds_nothing(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    made = object.__new__(type(pool.connection()))
    with pool.connection(timeout=LIMIT) as conn:
        [holder] = pool.holders()
    assert holder.where.endswith(f"({sys._getframe().f_code.co_qualname})")
    del made, conn


def test_it_is_named_in_the_error_of_one_who_gets_none(pg_node, open_pool):
    pool = open_pool(config(pg_node, type="non-threaded", connection_count=1))

    def user() -> None:
        with pool.connection():
            pool.getconn()

    with pytest.raises(PoolExhausted) as caught:
        user()
    assert here(user, 2) in str(caught.value)


def test_the_second_of_two_in_one_head_waits_for_the_first(pg_node, open_pool):
    pool = open_pool(config(pg_node, type="non-threaded", connection_count=1))

    def user() -> None:
        with pool.connection(), pool.connection():
            raise AssertionError

    with pytest.raises(PoolExhausted) as caught:
        user()
    assert str(caught.value).count(here(user, 1)) == 1


def test_who_waits_in_the_head_of_a_block_does_not_hold(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    taken, over = threading.Event(), threading.Event()

    def holds() -> None:
        with pool.connection(timeout=LIMIT):
            taken.set()
            over.wait(LIMIT)

    def waits() -> None:
        with pool.connection(timeout=0.01):
            raise AssertionError

    holding = start(holds)
    taken.wait(LIMIT)
    with pytest.raises(PoolTimeout) as caught:
        waits()
    over.set()
    holding.result(LIMIT)
    assert here(holds, 3) in str(caught.value)
    assert here(waits, 1) not in str(caught.value)


def test_a_name_is_believed_before_a_block_without_one(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))

    def user() -> Any:
        with pool.connection(timeout=LIMIT) as conn:
            assert conn
            return other()

    def other() -> Any:
        with pool.connection(timeout=LIMIT):
            return pool.holders()

    assert [holder.where for holder in user()] == [here(user, 3), here(other, 2)]


def test_the_thread_that_has_just_opened_a_connection_does_not_hold_it(pg_node, open_pool, monkeypatch):
    goes_on, abort = threading.Event(), Sessions.abort

    def stays(sessions: Sessions) -> None:
        if threading.current_thread().name.endswith("opener"):  # it has handed the connection over before
            goes_on.wait(LIMIT)
        abort(sessions)

    monkeypatch.setattr(Sessions, "abort", stays)
    pool = open_pool(config(pg_node, monitor=False))

    def user() -> Any:
        with pool.connection(timeout=LIMIT):
            return pool.holders()

    try:
        [holder] = user()
    finally:
        goes_on.set()
    assert (holder.where, holder.thread) == (here(user, 2), "MainThread")


def test_on_the_way_out_of_a_block_without_a_name_it_is_held_by_the_function_with_the_block(pg_node, open_pool):
    with pg_node.proxy() as proxy:
        pool = open_pool(config(proxy, monitor=False, autocommit=False))
        stalled = threading.Event()

        def user() -> None:
            with pool.connection(timeout=LIMIT):
                next(iter(pool._groups["default"].lanes[0].slots)).conn.execute("select 1")
                proxy.stall()
                stalled.set()

        leaving = start(user)
        assert stalled.wait(LIMIT)
        wait_for(lambda: [each.state for each in pool.holders()] == ["active"])
        [holder] = pool.holders()
        proxy.resume()
        leaving.result(LIMIT)
    assert holder.where == here(user, 1)


def test_blocks_of_another_kind_and_functions_inside_hold_nothing(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    lock = threading.Lock()

    def user() -> Any:
        with lock, pool.connection(timeout=LIMIT):

            def inside() -> Any:
                with lock_of_its_own:
                    return pool.holders()

            return inside()

    lock_of_its_own = threading.Lock()
    with lock_of_its_own:
        pass
    [holder] = user()
    assert holder.where == here(user, 7)


def test_it_is_found_at_the_top_of_a_program(pg_node, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\n"
        "from pgdbpool import Pool\n"
        "pool = Pool(json.loads(sys.argv[1]))\n"
        "with pool.connection(timeout=20):\n"
        "    print(pool.holders()[0].where)\n"
    )
    code = f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')"
    assert output(python(code, json.dumps(config(pg_node)))) == f"{program}:5 (<module>)\n"


def test_where_the_source_cannot_be_had_it_says_that_it_does_not_know(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    names: dict[str, Any] = {"pool": pool}
    exec("def user():\n    with pool.connection(timeout=20):\n        return pool.holders()\n", names)
    [holder] = names["user"]()
    assert (holder.where, holder.thread) == ("a place on no thread's stack", "no thread")


def test_source_that_is_no_python_is_no_error(monkeypatch):
    monkeypatch.setattr(linecache, "getlines", lambda *_: ["with pool.connection( :\n"])
    frame = next(iter(sys._current_frames().values()))
    assert holds_unnamed(frame) is False


def test_it_is_said_what_each_session_is_doing(pg_node, open_pool):
    pool = open_pool(config(pg_node, groups={"idle": {}, "open": {"autocommit": False}, "active": {}, "lost": {}}))
    sleeping = threading.Event()

    def sleep() -> None:
        with pool.connection("active", timeout=LIMIT) as conn:
            sleeping.set()
            conn.execute("select pg_sleep(60)")

    asleep = start(sleep)
    with (
        pool.connection("idle", timeout=LIMIT) as idle,
        pool.connection("open", timeout=LIMIT) as opened,
        pool.connection("lost", timeout=LIMIT) as lost,
    ):
        opened.execute("select 1")
        lost.close()
        sleeping.wait(LIMIT)
        wait_for(lambda: pool.holders("active")[0].state == "active")
        assert {holder.group: holder.state for holder in pool.holders()} == {
            "idle": "idle",
            "open": "idle in transaction",
            "active": "active",
            "lost": "lost",
        }
        [holder] = pool.holders("active")
        assert here(sleep, 3) in holder.stack
        assert "server up, answered " in str(holder)
        idle.execute("select pg_cancel_backend(%s)", (int(holder.connection.removeprefix("backend ")),))
    with pytest.raises(psycopg.errors.QueryCanceled):
        asleep.result(LIMIT)


def test_who_gets_none_is_told_what_the_others_are_doing_without_a_word_to_the_server(pg_node, open_pool):
    with Wire(pg_node) as wire:
        pool = open_pool(config(wire, connection_count=1, autocommit=False, monitor=False))
        with pool.connection(timeout=LIMIT) as conn:
            conn.execute("select 1")
            said = len(wire.statements)
            with pytest.raises(PoolTimeout, match=r"idle in transaction; server up, answered [0-9.]+ s ago"):
                pool.getconn(timeout=0.01)
            assert len(wire.statements) == said


def test_a_parser_that_fails_for_a_moment_is_no_error_and_not_for_good(monkeypatch):
    source = f"# {id(monkeypatch)}: not seen before\nwith pool.connection():\n    here()\n"
    monkeypatch.setattr(linecache, "getlines", lambda *_: [source])
    frame = next(iter(sys._current_frames().values()))
    with monkeypatch.context() as broken:
        # What CPython 3.11 says when two threads parse at the same moment.
        broken.setattr(ast, "parse", Mock(side_effect=SystemError("AST constructor recursion depth mismatch")))
        assert holds_unnamed(frame) is False
    parse = Mock(side_effect=ast.parse)
    monkeypatch.setattr(ast, "parse", parse)
    holds_unnamed(frame)
    parse.assert_called_once()


def test_a_caller_is_told_that_it_waited_in_vain_even_if_the_holders_cannot_be_found(pg_node, open_pool, monkeypatch):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection(timeout=LIMIT):
        monkeypatch.setattr("pgdbpool.holders._Search", Mock(side_effect=SystemError("a bug elsewhere")))
        with pytest.raises(PoolTimeout, match="held by somebody who cannot be told"):
            pool.getconn(timeout=0.01)


def test_a_look_at_very_many_stacks_ends_before_it_is_through_and_says_so(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection(timeout=LIMIT) as conn:
        [holder] = holders(pool._groups["default"], pool._driver, most=0)
        assert (holder.where, holder.thread) == (
            "somewhere",
            "one of very many tasks or threads, not all of which were looked at",
        )
        assert str(conn.info.backend_pid) in holder.connection, "what is known without a look is said"


def test_callers_that_get_none_do_not_look_again_before_fifty_times_as_long_as_it_took(pg_node, open_pool, monkeypatch):
    pool = open_pool(config(pg_node, connection_count=1))
    now, looks = 1000.0, 0

    def look(group: Any) -> list[Any]:
        nonlocal now, looks
        looks += 1
        now += 2.0  # as with very many tasks
        return []

    monkeypatch.setattr(reasons, "monotonic", lambda: now)
    says = reasons.Reasons(pool._topology, look)
    group = pool._groups["default"]
    for seconds, expected in ((0.0, 1), (1.0, 1), (98.0, 1), (2.0, 2), (99.0, 2), (2.0, 3)):
        now += seconds
        says.holders(group)
        assert looks == expected


def test_a_task_that_waits_in_such_a_block_is_found(pg_node):
    async def user(pool: AsyncPool, taken: asyncio.Event) -> None:
        async with pool.connection(timeout=LIMIT):
            taken.set()
            await asyncio.Event().wait()

    async def main() -> Any:
        async with AsyncPool(config(pg_node)) as pool:
            taken = asyncio.Event()
            task = asyncio.create_task(user(pool, taken), name="the user")
            await taken.wait()
            found = pool.holders()
            task.cancel()
            await asyncio.wait([task])
            return found

    [holder] = asyncio.run(main())
    assert (holder.where, holder.thread) == (here(user, 3), "task the user")


# -- looking leaves no trace ------------------------------------------------------------------------------------------


class Thing:
    """Something whose end can be seen."""


def test_what_a_function_gives_up_after_a_look_is_not_kept_alive_by_the_look(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    thing = Thing()
    alive = weakref.ref(thing)
    with pool.connection(timeout=LIMIT) as conn:
        assert len(pool.holders()) == 1
    del conn, thing
    assert alive() is None


def test_nor_by_the_search_for_lost_connections_that_comes_later(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    with pool.connection(timeout=LIMIT) as conn:
        assert pool.holders()
        thing = Thing()
        alive = weakref.ref(thing)
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.0)
    del conn, thing
    assert alive() is None


def test_a_copy_of_its_variables_that_a_function_has_itself_is_left_to_it(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    mine = "still here"
    copy = locals()
    with pool.connection(timeout=LIMIT) as conn:
        assert len(pool.holders()) == 1
        pool._keeper.reclaim(pool._group("default"))
    assert copy["mine"] is mine
    assert conn
