"""What the page "With PgBouncer" says of what needs a session: it goes wrong in transaction mode alone."""

import json
import re
from pathlib import Path

import psycopg
import pytest
from conftest import config
from support import one

from pgdbpool.testing import PgBouncer
from tests.cli.command import run
from tests.pooler.conftest import door_to
from tests.testing.helpers import needs_pgbouncer

pytestmark = needs_pgbouncer
PAGE = Path(__file__).parents[2] / "docs" / "pgbouncer.rst"


def other_client(pooler):
    return psycopg.connect(pooler.dsn, autocommit=True, prepare_threshold=None)


def test_pgbouncer_takes_the_settings_that_the_page_recommends(pg_node):
    ini = re.search(r"\[pgbouncer\]\n((?: {4}.*\n)+)", PAGE.read_text())
    assert ini is not None
    lines = [line.strip() for line in ini[1].splitlines() if line.strip() and not line.strip().startswith(";")]
    settings = dict(line.split(" = ") for line in lines)
    with PgBouncer(pg_node, settings.pop("pool_mode"), settings=settings) as pooler:
        known = {row["key"]: row["value"] for row in pooler.admin("SHOW CONFIG")}
        assert {key: known[key] for key in settings} == settings
        assert "WARNING" not in pooler.log()


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_configure_and_session_state(pg_node, front, mode):
    """In transaction mode what a session is told reaches whoever gets its backend next."""
    declared = {"pooler": "session"} if mode == "session" else {}

    def configure(conn):
        return conn.execute("set search_path = configured", prepare=False)

    with PgBouncer(pg_node, mode, settings={"default_pool_size": 1 if mode == "transaction" else 5}) as pooler:
        where = pooler.endpoint(ssl="disable", **declared)
        pool = front(config(where, connection_count=1, configure=configure, monitor=mode == "transaction"))
        assert pool.ask("show search_path") == "configured"
        with other_client(pooler) as other:
            assert (one(other, "show search_path") == "configured") is (mode == "transaction")


def test_advisory_locks_of_a_session_stay_with_the_backend_and_those_of_a_transaction_do_not(pg_node, front):
    with door_to(pg_node, default_pool_size=1) as door:
        pool = front(config(door.pooler, autocommit=False))
        pool.ask("select pg_advisory_lock(1)", "select 1")
        with other_client(door.pooler) as other:
            assert one(other, "select pg_advisory_unlock(1)") is True  # it was somebody else's
        pool.ask("select pg_advisory_xact_lock(2)", "select 1")
        assert pg_node.execute("select count(*) from pg_locks where locktype = 'advisory'")[0][0] == 0


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_notifications_reach_only_a_session_that_has_its_own_server(pg_node, open_pool, mode):
    declared = {"pooler": "session"} if mode == "session" else {}
    with PgBouncer(pg_node, mode) as pooler:
        pool = open_pool(config(pooler.endpoint(ssl="disable", **declared)))
        with pool.connection() as conn:
            conn.execute("listen news")
            pg_node.execute("notify news, 'x'")
            heard = [
                notify.payload for notify in conn.notifies(timeout=1.0 if mode == "transaction" else 20, stop_after=1)
            ]
        assert heard == (["x"] if mode == "session" else [])


def test_options_of_the_user_are_refused_or_dropped(pg_node, open_pool):
    options = {"params": {"options": "-c search_path=mine"}}
    with PgBouncer(pg_node) as pooler:
        pool = open_pool(config(pooler.endpoint(ssl="disable", **options), monitor=False))
        with pytest.raises(Exception, match="unsupported startup parameter"):
            pool.getconn(timeout=20)
    with PgBouncer(pg_node, settings={"ignore_startup_parameters": "extra_float_digits,options"}) as pooler:
        pool = open_pool(config(pooler.endpoint(ssl="disable", **options), monitor=False))
        with pool.connection() as conn:
            assert one(conn, "show search_path") != "mine"


def test_a_call_that_is_ended_is_cancelled_through_the_pooler(pg_node, front):
    with door_to(pg_node) as door:
        pool = front(config(door.pooler.endpoint(ssl="disable", query_timeout=200), connection_count=1))
        with pytest.raises(psycopg.OperationalError):
            pool.ask("select pg_sleep(300)")
        assert pool.ask("select 1", timeout=30) == 1
        sleeping = "select count(*) from pg_stat_activity where query like '%pg_sleep(300)%' and state = 'active'"
        deadline = 30
        while pg_node.execute(sleeping + " and pid <> pg_backend_pid()")[0][0] and deadline:
            deadline -= 1
            pg_node.execute("select pg_sleep(0.2)")
        assert deadline


@pytest.mark.parametrize("declared", [None, "session"])
def test_check_says_that_there_is_a_pooler(pg_node, tmp_path, declared):
    with PgBouncer(pg_node, "session") as pooler:
        where = pooler.endpoint(ssl="disable", **({} if declared is None else {"pooler": declared}))
        entry = "".join(f"{key} = {json.dumps(value)}\n" for key, value in where.items())
        path = tmp_path / "pool.toml"
        path.write_text(f"[[db]]\n{entry}\n[groups.default]\n")
        notes = run("check", path, "--json").json["groups"][0]["notes"]
        assert any("a pooler is in between" in note for note in notes) is (declared is None)
