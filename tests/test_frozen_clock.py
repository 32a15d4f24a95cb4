"""A clock that a test stands still, as freezegun does, makes no checkout wait for ever."""

import json

import pytest
from conftest import config, output, python

from pgdbpool.testing import Node

FROZEN = """
import json, sys, time
from pgdbpool import Pool, PoolTimeout

def stand_still():  # as freezegun: wherever a loaded module refers to it, by identity
    real, now = time.monotonic, time.monotonic()
    for name, module in list(sys.modules.items()):
        if name != "threading":
            for key, value in list(vars(module).items()):
                if value is real:
                    setattr(module, key, lambda: now)

stand_still()
with Pool(json.loads(sys.argv[1])) as pool:
    with pool.connection(timeout=20) as conn:
        print(conn.execute("select 1").fetchone()[0])
        try:
            pool.getconn(timeout=0.2)
        except PoolTimeout:
            print("in vain")
"""


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_pool_goes_on_while_the_clock_stands_still(pg_node: Node, model: str) -> None:
    program = python(FROZEN, json.dumps(config(pg_node, type=model, connection_count=1)))
    assert output(program) == "1\nin vain\n"
