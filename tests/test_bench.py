"""The harness of the benchmarks runs from end to end. No figure is looked at: machines differ."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import aio, observed
from bench.async_peers import ASYNC_PEERS
from bench.peers import Limits

ROOT = Path(__file__).resolve().parent.parent
MEASURES = {
    "uncontended_with",
    "uncontended_get",
    "contended_16_select",
    "contended_64_select",
    "contended_16_2",
    "contended_64_2",
    "roundtrip_same",
    "asyncio_with",
    "asyncio_100",
    "asyncio_1000",
    "observed_checkout",
    "observed_throughput",
    "growth",
    "restart_rested",
    "restart_used",
    "restart_down",
}


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "results.json"
    peers = ("--peer", "pgdbpool", "--peer", "psycopg_pool", "--peer", "psycopg2")
    printed = bench("--quick", "--scale", "0.05", *peers, "--json", str(file))
    return file, json.loads(file.read_text()), printed


def test_every_measure_has_its_table(results):
    _, content, _ = results
    assert {table["key"] for table in content["tables"]} - {"roundtrip_apart"} == MEASURES


def test_every_peer_has_a_row_or_a_reason(results):
    _, content, _ = results
    for table in content["tables"]:
        if table["key"].startswith("observed"):
            continue
        named = {row["peer"] for row in table["rows"]} | set(table["missing"])
        expected = {"pgdbpool", "psycopg_pool"} | (set() if table["key"].startswith("asyncio") else {"psycopg2"})
        assert expected <= named, table["key"]
        assert "pgdbpool" not in table["missing"], table["missing"]


@pytest.mark.parametrize("key", ["observed_checkout", "observed_throughput"])
def test_every_way_to_be_looked_at_has_a_row(key, results):
    _, content, _ = results
    (table,) = [table for table in content["tables"] if table["key"] == key]
    assert not table["missing"]
    ways = [way.name for way in observed.WAYS if way.storms or key == "observed_checkout"]
    assert [row["peer"] for row in table["rows"]] == ways


def test_who_is_served_after_one_who_asked_later_was_overtaken():
    assert aio.overtaken([0, 1, 4, 2, 3]) == 0.4
    assert aio.overtaken([]) == aio.overtaken([0, 1, 2]) == 0.0


@pytest.mark.parametrize("peer", ASYNC_PEERS, ids=lambda peer: peer.name)
def test_every_asyncio_pool_serves_and_closes(peer, pg_node):
    pytest.importorskip(peer.module, reason=f"{peer.module} comes with `make bench`")

    async def use() -> float:
        pool = peer()
        await pool.open([pg_node], Limits(1, 2))
        try:
            await pool.warm(2)
            async with pool.connection() as connection:
                assert (await pool.run(connection, "select 7"))[0] == 7
            return await pool.with_blocks(3)
        finally:
            await pool.close()

    assert asyncio.run(asyncio.wait_for(use(), 60)) > 0


def test_the_rows_have_what_the_columns_name(results):
    _, content, _ = results
    for table in content["tables"]:
        for row in table["rows"]:
            assert {column["key"] for column in table["columns"]} <= row.keys()


def test_the_results_say_on_what_they_were_measured(results):
    _, content, _ = results
    environment = content["environment"]
    assert {"command", "date", "python", "postgresql", "packages", "cpus"} <= environment.keys()
    assert "--json" not in environment["command"]


def test_targets_are_judged_and_not_asserted(results):
    _, content, printed = results
    assert len(content["targets"]) >= 15
    assert {target["reached"] for target in content["targets"]} <= {True, False, None}
    assert "Targets" in printed


def test_earlier_results_are_shown_again(results):
    file, _, printed = results
    assert bench("--show", str(file)) == printed
