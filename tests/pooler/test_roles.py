"""Which server is behind a pooler: PgBouncer says of every server what the first one said (`in_hot_standby`)."""

import psycopg
import pytest
from conftest import LIMIT, config, wait_for

from pgdbpool import PoolTimeout
from tests.pooler.conftest import READ_ONLY, door_to
from tests.testing.helpers import needs_pgbouncer

pytestmark = needs_pgbouncer
MODES = ("transaction", "session")
INSERT = "insert into pooled values (1)"


@pytest.fixture
def cluster(pg_cluster):
    pg_cluster.primary.execute("create table if not exists pooled (n int); grant all on pooled to app")
    pg_cluster.wait_for_replication()
    return pg_cluster


@pytest.mark.parametrize("mode", MODES)
def test_a_write_refused_behind_a_pooler_is_the_last_one(cluster, front, mode):
    with door_to(cluster.primary, mode) as door:
        pool = front(config(door.pooler, target_session_attrs="primary", acquire_timeout=0.3))
        for _ in range(5):
            assert pool.ask(INSERT, timeout=LIMIT) == "INSERT 0 1"
        door.lead_to(cluster.standbys[0])
        seen = [pool.outcome(INSERT) for _ in range(8)]
        assert seen.count(READ_ONLY) <= 1
        assert seen[-6:] == 6 * [PoolTimeout]
        assert pool.endpoint().role == "standby"
        door.lead_to(cluster.primary)
        assert pool.ask(INSERT, timeout=LIMIT) == "INSERT 0 1"


def test_that_the_application_catches_the_refusal_changes_nothing(cluster, front):
    with door_to(cluster.primary) as door:
        pool = front(config(door.pooler, target_session_attrs="primary", acquire_timeout=0.3, monitor=False))
        assert pool.ask(INSERT, timeout=LIMIT) == "INSERT 0 1"
        door.lead_to(cluster.standbys[0])
        seen = [pool.outcome(INSERT, catch=True) for _ in range(4)]
        assert "read-only transaction" in seen[0]
        assert seen[1:] == 3 * [PoolTimeout]


@pytest.mark.parametrize("catch", [True, False])
def test_so_it_is_in_a_group_with_transactions(cluster, front, catch):
    with door_to(cluster.primary) as door:
        group = {"target_session_attrs": "primary", "acquire_timeout": 0.3, "autocommit": False}
        pool = front(config(door.pooler, monitor=False, **group))
        assert pool.ask(INSERT, timeout=LIMIT) == "INSERT 0 1"
        door.lead_to(cluster.standbys[0])
        assert pool.outcome(INSERT, catch=catch) is not PoolTimeout
        assert [pool.outcome(INSERT) for _ in range(3)] == 3 * [PoolTimeout]


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_is_read_only_by_its_settings_takes_no_writes_behind_a_pooler(cluster, front, mode):
    with door_to(cluster.primary, mode) as door:
        pool = front(config(door.pooler, target_session_attrs="read-write", acquire_timeout=0.3))
        assert pool.ask(INSERT, timeout=LIMIT) == "INSERT 0 1"
        cluster.primary.refuse_writes()
        seen = [pool.outcome(INSERT) for _ in range(6)]
        assert seen.count(READ_ONLY) <= 1
        assert seen[-4:] == 4 * [PoolTimeout]
        cluster.primary.refuse_writes(False)
        assert pool.ask(INSERT, timeout=LIMIT) == "INSERT 0 1"


# -- a server that does not let the pool ask --------------------------------------------------------------------------


@pytest.fixture
def reticent(cluster):
    """Makes the servers answer the pool's questions by an error from now on."""
    asks = "pg_catalog.pg_is_in_recovery()"

    def make():
        cluster.primary.execute(f"revoke execute on function {asks} from public")
        cluster.wait_for_replication()

    primary = cluster.primary
    yield make
    primary.execute(f"grant execute on function {asks} to public")


def probed(pool, times):
    for _ in range(times):
        seen = wait_for(lambda: pool.endpoint().probe_time)
        wait_for(lambda seen=seen: pool.endpoint().probe_time != seen)


@pytest.mark.parametrize("declared", [True, False])
def test_that_the_server_does_not_say_its_role_makes_no_report_true(cluster, front, reticent, declared):
    with door_to(cluster.primary) as door:
        place = door.pooler.endpoint(ssl="disable", **({"pooler": "transaction"} if declared else {}))
        group = {"target_session_attrs": "primary", "acquire_timeout": 0.3}
        pool = front(config(place, monitor={"interval": 0.05}, **group))
        assert pool.ask(INSERT, timeout=LIMIT) == "INSERT 0 1"
        reticent()
        door.lead_to(cluster.standbys[0])
        seen = [pool.outcome(INSERT) for _ in range(8)]
        assert seen.count(READ_ONLY) <= 1
        assert not [each for each in seen[-6:] if each in (READ_ONLY, "INSERT 0 1")]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("monitored", [True, False])
def test_nor_does_it_make_the_pooler_forgotten(cluster, front, reticent, monitored, declared):
    with door_to(cluster.primary, default_pool_size=1) as door:
        how = {"query_timeout": 6000, **({"pooler": "transaction"} if declared else {})}
        place = door.pooler.endpoint(ssl="disable", **how)
        pool = front(config(place, monitor={"interval": 0.05} if monitored else False))
        assert pool.ask("show statement_timeout") == "0"
        reticent()
        for _ in range(2):
            if monitored and pool.model != "non-threaded":
                probed(pool, 3)
            pool.pool.drain()
            assert pool.ask("show statement_timeout") == "0"


def test_readers_leave_a_pooler_that_leads_to_a_primary_now(cluster, front):
    primary, standby = cluster.primary, cluster.standbys[0]
    with door_to(standby) as door:
        pool = front(config(door.pooler, cluster.standbys[1], target_session_attrs="standby"))

        def port() -> str | None:
            """Of the server that answers; None while the pooler moves, and says so in the middle of a statement."""
            try:
                return pool.ask("show port")
            except psycopg.Error:
                return None

        wait_for(lambda: port() == str(standby.port))
        door.lead_to(primary)
        wait_for(lambda: pool.endpoint().role == "primary" or port() is None)
        wait_for(lambda: port() is not None)
        assert {pool.ask("show port") for _ in range(20)} == {str(cluster.standbys[1].port)}
