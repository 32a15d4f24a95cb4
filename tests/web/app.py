"""A small shop under load, with the status page beside it: run by gunicorn in several processes."""

import json
import os
import random
import threading
import time
from typing import Any

from pgdbpool import Pool
from pgdbpool.web import wsgi

pool = Pool(json.loads(os.environ["SHOP_CONFIG"]))


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


application = wsgi(
    beside=hello, name="shop", directory=os.environ["SHOP_FOLDER"], token=os.environ.get("SHOP_TOKEN") or None
)


def customer(group: str, statement: str, pause: float, think: float) -> None:
    """Comes again and again; gives way to a failover."""
    while True:
        try:
            with pool.connection(group, timeout=20) as conn:
                conn.execute(statement)
                time.sleep(random.random() * think)
        except Exception:
            time.sleep(0.1)
        time.sleep(random.expovariate(1 / pause))


def crowd(count: int, *what: Any) -> None:
    for _ in range(count):
        threading.Thread(target=customer, args=what, name=f"{what[0]} customer", daemon=True).start()


crowd(6, "read", "select count(*) from sales", 0.04, 0.0)
crowd(3, "write", "insert into sales default values", 0.08, 0.0)
crowd(2, "transaction", "insert into sales default values", 0.1, 0.002)
crowd(3, "batch", "insert into sales select from generate_series(1, 20)", 0.5, 1.0)
