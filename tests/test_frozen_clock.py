"""A clock that a test stands still, as freezegun does, makes no checkout wait for ever, and blinds no monitor."""

import json
import select
import subprocess

import pytest
from conftest import LIMIT, config, output, python, wait_for

from pgdbpool.testing import Node

STAND_STILL = """
import asyncio, json, logging, sys, time
import psycopg
from pgdbpool import AsyncPool, Pool, PoolTimeout

goes_on = [time.monotonic]

def stand_still():  # as freezegun: wherever a loaded module refers to it, by identity
    real, now = time.monotonic, time.monotonic()
    for name, module in list(sys.modules.items()):
        if name != "threading":
            for key, value in list(vars(module).items()):
                if value is real:
                    setattr(module, key, lambda: now)

def run(work):  # the loop of the application goes on, as with freezegun's real_asyncio
    loop = asyncio.new_event_loop()
    loop.time = goes_on[0]
    loop.run_until_complete(work)
    loop.close()

logging.disable()
stand_still()
"""

CHECKOUTS = """
with Pool(json.loads(sys.argv[1])) as pool:
    with pool.connection(timeout=20) as conn:
        print(conn.execute("select 1").fetchone()[0])
        try:
            pool.getconn(timeout=0.2)
        except PoolTimeout:
            print("in vain")
"""

CHECKOUTS_OF_TASKS = """
async def main():
    async with AsyncPool(json.loads(sys.argv[1])) as pool:
        async with pool.connection(timeout=20) as conn:
            print((await (await conn.execute("select 1")).fetchone())[0])
            try:
                await pool.getconn(timeout=0.2)
            except PoolTimeout:
                print("in vain")

run(main())
"""


@pytest.mark.parametrize("model", ["threaded", "non-threaded", "asyncio"])
def test_a_pool_goes_on_while_the_clock_stands_still(pg_node: Node, model: str) -> None:
    settings = config(pg_node, type="threaded" if model == "asyncio" else model, connection_count=1)
    program = python(STAND_STILL + (CHECKOUTS_OF_TASKS if model == "asyncio" else CHECKOUTS), json.dumps(settings))
    assert output(program) == "1\nin vain\n"


# A server that says nothing is found out by the monitor, which ends the call; and it is found again.

CALL = """
with Pool(json.loads(sys.argv[1])) as pool:
    try:
        with pool.connection(timeout=20) as conn:
            print("asks")
            conn.execute("select pg_sleep(600)")
    except psycopg.OperationalError:
        print("ended")
    input()
    with pool.connection(timeout=20) as conn:
        print(conn.execute("select 1").fetchone()[0])
"""

CALL_OF_A_TASK = """
async def main():
    async with AsyncPool(json.loads(sys.argv[1])) as pool:
        try:
            async with pool.connection(timeout=20) as conn:
                print("asks")
                await conn.execute("select pg_sleep(600)")
        except psycopg.OperationalError:
            print("ended")
        await asyncio.to_thread(input)
        async with pool.connection(timeout=20) as conn:
            print((await (await conn.execute("select 1")).fetchone())[0])

run(main())
"""


@pytest.mark.parametrize("model", ["threaded", "non-threaded", "asyncio"])
def test_so_does_what_finds_out_that_a_server_is_frozen(pg_node: Node, model: str) -> None:
    settings = config(pg_node, type="threaded" if model == "asyncio" else model)
    program = python(STAND_STILL + (CALL_OF_A_TASK if model == "asyncio" else CALL), json.dumps(settings))
    try:
        assert line_of(program) == "asks\n"
        wait_for(lambda: [row for row in pg_node.backends("pgdbpool:default") if row["state"] == "active"])
        pg_node.freeze()
        assert line_of(program) == "ended\n"
        pg_node.thaw()
        assert program.stdin is not None
        print(file=program.stdin, flush=True)
        assert output(program) == "1\n"
    finally:
        if program.poll() is None:
            program.kill()
            program.communicate()


LATE = """
with Pool(json.loads(sys.argv[1])) as pool:
    try:
        with pool.connection(timeout=20) as conn:
            conn.execute("set statement_timeout = 0")
            conn.execute("select pg_sleep(600)")
    except psycopg.OperationalError:
        print("ended")
"""

LATE_TASK = """
async def main():
    async with AsyncPool(json.loads(sys.argv[1])) as pool:
        try:
            async with pool.connection(timeout=20) as conn:
                await conn.execute("set statement_timeout = 0")
                await conn.execute("select pg_sleep(600)")
        except psycopg.OperationalError:
            print("ended")

run(main())
"""


@pytest.mark.parametrize("model", ["threaded", "non-threaded", "asyncio"])
def test_a_call_that_has_lasted_too_long_ends(pg_node: Node, model: str) -> None:
    settings = config(pg_node, type="threaded" if model == "asyncio" else model, query_timeout=100)
    assert output(python(STAND_STILL + (LATE_TASK if model == "asyncio" else LATE), json.dumps(settings))) == "ended\n"


def line_of(program: "subprocess.Popen[str]") -> str:
    assert program.stdout is not None
    assert select.select([program.stdout], [], [], LIMIT)[0], "it says nothing"
    return program.stdout.readline()
