"""A WSGI application whose worker processes are scraped: run by gunicorn in `test_prometheus`.

``/use`` checks out one connection and answers with the worker's pid, ``/metrics`` is for Prometheus.
"""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app

from pgdbpool import Pool
from pgdbpool.integrations.prometheus import PoolCollector
from pgdbpool.publish import writer

writer._FIRST_SWEEP = 0.0
registry = CollectorRegistry()
registry.register(PoolCollector(application="shop", directory=os.environ["DIRECTORY"]))
metrics = make_wsgi_app(registry)
pool = Pool(json.loads(os.environ["POOL"]))


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    pid = ("X-Worker", str(os.getpid()))
    if environ["PATH_INFO"] == "/metrics":

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [*headers, pid], *more)

        return metrics(environ, start)
    with pool.connection(timeout=20) as conn:
        conn.execute("select 1")
    start_response("200 OK", [pid])
    return [b"used"]
