"""Connections are cut at random moments before, in and after COMMIT, the pool's and the user's. The row is the oracle:

never "not committed" of a row that is there, never a normal end for a row that is not.
"""

import random
import threading
from collections import Counter
from contextlib import suppress

import psycopg
import pytest
from conftest import LIMIT, config, wait_for
from ways import way as way

from pgdbpool import DBConnectionError, OutcomeUnknown, PoolTimeout
from pgdbpool.testing import Cluster

ROUNDS = 60
LATENCY = 0.004  # s
INSERT = "insert into random_t values (%s)"


@pytest.fixture(scope="module")
def node():
    """A server that admits two-phase commits."""
    with Cluster(standbys=0, settings={"max_prepared_transactions": 20}) as cluster:
        cluster.primary.execute("create table random_t (i int primary key); grant all on random_t to app")
        yield cluster.primary


async def by_the_pool(conn, number):
    await conn.execute(INSERT, (number,))


async def by_commit(conn, number):
    await conn.execute(INSERT, (number,))
    await conn.commit()


async def in_a_second_transaction(conn, number):
    await conn.execute("select 1")
    await conn.commit()  # what is said later is not said of this one
    await conn.execute(INSERT, (number,))
    await conn.execute("select 1")


async def by_sql(conn, number):
    await conn.execute(INSERT, (number,))
    await conn.execute("end")


async def in_one_text(conn, number):
    await conn.execute(f"insert into random_t values ({number}); commit")


async def in_a_transaction_block(conn, number):
    async with conn.transaction():
        await conn.execute(INSERT, (number,))


async def in_a_savepoint(conn, number):
    await conn.execute("select 1")
    await in_a_transaction_block(conn, number)


async def in_a_pipeline(conn, number):
    async with conn.pipeline():
        await conn.execute(INSERT, (number,))


async def in_a_pipeline_with_commit(conn, number):
    async with conn.pipeline():
        await conn.execute("select 1")
        await conn.execute(INSERT, (number,))
        await conn.commit()


async def with_others(conn, number):
    await conn.cursor().executemany(INSERT, [(number,), (-number,)])


async def in_two_phases(conn, number):
    await conn.tpc_begin(f"random {number}")
    await conn.execute(INSERT, (number,))
    await conn.tpc_prepare()
    await conn.tpc_commit()


async def between_begin_and_commit(conn, number):
    await conn.execute("begin")
    await conn.execute(INSERT, (number,))
    await conn.execute("commit")


IN_TRANSACTION = [
    by_the_pool,
    by_commit,
    in_a_second_transaction,
    by_sql,
    in_one_text,
    in_a_savepoint,
    in_a_pipeline,
    in_a_pipeline_with_commit,
    with_others,
    in_two_phases,
]
IN_AUTOCOMMIT = [by_the_pool, in_a_transaction_block, between_begin_and_commit, in_a_pipeline, with_others]


class Teller:
    """What became of each number, in the words of the pool."""

    def __init__(self) -> None:
        self.said: dict[int, str] = {}
        self.how: dict[int, str] = {}


async def one(pool, teller, chance, number, cut):
    group, work = chance.choice([("default", each) for each in IN_TRANSACTION] + [("auto", e) for e in IN_AUTOCOMMIT])
    catch = chance.random() < 0.6
    said = "committed"
    cutter = threading.Timer(chance.random() * 10 * LATENCY, cut)
    try:
        async with pool.block(group) as conn:
            cutter.start()
            try:
                await work(conn, number)
            except psycopg.Error as error:
                said = meaning(error, group)
                if not catch:
                    raise
    except OutcomeUnknown:
        said = "unknown"
    except DBConnectionError as error:
        said = "not committed" if "not committed" in str(error) else "nonsense"
    except psycopg.Error as error:
        said = meaning(error, group)
    except PoolTimeout:
        pass
    else:
        if said != "committed" and group == "default":
            said = "committed"  # a normal end, whatever was caught inside
    cutter.cancel()
    cutter.join()
    teller.said[number] = said
    teller.how[number] = f"{group}: {work.__name__}, {'caught' if catch else 'not caught'}"


def meaning(error, group):
    """What an exception of the driver's says of the work."""
    return "unknown" if getattr(error, "__notes__", ()) else "not committed"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cut_by", ["reset", "terminate"])
def test_what_is_said_of_a_row_is_true(cut_by, seed, node, way):
    chance = random.Random(f"{seed} {cut_by} {way.name}")
    teller = Teller()
    node.execute("truncate random_t")

    def terminate():
        with suppress(psycopg.Error):
            node.terminate_backends("application_name like 'pgdbpool:%%'")

    with node.proxy() as proxy:
        proxy.latency(LATENCY)

        async def story(pool):
            for number in range(1, ROUNDS + 1):
                await one(pool, teller, chance, number, proxy.reset if cut_by == "reset" else terminate)

        one_connection = {"connection_count": 1, "acquire_timeout": LIMIT}
        groups = {"default": {"autocommit": False, **one_connection}, "auto": one_connection}
        way(story, config(proxy, monitor=False, groups=groups))

    wait_for(lambda: not any(node.backends(f"pgdbpool:{group}") for group in groups))
    for (gid,) in node.execute("select gid from pg_prepared_xacts"):
        node.execute(f"rollback prepared '{gid}'", database="app")
    there = {i for (i,) in node.execute("select i from random_t")}
    wrong = [
        f"{number} ({teller.how[number]}) is {'there' if number in there else 'not there'}, and was said to be {said}"
        for number, said in teller.said.items()
        if said != "unknown" and said != ("committed" if number in there else "not committed")
    ]
    counts = Counter(teller.said.values())
    assert not wrong, "\n".join([*wrong, str(counts)])
