"""The example application in Flask: ``flask --app notes.flask_app run --debug``, or any WSGI server.

The development server has two processes: one that watches the files, and one that serves and is made anew when a file
changes. Both load the application, so the pool is opened in the second only. Under any other server there is only one.
"""

from __future__ import annotations

import os
import sys

from flask import Flask, request

from notes import work
from pgdbpool import Pool
from pgdbpool.web import wsgi


def only_watches() -> bool:
    """Whether this is the development server's process that serves nothing."""
    return "--debug" in sys.argv and "WERKZEUG_RUN_MAIN" not in os.environ


app = Flask(__name__)
pool = Pool.from_toml(os.environ["PGDBPOOL_CONFIG"], open=not only_watches())
app.wsgi_app = wsgi(beside=app.wsgi_app)  # type: ignore[method-assign]  # the status page at /status


@app.get("/read")
def read() -> work.Answer:
    return work.read(pool)


@app.post("/write")
def write() -> work.Answer:
    return work.write(pool, request.args["key"])


@app.post("/transaction")
def transaction() -> work.Answer:
    return work.transaction(pool, request.args["key"])


@app.post("/batch")
def batch() -> work.Answer:
    return work.batch(pool, request.args["key"], work.rows_wanted(request.args["rows"]))


def failed(error: Exception) -> tuple[work.Answer, int]:
    status, answer = work.failure(error)
    return answer, status


for kind in work.FAILURES:
    app.register_error_handler(kind, failed)
app.register_error_handler(ValueError, lambda error: ({"error": str(error)}, 400))
