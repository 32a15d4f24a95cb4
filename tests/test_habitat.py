"""A threading model that does not suit the process is noticed, and said once."""

import asyncio
import importlib
import json
import logging
import sys
import threading
import types

import pytest
from conftest import config, output, python, wait_for
from support import start

from pgdbpool import PoolTimeout, WrongModelError, habitat

LIMIT = 30.0


def query(pool):
    with pool.connection() as conn:
        return conn.execute("select pg_backend_pid()").fetchone()[0]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(habitat, "_said", {})


@pytest.fixture
def uwsgi(monkeypatch):
    """The module that only uWSGI's own processes have."""
    module = types.ModuleType("uwsgi")
    module.opt = {b"http-socket": b"127.0.0.1:8000"}
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    return module


def non_threaded(node, **group):
    return config(node, type="non-threaded", **group)


# -- a second thread --------------------------------------------------------------------------------------------------


def test_a_second_thread_gets_an_error_with_its_first_statement_and_nothing_is_sent(pg_node, open_pool):
    pool = open_pool(non_threaded(pg_node, connection_count=1))
    pid = query(pool)
    pg_node.execute("drop table if exists strangers")
    pg_node.execute("create table strangers (id int)")
    pg_node.execute("grant all on strangers to public")

    def stranger():
        with pool.connection() as conn:
            conn.execute("insert into strangers values (1)")

    with pytest.raises(WrongModelError, match="two threads use this pool, 'MainThread' and 'test stranger'"):
        start(stranger).result(LIMIT)
    assert query(pool) == pid, "and the connection is as good as before"
    assert pg_node.execute("select count(*) from strangers") == [(0,)]
    pg_node.execute("drop table strangers")


def test_a_second_thread_gets_an_error_at_a_checkout_that_has_to_open_a_connection(pg_node, open_pool):
    pool = open_pool(non_threaded(pg_node, connection_count=2))
    with pool.connection():
        with pytest.raises(WrongModelError):
            start(pool.getconn).result(LIMIT)
        assert pool.stats().groups["default"].leased == 1


def test_a_connection_may_not_be_handed_to_a_second_thread(pg_node, open_pool):
    pool = open_pool(non_threaded(pg_node, autocommit=False))
    with pool.connection() as conn:
        conn.execute("select 1")
        for call in (lambda: conn.execute("select 1"), conn.commit, conn.rollback):
            with pytest.raises(WrongModelError):
                start(call).result(LIMIT)
        assert conn.execute("select 2").fetchone() == (2,)


def test_it_is_said_once_in_the_log(pg_node, open_pool, caplog):
    pool = open_pool(non_threaded(pg_node))
    query(pool)
    for _ in range(5):
        with pytest.raises(WrongModelError):
            start(lambda: query(pool)).result(LIMIT)
    said = [record.levelno for record in caplog.records if "two threads use this pool" in record.message]
    assert said == [logging.ERROR]


def test_it_may_be_made_by_one_thread_and_used_by_another(pg_node, open_pool):
    pool = open_pool(non_threaded(pg_node))
    assert start(lambda: query(pool)).result(LIMIT)


def test_it_may_be_used_by_another_thread_when_the_first_has_ended(pg_node, open_pool):
    pool = open_pool(non_threaded(pg_node))
    first = threading.Thread(target=query, args=(pool,))
    first.start()
    first.join(LIMIT)
    assert query(pool)


def test_each_forked_child_has_a_thread_of_its_own_for_it(pg_node):
    program = """
        import json, os, sys, threading
        from pgdbpool import Pool
        pool = Pool(json.loads(sys.argv[1]))
        def query():
            with pool.connection() as conn:
                conn.execute("select 1")
        query()
        if os.fork() == 0:
            worker = threading.Thread(target=query)
            worker.start()
            worker.join()
            print("served by the child's thread", flush=True)
            os._exit(0)
        os.wait()
        query()
    """
    assert output(python(program, json.dumps(non_threaded(pg_node)))) == "served by the child's thread\n"


def test_the_threaded_model_is_used_by_any_thread(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    query(pool)
    assert start(lambda: query(pool)).result(LIMIT)


# -- servers ----------------------------------------------------------------------------------------------------------


def test_a_threaded_pool_under_uwsgi_without_threads_is_warned_of_once(pg_node, open_pool, uwsgi, caplog):
    pool = open_pool(config(pg_node))
    pool.close()
    pool.open()
    said = [record for record in caplog.records if "--enable-threads" in record.message]
    assert [record.levelno for record in said] == [logging.WARNING]


@pytest.mark.parametrize("option", [b"enable-threads", b"threads"])
def test_a_threaded_pool_under_uwsgi_with_threads_is_not(pg_node, open_pool, uwsgi, caplog, option):
    uwsgi.opt[option] = True
    open_pool(config(pg_node))
    assert "uWSGI" not in caplog.text


def test_a_non_threaded_pool_under_uwsgi_is_not(pg_node, open_pool, uwsgi, caplog):
    query(open_pool(non_threaded(pg_node)))
    assert "uWSGI" not in caplog.text


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_pool_is_not_opened_in_a_process_that_gevent_has_patched(pg_node, model):
    program = """
        import gevent.monkey
        gevent.monkey.patch_all()
        import json, sys
        from pgdbpool import Pool, WrongModelError
        try:
            Pool(json.loads(sys.argv[1]))
        except WrongModelError as error:
            print(error)
    """
    said = output(python(program, json.dumps(config(pg_node, type=model))))
    assert said.startswith("gevent has patched this process")


def test_gevent_that_has_patched_nothing_is_no_obstacle(pg_node):
    program = """
        import gevent.monkey, json, sys
        from pgdbpool import Pool
        with Pool(json.loads(sys.argv[1])) as pool, pool.connection() as conn:
            print(conn.execute("select 1").fetchone())
    """
    assert output(python(program, json.dumps(config(pg_node)))) == "(1,)\n"


# -- an event loop ----------------------------------------------------------------------------------------------------


def wait_in_vain(pool):
    with pool.connection(), pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.3)


def test_a_caller_that_holds_up_an_event_loop_is_told_of_async_pool_once(pg_node, open_pool, caplog):
    pool = open_pool(config(pg_node, connection_count=1))
    pool.wait(LIMIT)

    async def main():
        wait_in_vain(pool)
        wait_in_vain(pool)

    with caplog.at_level(logging.WARNING, "pgdbpool"):
        asyncio.run(main())
    [words] = [text for text in caplog.messages if "event loop" in text]
    assert "use an AsyncPool" in words


def test_who_waits_in_a_thread_beside_an_event_loop_is_told_nothing(pg_node, open_pool, caplog):
    pool = open_pool(config(pg_node, connection_count=1))
    pool.wait(LIMIT)
    wait_in_vain(pool)
    asyncio.run(asyncio.to_thread(wait_in_vain, pool))
    assert "event loop" not in caplog.text


def test_a_notebook_whose_cells_run_in_a_loop_is_told_nothing(pg_node, open_pool, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    pool = open_pool(config(pg_node, connection_count=1))
    pool.wait(LIMIT)

    async def cell():
        wait_in_vain(pool)

    asyncio.run(cell())
    assert "event loop" not in caplog.text


@pytest.fixture
def mod_wsgi(monkeypatch):
    """The module that only mod_wsgi's own processes have."""
    module = types.ModuleType("mod_wsgi")
    module.application_group = ""
    monkeypatch.setitem(sys.modules, "mod_wsgi", module)
    return module


@pytest.mark.parametrize("group", ["", "www.example.org|/app"], ids=["main interpreter", "sub-interpreter"])
def test_there_is_no_monitor_in_a_sub_interpreter_of_mod_wsgi(pg_node, open_pool, mod_wsgi, caplog, group):
    mod_wsgi.application_group = group
    pool = open_pool(config(pg_node))
    pool.wait(LIMIT)
    query(pool)
    assert pool._topology.monitored is not bool(group)
    assert ("WSGIApplicationGroup %{GLOBAL}" in caplog.text) is bool(group)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="since 3.12 each interpreter has an asyncio of its own")
@pytest.mark.parametrize(
    ("server", "remedy"), [("mod_wsgi", "WSGIApplicationGroup %{GLOBAL}"), ("uwsgi", "--single-interpreter")]
)
def test_beside_sub_interpreters_the_pool_goes_on_without_a_monitor(
    pg_node, open_pool, caplog, request, server, remedy
):
    request.getfixturevalue(server)
    interpreters = importlib.import_module("_xxsubinterpreters")
    pool = open_pool(config(pg_node, connection_count=1))
    before = query(pool)
    wait_for(lambda: pool._topology.monitored)
    company = interpreters.create()
    try:
        wait_for(lambda: not pool._topology.monitored)
        assert query(pool) != before, "the old one would have relied on the monitor to end a call without an answer"
        [said] = [line.getMessage() for line in caplog.records if "sub-interpreters" in line.getMessage()]
        assert "a process that has sub-interpreters as well, where there can be no monitor" in said
        assert remedy in said
    finally:
        interpreters.destroy(company)
