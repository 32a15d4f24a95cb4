"""A fork that nobody tells Python of, as a server written in C may do it.

Each test is a small program of its own, in which the C library's `fork` is called past Python; see `test_fork`.
"""

import json

import pytest
from conftest import config, output, python

SILENTLY = """
import ctypes, json, os, sys
from pgdbpool import Pool
config = json.loads(sys.argv[1])

def backend(pool):
    with pool.connection() as conn:
        return conn.execute("select pg_backend_pid()").fetchone()[0]

def in_child(work):
    "What `work` returns in a child, made without Python's knowledge."
    reader, writer = os.pipe()
    child = ctypes.CDLL(None).fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        result = json.loads(answer.read())
    os.waitpid(child, 0)
    return result
"""


def run(program, *places, **settings):
    return output(python(SILENTLY + program, json.dumps(config(*places, type="non-threaded", **settings))))


def test_a_connection_that_has_rested_is_found_to_be_the_parents(pg_node):
    program = """
pool = Pool(config)
mine = backend(pool)
theirs = in_child(lambda: [backend(pool), backend(pool)])
assert theirs[0] == theirs[1] != mine
assert backend(pool) == mine
"""
    run(program, pg_node, check="ping")  # then none is handed out without a look, however short it has rested


@pytest.mark.parametrize("check", ["auto", "off"])
def test_where_forks_are_silent_a_connection_that_has_not_rested_is_found_to_be_the_parents_too(pg_node, check):
    program = """
from pgdbpool import base
base.forks_in_silence = lambda: True  # as in a sub-interpreter of uWSGI
pool = Pool(config)
mine = backend(pool)
theirs = in_child(lambda: [backend(pool), backend(pool)])
assert theirs[0] == theirs[1] != mine
assert backend(pool) == mine
"""
    run(program, pg_node, check=check)


@pytest.mark.parametrize("decorators", [False, True], ids=["without uwsgidecorators", "with uwsgidecorators"])
def test_uwsgis_hook_after_a_fork_is_joined_and_others_are_called_too(pg_node, decorators):
    program = """
import types
from pgdbpool import forks
called = []
hooks = [lambda: called.append("ours")]
uwsgi = types.ModuleType("uwsgi")
if DECORATORS:
    sys.modules["uwsgidecorators"] = decorators = types.ModuleType("uwsgidecorators")
    decorators.postfork = hooks.append
    uwsgi.post_fork_hook = lambda: [hook() for hook in hooks]
else:
    uwsgi.post_fork_hook = hooks[0]
forks.join_uwsgi(uwsgi)
pool = Pool(config)
mine = backend(pool)
def work():
    uwsgi.post_fork_hook()
    return [backend(pool), *called]
theirs, *who = in_child(work)
assert who == ["ours"]
assert theirs != mine
assert backend(pool) == mine
"""
    run(program.replace("DECORATORS", str(decorators)), pg_node)
