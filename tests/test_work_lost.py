"""Work is never lost without a word: a block that ends normally has committed, or raises; and says what is known."""

# ruff: noqa: PT012  what raises is the end of a whole block

import asyncio
import itertools
import re
import signal
import threading
from contextlib import nullcontext, suppress

import psycopg
import pytest
from conftest import LIMIT, config, wait_for
from psycopg import waiting
from support import Wire, in_turn
from support import tidy as tidy
from ways import NAMES, Way
from ways import way as way

from pgdbpool import DBConnectionError, DBQueryError, Handler, OutcomeUnknown, Pool
from pgdbpool import pool as dbpool
from pgdbpool.drivers.doubt import may_commit
from pgdbpool.testing import Cluster, PgBouncer

NOT_COMMITTED = "is not committed"
UNKNOWN = "may or may not have been committed"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def node():
    """A server that admits two-phase commits."""
    with Cluster(standbys=0, settings={"max_prepared_transactions": 20}) as cluster:
        cluster.primary.execute("create table work_t (i int primary key); grant all on work_t to app")
        yield cluster.primary


@pytest.fixture
def rows(node):
    """How many rows the table has when asked by somebody else; none at first."""
    for (gid,) in node.execute("select gid from pg_prepared_xacts"):
        node.execute(f"rollback prepared '{gid}'", database="app")
    node.execute("truncate work_t")
    return lambda: node.execute("select count(*) from work_t")[0][0]


def transactions(*places, **group):
    """A transaction group of one connection, "auto" beside it. Their names appear once in the whole run: log lines are
    counted by them."""
    return config(*places, monitor=False, groups=groups(**group))


def groups(**group):
    one = {"connection_count": 1, "acquire_timeout": LIMIT, **group}
    return {"default": {"autocommit": False, **one}, "auto": one}


async def works(pool, group="default"):
    """The next borrower is untouched."""
    async with pool.block(group) as conn:
        cursor = await conn.execute("select 1")
        assert await cursor.fetchone() == (1,)
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("select 1 / 0")
        await conn.rollback()


# -- left in the middle of something ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["stream", "copy", "pipeline", "closed"])
def test_a_block_left_in_the_middle_of_something_raises_and_says_so(what, node, way, rows):
    async def story(pool):
        with pytest.raises(DBConnectionError, match=NOT_COMMITTED) as caught:
            async with pool.block() as conn:
                await conn.execute("insert into work_t values (1)")
                await pool.leave_open(conn, what)
        assert not isinstance(caught.value, OutcomeUnknown)
        await works(pool)

    way(story, transactions(node))
    assert rows() == 0


@pytest.mark.parametrize("what", ["stream", "copy", "pipeline", "notifies", "closed"])
def test_a_connection_of_an_autocommit_group_left_so_is_not_put_back_and_the_log_says_so(what, node, way, rows, caplog):
    name = f"left {what} {way.name}"

    async def story(pool):
        async with pool.block(name) as conn:
            await pool.leave_open(conn, what)
        await works(pool, name)
        assert pool.stats(name).counters.closed == {"closed" if what == "closed" else "busy": 1}

    way(story, config(node, monitor=False, groups={name: {"connection_count": 1}}))
    assert ["came back" in line for line in caplog.messages if name in line] == [True]
    assert rows() <= (what == "pipeline")  # where each statement stands for itself


def test_a_pipeline_that_was_left_in_order_costs_nothing(node, way, rows):
    async def story(pool):
        pids = set()
        for number in range(3):
            async with pool.block("auto") as conn:
                async with conn.pipeline():
                    await conn.execute("insert into work_t values (%s)", (number,))
                pids.add(conn.info.backend_pid)
                assert not conn.altered
        assert len(pids) == 1

    way(story, transactions(node))
    assert rows() == 3


class SoftLimit(Exception):
    """As task queues raise it."""


@pytest.fixture
def alarm():
    """The signal SIGALRM raises SoftLimit."""

    def handler(number, frame):
        raise SoftLimit

    before = signal.signal(signal.SIGALRM, handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_time_limit_that_was_caught_inside_does_not_end_as_if_it_had_committed(name, node, rows, alarm):
    async def story(pool):
        with pytest.raises((DBConnectionError, psycopg.errors.InFailedSqlTransaction), match="committed") as caught:
            async with pool.block() as conn:
                await conn.execute("insert into work_t values (1)")
                alarm(0.2)
                with pytest.raises(SoftLimit):
                    await conn.execute("select pg_sleep(60)")
        node.terminate_backends("query like '%pg_sleep%'")
        assert not isinstance(caught.value, OutcomeUnknown)
        await works(pool)

    Way(name)(story, transactions(node))
    assert rows() == 0


def busy(conn):
    return conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE


@pytest.mark.parametrize("pooled", [False, True], ids=["directly", "through a pooler"])
@pytest.mark.parametrize("name", NAMES)
def test_nor_does_one_that_came_before_the_statement_was_sent(name, pooled, node, rows, alarm):
    """BEGIN goes before the first statement of a transaction; through a pooler, settings go with it."""

    async def story(pool):
        with pytest.raises((DBConnectionError, psycopg.errors.InFailedSqlTransaction), match="committed") as caught:
            async with pool.block() as conn:
                proxy.latency(0.2)
                if name == "asyncio":
                    task = asyncio.ensure_future(conn.execute("insert into work_t values (1)"))
                    while not busy(conn):
                        await asyncio.sleep(0)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                else:
                    watch = threading.Thread(target=lambda: (wait_for(lambda: busy(conn)), alarm(0.001)))
                    watch.start()
                    with pytest.raises(SoftLimit):
                        await conn.execute("insert into work_t values (1)")
                    watch.join()
                proxy.latency(0.0)
        assert not isinstance(caught.value, OutcomeUnknown)
        await works(pool)

    with node.proxy() as proxy, PgBouncer(proxy) if pooled else nullcontext(proxy) as place:
        Way(name)(story, transactions(place, query_timeout=60_000))
    assert rows() == 0


def test_a_connection_closed_when_nothing_was_open_is_no_error(node, way, rows):
    async def story(pool):
        async with pool.block() as conn:
            await conn.execute("insert into work_t values (1)")
            await conn.commit()
            await conn.close()
        await works(pool)

    way(story, transactions(node))
    assert rows() == 1


def test_a_two_phase_transaction_that_was_not_prepared_is_not_committed(node, way, rows):
    async def story(pool):
        with pytest.raises(psycopg.ProgrammingError) as caught:
            async with pool.block() as conn:
                await conn.tpc_begin(conn.xid(1, f"begun {way.name}", "b"))
                await conn.execute("insert into work_t values (1)")
        assert NOT_COMMITTED in caught.value.__notes__[0]
        await works(pool)

    way(story, transactions(node))
    assert rows() == 0


def test_a_transaction_that_was_prepared_stays_prepared_and_the_session_goes_to_nobody(node, way, rows, caplog):
    name, gid = f"prepared {way.name}", f"prepared {way.name} {next(_numbers)}"

    async def story(pool):
        async with pool.block(name) as conn:
            await conn.tpc_begin(gid)
            await conn.execute("insert into work_t values (1)")
            await conn.tpc_prepare()
        await works(pool, name)
        async with pool.block(name) as conn:
            await conn.tpc_commit(gid)

    way(story, config(node, monitor=False, groups={name: {"autocommit": False, "connection_count": 1}}))
    assert rows() == 1
    assert ["stays prepared" in line for line in caplog.messages] == [True]


def test_a_two_phase_commit_that_was_ended_costs_nothing(node, way, rows):
    async def story(pool):
        for number in range(2):
            async with pool.block() as conn:
                await conn.tpc_begin(f"ended {way.name}")
                await conn.execute("insert into work_t values (%s)", (number,))
                await conn.tpc_prepare()
                await conn.tpc_commit()
        assert pool.stats().counters.connects == 1

    way(story, transactions(node))
    assert rows() == 2


# -- lost before COMMIT ----------------------------------------------------------------------------------------------


def test_a_session_that_was_gone_before_commit_was_sent_is_not_committed(node, way, rows):
    async def story(pool):
        for end in ("idle", "too long", "terminated"):
            with pytest.raises(DBConnectionError, match=f"before COMMIT was sent.*{NOT_COMMITTED}") as caught:
                async with pool.block() as conn:
                    await conn.execute("insert into work_t values (1)")
                    pid = conn.info.backend_pid
                    if end == "idle":
                        await conn.execute("set idle_in_transaction_session_timeout = 50")
                    elif end == "too long":  # from PostgreSQL 17 on
                        await conn.execute("set transaction_timeout = '50ms'")
                    else:
                        node.execute("select pg_terminate_backend(%s)", (pid,))
                    wait_for(
                        lambda pid=pid: node.execute("select 1 from pg_stat_activity where pid = %s", (pid,)) == []
                    )
            assert not isinstance(caught.value, OutcomeUnknown)
            assert caught.value.__cause__.sqlstate == {"idle": "25P03", "too long": "25P04", "terminated": "57P01"}[end]
            assert "terminating connection" in str(caught.value)
        await works(pool)

    way(story, transactions(node))
    assert rows() == 0


def test_a_connection_that_was_reset_before_commit_was_sent_is_not_committed(node, way, rows):
    async def story(pool):
        with pytest.raises(DBConnectionError, match=NOT_COMMITTED) as caught:
            async with pool.block() as conn:
                await conn.execute("insert into work_t values (1)")
                wire.reset()
        assert not isinstance(caught.value, OutcomeUnknown)

    with Wire(node) as wire:
        way(story, transactions(wire))
    assert rows() == 0


def test_a_server_that_only_had_something_to_say_keeps_nobody_from_committing(node, way, rows):
    async def story(pool):
        async with pool.block() as conn:
            await conn.execute("listen work")
            await conn.commit()
            await conn.execute("insert into work_t values (1)")
            node.execute("notify work", database="app")

    way(story, transactions(node))
    assert rows() == 1


@pytest.fixture(params=["threaded", "non-threaded"])
def process_wide(request):
    """Makes the process-wide pool, of either model."""
    yield lambda config: dbpool.Connection.init({**config, "type": request.param})
    dbpool.Connection.close(timeout=0.0)


def lose(node, db):
    """The session that a Handler has."""
    pid = db.conn_ref.info.backend_pid
    node.execute("select pg_terminate_backend(%s)", (pid,))
    wait_for(lambda: node.execute("select 1 from pg_stat_activity where pid = %s", (pid,)) == [])


def test_a_commit_of_a_handler_on_a_session_that_was_gone_is_not_committed(node, process_wide, rows):
    process_wide(transactions(node))
    with Handler() as db:
        db.query("insert into work_t values (1)")
        lose(node, db)
        with pytest.raises(DBConnectionError, match=NOT_COMMITTED) as caught:
            db.commit()
        assert not isinstance(caught.value, OutcomeUnknown)
    assert rows() == 0


def test_nor_is_one_after_a_statement_in_which_it_was_lost_and_whose_error_was_caught(node, process_wide, rows):
    process_wide(transactions(node))
    with Handler() as db:
        db.query("insert into work_t values (1)")
        lose(node, db)
        with pytest.raises(DBQueryError):
            db.query("insert into work_t values (2)")
        for _ in range(2):
            with pytest.raises(DBConnectionError, match=NOT_COMMITTED) as caught:
                db.commit()
            assert not isinstance(caught.value, OutcomeUnknown)
    with Handler() as db:
        assert db.query("select count(*) from work_t").fetchone() == (0,)


@pytest.mark.parametrize("then", ["commit", "rollback"])
def test_a_handler_that_was_lost_in_a_commit_of_its_users_says_that_it_may_have_been_committed(
    then, node, process_wide, rows
):
    with Wire(node) as wire:
        process_wide(transactions(wire))
        with Handler() as db:
            db.query("insert into work_t values (1)")
            wire.cut = "after"
            with pytest.raises(DBQueryError):
                db.query("COMMIT")
            wire.cut = None
            with pytest.raises(OutcomeUnknown, match=UNKNOWN):
                getattr(db, then)()
        assert rows() == 1


def test_a_rollback_of_a_handler_that_the_driver_refuses_is_no_lost_connection(node, process_wide, rows):
    process_wide(transactions(node))
    with Handler() as db:
        with db.conn_ref.transaction():
            db.query("insert into work_t values (1)")
            with pytest.raises(DBQueryError, match="forbidden within a Transaction"):
                db.rollback()
        db.query("insert into work_t values (2)")
    assert rows() == 2


def test_a_handler_whose_commit_was_interrupted_at_its_end_says_so_until_its_block_has_ended(
    node, process_wide, rows, monkeypatch
):
    """The connection is idle and can be used, but only the server knows what became of the COMMIT."""

    def wait(gen, *args):
        wait_to_the_end(gen, *args)
        raise SoftLimit

    process_wide(transactions(node))
    told = 0
    with pytest.raises(OutcomeUnknown, match=UNKNOWN), Handler() as db:
        db.query("insert into work_t values (1)")
        with monkeypatch.context() as patch, pytest.raises(OutcomeUnknown):
            wait_to_the_end = waiting.wait
            patch.setattr(waiting, "wait", wait)
            db.commit()
        with pytest.raises(OutcomeUnknown, match=UNKNOWN):
            db.commit()
        db.query("insert into work_t values (2)")
        told = 2
    assert told == 2
    assert rows() == 1


# -- the user's own COMMIT ---------------------------------------------------------------------------------------------


async def by_commit(conn):
    await conn.commit()


async def by_a_transaction_block(conn):
    async with conn.transaction():
        await conn.execute("insert into work_t values (100)")


async def by_sql(conn):
    await conn.execute("COMMIT")


async def by_sql_prepared(conn):
    await conn.execute("COMMIT", prepare=True)


async def by_another_word(conn):
    await conn.execute("/* ; */ -- so\n End work")


async def by_a_cursor(conn):
    await conn.cursor().execute(psycopg.sql.SQL("commit") + psycopg.sql.SQL(" and chain"))


async def with_others(conn):
    await conn.execute("insert into work_t values (2); commit; select 1")


async def in_a_pipeline(conn):
    async with conn.pipeline():
        await conn.execute("insert into work_t values (3)")
        await conn.execute("COMMIT")
        await conn.execute("select 1")


async def in_a_pipeline_of_a_method(conn):
    async with conn.pipeline():
        await conn.execute("insert into work_t values (3)")
        await conn.commit()


WAYS_TO_COMMIT = [
    by_commit,
    by_sql,
    by_sql_prepared,
    by_another_word,
    by_a_cursor,
    with_others,
    in_a_pipeline,
    in_a_pipeline_of_a_method,
]
_CUT_AT = ("COMMIT", "/* ; */", "INSERT INTO WORK_T VALUES (2)")


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("commit", WAYS_TO_COMMIT)
def test_a_connection_lost_in_the_users_own_commit_is_an_unknown_outcome(commit, cut, node, way, rows):
    async def story(pool):
        for group, begin in ("default", None), ("auto", "begin"):
            with pytest.raises(OutcomeUnknown, match=UNKNOWN):
                async with pool.block(group) as conn:
                    if begin is not None:
                        await conn.execute(begin)
                    await conn.execute("insert into work_t values (1)")
                    wire.cut = cut
                    with pytest.raises(psycopg.Error) as caught:
                        await commit(conn)
                    wire.cut = None
                    assert UNKNOWN in caught.value.__notes__[0]
            node.execute("truncate work_t")

    with Wire(node) as wire:
        wire.cut_at = _CUT_AT
        way(story, transactions(wire))


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_lost_in_the_commit_of_a_transaction_block_is_an_unknown_outcome(cut, node, way, rows):
    async def story(pool):
        with pytest.raises(OutcomeUnknown, match=UNKNOWN):
            async with pool.block("auto") as conn:
                with pytest.raises(psycopg.OperationalError):
                    wire.cut = cut
                    async with conn.transaction():
                        await conn.execute("insert into work_t values (1)")
                wire.cut = None

    with Wire(node) as wire:
        way(story, transactions(wire))


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("step", ["prepare", "commit", "commit at once"])
def test_a_connection_lost_in_a_two_phase_commit_is_an_unknown_outcome(step, cut, node, way, rows):
    async def story(pool):
        with pytest.raises(OutcomeUnknown, match=UNKNOWN):
            async with pool.block() as conn:
                await conn.tpc_begin(f"lost {next(_numbers)}")
                await conn.execute("insert into work_t values (1)")
                if step == "commit":
                    await conn.tpc_prepare()
                wire.cut = cut
                with pytest.raises(psycopg.OperationalError):
                    await (conn.tpc_prepare() if step == "prepare" else conn.tpc_commit())
                wire.cut = None

    with Wire(node) as wire:
        wire.cut_at = ("COMMIT", "PREPARE TRANSACTION")
        way(story, transactions(wire))


@pytest.mark.parametrize(
    "sql",
    ["insert into work_t values (5)", "rollback", "savepoint s", "update work_t set i = case when true then i end"],
)
def test_a_connection_lost_in_any_other_statement_of_a_transaction_is_not_committed(sql, node, way, rows):
    async def story(pool):
        for in_pipeline in False, True:
            with pytest.raises(DBConnectionError, match=NOT_COMMITTED) as caught:
                async with pool.block() as conn:
                    await conn.execute("insert into work_t values (1)")
                    wire.cut = "after"
                    with suppress(psycopg.Error):
                        if in_pipeline:
                            async with conn.pipeline():
                                await conn.execute(sql)
                        else:
                            await conn.execute(sql)
                    wire.cut = None
            assert not isinstance(caught.value, OutcomeUnknown)

    with Wire(node) as wire:
        wire.cut_at = (sql.upper(),)
        way(story, transactions(wire))
    assert rows() == 0


def test_a_connection_lost_in_the_begin_of_a_transaction_is_not_committed(node, way, rows):
    async def story(pool):
        with pytest.raises(DBConnectionError, match=NOT_COMMITTED) as caught:
            async with pool.block() as conn:
                wire.cut = "before"
                with pytest.raises(psycopg.OperationalError):
                    await conn.execute("insert into work_t values (1); commit")
                wire.cut = None
        assert not isinstance(caught.value, OutcomeUnknown)

    with Wire(node) as wire:
        wire.cut_at = ("BEGIN",)
        way(story, transactions(wire))
    assert rows() == 0


def test_what_is_tried_on_a_connection_after_it_was_lost_does_not_put_anything_in_doubt(node, way, rows):
    async def story(pool):
        with pytest.raises(DBConnectionError, match=NOT_COMMITTED) as caught:
            async with pool.block() as conn:
                await conn.execute("insert into work_t values (1)")
                wire.reset()
                for _ in range(2):
                    with pytest.raises(psycopg.OperationalError):
                        await conn.execute("insert into work_t values (2)")
                with pytest.raises(psycopg.OperationalError):
                    await conn.commit()
        assert not isinstance(caught.value, OutcomeUnknown)

    with Wire(node) as wire:
        way(story, transactions(wire))
    assert rows() == 0


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_commit_that_was_interrupted_and_caught_is_an_unknown_outcome(name, node, rows, alarm):
    async def story(pool):
        with pytest.raises(OutcomeUnknown, match=UNKNOWN):
            async with pool.block() as conn:
                await conn.execute("insert into work_t values (1)")
                proxy.stall()
                alarm(0.2)
                with pytest.raises(SoftLimit) as caught:
                    await conn.commit()
                assert UNKNOWN in caught.value.__notes__[0]
                proxy.resume()

    with node.proxy() as proxy:
        Way(name)(story, transactions(proxy))


def test_a_pipeline_with_a_commit_that_was_left_open_is_an_unknown_outcome(node, way, rows):
    async def story(pool):
        with pytest.raises(OutcomeUnknown, match=UNKNOWN):
            async with pool.block() as conn:
                await pool.leave_open(conn, "pipeline")
                await conn.commit()
        await works(pool)

    way(story, transactions(node))


def test_a_lost_autocommit_statement_is_noted_as_open_and_is_the_drivers_error_only(node, way, rows):
    async def story(pool):
        for leave in False, True:
            if leave:
                with pytest.raises(psycopg.OperationalError) as caught:
                    async with pool.block("auto") as conn:
                        await lose(conn)
            else:
                async with pool.block("auto") as conn:
                    with pytest.raises(psycopg.OperationalError) as caught:
                        await lose(conn)
            assert ["may or may not have taken effect" in note for note in caught.value.__notes__] == [True]

    async def lose(conn):
        wire.cut = "after"
        try:
            await conn.execute("insert into work_t values (%s)", (next(_numbers),))
        finally:
            wire.cut = None

    with Wire(node) as wire:
        wire.cut_at = ("INSERT",)
        way(story, transactions(wire))
    wait_for(lambda: rows() == 2)


def test_an_autocommit_statement_in_a_transaction_group_may_have_taken_effect(node, way, rows):
    async def story(pool):
        with pytest.raises(OutcomeUnknown, match="may or may not have taken effect"):
            async with pool.block() as conn:
                await conn.set_autocommit(True)
                wire.cut = "after"
                with pytest.raises(psycopg.OperationalError):
                    await conn.execute("insert into work_t values (1)")
                wire.cut = None

    with Wire(node) as wire:
        wire.cut_at = ("INSERT",)
        way(story, transactions(wire))
    wait_for(lambda: rows() == 1)


def test_the_notes_reach_those_who_use_a_handler(node, rows):
    with Wire(node) as wire:
        dbpool.Connection.init(transactions(wire))
        wire.cut = "after"
        with pytest.raises(OutcomeUnknown), Handler() as db:
            db.query("insert into work_t values (1)")
            with pytest.raises(DBQueryError) as caught:
                db.query("commit")
            assert UNKNOWN in caught.value.__notes__[0]
        dbpool.Connection.close()
    wait_for(lambda: rows() == 1)


def test_an_exception_that_ends_the_block_later_says_that_a_commit_is_in_doubt(node, way, rows):
    async def story(pool):
        with pytest.raises(ZeroDivisionError) as caught:
            async with pool.block() as conn:
                await conn.execute("insert into work_t values (1)")
                wire.cut = "after"
                with suppress(psycopg.OperationalError):
                    await conn.commit()
                raise ZeroDivisionError
        assert UNKNOWN in caught.value.__notes__[0]

    with Wire(node) as wire:
        way(story, transactions(wire))


@pytest.mark.parametrize(
    ("sql", "ends"),
    [
        ("commit", True),
        ("  COMMIT AND CHAIN", True),
        ("end", True),
        ("END TRANSACTION", True),
        ("-- a comment\nend", True),
        ("/* a /* nested */ comment */ end", True),
        ("insert into t values (1);\n end;", True),
        ("update t set x = case when y then 1 end; end", True),
        ("PREPARE  TRANSACTION 'x'", True),
        ("commit prepared 'x'", True),
        (r"select E'\''; commit; select ''", True),
        ("insert into commits values (1)", False),
        ("select commit_id, ended, send from t", False),
        ("update t set x = case when y then 1 end", False),
        ("rollback", False),
        ("release savepoint x", False),
        ("prepare x as select 1", False),
    ],
)
def test_what_may_end_a_transaction_for_good(sql, ends):
    assert may_commit(sql.encode()) is ends


# -- what the log says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", ["begin", "autocommit"])
def test_a_transaction_begun_in_an_autocommit_group_is_rolled_back_and_the_log_says_so(begin, node, way, rows, caplog):
    name = f"begun by {begin} {way.name}"

    async def story(pool):
        for number in range(3):
            async with pool.block(name) as conn:
                await (conn.execute("begin") if begin == "begin" else conn.set_autocommit(False))
                await conn.execute("insert into work_t values (%s)", (number,))
        assert pool.stats(name).counters.rollbacks == 3
        await works(pool, name)

    way(story, config(node, monitor=False, groups={name: {"connection_count": 1}}))
    assert rows() == 0
    [line] = [line for line in caplog.messages if name in line]  # and not three
    assert "in a transaction, which is rolled back" in line


@pytest.mark.parametrize("name", ["threaded", "asyncio"])
@pytest.mark.parametrize("state", ["in a transaction", "in the middle of a statement", "broken", "closed"])
def test_putconn_of_a_connection_in_another_state_is_logged(state, name, node, rows, caplog):
    group = f"put {state} {name}"

    async def story(pool):
        conn = await pool.getconn(group)
        await conn.execute("insert into work_t values (1)")
        if state == "in the middle of a statement":
            await pool.leave_open(conn, "stream")
        elif state == "closed":
            await conn.close()
        elif state == "broken":
            node.execute("select pg_terminate_backend(%s)", (conn.info.backend_pid,))
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("select 1")
        await pool.putconn(conn)

    Way(name)(story, config(node, monitor=False, groups={group: {"autocommit": False, "connection_count": 1}}))
    assert rows() == 0
    assert [state in line for line in caplog.messages if group in line] == [True]


@pytest.mark.parametrize("where", ["idle", "in a transaction", "failed", "closed", "broken"])
def test_a_reset_that_fails_is_logged_in_whatever_state_it_leaves_the_session(where, node, way, rows, caplog):
    name = f"reset {where} {way.name}"

    def reset(conn):
        if where == "closed":
            conn.close()
        elif where == "broken":
            node.execute("select pg_terminate_backend(%s)", (conn.info.backend_pid,))
        if where != "idle" and where != "closed":
            conn.execute("discard all" if where == "failed" else "select 1")
        raise ValueError("cannot be reset")

    async def aio_reset(conn):
        if where == "closed":
            await conn.close()
        elif where == "broken":
            node.execute("select pg_terminate_backend(%s)", (conn.info.backend_pid,))
        if where != "idle" and where != "closed":
            await conn.execute("discard all" if where == "failed" else "select 1")
        raise ValueError("cannot be reset")

    async def story(pool):
        pids = set()
        for _ in range(3):
            async with pool.block(name) as conn:
                pids.add(conn.info.backend_pid)
        assert len(pids) == 3

    group = {"autocommit": False, "connection_count": 1, "reset": aio_reset if way.name == "asyncio" else reset}
    way(story, config(node, monitor=False, groups={name: group}))
    assert ["reset failed" in line for line in caplog.messages if name in line] == [True]


def test_a_rollback_that_is_interrupted_is_no_reset_that_failed_and_the_interrupt_is_heard(node, rows, alarm, caplog):
    with node.proxy() as proxy, Pool(transactions(proxy)) as pool:
        with pytest.raises(SoftLimit), pool.connection() as conn:
            in_turn(lambda: conn.execute("insert into work_t values (1)"), proxy.stall, lambda: alarm(0.2))
            raise ZeroDivisionError
        proxy.resume()
        wait_for(lambda: pool.stats().groups["default"].leased == 0)
        assert not re.search("reset failed", caplog.text)
    assert rows() == 0
