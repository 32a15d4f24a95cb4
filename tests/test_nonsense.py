"""Answers that nobody can read, and errors of the pool's own: nothing against a server, and no storm in the log."""

import json
import logging

import pytest
from chatter import LIES, Chatter
from conftest import LIMIT, backends, config, python, wait_for
from models import MODELS
from models import open_model as open_model
from support import tidy as tidy

from pgdbpool import DBOfflineError, seldom, session
from pgdbpool.drivers import steps
from pgdbpool.testing import Proxy


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    """In this process, not yet."""
    monkeypatch.setattr(seldom, "_rate", seldom.Rate(1, 60.0))


def beliefs(model):
    return [(each.health, each.role) for each in model.pool.endpoints()]


def errors(caplog):
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def quick(interval=0.02):
    return {"interval": interval, "timeout": 1.0}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "unreadable",
    [
        "null, null, null",
        "'', '', ''",
        "'7', 'zz', 'many'",
        "'7', ' 1_0', '-1'",
        "'7', '99999999999999999999999999', '1e9'",
    ],
)
def test_what_cannot_be_read_of_an_answer_costs_no_more_than_itself(
    model, unreadable, pg_node, open_model, monkeypatch, caplog
):
    question = f"select false, 'off', {unreadable}, null, null"
    monkeypatch.setattr(steps, "_SIGHT_QUERY", question.encode())
    with Proxy(pg_node) as proxy:
        pool = open_model(config(pg_node, proxy, type=model, monitor=quick()))
        events = []
        for _ in range(20):
            assert pool.ask("default", "select 1") == 1
        wait_for(lambda: all(each[0] == "up" for each in beliefs(pool)) or model == "non-threaded")
        pool.pool.on_event(lambda event: events.append(event.message))
        for _ in range(20):
            assert pool.ask("default", "select 1 from pg_sleep(0.01)") == 1
        assert all(health != "down" and role != "standby" for health, role in beliefs(pool))
        assert [each for each in events if "down" in each or "suspect" in each] == []
    assert errors(caplog) == []


@pytest.mark.parametrize("model", MODELS)
def test_a_server_that_says_neither_yes_nor_no_is_no_primary(model, open_model):
    with Chatter(LIES) as server:
        pool = open_model(config(server.endpoint(), type=model, target_session_attrs="primary"))
        with pytest.raises(DBOfflineError, match="does not say whether it is a primary or a standby"):
            pool.ask("default", "select 1")
        assert [role for _, role in beliefs(pool)] == ["unknown"]


@pytest.mark.parametrize("model", MODELS)
def test_such_a_server_can_be_used_where_the_role_does_not_matter(model, open_model):
    with Chatter(LIES) as server:
        pool = open_model(config(server.endpoint(), type=model))
        for _ in range(3):
            assert pool.ask("default", "select 1") == "maybe"
        assert beliefs(pool) == [("up", "unknown")]


# -- errors of our own ------------------------------------------------------------------------------------------------


def breaks(monkeypatch, target, name, error):
    """Have a function of the pool's raise, until told otherwise; returns how often it has, and what ends it."""
    raised = []

    def broken(*args, **more):
        raised.append(error)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(target, name, broken)
        yield raised


@pytest.mark.parametrize("model", ["threaded", "asyncio"])
def test_an_error_of_our_own_while_a_connection_is_opened_is_no_evidence(
    model, pg_node, open_model, monkeypatch, caplog
):
    pool = open_model(config(pg_node, type=model, connection_count=2))
    pool.ask("default", "select 1")
    (backend,) = backends(pg_node)
    events = []
    pool.pool.on_event(lambda event: events.append(event.message))
    conn = pool.lend()
    for raised in breaks(monkeypatch, session.Sessions, "_ask", ValueError("a bug")):
        with pytest.raises(TimeoutError, match="in use"):
            pool.lend(timeout=1.0)
        assert 2 <= len(raised) <= 30
    assert conn.ask("select pg_backend_pid()") == backend
    other = pool.lend()  # all is well again
    other.give()
    conn.give()
    assert [each for each in events if "is up" not in each] == []
    (line,) = errors(caplog)
    assert "ValueError" in line.getMessage()
    assert "says nothing about the server" in line.getMessage()


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
def test_what_is_the_callers_own_is_raised_to_it_where_it_opens_the_connection(error, pg_node, open_model, monkeypatch):
    pool = open_model(config(pg_node, type="non-threaded"))
    for _ in breaks(monkeypatch, session.Sessions, "_ask", error("the caller's own")):
        with pytest.raises(error, match="the caller's own"):
            pool.ask("default", "select 1")
    assert pool.ask("default", "select 1") == 1
    assert [health for health, _ in beliefs(pool)] == ["up"]


@pytest.mark.parametrize("type", ["threaded", "non-threaded"])
def test_a_caller_who_has_called_too_deep_takes_no_server_down(type, pg_node):
    """At every depth at which that can happen. What the interpreter says of its own destructors is its own."""
    program = """
import json, sys
from pgdbpool import Pool
with Pool(json.loads(sys.argv[1])) as pool:
    events = []
    held = [pool.getconn(timeout=20) for _ in range(3)]
    for conn in held:
        pool.putconn(conn)
    pool.on_event(lambda event: events.append(event.message))

    def ask():
        with pool.connection(timeout=5) as conn:
            return conn.execute("select 1").fetchone()[0]

    def at(depth):
        return at(depth - 1) if depth else ask()

    too_deep = 0
    for depth in range(sys.getrecursionlimit() - 60, sys.getrecursionlimit() - 3):
        try:
            at(depth)
        except RecursionError:
            too_deep += 1
    assert too_deep > 3
    assert ask() == 1
    bad = [each for each in events if "suspect" in each or "down" in each]
    print(bad, pool.endpoints()[0].health)
"""
    process = python(program, json.dumps(config(pg_node, type=type, connection_count=3, check="ping")))
    with process:
        out, err = process.communicate(timeout=LIMIT)
    assert out == "[] up\n", err


@pytest.mark.parametrize("model", ["threaded", "asyncio"])
def test_an_error_of_our_own_in_the_monitor_is_no_evidence_and_said_once(
    model, pg_node, open_model, monkeypatch, caplog
):
    pool = open_model(config(pg_node, type=model, monitor=quick()))
    assert pool.ask("default", "select 1") == 1
    wait_for(lambda: backends(pg_node, "monitor"))
    for raised in breaks(monkeypatch, steps, "sighting", ValueError("a bug")):
        wait_for(lambda raised=raised: len(raised) >= 10)
        assert pool.ask("default", "select 1") == 1
    assert [health for health, _ in beliefs(pool)] == ["up"]
    answered = pool.pool.endpoints()[0].answered
    assert answered is not None
    assert answered < LIMIT
    (line,) = errors(caplog)
    assert "goes on: ValueError" in line.getMessage()
