"""Forking: parent and children all work, no backend is shared, and no session of the parent ends.

Each test is a small program of its own, so that pytest is never forked. It is given the configuration, and the
server's address for a connection beside the pool.
"""

import json

import pytest
from conftest import LIMIT, backends, config, output, python, wait_for

BEGINNING = """
import json, os, signal, sys, threading, time, traceback
import psycopg
from pgdbpool import Pool

config, dsn = json.loads(sys.argv[1]), sys.argv[2]

def backend(pool, group="default"):
    with pool.connection(group, timeout=20) as conn:
        return conn.execute("select pg_backend_pid()").fetchone()[0]

def alive():
    "Backends of the default group, as the server knows them."
    with psycopg.connect(dsn, autocommit=True) as conn:
        rows = conn.execute("select pid from pg_stat_activity where application_name = 'pgdbpool:default'")
        return {pid for (pid,) in rows.fetchall()}

def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)

class Child:
    "A forked child; what `work` returns comes back from `result`. It ends by os._exit, or like any program."
    def __init__(self, work, normally=False):
        self._pipe, writing = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writing)
            return
        code = 0
        try:
            os.write(writing, json.dumps(work()).encode())
        except Exception:
            traceback.print_exc()
            code = 1
        os.close(writing)
        if normally:
            sys.exit(code)
        os._exit(code)

    def result(self):
        text = b""
        while chunk := os.read(self._pipe, 1000):
            text += chunk
        os.close(self._pipe)
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the child ended with {status}"
        return json.loads(text)
"""


@pytest.fixture(params=["threaded", "non-threaded"])
def model(request):
    return request.param


def run(program: str, node, **settings):
    """Run a program that begins with BEGINNING; it must succeed, and say nothing on stderr."""
    output(python(BEGINNING + program, json.dumps(config(node, **settings)), node.dsn), limit=60.0)


@pytest.mark.parametrize("normally", [False, True], ids=["by _exit", "by exit"])
def test_parent_and_child_work_on_sessions_of_their_own(pg_node, model, normally):
    program = """
pool = Pool(config)
pool.wait(20)
before = alive()
assert len(before) == 3
child = Child(lambda: sorted({backend(pool) for _ in range(50)}), normally=NORMALLY)
mine = {backend(pool) for _ in range(50)}
theirs = set(child.result())
assert mine <= before
assert theirs and not theirs & before
assert {backend(pool) for _ in range(50)} <= before
assert before <= alive()
wait_for(lambda: alive() == before)
pool.close()
"""
    run(program.replace("NORMALLY", str(normally)), pg_node, type=model, connection_count=3, min_count=3)


@pytest.mark.parametrize("normally", [False, True], ids=["by _exit", "by exit"])
def test_a_child_that_never_uses_the_pool_leaves_no_trace(pg_node, model, normally):
    program = """
pool = Pool(config)
pool.wait(20)
before = alive()
with pool.connection() as conn:
    conn.execute("select 1")
    Child(lambda: None, normally=NORMALLY).result()
    assert alive() == before
    conn.execute("select 1")
assert backend(pool) in before
assert alive() == before
"""
    run(program.replace("NORMALLY", str(normally)), pg_node, type=model, connection_count=3, min_count=3)


def test_a_child_can_close_its_pool_and_the_parent_does_not_notice(pg_node, model):
    program = """
pool = Pool(config)
pool.wait(20)
before = alive()
def work():
    backend(pool)
    pool.close()
    pool.open()
    pid = backend(pool)
    pool.close()
    return pid
assert Child(work).result() not in before
assert alive() >= before
assert backend(pool) in before
"""
    run(program, pg_node, type=model, connection_count=3, min_count=3)


def test_a_child_can_open_a_pool_that_its_parent_has_not_opened(pg_node, model):
    program = """
pool = Pool(config, open=False)
def work():
    pool.open()
    return backend(pool)
children = [Child(work) for _ in range(3)]
pool.open()
mine = backend(pool)
assert mine not in {child.result() for child in children}
assert backend(pool)
"""
    run(program, pg_node, type=model)


def test_a_block_that_lasts_across_the_fork_goes_on_in_the_parent_only(pg_node, model):
    program = """
pool = Pool(config)
with psycopg.connect(dsn, autocommit=True) as admin:
    admin.execute("drop table if exists fork_kept")
    admin.execute("create table fork_kept (word text)")
with pool.connection() as conn:
    mine = conn.info.backend_pid
    conn.execute("insert into fork_kept values ('before')")
    def work():
        try:
            conn.execute("insert into fork_kept values ('child')")
        except psycopg.OperationalError:
            return backend(pool)
        return "the child talked on the session of its parent"
    theirs = Child(work).result()
    assert isinstance(theirs, int) and theirs != mine, theirs
    conn.execute("insert into fork_kept values ('after')")
with psycopg.connect(dsn) as conn:
    assert conn.execute("select word from fork_kept order by word").fetchall() == [("after",), ("before",)]
assert backend(pool) == mine
"""
    run(program, pg_node, type=model, connection_count=2, autocommit=False)


@pytest.mark.parametrize("how", ["normally", "by an exception"])
def test_a_child_can_leave_the_block_it_was_born_in(pg_node, model, how):
    program = """
pool = Pool(config)
pool.wait(20)
before = alive()
def child_inside():
    with pool.connection() as conn:
        conn.execute("select 1")
        if os.fork() == 0:
            if HOW == "by an exception":
                raise ZeroDivisionError
            return "child"
        conn.execute("select 2")
    return "parent"
try:
    who = child_inside()
except ZeroDivisionError:
    who = "child"
if who == "child":
    assert backend(pool) not in before
    assert pool.stats().groups["default"].leased == 0
    sys.exit(0)
_, status = os.wait()
assert status == 0, status
assert backend(pool) in before
assert alive() >= before
"""
    run(program.replace("HOW", repr(how)), pg_node, type=model, connection_count=2, min_count=2, autocommit=False)


def test_what_getconn_gave_stays_with_the_parent(pg_node, model):
    program = """
pool = Pool(config)
conn = pool.getconn()
mine = conn.info.backend_pid
def work():
    assert conn.closed
    return [backend(pool), pool.stats().groups["default"].leased, len(pool.holders())]
theirs, leased, holders = Child(work).result()
assert theirs != mine
assert (leased, holders) == (0, 0)
assert conn.execute("select pg_backend_pid()").fetchone() == (mine,)
pool.putconn(conn)
assert backend(pool) == mine
"""
    run(program, pg_node, type=model, connection_count=2)


def test_a_grandchild_works_as_well(pg_node, model):
    program = """
pool = Pool(config)
mine = backend(pool)
def work():
    theirs = backend(pool)
    grandchild = Child(lambda: backend(pool), normally=True).result()
    assert backend(pool) == theirs
    return [theirs, grandchild]
pids = {mine, *Child(work, normally=True).result()}
assert len(pids) == 3, pids
assert backend(pool) == mine
"""
    run(program, pg_node, type=model, connection_count=1)


def test_many_children_at_once_all_have_sessions_of_their_own(pg_node, model):
    program = """
pool = Pool(config)
pool.wait(20)
before = alive()
def work():
    conns = [pool.getconn(timeout=20) for _ in range(2)]
    pids = [conn.info.backend_pid for conn in conns]
    for conn in conns:
        assert conn.execute("select pg_backend_pid()").fetchone()[0] in pids
    sys.stdin.read()  # until all are there
    for conn in conns:
        pool.putconn(conn)
    return pids
children = [Child(work, normally=bool(number % 2)) for number in range(10)]
wait_for(lambda: len(alive()) == 22)
mine = {backend(pool) for _ in range(10)}
print("all there", flush=True)
pids = [pid for child in children for pid in child.result()]
assert len(set(pids)) == 20
assert not set(pids) & before
assert mine <= before <= alive()
wait_for(lambda: alive() == before)
"""
    settings = config(pg_node, type=model, connection_count=2, min_count=2)
    process = python(BEGINNING + program, json.dumps(settings), pg_node.dsn)
    assert process.stdout.readline() == "all there\n", output(process)
    output(process, limit=60.0)  # closes its stdin


def test_a_pool_that_was_opened_just_before_the_fork_works_on_both_sides(pg_node, model):
    program = """
for _ in range(10):
    pool = Pool(config)  # its first connections are being opened
    children = [Child(lambda: [backend(pool), backend(pool)]) for _ in range(3)]
    pids = [pid for child in children for pid in set(child.result())] + [backend(pool)]
    assert len(set(pids)) == len(pids), pids
    assert pids[-1] in alive()
    pool.close()
"""
    run(program, pg_node, type=model, connection_count=1)


def test_a_fork_while_a_connection_is_being_opened_harms_neither_side(pg_node):
    program = """
pool = Pool(config)
wait_for(lambda: pool.stats().groups["default"].opening)
child = Child(lambda: backend(pool))
print("forked", flush=True)
mine, theirs = backend(pool), child.result()
assert mine != theirs
assert backend(pool) == mine
"""
    with pg_node.proxy() as proxy:
        proxy.stall()
        process = python(BEGINNING + program, json.dumps(config(proxy, connection_count=1)), pg_node.dsn)
        assert process.stdout.readline() == "forked\n", output(process)
        proxy.resume()
        output(process)


def test_a_fork_while_others_wait_leaves_the_waiters_with_the_parent(pg_node):
    program = """
pool = Pool(config)
served = []
def wait():
    with pool.connection(timeout=20) as conn:
        served.append(conn.execute("select pg_backend_pid()").fetchone()[0])
waiters = [threading.Thread(target=wait) for _ in range(8)]
with pool.connection() as conn:
    mine = conn.info.backend_pid
    for waiter in waiters:
        waiter.start()
    wait_for(lambda: pool.stats().groups["default"].waiting == 8)
    def work():
        stats = pool.stats().groups["default"]
        assert (stats.waiting, stats.leased, stats.open) == (0, 0, 0)
        return backend(pool)
    theirs = Child(work, normally=True).result()
    assert pool.stats().groups["default"].waiting == 8
for waiter in waiters:
    waiter.join(20)
assert served == [mine] * 8
assert theirs != mine
"""
    run(program, pg_node, connection_count=1)


def test_a_fork_in_the_middle_of_a_storm_harms_neither_side(pg_node):
    program = """
import random
from pgdbpool import PoolTimeout
pool = Pool(config)
over = threading.Event()
errors = []
def storm():
    try:
        while not over.is_set():
            try:
                with pool.connection(timeout=random.choice((0.001, 20))) as conn:
                    pid = conn.info.backend_pid
                    assert conn.execute("select pg_backend_pid()").fetchone() == (pid,)
                if not random.randrange(50):
                    pool.drain()
            except PoolTimeout:
                pass
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=storm) for _ in range(12)]
for thread in threads:
    thread.start()
for number in range(40):
    child = Child(lambda: [backend(pool) for _ in range(3)] and None, normally=bool(number % 2))
    child.result()
    assert not errors, errors
over.set()
for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
assert not errors, errors
stats = pool.stats().groups["default"]
assert (stats.leased, stats.waiting) == (0, 0)
pids = {pool.getconn(timeout=20).info.backend_pid for _ in range(3)}
assert len(pids) == 3
"""
    run(program, pg_node, connection_count=3)


def test_the_keeper_of_a_child_starts_with_its_first_checkout(pg_node):
    program = """
pool = Pool(config)
pool.wait(20)
def work():
    before = threading.active_count()
    backend(pool)
    return [before, threading.active_count() > before]
assert Child(work).result() == [1, True]
"""
    run(program, pg_node, min_count=1)


def test_a_child_without_threads_starts_none(pg_node):
    program = """
pool = Pool(config)
backend(pool)
def work():
    backend(pool)
    return [threading.active_count(), len(os.listdir("/proc/self/task"))]
assert Child(work).result() == [1, 1]
"""
    run(program, pg_node, type="non-threaded")


def test_sessions_of_a_killed_parent_end_though_its_child_lives_on(pg_node, model):
    program = """
pool = Pool(config)
pool.wait(20)
print(*alive(), flush=True)
conn = pool.getconn()
if os.fork() == 0:
    print(backend(pool), flush=True)
    sys.stdin.read()
    backend(pool)
    print("still here", flush=True)
    os._exit(0)
signal.pause()
"""
    settings = config(pg_node, type=model, connection_count=2, min_count=2)
    with python(BEGINNING + program, json.dumps(settings), pg_node.dsn) as process:
        of_parent = set(map(int, process.stdout.readline().split()))
        assert len(of_parent) == 2
        of_child = int(process.stdout.readline())
        assert of_child in backends(pg_node)
        process.kill()
        wait_for(lambda: not backends(pg_node) & of_parent)  # the child has their sockets open no longer
        assert of_child in backends(pg_node)
        assert process.communicate(timeout=LIMIT) == ("still here\n", "")
    wait_for(lambda: not backends(pg_node))


def test_the_process_wide_pool_works_in_children(pg_node, model):
    program = """
from pgdbpool import pool as dbpool
dbpool.Connection.init(config)
def pid():
    with dbpool.Handler() as db:
        return db.query("select pg_backend_pid()")[0][0]
mine = pid()
def work():
    theirs = pid()
    dbpool.Connection.init(config)
    return [theirs, pid()]
children = [Child(work, normally=True) for _ in range(3)]
pids = {mine}.union(*(child.result() for child in children))
assert len(pids) == 7
assert pid() == mine
"""
    run(program, pg_node, type=model, connection_count=1)


def test_a_child_without_descriptors_uses_no_session_of_its_parent(pg_node):
    program = """
import resource
pools = [Pool(config) for _ in range(4)]
theirs = {backend(pool) for pool in pools}
most = resource.getrlimit(resource.RLIMIT_NOFILE)
def work():
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
    return [backend(pool) for pool in pools]
child = os.fork
def fork():
    "The limit is reached when the child is born, and the parent goes on as before."
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
    pid = child()
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
    return pid
os.fork = fork
mine = Child(work).result()
assert len(set(mine)) == 4
assert not theirs & set(mine)
assert {backend(pool) for pool in pools} == theirs
"""
    run(program, pg_node)
