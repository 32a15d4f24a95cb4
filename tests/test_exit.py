"""What runs after the pools were told of the end of the process may still use them; afterwards nothing is left.

`atexit` calls last what was registered first: before this package was imported.
"""

import json
from typing import Any

import pytest
from conftest import backends, config, output, python, wait_for

BEGINNING = """
import atexit, json, logging, logging.handlers, queue, sys, threading

def at_exit(function):
    atexit.register(function)
    return function

"""

SYNC = (
    BEGINNING
    + """
@at_exit
def report():
    for number in range(3):
        with pool.connection(timeout=20) as conn:
            print(conn.execute("select %s::int", [number]).fetchone()[0])
    conn = pool.getconn(timeout=20)
    print(conn.execute("select 'getconn'").fetchone()[0])
    pool.putconn(conn)
    print([thread.name for thread in threading.enumerate() if thread.name.startswith("pgdbpool")])
    print(pool.stats().groups["default"].open, flush=True)

from pgdbpool import Pool

pool = Pool(json.loads(sys.argv[1]))
pool.wait(20)
"""
)

ASYNC = (
    BEGINNING
    + """
import asyncio

@at_exit
def report():
    asyncio.run(work("at exit"))
    print([thread.name for thread in threading.enumerate() if thread.name.startswith("pgdbpool")], flush=True)

from pgdbpool import AsyncPool

async def work(words):
    async with pool.connection(timeout=20) as conn:
        print((await (await conn.execute("select %s", [words])).fetchone())[0], flush=True)
    if words == "at exit":
        await pool.close()

async def main():
    await work("main")
    await pool.close()
    await pool.open()

pool = AsyncPool(json.loads(sys.argv[1]))
asyncio.run(main())
"""
)


@pytest.fixture(params=["threaded", "non-threaded"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(program: str, settings: dict[str, Any]) -> str:
    return output(python(program, json.dumps(settings)))


def test_a_function_that_was_registered_before_the_import_uses_the_pool_and_finds_no_thread_of_it(
    pg_node: Any, model: str
) -> None:
    out = run(SYNC, config(pg_node, type=model, connection_count=2, min_count=2))
    assert out == "0\n1\n2\ngetconn\n[]\n0\n"
    wait_for(lambda: not backends(pg_node))


def test_in_asyncio_such_a_function_uses_the_pool_in_a_loop_of_its_own(pg_node: Any) -> None:
    program = ASYNC.replace(
        "asyncio.run(main())", "import warnings\nwarnings.simplefilter('ignore')\nasyncio.run(main())"
    )
    assert run(program, config(pg_node)) == "main\nat exit\n[]\n"
    wait_for(lambda: not backends(pg_node))


def test_in_asyncio_a_pool_whose_loop_is_at_rest_is_used_there_again_at_the_end(pg_node: Any) -> None:
    program = ASYNC.replace("asyncio.run(work(", "loop.run_until_complete(work(").replace(
        "asyncio.run(main())",
        "import warnings\nwarnings.simplefilter('ignore')\n"
        "loop = asyncio.new_event_loop()\nloop.run_until_complete(work('main'))",
    )
    assert run(program, config(pg_node)) == "main\nat exit\n[]\n"
    wait_for(lambda: not backends(pg_node))


def test_a_log_handler_that_writes_to_the_database_when_it_is_flushed_loses_nothing(pg_node: Any, model: str) -> None:
    program = """
from pgdbpool import Pool

class Table(logging.handlers.BufferingHandler):
    def flush(self):
        with pool.connection(timeout=20) as conn:
            for record in self.buffer:
                conn.execute("insert into exit_log values (%s)", [record.getMessage()])
        self.buffer = []

pool = Pool(json.loads(sys.argv[1]))
logging.getLogger("shop").addHandler(Table(1000))
logging.getLogger("shop").propagate = False
logging.getLogger("shop").error("the last words")
"""
    pg_node.execute("drop table if exists exit_log")
    pg_node.execute("create table exit_log (words text)")
    pg_node.execute("grant all on exit_log to public")
    assert run(BEGINNING + program, config(pg_node, type=model)) == ""
    assert pg_node.execute("select words from exit_log") == [("the last words",)]
    wait_for(lambda: not backends(pg_node))


def test_a_thread_that_empties_a_queue_at_the_end_uses_the_pool(pg_node: Any) -> None:
    program = """
@at_exit
def drain():
    todo.put(None)
    worker.join(20)
    print(*done, flush=True)

from pgdbpool import Pool

todo, done = queue.SimpleQueue(), []
pool = Pool(json.loads(sys.argv[1]))

def work():
    while (number := todo.get()) is not None:
        with pool.connection(timeout=20) as conn:
            conn.execute("select pg_sleep(0.01)")
            done.append(number)

worker = threading.Thread(target=work, daemon=True)
worker.start()
for number in range(20):
    todo.put(number)
"""
    out = run(BEGINNING + program, config(pg_node, connection_count=1))
    assert out.split() == [str(number) for number in range(20)]
    wait_for(lambda: not backends(pg_node))


def test_what_is_leased_when_the_process_ends_stays_with_its_holder(pg_node: Any, model: str) -> None:
    program = """
@at_exit
def give_back():
    print(conn.execute("select n from exit_temporary").fetchone()[0])
    conn.commit()
    pool.putconn(conn)
    print(conn.closed, flush=True)

from pgdbpool import Pool

pool = Pool(json.loads(sys.argv[1]))
conn = pool.getconn(timeout=20)
conn.execute("create temporary table exit_temporary as select 7 as n")
"""
    assert run(BEGINNING + program, config(pg_node, type=model, autocommit=False)) == "7\nTrue\n"
    wait_for(lambda: not backends(pg_node))


def test_at_the_end_a_password_is_asked_for_and_a_name_is_looked_up_as_before(pg_node: Any, model: str) -> None:
    program = SYNC.replace(
        "pool = Pool(json.loads(sys.argv[1]))",
        """
settings = json.loads(sys.argv[1])
password = settings.pop("password")
settings["db"][0] |= {"host": "localhost", "pass": lambda: password}
pool = Pool(settings)
""",
    )
    settings = config(pg_node, type=model, connection_count=2, min_count=2)
    settings["password"] = settings["db"][0].get("pass")
    assert run(program, settings) == "0\n1\n2\ngetconn\n[]\n0\n"
    wait_for(lambda: not backends(pg_node))


def test_callers_in_many_threads_at_the_end_wait_for_each_other(pg_node: Any) -> None:
    program = """
@at_exit
def many():
    go.set()
    for worker in workers:
        worker.join(20)
    print(sum(done), flush=True)

from pgdbpool import Pool

go, done = threading.Event(), []
pool = Pool(json.loads(sys.argv[1]))

def work():
    go.wait()
    for _ in range(10):
        with pool.connection(timeout=20) as conn:
            done.append(conn.execute("select 1").fetchone()[0])

workers = [threading.Thread(target=work, daemon=True) for _ in range(8)]
for worker in workers:
    worker.start()
"""
    assert run(BEGINNING + program, config(pg_node, connection_count=2)) == "80\n"
    wait_for(lambda: not backends(pg_node))


def test_a_pool_that_is_made_at_the_end_needs_no_thread(pg_node: Any, model: str) -> None:
    program = """
@at_exit
def late():
    from pgdbpool import Pool
    with Pool(json.loads(sys.argv[1])) as pool:
        with pool.connection(timeout=20) as conn:
            print(conn.execute("select 'late'").fetchone()[0], flush=True)

import pgdbpool
"""
    assert run(BEGINNING + program, config(pg_node, type=model)) == "late\n"
    wait_for(lambda: not backends(pg_node))
