"""A call that the pool has ended says who has ended it, after how long without an answer, and which setting decided."""

import re
import threading

import psycopg
import pytest
from conftest import config, wait_for
from support import LIMIT
from ways import way as way

from pgdbpool import DBQueryError

BY_POOL = "pgdbpool: the call was ended by the pool"
QUICK = {"interval": 0.2, "timeout": 0.3}


def notes(error):
    return "\n".join(getattr(error, "__notes__", ()))


ASLEEP = "from pg_stat_activity where pid = %s and wait_event = 'PgSleep'"


def freeze_when_asleep(node, pid):
    """As soon as the session's statement sleeps."""

    def act():
        wait_for(lambda: node.execute(f"select 1 {ASLEEP}", (pid,)))
        node.freeze()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def ended(way, node, settings, *, frozen_before=False):
    """The exception of a call during which its server freezes, or whose server has frozen just before."""
    errors = []

    async def story(pool):
        freezing = None
        try:
            async with pool.block() as conn:
                await conn.execute("select 1")
                if frozen_before:
                    node.freeze()
                else:
                    freezing = freeze_when_asleep(node, conn.info.backend_pid)
                try:
                    await conn.execute("select pg_sleep(600)")
                except psycopg.Error as error:
                    errors.append(error)
        except Exception:  # of leaving a block whose connection is lost
            pass
        finally:
            if freezing is not None:
                freezing.join(LIMIT)
            node.thaw()

    way(story, settings)
    assert len(errors) == 1
    return errors[0]


def test_on_a_frozen_server_it_says_that_probes_have_failed(way, pg_node):
    error = ended(way, pg_node, config(pg_node, monitor={**QUICK, "fall": 3}))
    said = f"{error}\n{notes(error)}"
    if way.name == "non-threaded":  # which has no monitor: the call itself looks
        assert re.search(r"the server has not answered for \d+\.\d s: ", said)
        assert re.search(rf"{BY_POOL} after \d+\.\d s without an answer: ", said)
        assert "3 attempts to reach it failed (monitor.fall; monitor.timeout is 0.3 s)" in said
    else:
        assert re.search(
            rf"{BY_POOL}: 127\.0\.0\.1:{pg_node.port} is lost: .+; it last answered \d+\.\d s before", said
        )
        assert "3 probes in a row failed (monitor.fall; monitor.timeout is 0.3 s)" in said


@pytest.mark.parametrize("whose", ["group", "endpoint"])
def test_on_a_frozen_server_it_names_the_query_timeout(way, pg_node, whose):
    monitor = {"timeout": 60.0, "fall": 5}  # so it is not the one that decides
    place = pg_node.endpoint(ssl="disable", **({"query_timeout": 700} if whose == "endpoint" else {}))
    settings = config(place, monitor=monitor, **({"query_timeout": 700} if whose == "group" else {}))
    error = ended(way, pg_node, settings, frozen_before=True)  # else the server may end the statement itself
    of = "group 'default'" if whose == "group" else f"127.0.0.1:{pg_node.port}"
    assert re.search(
        rf"{BY_POOL} after \d+\.\d s without an answer: query_timeout of {of} is 700 ms, and 1 s more had passed",
        notes(error),
    )


def test_a_statement_that_the_server_ends_names_the_query_timeout(way, pg_node):
    async def story(pool):
        async with pool.block() as conn:
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                await conn.execute("select pg_sleep(600)")
            assert notes(caught.value) == "pgdbpool: query_timeout of group 'default' is 300 ms"

    way(story, config(pg_node, query_timeout=300))


def test_a_statement_that_another_session_cancels_is_not_put_down_to_a_setting(way, pg_node):
    def cancel(pid):
        wait_for(lambda: pg_node.execute(f"select pg_cancel_backend(pid) {ASLEEP}", (pid,)))

    async def story(pool):
        async with pool.block() as conn:
            canceller = threading.Thread(target=cancel, args=(conn.info.backend_pid,), daemon=True)
            canceller.start()
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                await conn.execute("select pg_sleep(600)")
            canceller.join(LIMIT)
            assert "query_timeout" not in notes(caught.value)

    way(story, config(pg_node, query_timeout=60_000))


def test_the_error_of_a_handler_has_the_note(pg_node, open_pool):
    from pgdbpool import pool as dbpool

    try:
        dbpool.Connection.init(config(pg_node, query_timeout=300))
        with dbpool.Handler() as db, pytest.raises(DBQueryError) as caught:
            db.query("select pg_sleep(600)")
        assert notes(caught.value) == "pgdbpool: query_timeout of group 'default' is 300 ms"
    finally:
        dbpool.Connection.close()
