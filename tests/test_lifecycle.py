"""The life of a pool: open, wait, close, again; dropped, interrupted, and at the end of the process."""

import gc
import json
import logging
import signal
import threading
import time
import weakref

import pytest
from conftest import LIMIT, SOON, backends, config, output, python, wait_for

from pgdbpool import Pool, PoolClosed, PoolTimeout

BEGINNING = """
import json, logging, os, signal, sys, threading, time
import psycopg
from pgdbpool import Pool, PoolTimeout

config = json.loads(sys.argv[1])

def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
"""


@pytest.fixture(params=["threaded", "non-threaded"])
def model(request):
    return request.param


def query(pool, timeout=None):
    with pool.connection(timeout=timeout) as conn:
        return conn.execute("select 1").fetchone()


def pool_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pgdbpool")]


def start(program, settings):
    return python(BEGINNING + program, json.dumps(settings))


# -- open, wait, close ------------------------------------------------------------------------------------------------


def test_a_pool_opens_in_the_background_and_wait_waits_for_it(pg_node, open_pool):
    others = backends(pg_node)  # of earlier tests, which are just ending
    pool = open_pool(config(pg_node, min_count=3))
    pool.wait(LIMIT)
    assert pool.stats().groups["default"].open >= 3
    wait_for(lambda: len(backends(pg_node) - others) == 3)


def test_a_pool_that_was_not_opened_hands_out_nothing(pg_node, open_pool, model):
    pool = open_pool(config(pg_node, type=model), open=False)
    assert pool.closed
    assert not [name for name in pool_threads() if name.startswith(pool.name + " ")]
    with pytest.raises(PoolClosed):
        pool.getconn()
    with pytest.raises(PoolClosed):
        pool.wait(LIMIT)
    pool.close()
    pool.open()
    assert not pool.closed
    assert query(pool) == (1,)


def test_making_a_pool_does_not_wait_for_a_server_that_is_down(open_pool, pg_node, model):
    pg_node.stop()
    began = time.monotonic()
    pool = open_pool(config(pg_node, type=model))
    assert time.monotonic() - began < SOON
    with pytest.raises(PoolTimeout, match="no endpoint can be used"):
        pool.wait(0.3)
    pg_node.start()
    pool.wait(LIMIT)


def test_a_pool_is_a_context_manager(pg_node, model):
    with Pool(config(pg_node, type=model)) as pool:
        assert query(pool) == (1,)
    assert pool.closed
    wait_for(lambda: not backends(pg_node))


def test_after_close_no_thread_and_no_session_is_left(pg_node, open_pool):
    pool = open_pool(config(pg_node, min_count=4))
    pool.wait(LIMIT)
    pool.close()
    wait_for(lambda: not backends(pg_node))
    wait_for(lambda: pool_threads() == [])


def test_a_closed_pool_says_that_it_is_closed(pg_node, open_pool, model):
    pool = open_pool(config(pg_node, type=model))
    assert query(pool) == (1,)
    pool.close()
    for use in (pool.getconn, pool.wait, lambda: query(pool)):
        with pytest.raises(PoolClosed, match="closed"):
            use()
    pool.check()
    pool.drain()
    pool.resize("default", 3)
    pool.pause()
    pool.resume()
    assert pool.stats().groups["default"].open == 0
    assert pool.endpoints()
    assert "closed" in repr(pool)


def test_close_can_be_called_twice_and_by_many_at_once(pg_node, open_pool, model):
    pool = open_pool(config(pg_node, type=model))
    query(pool)
    threads = [threading.Thread(target=pool.close) for _ in range(8 if model == "threaded" else 0)]
    for thread in threads:
        thread.start()
    pool.close()
    pool.close()
    for thread in threads:
        thread.join(LIMIT)
    wait_for(lambda: not backends(pg_node))


def test_close_ends_every_wait_with_pool_closed(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1, acquire_timeout=LIMIT))
    ends = []

    def wait():
        try:
            query(pool)
        except PoolClosed as error:
            ends.append(str(error))

    threads = [threading.Thread(target=wait) for _ in range(10)]
    with pool.connection() as conn:
        for thread in threads:
            thread.start()
        wait_for(lambda: pool.stats().groups["default"].waiting == 10)
        pool.close(timeout=0.0)
        for thread in threads:
            thread.join(SOON)
        assert len(ends) == 10
        assert "closed while the caller waited for group 'default'" in ends[0]
        assert conn.execute("select 1").fetchone() == (1,)
    wait_for(lambda: not backends(pg_node))


def test_who_begins_to_wait_while_the_pool_is_closed_starts_no_thread_for_it(pg_node, open_pool, monkeypatch):
    pool = open_pool(config(pg_node, min_count=0))
    group = pool._topology.groups[0]
    may_grow = group.may_grow

    def close_meanwhile():
        pool.close(timeout=0.0)
        return may_grow()

    monkeypatch.setattr(group, "may_grow", close_meanwhile)
    with pytest.raises(PoolClosed):
        query(pool)
    wait_for(lambda: not [name for name in pool_threads() if name.startswith(pool.name)])


def test_close_ends_the_wait_for_a_server_that_is_down(pg_node, open_pool):
    pg_node.stop()
    pool = open_pool(config(pg_node, acquire_timeout=LIMIT))
    ends = []

    def wait():
        with pytest.raises(PoolClosed):
            query(pool)
        ends.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: pool.stats().groups["default"].waiting == 1)
    pool.close()
    thread.join(SOON)
    assert ends == [True]


def test_close_waits_for_leased_connections_and_no_longer_than_told(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))
    conn = pool.getconn()
    began = time.monotonic()
    pool.close(timeout=0.3)
    assert 0.3 <= time.monotonic() - began < SOON
    assert conn.execute("select 1").fetchone() == (1,)
    pool.putconn(conn)
    assert conn.closed
    wait_for(lambda: not backends(pg_node))

    pool.open()
    conn = pool.getconn()
    timer = threading.Timer(0.1, pool.putconn, (conn,))
    timer.start()
    began = time.monotonic()
    pool.close(timeout=LIMIT)
    assert time.monotonic() - began < SOON
    timer.join()
    assert conn.closed


def test_a_close_that_is_interrupted_has_closed_the_pool_and_what_comes_back_later_is_closed(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))
    conn = pool.getconn()

    def interrupt():
        wait_for(lambda: pool.closed)
        wait_for(lambda: not any(thread.name == f"{pool.name} keeper" for thread in threading.enumerate()))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        pool.close(timeout=LIMIT)
    interrupter.join()
    assert not pool._seen  # by others on this host
    assert len(backends(pg_node)) == 1
    pool.putconn(conn)
    assert conn.closed
    wait_for(lambda: not backends(pg_node))


def test_a_pool_can_be_opened_and_closed_again_and_again(pg_node, open_pool, model):
    pool = open_pool(config(pg_node, type=model, min_count=2), open=False)
    for _ in range(20):
        pool.open()
        pool.open()
        assert query(pool) == (1,)
        pool.close()
    for _ in range(20):
        pool.open()
        pool.close()
    pool.open()
    assert query(pool) == (1,)
    pool.close()
    wait_for(lambda: not backends(pg_node))
    wait_for(lambda: pool_threads() == [])


def test_a_lease_from_before_closing_and_opening_is_not_handed_out_again(pg_node, open_pool, model):
    pool = open_pool(config(pg_node, type=model, connection_count=1))
    with pool.connection() as conn:
        old = conn.info.backend_pid
        pool.close(timeout=0.0)
        pool.open()
    with pool.connection() as conn:
        assert conn.info.backend_pid != old
    wait_for(lambda: len(backends(pg_node)) == 1)


def test_close_returns_though_the_server_is_frozen(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=4, min_count=2))
    pool.wait(LIMIT)
    pg_node.freeze()
    began = time.monotonic()
    pool.close(timeout=LIMIT)
    assert time.monotonic() - began < SOON
    pg_node.thaw()
    wait_for(lambda: not backends(pg_node))


# -- dropped without close --------------------------------------------------------------------------------------------


def test_a_pool_that_nobody_knows_any_more_is_collected(pg_node, model):
    pool = Pool(config(pg_node, type=model, min_count=2))
    pool.wait(LIMIT)
    assert len(backends(pg_node)) == 2
    gone = weakref.ref(pool)
    del pool
    assert gone() is None, "a pool is no part of a reference cycle"
    wait_for(lambda: pool_threads() == [])
    wait_for(lambda: not backends(pg_node))
    gc.collect()  # where a ResourceWarning would come from


def test_a_pool_in_a_reference_cycle_is_collected(pg_node, model):
    pool = Pool(config(pg_node, type=model, min_count=2))
    pool.wait(LIMIT)
    pool.itself = pool
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    wait_for(lambda: pool_threads() == [])
    wait_for(lambda: not backends(pg_node))


def test_a_pool_that_is_collected_in_the_middle_of_its_own_work_still_ends(pg_node):
    dropped, collected = threading.Event(), threading.Event()

    def collecting(lanes):  # a balancer: made with the lock of the pool held, here by a thread of the pool's own
        if threading.current_thread().name.startswith("pgdbpool"):
            dropped.wait(LIMIT)
            gc.collect()
            collected.set()
        return lambda: lanes[0]

    here = pg_node.endpoint(ssl="disable")
    nobody = {**here, "port": 1}  # when it has failed a route of the other two is made
    gc.disable()
    try:
        pool = Pool(config(nobody, here, {**here, "host": "localhost"}, balance=collecting))
        pool.itself = pool
        gone = weakref.ref(pool)
        del pool
        dropped.set()
        assert collected.wait(LIMIT)
        assert gone() is None
        wait_for(lambda: pool_threads() == [])
    finally:
        gc.enable()
    wait_for(lambda: not backends(pg_node))


def test_a_lease_keeps_its_pool_alive(pg_node, model):
    with Pool(config(pg_node, type=model)).connection() as conn:
        gc.collect()
        assert conn.execute("select 1").fetchone() == (1,)
    wait_for(lambda: not backends(pg_node))


def test_a_pool_dropped_while_its_server_is_down_is_collected(pg_node):
    pg_node.stop()
    pool = Pool(config(pg_node, min_count=2))
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.1)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    wait_for(lambda: pool_threads() == [])


# -- the end of the process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("pool = Pool(config)", id="just opened"),
        pytest.param("pool = Pool(config); pool.wait(20)", id="open"),
        pytest.param("pool = Pool(config); pool.wait(20); conn = pool.getconn()", id="a lease in a variable"),
        pytest.param("pool = Pool(config); block = pool.connection(); conn = block.__enter__()", id="in a block"),
        pytest.param("pool = Pool(config); pool.wait(20); pool.close()", id="closed"),
        pytest.param("pool = Pool(config); pool.wait(20); del pool", id="dropped"),
        pytest.param("pool = Pool(config); pool.pool = pool; pool.wait(20); del pool", id="dropped in a cycle"),
        pytest.param("pool = Pool(config, open=False)", id="never opened"),
        pytest.param(
            "from pgdbpool import pool; pool.Connection.init(config); pool.Handler().__enter__()", id="process-wide"
        ),
    ],
)
def test_the_end_of_the_interpreter_is_silent_and_quick(pg_node, model, program):
    process = start(program + "\nprint(time.time(), flush=True)\n", config(pg_node, type=model, min_count=2))
    left = float(output(process))
    assert time.time() - left < SOON
    wait_for(lambda: not backends(pg_node))


def test_the_end_of_the_interpreter_is_silent_and_quick_while_daemon_threads_are_at_work(pg_node):
    program = """
pool = Pool(config)
def use():
    while True:
        with pool.connection() as conn:
            conn.execute("select 1")
def quiet():
    try:
        use()
    except Exception:
        pass
for _ in range(4):
    threading.Thread(target=quiet, daemon=True).start()
time.sleep(0.1)
print(time.time(), flush=True)
"""
    left = float(output(start(program, config(pg_node))))
    assert time.time() - left < SOON
    wait_for(lambda: not backends(pg_node))


def test_threads_that_outlive_the_main_thread_can_use_the_pool_as_before(pg_node):
    # From Python 3.12 on no thread can be started then.
    program = """
pool = Pool(config)
def work():
    threading.main_thread().join()
    conns = [pool.getconn(timeout=20) for _ in range(4)]
    for conn in conns:
        pool.putconn(conn)
    pool.drain()
    with pool.connection(timeout=20) as conn:
        print(conn.execute("select 'fine'").fetchone()[0], flush=True)
threading.Thread(target=work).start()
"""
    assert output(start(program, config(pg_node, connection_count=4, min_count=0))) == "fine\n"
    wait_for(lambda: not backends(pg_node))


def test_where_no_more_threads_are_to_be_had_connections_are_opened_all_the_same_and_the_log_says_so_once(
    pg_cluster, open_pool, monkeypatch, caplog
):
    begin = threading.Thread.start

    def start_another(thread):
        if thread.name.endswith((" opener", " monitor")):
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start_another)
    with caplog.at_level(logging.ERROR, "pgdbpool"):
        pool = open_pool(config(*pg_cluster.nodes, connection_count=3, min_count=1))
        conns = [pool.getconn(timeout=LIMIT) for _ in range(9)]
        assert len({conn.info.port for conn in conns}) == 3
        for conn in conns:
            pool.putconn(conn)
    said = [record.getMessage().partition("\n")[0].partition(": ")[2] for record in caplog.records]
    assert len([words for words in said if words.startswith("cannot start a thread to connect to ")]) == 1
    assert len([words for words in said if words == "cannot start the monitor"]) == 1
    assert len(said) == 2


def test_a_keeper_thread_that_could_not_be_started_is_started_by_the_next_caller(pg_node, open_pool, monkeypatch):
    begin = threading.Thread.start

    def start_another(thread):
        if thread.name.endswith(" keeper"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    pool = open_pool(config(pg_node), open=False)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_another)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool.open()
    assert query(pool, timeout=LIMIT) == (1,)


@pytest.mark.parametrize("trouble", ["stopped", "frozen"])
def test_the_end_of_the_interpreter_is_quick_when_the_server_is_gone(pg_node, model, trouble):
    program = """
logging.disable()  # what is said of the server is another matter
pool = Pool(config)
pool.wait(20)
conn = pool.getconn()
print("open", flush=True)
sys.stdin.readline()
try:
    pool.getconn(timeout=0.2)
    pool.getconn(timeout=0.2)
except PoolTimeout:
    pass
print(time.time(), flush=True)
"""
    with start(program, config(pg_node, type=model, connection_count=3)) as process:
        assert process.stdout.readline() == "open\n"
        if trouble == "stopped":
            pg_node.stop()
        else:
            pg_node.freeze()
        out, err = process.communicate("\n", timeout=LIMIT)
        assert (process.returncode, err) == (0, "")
        assert time.time() - float(out) < SOON
    pg_node.thaw()


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_an_interrupted_block_rolls_back_and_its_connection_is_not_lost(pg_node, model):
    program = """
pool = Pool(config)
try:
    with pool.connection() as conn:
        conn.execute("create temporary table t as select 1")
        print("inside", flush=True)
        conn.execute("select pg_sleep(60)")
except KeyboardInterrupt:
    pass
stats = pool.stats().groups["default"]
assert (stats.leased, stats.waiting) == (0, 0), stats
with pool.connection(timeout=20) as conn:
    assert conn.execute("select to_regclass('pg_temp.t')").fetchone() == (None,)
print("fine")
"""
    process = start(program, config(pg_node, type=model, connection_count=1, autocommit=False))
    assert process.stdout.readline() == "inside\n"
    process.send_signal(signal.SIGINT)
    assert output(process) == "fine\n"


def test_an_interrupted_wait_leaves_nothing_behind(pg_node):
    program = """
pool = Pool(config)
returns = threading.Event()
leased = threading.Event()
def hold():
    with pool.connection() as conn:
        leased.set()
        returns.wait(20)
holder = threading.Thread(target=hold)
holder.start()
leased.wait(20)
try:
    print("waiting", flush=True)
    pool.getconn(timeout=20)
except KeyboardInterrupt:
    pass
assert pool.stats().groups["default"].waiting == 0
returns.set()
holder.join()
for _ in range(3):
    with pool.connection(timeout=20) as conn:
        conn.execute("select 1")
print("fine")
"""
    process = start(program, config(pg_node, connection_count=1))
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)  # it is in getconn by now, or just before it: both have to be fine
    process.send_signal(signal.SIGINT)
    assert output(process) == "fine\n"


def test_a_hundred_interrupted_waits_leave_nothing_behind(pg_node):
    program = """
import random, warnings
# of what is interrupted between being made and being begun
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
pool = Pool(config)
returns = threading.Event()
leased = threading.Event()
def hold():
    with pool.connection() as conn:
        leased.set()
        returns.wait(20)
holder = threading.Thread(target=hold)
holder.start()
leased.wait(20)
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
interrupts = 0
for _ in range(100):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0002, 0.005))
        pool.getconn(timeout=20)
    except KeyboardInterrupt:
        interrupts += 1
assert interrupts == 100
assert pool.stats().groups["default"].waiting == 0
returns.set()
holder.join()
for _ in range(3):
    with pool.connection(timeout=20) as conn:
        conn.execute("select 1")
print("fine")
"""
    assert output(start(program, config(pg_node, connection_count=1))) == "fine\n"


# -- in the middle of it ----------------------------------------------------------------------------------------------


def test_a_signal_handler_may_close_the_pool_at_any_moment(pg_node):
    program = """
pool = Pool(config)
pool.wait(20)
def end(*_):
    pool.close()
    print("closed", flush=True)
signal.signal(signal.SIGTERM, end)
group = pool._topology.groups[0]
class Moment:
    "One in which the main thread has the lock of the pool."
    def __bool__(self):
        signal.raise_signal(signal.SIGTERM)
        return False
group.paused = Moment()
pool._topology.reroute(time.monotonic())
assert pool.closed
print("fine")
"""
    assert output(start(program, config(pg_node))).endswith("closed\nfine\n")


def test_a_generator_that_is_collected_at_any_moment_gives_its_connection_back(pg_node):
    program = """
pool = Pool(config)
pool.wait(20)
class Answer:
    "An answer that is sent piece by piece, and knows who makes them."
    def __init__(self):
        self.pieces = self.make()
        next(self.pieces)
    def make(self):
        with pool.connection() as conn:
            for row in conn.execute("select generate_series(1, 9)"):
                yield row
gc.disable()
Answer()
assert pool.stats().groups["default"].leased == 1
pool.drain()  # so that it is closed when it comes back
group = pool._topology.groups[0]
class Moment:
    "One in which this thread has the lock of the pool."
    def __bool__(self):
        gc.collect()
        return False
group.paused = Moment()
pool._topology.reroute(time.monotonic())
group.paused = False
wait_for(lambda: pool.stats().groups["default"].counters.closed.get("retired") == 1)
print("fine")
"""
    assert output(start("import gc\n" + program, config(pg_node, connection_count=1))) == "fine\n"
