"""Connections that a signal handler lost, or their user threw away: the pool finds them, and never one that is held.

A handler that raises can do so in very many places. Some tests let it raise in each of them in turn, by tracing the
pool's own code; one uses real signals.
"""

import gc
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from conftest import LIMIT, backends, config, python, wait_for
from interruption import Interrupt, Interruption, interrupt, traced
from psycopg.pq import TransactionStatus
from support import hold, pid, port, put, start, stats, tidy  # noqa: F401

from pgdbpool import Pool, PoolExhausted, PoolTimeout, lost
from pgdbpool import pool as dbpool
from pgdbpool.core.group import Group
from pgdbpool.core.lane import Slot
from pgdbpool.interpreter import gil

pytestmark = pytest.mark.skipif(
    not (lost.RELIABLE and gil()), reason="this interpreter does not count references as CPython does"
)


@pytest.fixture(params=["threaded", "non-threaded"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def one(pg_node: Any, open_pool: Any, model: str) -> Pool:
    """A pool with one connection."""
    pool: Pool = open_pool(config(pg_node, type=model, connection_count=1))
    pool.wait(LIMIT)
    return pool


def query(pool: Pool) -> None:
    with pool.connection(timeout=LIMIT) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def nobody_else_can_have_one(pool: Pool, timeout: float = 0.3) -> None:
    with pytest.raises((PoolExhausted, PoolTimeout)):
        pool.getconn(timeout=timeout)


# -- at each instruction ----------------------------------------------------------------------------------------------


def use(pool: Pool) -> None:
    with pool.connection():
        pass


def borrow(pool: Pool) -> None:
    pool.putconn(pool.getconn())


def leave_a_transaction_open(pool: Pool) -> None:
    with pool.connection() as conn:
        conn.execute("begin")


def use_after_drain(pool: Pool) -> None:
    pool.drain()
    with pool.connection(timeout=LIMIT):
        pass


def use_a_rested_one(pool: Pool) -> None:
    for slot in pool._group("default").every_slot():
        slot.fresh_until = float("-inf")  # so that it is looked at first
        del slot
    use(pool)


@traced
# What is interrupted so early that nobody has a variable for it yet is collected, and says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    "work",
    [
        pytest.param(use, id="a block"),
        pytest.param(borrow, id="getconn and putconn"),
        pytest.param(leave_a_transaction_open, id="a block that leaves a transaction open"),
        pytest.param(use_after_drain, id="a block that finds its connections retired"),
    ],
)
def test_no_connection_is_lost_wherever_a_handler_raises(pg_node, open_pool, model, work):
    pool = open_pool(config(pg_node, type=model, connection_count=2, min_count=2))
    pool.wait(LIMIT)
    group = pool._group("default")
    place: str | None = ""
    at = 0
    while place is not None:
        at += 1
        place = interrupt(lambda: work(pool), at)
        if model == "threaded":
            pool._keeper.reclaim(group)  # it would not look before somebody has waited for a while
        conns = hold(pool, 2)
        assert len({pid(conn) for conn in conns}) == 2, place
        put(pool, *conns)
        del conns
        wait_for(lambda: group.total == 2)
        assert (stats(pool).open, stats(pool).idle, stats(pool).opening) == (2, 2, 0), place
    assert at > 10
    wait_for(lambda: len(backends(pg_node)) == 2)
    assert stats(pool).counters.closed["lost"] > 0


# -- while the exception is being handled -----------------------------------------------------------------------------


@traced
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("work", [use, borrow, use_a_rested_one])
def test_what_was_lost_is_found_while_the_exception_is_still_being_handled(one, work):
    """It keeps the frames it came through, and with them the variables in which the connection was."""
    served = 0
    for at in range(1, 100):
        try:
            with Interruption(at) as interruption:
                work(one)
        except Interrupt:
            query(one)  # in a function, so that no variable of ours keeps the connection of an earlier round
            served += 1
        else:
            break
    assert interruption.place is None
    assert served > 10


def test_a_dead_frame_of_somebody_else_is_left_alone(one):
    def user() -> None:
        mine = "still here"
        assert mine
        with one.connection():
            raise Interrupt

    with pytest.raises(Interrupt) as caught:
        user()
    frame = caught.traceback[-1].frame.raw
    try:
        raise caught.value
    except Interrupt:
        one._keeper.reclaim(one._group("default"))
    assert frame.f_locals["mine"] == "still here"


# -- thrown away ------------------------------------------------------------------------------------------------------


def test_a_connection_of_getconn_that_was_thrown_away_is_replaced_and_the_log_says_where_it_was_taken(one, caplog):
    def forgets_it() -> int:
        return pid(one.getconn())

    old = forgets_it()
    line = forgets_it.__code__.co_firstlineno + 1
    with caplog.at_level(logging.WARNING, "pgdbpool"):
        conn = one.getconn(timeout=LIMIT)
    assert pid(conn) != old
    [words] = caplog.messages
    assert f"group 'default': backend {old} on " in words
    assert f"taken by getconn at {__file__}:{line} (" in words
    assert "forgets_it) in MainThread, and thrown away" in words
    assert one._out == {id(conn): one._out[id(conn)]}
    one.putconn(conn)
    assert stats(one).counters.closed == {"lost": 1}


def test_a_transaction_left_open_in_a_connection_that_was_thrown_away_is_rolled_back(one, pg_node):
    pg_node.execute("drop table if exists lost_row")
    pg_node.execute("create table lost_row (n int)")
    pg_node.execute("grant all on lost_row to public")

    def forgets_it() -> None:
        conn = one.getconn()
        conn.execute("begin")
        conn.execute("insert into lost_row values (1)")

    forgets_it()
    with one.connection(timeout=LIMIT) as conn:
        assert conn.execute("select count(*) from lost_row").fetchone() == (0,)
    wait_for(lambda: len(backends(pg_node)) == 1)


@pytest.mark.parametrize("writes", ["any", "read-write"])
def test_it_is_found_in_every_kind_of_group(pg_node, open_pool, model, writes):
    group = {"connection_count": 1, "target_session_attrs": writes, "query_timeout": 5000}
    groups = {
        "plain": group,
        "reset": {**group, "reset": lambda conn: None},
        "transactions": {**group, "autocommit": False},
    }
    pool = open_pool(config(pg_node, type=model, groups=groups))
    for name in groups:
        old = pid(pool.getconn(name, timeout=LIMIT))
        conn = pool.getconn(name, timeout=LIMIT)
        assert pid(conn) != old, name
        pool.putconn(conn)


def test_it_is_found_though_somebody_has_looked_who_holds_it(one):
    gc.disable()  # nothing is to be left to the collector
    try:
        conn = one.getconn()
        assert len(one.holders()) == 1
        old = pid(conn)
        del conn
        with one.connection(timeout=LIMIT) as conn:
            assert pid(conn) != old
            [holder] = one.holders()
            assert __file__ in holder.where
        del conn, holder
        one.connection().__enter__()
        assert len(one.holders()) == 1
        query(one)
    finally:
        gc.enable()


def test_a_lease_that_was_thrown_away_is_found(one, caplog):
    one.connection().__enter__()
    with caplog.at_level(logging.WARNING, "pgdbpool"), one.connection(timeout=LIMIT) as conn:
        conn.execute("select 1")
    [words] = caplog.messages
    assert "its lease was thrown away" in words


def test_a_handler_that_was_thrown_away_is_found(pg_node, model):
    dbpool.Connection.init(config(pg_node, type=model, connection_count=1))
    try:
        dbpool.Handler(timeout=LIMIT).__enter__()
        with dbpool.Handler(timeout=LIMIT) as db:
            assert db.query("select 1")[0][0] == 1
    finally:
        dbpool.Connection.close()


def test_close_does_not_wait_for_what_nobody_can_return(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=2))
    pool.getconn(timeout=LIMIT)
    pool.connection(timeout=LIMIT).__enter__()
    pool.close(timeout=LIMIT)
    assert stats(pool).open == 0
    assert stats(pool).counters.closed["lost"] == 2


# -- held -------------------------------------------------------------------------------------------------------------


class Keeps:
    def __init__(self, thing: Any) -> None:
        self.thing = thing


def wrapped(thing: Any) -> Any:
    def function() -> Any:
        return thing

    return function


def suspended(thing: Any) -> Any:
    def generator() -> Any:
        yield
        yield thing

    made = generator()
    next(made)
    return made


@pytest.mark.parametrize(
    "keep",
    [
        pytest.param(lambda conn: conn, id="a variable"),
        pytest.param(lambda conn: [conn], id="a list"),
        pytest.param(Keeps, id="an attribute"),
        pytest.param(lambda conn: conn.cursor(), id="a cursor"),
        pytest.param(lambda conn: conn.execute, id="a method"),
        pytest.param(lambda conn: conn.transaction(), id="a transaction block"),
        pytest.param(wrapped, id="a closure"),
        pytest.param(suspended, id="a generator"),
    ],
)
def test_a_connection_of_getconn_is_held_by(one, keep):
    kept = keep(one.getconn())
    nobody_else_can_have_one(one)
    [slot] = one._out.values()
    assert not slot.conn.closed
    slot.conn.execute("select 1")
    one.putconn(slot.conn)
    del kept, slot


def test_a_connection_in_a_reference_cycle_is_held_until_the_collector_has_been(one):
    gc.disable()
    try:
        cycle = [one.getconn()]
        cycle.append(cycle)
        del cycle
        nobody_else_can_have_one(one)
        gc.collect()
        one.putconn(one.getconn(timeout=LIMIT))
    finally:
        gc.enable()


def test_a_lease_in_a_variable_is_held(one):
    lease = one.connection()
    conn = lease.__enter__()
    nobody_else_can_have_one(one)
    conn.execute("select 1")
    lease.__exit__(None, None, None)


def test_a_lease_of_another_thread_is_held(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    taken, over = threading.Event(), threading.Event()

    def work() -> None:
        with pool.connection(timeout=LIMIT):
            taken.set()
            over.wait(LIMIT)

    other = start(work)
    taken.wait(LIMIT)
    nobody_else_can_have_one(pool)
    over.set()
    other.result(LIMIT)
    assert stats(pool).counters.closed == {}


def test_nothing_is_taken_for_lost_that_is_just_being_handed_on(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=4, min_count=4))
    pool.wait(LIMIT)
    group = pool._group("default")
    over = threading.Event()
    rounds = [0] * 8

    def work(number: int) -> None:
        while not over.is_set():
            if number % 2:
                with pool.connection(timeout=LIMIT):
                    pass
            else:
                pool.putconn(pool.getconn(timeout=LIMIT))
            rounds[number] += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [start(work, number) for number in range(len(rounds))]
        looks = 0
        while min(rounds) < 200 or looks < 20_000:
            looks += 1
            with pool._lock:
                for lane in group.lanes:
                    assert pool._keeper.reclaim.among(lane.slots) == []
        over.set()
        for worker in workers:
            worker.result(LIMIT)
    finally:
        over.set()
        sys.setswitchinterval(interval)
    assert stats(pool).counters.closed == {}
    assert (stats(pool).open, stats(pool).idle) == (4, 4)


# -- waiters ----------------------------------------------------------------------------------------------------------


def forget(monkeypatch: pytest.MonkeyPatch, how: Callable[[Group, Slot], Any]) -> None:
    """The first hand-over by this thread is interrupted: `how` far it comes."""
    me = threading.get_ident()
    hand = Group.hand

    def interrupted_hand(group: Group, slot: Slot) -> bool:
        if threading.get_ident() != me or not group.waiters:
            return hand(group, slot)
        monkeypatch.setattr(Group, "hand", hand)
        how(group, slot)
        raise Interrupt

    monkeypatch.setattr(Group, "hand", interrupted_hand)


def takes_out(group: Group, slot: Slot) -> None:
    group.waiters.popitem(last=False)


def claims(group: Group, slot: Slot) -> None:
    assert group.waiters.popitem(last=False)[0].claim()


def hands_over_and_does_not_wake(group: Group, slot: Slot) -> None:
    waiter, _ = group.waiters.popitem(last=False)
    assert waiter.claim()
    waiter.slot = slot


@pytest.mark.parametrize("how", [takes_out, claims, hands_over_and_does_not_wake])
def test_a_waiter_that_an_interrupted_giver_forgot_is_served_all_the_same(pg_node, open_pool, monkeypatch, how):
    pool = open_pool(config(pg_node, connection_count=1))

    def work() -> int:
        with pool.connection(timeout=LIMIT) as conn:
            return pid(conn)

    with suppress(Interrupt), pool.connection(timeout=LIMIT):
        waiting = start(work)
        wait_for(lambda: stats(pool).waiting == 1)
        forget(monkeypatch, how)
    assert waiting.result(LIMIT)
    put(pool, *hold(pool, 1))
    assert (stats(pool).open, stats(pool).idle, stats(pool).waiting) == (1, 1, 0)


# -- real signals -----------------------------------------------------------------------------------------------------

STORM = """
import json, random, signal, sys, threading, time
from pgdbpool import Pool
import logging
logging.getLogger("pgdbpool").addHandler(logging.NullHandler())
logging.getLogger("psycopg").addHandler(logging.NullHandler())

config = json.loads(sys.argv[1])
pool = Pool(config)
pool.wait(20)
over = threading.Event()
def work():
    while not over.is_set():
        with pool.connection(timeout=20) as conn:
            conn.execute("select 1")
threads = [threading.Thread(target=work) for _ in range(4 if config["type"] == "threaded" else 0)]
for thread in threads:
    thread.start()

uses = interrupts = 0
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
def enough():
    return interrupts >= 300 and uses > 300
def use():
    global uses
    # again and again, since one that meets a destructor is swallowed by Python
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0002, 0.005), 0.01)
    while not enough():
        with pool.connection(timeout=20) as conn:
            if random.random() < 0.1:
                conn.execute("select 1")
        uses += 1
while not enough():
    try:
        try:
            use()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupts += 1
over.set()
for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
conns = [pool.getconn(timeout=20) for _ in range(3)]
assert len({conn.info.backend_pid for conn in conns}) == 3
stats = pool.stats().groups["default"]
assert (stats.open, stats.leased, stats.opening, stats.waiting) == (3, 3, 0, 0), stats
print("fine")
"""


def test_hundreds_of_real_interrupts_lose_nothing(pg_node, model):
    process = python(STORM, json.dumps(config(pg_node, type=model, connection_count=3, min_count=3)))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "fine\n"), err
    wait_for(lambda: not backends(pg_node))


def test_a_lease_that_is_thrown_away_ends_no_statement_on_its_connection(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    conns = []

    def keep():
        conns.append(pool.connection(timeout=LIMIT).__enter__())  # and nobody has the lease
        return conns[0].execute("select pg_sleep(1), 42").fetchone()[1]

    keeping = start(keep)
    wait_for(lambda: conns and conns[0].info.transaction_status is TransactionStatus.ACTIVE)
    with pool.connection(timeout=LIMIT) as conn:  # once nobody has the first one any more
        assert conn.execute("select 1").fetchone() == (1,)
    assert keeping.result(LIMIT) == 42


# -- while no caller waits ---------------------------------------------------------------------------------------------


def forget_a_lock(conn: Any) -> None:
    conn.execute("begin")
    conn.execute("select pg_advisory_xact_lock(4711)")


def test_what_was_forgotten_in_a_transaction_lets_go_of_its_locks_though_no_caller_waits(
    pg_node: Any, open_pool: Any, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = open_pool(config(pg_node, type=model, connection_count=5))
    pool.wait(LIMIT)
    with caplog.at_level(logging.WARNING, "pgdbpool"):
        forget_a_lock(pool.getconn(timeout=LIMIT))
        assert locks(pg_node) == 1

        def let_go() -> bool:
            if model == "non-threaded":  # it looks when a connection comes back
                query(pool)
            return locks(pg_node) == 0

        wait_for(let_go)
    assert "test_what_was_forgotten_in_a_transaction" in caplog.text
    assert "and thrown away" in caplog.text
    assert stats(pool).counters.closed["lost"] == 1


def locks(node: Any) -> int:
    [(count,)] = node.execute("select count(*) from pg_locks where locktype = 'advisory' and granted")
    return int(count)


def test_what_a_cycle_keeps_alive_goes_once_the_garbage_collector_has_found_it(
    pg_node: Any, open_pool: Any, model: str
) -> None:
    pool = open_pool(config(pg_node, type=model, connection_count=5))
    gc.disable()
    try:
        cycle: list[Any] = [pool.getconn(timeout=LIMIT)]
        forget_a_lock(cycle[0])
        cycle.append(cycle)
        del cycle
        looks = count_looks(pool)

        def look() -> None:
            seen = looks()
            if model == "non-threaded":
                wait_for(lambda: query(pool) or looks() > seen + 1)
            else:
                wait_for(lambda: looks() > seen + 1)

        look()
        assert locks(pg_node) == 1
        gc.collect()
        wait_for(lambda: (model == "threaded" or query(pool) is None) and locks(pg_node) == 0)
    finally:
        gc.enable()


def count_looks(pool: Pool) -> Callable[[], int]:
    keeper: Any = pool._keeper
    look = keeper.look_for_forgotten
    looks: list[float] = []

    def counted(now: float) -> float:
        due: float = look(now)
        if due > now:  # else it was too soon
            looks.append(due)
        return due

    keeper.look_for_forgotten = counted
    return lambda: len(set(looks))


def test_what_is_held_for_long_is_left_alone_though_it_is_looked_at_again_and_again(
    pg_node: Any, open_pool: Any, model: str
) -> None:
    pool = open_pool(config(pg_node, type=model, connection_count=5))
    conn = pool.getconn(timeout=LIMIT)
    cursor = pool.getconn(timeout=LIMIT).cursor()
    with pool.connection(timeout=LIMIT) as in_block:
        forgotten = pool._keeper.look_for_forgotten
        for later in range(1, 20):
            forgotten(time.monotonic() + 2 * later)
        assert conn.execute("select 1").fetchone() == (1,)
        assert cursor.execute("select 1").fetchone() == (1,)
        assert in_block.execute("select 1").fetchone() == (1,)
    put(pool, conn, cursor.connection)
    assert "lost" not in stats(pool).counters.closed
