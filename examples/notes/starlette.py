"""The example application in Starlette: ``notes.starlette:app`` for any ASGI server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from notes import work, work_async
from pgdbpool import AsyncPool
from pgdbpool.web import asgi


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One pool for each worker process, in the loop that serves the requests."""
    async with AsyncPool.from_toml(os.environ["PGDBPOOL_CONFIG"]) as pool:
        app.state.pool = pool
        yield


async def read(request: Request) -> Response:
    async with request.app.state.pool.connection("read") as conn:
        answer = await work_async.read(conn)
    return JSONResponse(answer)


async def write(request: Request) -> Response:
    async with request.app.state.pool.connection("write") as conn:
        answer = await work_async.write(conn, key(request))
    return JSONResponse(answer)


async def transaction(request: Request) -> Response:
    async with request.app.state.pool.connection("transaction") as conn:
        answer = await work_async.transaction(conn, key(request))
    return JSONResponse(answer)  # after the block: now it is committed


async def batch(request: Request) -> Response:
    async with request.app.state.pool.connection("batch") as conn:
        answer = await work_async.batch(conn, key(request), rows(request))
    return JSONResponse(answer)


def key(request: Request) -> str:
    try:
        return request.query_params["key"]
    except KeyError:
        raise HTTPException(400, "key: expected one") from None


def rows(request: Request) -> int:
    try:
        return work.rows_wanted(request.query_params.get("rows", ""))
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


async def failed(request: Request, error: Exception) -> Response:
    status, answer = work.failure(error)
    return JSONResponse(answer, status)


app = Starlette(
    routes=[
        Route("/read", read),
        Route("/write", write, methods=["POST"]),
        Route("/transaction", transaction, methods=["POST"]),
        Route("/batch", batch, methods=["POST"]),
        Mount("/status", asgi(name="notes")),
    ],
    exception_handlers=dict.fromkeys(work.FAILURES, failed),
    lifespan=lifespan,
)
