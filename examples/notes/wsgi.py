"""The example application without a framework: ``notes.wsgi:application`` for any WSGI server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from notes import work
from pgdbpool.web import wsgi

pool = work.open_pool()
Start = Callable[[str, list[tuple[str, str]]], Any]


def notes(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
    status, answer = respond(environ["REQUEST_METHOD"], environ["PATH_INFO"], parse_qs(environ.get("QUERY_STRING", "")))
    body = json.dumps(answer).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(f"{status} {HTTPStatus(status).phrase}", headers)
    return [body]


def respond(method: str, path: str, query: dict[str, list[str]]) -> tuple[int, work.Answer]:
    try:
        match method, path:
            case "GET", "/read":
                return 200, work.read(pool)
            case "POST", "/write":
                return 200, work.write(pool, query["key"][0])
            case "POST", "/transaction":
                return 200, work.transaction(pool, query["key"][0])
            case "POST", "/batch":
                return 200, work.batch(pool, query["key"][0], work.rows_wanted(query["rows"][0]))
    except work.FAILURES as error:
        return work.failure(error)
    except (KeyError, ValueError) as error:
        return 400, {"error": f"key and rows: {error}"}
    return 404, {"error": "no such page"}


application = wsgi(beside=notes)  # the status page at /status
