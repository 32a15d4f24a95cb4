"""The example application in FastAPI: ``notes.fastapi:app`` for any ASGI server.

One pool for each worker process, opened and closed by the lifespan: so it is in the loop that serves the requests, and
a worker that is told to end closes it after its last request.

A dependency hands out the connection where one statement is one transaction. It has ``scope="function"``: without that,
FastAPI would keep the connection until the answer has been sent. A transaction is committed at the end of its block, so
that block is in the function itself: what comes after it is sure.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import psycopg
from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse

from notes import work, work_async
from pgdbpool import AsyncPool, Error
from pgdbpool.web import asgi


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncPool.from_toml(os.environ["PGDBPOOL_CONFIG"]) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/status", asgi(name="notes"))


def the_pool(request: Request) -> AsyncPool:
    return request.app.state.pool


Pool = Annotated[AsyncPool, Depends(the_pool)]


async def reading(pool: Pool) -> AsyncIterator[work_async.Connection]:
    async with pool.connection("read") as conn:
        yield conn


async def writing(pool: Pool) -> AsyncIterator[work_async.Connection]:
    async with pool.connection("write") as conn:
        yield conn


Reading = Annotated[work_async.Connection, Depends(reading, scope="function")]
Writing = Annotated[work_async.Connection, Depends(writing, scope="function")]


@app.get("/read")
async def read(conn: Reading) -> dict[str, Any]:
    return await work_async.read(conn)


@app.post("/write")
async def write(conn: Writing, key: str) -> dict[str, Any]:
    return await work_async.write(conn, key)


@app.post("/transaction")
async def transaction(pool: Pool, key: str) -> dict[str, Any]:
    async with pool.connection("transaction") as conn:
        return await work_async.transaction(conn, key)  # leaving the block commits: only then is there an answer


@app.post("/batch")
async def batch(pool: Pool, key: str, rows: Annotated[int, Query(ge=1, le=work.MOST_ROWS)]) -> dict[str, Any]:
    async with pool.connection("batch") as conn:
        return await work_async.batch(conn, key, rows)


@app.exception_handler(Error)
@app.exception_handler(psycopg.Error)
async def failed(request: Request, error: Exception) -> JSONResponse:
    status, answer = work.failure(error)
    return JSONResponse(answer, status)
