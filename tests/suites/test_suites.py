"""The shim that stands in for psycopg_pool works, and the judge of its tests says what is not as it is known to be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from psycopg.rows import dict_row

from . import run
from .psycopg_pool_shim import AsyncConnectionPool, ConnectionPool


def test_what_is_not_as_it_is_known_to_be_is_said() -> None:
    differences = run.Differences({"a::test_one*": "for a reason", "a::test_gone": "for another"})
    outcomes = {"a::test_one[x]": False, "a::test_one[y]": True, "a::test_two": False, "a::test_three": True}
    assert run.judge(outcomes, differences) == [
        "fails: a::test_two",
        "passes, and is known to fail: a::test_one[y]",
        "is known to fail, and there is no such test: a::test_gone",
    ]
    assert run.judge({"a::test_one[x]": False, "a::test_gone": False}, differences) == []


def test_a_test_counts_as_failed_if_any_of_it_has_failed_and_not_if_it_was_skipped(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="suite.pool.test_pool" name="test_a"/>'
        '<testcase classname="suite.pool.test_pool" name="test_b"><error/></testcase>'
        '<testcase classname="suite.pool.test_pool" name="test_b"/>'
        '<testcase classname="suite.pool.test_pool" name="test_c"><skipped/></testcase></testsuite></testsuites>'
    )
    assert run.outcomes_in(report) == {"test_pool::test_a": True, "test_pool::test_b": False}


def test_each_known_difference_has_a_reason() -> None:
    assert all(run.known().reasons.values())


def test_the_shim_maps_the_arguments_of_psycopg_pool(pg_node: Any) -> None:
    conninfo = pg_node.conninfo(sslmode="disable")
    with ConnectionPool(
        lambda: conninfo, min_size=1, max_size=2, name="shop", kwargs={"row_factory": dict_row}
    ) as pool:
        pool.wait(20)
        with pool.connection() as conn:
            assert conn.execute("select 1 as n").fetchone() == {"n": 1}
        pool.resize(2)
        stats = pool.get_stats()
        assert (pool.name, stats["pool_max"], stats["requests_num"]) == ("shop", 2, 1)


def test_the_asynchronous_shim_maps_them_too(pg_node: Any) -> None:
    async def story() -> None:
        conninfo = pg_node.conninfo(sslmode="disable")
        async with AsyncConnectionPool(conninfo, min_size=1, kwargs={"autocommit": True}) as pool:
            conn = await pool.getconn(timeout=20)
            assert conn.autocommit
            await pool.putconn(conn)

    asyncio.run(story())
