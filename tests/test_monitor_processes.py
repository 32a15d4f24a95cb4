"""The monitor in processes that fork, that are kept busy, and that end.

Each test is a small program of its own; see `test_fork`.
"""

import json
import signal
import time

import pytest
from conftest import config, output, python, wait_for
from test_fork import BEGINNING

from pgdbpool.testing import Proxy

QUICK = {"interval": 0.05, "timeout": 2.0}

MORE = """
import logging
logging.getLogger("pgdbpool").addHandler(logging.NullHandler())  # what is told of faults is not looked at here

def monitors():
    return [thread for thread in threading.enumerate() if thread.name == "pgdbpool monitor"]

def sessions():
    "The monitors' backends, as the server knows them."
    with psycopg.connect(dsn, autocommit=True) as conn:
        rows = conn.execute("select pid from pg_stat_activity where application_name = 'pgdbpool:monitor'")
        return {pid for (pid,) in rows.fetchall()}

def probes(pool):
    "Something that is another thing after each probe."
    return pool._topology.endpoints[0].probe_time

def wait_for_probe(pool):
    before = probes(pool)
    wait_for(lambda: probes(pool) != before)
"""


def run(program, node, *places, **settings):
    """It must succeed, and say nothing on stderr."""
    settings.setdefault("monitor", QUICK)
    arguments = json.dumps(config(*(places or [node]), **settings)), node.dsn
    return output(python(BEGINNING + MORE + program, *arguments), limit=60.0)


# -- fork -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normally", [False, True], ids=["by _exit", "by exit"])
def test_a_child_that_does_not_use_the_pool_has_no_monitor_and_leaves_its_parents_session_alone(pg_node, normally):
    program = """
pool = Pool(config)
pool.wait(20)
wait_for_probe(pool)
before = sessions()
assert len(before) == 1
for _ in range(5):
    child = Child(lambda: [len(monitors()), threading.active_count()], normally=NORMALLY)
    assert child.result() == [0, 1]
wait_for_probe(pool)
assert sessions() == before
pool.close()
"""
    run(program.replace("NORMALLY", str(normally)), pg_node)


@pytest.mark.parametrize("normally", [False, True], ids=["by _exit", "by exit"])
def test_a_child_probes_for_itself_on_first_use_and_its_parents_session_lives_on(pg_node, normally):
    program = """
pool = Pool(config)
pool.wait(20)
wait_for_probe(pool)
before = sessions()

def work():
    assert monitors() == []
    backend(pool)
    wait_for(monitors)
    wait_for_probe(pool)
    both = sessions()
    assert before < both and len(both) == 2, (before, both)
    pool.close()
    wait_for(lambda: not monitors())
    wait_for(lambda: sessions() == before)

Child(work, normally=NORMALLY).result()
wait_for_probe(pool)
assert sessions() == before
pool.close()
wait_for(lambda: not sessions())
"""
    run(program.replace("NORMALLY", str(normally)), pg_node)


def test_the_monitor_of_a_child_finds_out_that_its_server_died(pg_node):
    program = """
pool = Pool(config)
pool.wait(20)

def work():
    backend(pool)
    events = []
    pool.on_event(lambda event: events.append(event.kind.value))
    print("kill", flush=True)
    wait_for(lambda: "endpoint-down" in events)
    return events

assert "endpoint-down" in Child(work).result()
pool.close()
"""
    process = python(BEGINNING + MORE + program, json.dumps(config(pg_node, monitor=QUICK)), pg_node.dsn)
    assert process.stdout.readline() == "kill\n"
    pg_node.kill()
    output(process)


def test_a_process_that_forks_while_the_monitor_connects_leaves_no_socket_to_its_child(pg_node):
    # A server that is frozen keeps the monitor connecting, and the pool too.
    program = """
pool = Pool(config)
pool.wait(20)
wait_for_probe(pool)
print("freeze", flush=True)
sys.stdin.readline()

from pgdbpool.drivers import steps
wait_for(lambda: steps.half_open)

def sockets():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return links

def inherited():
    "Descriptors of TCP connections of the parent's that are still open here."
    with open("/proc/net/tcp") as file:
        tcp = file.read().splitlines()[1:]
    port = format(int(psycopg.conninfo.conninfo_to_dict(dsn)["port"]), "04X")
    inodes = {line.split()[9] for line in tcp if line.split()[2].endswith(":" + port)}
    return [link for link in sockets() if link.startswith("socket:[") and link[8:-1] in inodes]

for _ in range(20):
    wait_for(inherited)  # between two probes there may be none for a moment
    assert Child(inherited).result() == []
print("thaw", flush=True)
sys.stdin.readline()
pool.close()
"""
    settings = config(pg_node, monitor={"interval": 0.05, "timeout": 1.0})
    process = python(BEGINNING + MORE + program, json.dumps(settings), pg_node.dsn)
    assert process.stdout.readline() == "freeze\n"
    pg_node.freeze()
    process.stdin.write("\n")
    process.stdin.flush()
    try:
        assert process.stdout.readline() == "thaw\n"
    finally:
        pg_node.thaw()
    output(process)


# -- the end of a process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pool.close()", "", "del pool", "sys.exit(0)"])
def test_a_program_ends_without_a_word_and_with_a_goodbye_to_the_server(ending, pg_node):
    before = len(pg_node.log())
    run(f"pool = Pool(config)\npool.wait(20)\nwait_for_probe(pool)\n{ending}\n", pg_node)
    # `unexpected EOF` is what the server says of a client that left without a goodbye.
    wait_for(lambda: not pg_node.backends("pgdbpool:monitor"))
    assert "unexpected EOF" not in pg_node.log()[before:]


def test_a_program_ends_though_its_server_is_frozen(pg_node):
    program = """
pool = Pool(config)
pool.wait(20)
wait_for_probe(pool)
print("freeze", flush=True)
sys.stdin.readline()
"""
    process = python(BEGINNING + MORE + program, json.dumps(config(pg_node, monitor=QUICK)), pg_node.dsn)
    assert process.stdout.readline() == "freeze\n"
    pg_node.freeze()
    output(process)


# -- a busy process ---------------------------------------------------------------------------------------------------

BUSY = """
import ctypes
nobody_else_runs = ctypes.PyDLL(None).usleep  # in contrast to CDLL, PyDLL keeps the GIL

pool = Pool(config)
pool.wait(20)
wait_for(lambda: all(each.health == "up" for each in pool.endpoints()))
wait_for(lambda: not pool._topology.events)
events = []
pool.on_event(lambda event: events.append(str(event.message)))
"""
VERDICT = """
for _ in range(5):
    wait_for_probe(pool)
wait_for(lambda: not pool._topology.events)
assert events == [], events
assert [each.health for each in pool.endpoints()] == ["up"]
pool.close()
"""


def test_a_call_into_c_that_keeps_the_interpreter_for_itself_does_not_make_a_server_look_dead(pg_node):
    program = """
for _ in range(10):
    nobody_else_runs(400_000)
    time.sleep(0.02)
nobody_else_runs(3_000_000)
"""
    run(BUSY + program + VERDICT, pg_node, monitor={"interval": 0.01, "timeout": 0.15, "fall": 2})


def test_nor_does_it_while_a_connection_for_the_probe_is_made(pg_node):
    # Several round trips, each of which takes a while; the session of the monitor is ended again and again.
    program = """
admin = psycopg.connect(dsn, autocommit=True)
for _ in range(5):
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgdbpool:monitor'"
    )
    for _ in range(3):
        time.sleep(0.03)
        nobody_else_runs(500_000)
admin.close()
"""
    pg_node.execute("grant pg_signal_backend to app")
    try:
        with Proxy(pg_node) as proxy:
            proxy.latency(0.04)
            run(BUSY + program + VERDICT, pg_node, proxy, monitor={"interval": 0.01, "timeout": 0.4, "fall": 1})
    finally:
        pg_node.execute("revoke pg_signal_backend from app")


def test_a_process_that_was_stopped_for_a_while_does_not_take_its_server_for_dead(pg_node):
    program = """
print("stop", flush=True)
sys.stdin.readline()
"""
    monitor = {"interval": 0.01, "timeout": 0.15, "fall": 1}
    settings = config(pg_node, monitor=monitor)
    process = python(BEGINNING + MORE + BUSY + program + VERDICT, json.dumps(settings), pg_node.dsn)
    assert process.stdout.readline() == "stop\n"
    for _ in range(5):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # the fault itself: longer than the timeout
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    process.stdin.write("\n")
    process.stdin.flush()
    output(process)
