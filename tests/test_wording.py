"""What an application raises while its connection is lost is told to nobody else: not to the log, not to callers."""

import asyncio
import json
import logging
import signal
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from conftest import LIMIT, config, wait_for

from pgdbpool import AsyncPool, DBOfflineError, Pool, PoolExhausted, PoolTimeout, seldom, tasks
from pgdbpool.drivers import Unanswered, blocking
from pgdbpool.testing import Impostor, Node
from pgdbpool.wording import words_of

CARD = "4111-1111-c4n4ry"


class StatementError(Exception):
    """As that of an ORM, which says what it was doing."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{error}\n[SQL: insert into cards values (%s)]\n[parameters: ('{CARD}')]")


def wrapped(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except psycopg.Error as error:
        raise StatementError(error) from error


def own() -> Any:
    raise ValueError(f"no more of {CARD}")


def texts_of(pool: Pool | AsyncPool, caplog: Any, told: list[Any]) -> str:
    texts = [caplog.text, *(str(record.__dict__) for record in caplog.records)]
    texts += [repr(pool.endpoints()), repr(pool.stats()), repr(told)]
    return "\n".join(texts)


@pytest.fixture(autouse=True)
def said_anew() -> None:
    """What is said seldom is said in each test."""
    seldom._rate._allowance.clear()


@pytest.fixture
def told() -> list[Any]:
    return []


def given(node: Any, told: list[Any], **group: Any) -> dict[str, Any]:
    group.setdefault("reconnect_failed", lambda *args: told.append(args))
    return config(node, monitor=False, reconnect_timeout=0, connection_count=1, acquire_timeout=0.5, **group)


@pytest.mark.parametrize("raised", ["the driver's, wrapped", "its own"])
@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_of_a_block(pg_node: Node, told: list[Any], caplog: Any, raised: str, model: str) -> None:
    caplog.set_level(logging.DEBUG)
    with pg_node.proxy() as proxy, Pool({**given(proxy, told, autocommit=False), "type": model}) as pool:
        pool.on_event(lambda event: told.append(event))

        def use(conn: Any) -> None:
            conn.execute("select 1")
            proxy.refuse()
            proxy.reset()
            if raised == "its own":
                with pytest.raises(psycopg.OperationalError):
                    conn.execute("select 1")
                own()
            wrapped(lambda: conn.execute("select %s", (CARD,)))

        with pytest.raises((StatementError, ValueError)) as caught, pool.connection(timeout=LIMIT) as conn:
            use(conn)
        assert CARD in str(caught.value)  # the caller has it
        with pytest.raises((PoolTimeout, DBOfflineError)) as other, pool.connection():
            pass
        assert CARD not in str(other.value) + texts_of(pool, caplog, told)
        assert pool.endpoints()[0].last_error


def test_of_a_block_of_a_task(pg_node: Node, told: list[Any], caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)

    async def story() -> None:
        with pg_node.proxy() as proxy:
            async with AsyncPool(given(proxy, told, autocommit=False)) as pool:

                async def use() -> None:
                    async with pool.connection(timeout=LIMIT) as conn:
                        await conn.execute("select 1")
                        proxy.refuse()
                        proxy.reset()
                        try:
                            await conn.execute("select %s", (CARD,))
                        except psycopg.Error as error:
                            raise StatementError(error) from error

                with pytest.raises(StatementError) as caught:
                    await use()
                assert CARD in str(caught.value)
                with pytest.raises((PoolTimeout, DBOfflineError)) as other:
                    await pool.getconn()
                assert CARD not in str(other.value) + texts_of(pool, caplog, told)

    asyncio.run(story())


@pytest.mark.parametrize("key", ["configure", "check", "reset"])
@pytest.mark.parametrize("raised", ["the driver's, wrapped", "its own"])
def test_of_a_callable_whose_connection_is_lost(
    key: str, raised: str, pg_node: Node, told: list[Any], caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)

    def lose(conn: Any) -> None:
        if not told:
            return
        pg_node.terminate_backends("pid = %s", (conn.info.backend_pid,))
        if raised == "its own":
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select 1")
            own()
        wrapped(lambda: conn.execute("select %s", (CARD,)))

    if key == "configure":
        told.append("from now on")
    with Pool(given(pg_node, [], **{key: lose})) as pool:
        pool.on_event(lambda event: told.append(event))
        for _ in range(3):
            try:
                with pool.connection():
                    told.append("from now on")
            except (DBOfflineError, PoolTimeout) as error:
                told.append(str(error))
        assert CARD not in texts_of(pool, caplog, told)


@pytest.mark.parametrize("key", ["configure", "check", "reset"])
def test_of_a_callable_whose_statement_failed_the_servers_words_without_values(
    key: str, pg_node: Node, told: list[Any], caplog: Any
) -> None:
    def fail(conn: Any) -> None:
        wrapped(lambda: conn.execute("select no_such_function(%s)", (CARD,)))

    with Pool(given(pg_node, told, **{key: fail})) as pool:
        for _ in range(2):
            try:
                with pool.connection():
                    pass
            except (DBOfflineError, PoolTimeout) as error:
                told.append(str(error))
        found = texts_of(pool, caplog, told)
    assert CARD not in found
    assert "function no_such_function(unknown) does not exist" in found


@pytest.mark.parametrize("key", ["on_event", "reconnect_failed"])
def test_of_a_callable_that_is_told(key: str, pg_node: Node, told: list[Any], caplog: Any) -> None:
    def raising(*args: Any) -> None:
        own()

    more = {"reconnect_failed": raising} if key == "reconnect_failed" else {}
    with pg_node.proxy() as proxy, Pool(given(proxy, told, **more)) as pool:
        if key == "on_event":
            pool.on_event(raising)
        with pool.connection(timeout=LIMIT):
            pass
        proxy.refuse()
        proxy.reset()
        wait_for(lambda: f"{key} raised ValueError" in caplog.text)
        assert "in own" in caplog.text  # the place
        assert CARD not in texts_of(pool, caplog, told)


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_of_a_signal_handler_while_a_connection_is_opened(model: str, told: list[Any], caplog: Any) -> None:
    before = signal.signal(signal.SIGALRM, lambda *args: own())
    try:
        with Impostor("53300") as server:
            server.hang()
            place = server.endpoint(ssl="disable", connect_timeout=2)
            with Pool({**given(place, told), "type": model}) as pool:
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                with pytest.raises((ValueError, PoolTimeout, DBOfflineError)) as caught, pool.connection(timeout=1):
                    pass
                if not isinstance(caught.value, ValueError):  # the caller's own
                    assert CARD not in str(caught.value)
                assert CARD not in texts_of(pool, caplog, told)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def in_the_middle_of_an_error(work: Callable[[], Any]) -> None:
    try:
        own()
    except ValueError:
        work()


def broken(*args: Any) -> Any:
    raise RuntimeError("a mistake of ours")


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
@pytest.mark.parametrize("what", ["holders", "leaks"])
def test_of_a_caller_that_comes_while_it_handles_an_error(
    model: str, what: str, pg_node: Node, told: list[Any], caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    group = {"connection_count": 1, "acquire_timeout": 0.1, "leak_threshold": 0.01 if what == "leaks" else 0}
    with Pool({**config(pg_node, monitor=False, **group), "type": model}) as pool:
        keeper: Any = pool._keeper
        if what == "leaks":
            monkeypatch.setattr(keeper.look_for_leaks.__self__, "_find", broken)
        else:
            reasons = keeper._timed_out
            monkeypatch.setattr(reasons, "_look", broken)

        def wait_in_vain() -> None:
            with pool.connection(timeout=LIMIT):
                time.sleep(0.02)
                with pytest.raises((PoolTimeout, PoolExhausted)):
                    pool.getconn(timeout=0.2)

        in_the_middle_of_an_error(wait_in_vain)
        wait_for(lambda: "cannot find out who holds" in caplog.text)
        assert CARD not in texts_of(pool, caplog, told)
        assert not [record for record in caplog.records if record.exc_info]  # which leads to the whole chain


def test_of_a_task_that_opens_a_pool_while_it_handles_an_error(
    pg_node: Node, told: list[Any], caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "subscribe", broken)

    async def story() -> None:
        pool = AsyncPool(config(pg_node))
        try:
            try:
                own()
            except ValueError:
                await pool.open()
            assert "cannot start the monitor" in caplog.text
            assert CARD not in texts_of(pool, caplog, told)
            assert not [record for record in caplog.records if record.exc_info]
        finally:
            await pool.close()

    asyncio.run(story())


def test_words() -> None:
    def of(error: BaseException | None, *, lost: bool) -> str:
        return words_of(error, blocking, lost=lost)

    gone = psycopg.OperationalError("consuming input failed")
    assert of(None, lost=True) == "the connection was lost"
    assert of(gone, lost=True) == "consuming input failed"
    assert of(StatementError(gone), lost=True) == "the connection was lost"
    assert of(ExceptionGroup("many", [ValueError(CARD), gone]), lost=True) == "consuming input failed"
    assert of(psycopg.errors.UniqueViolation(CARD), lost=True) == "the connection was lost"
    assert of(psycopg.ProgrammingError(CARD), lost=False) == "ProgrammingError"
    assert of(Unanswered("it does not tell"), lost=True) == "it does not tell"
    assert of(ValueError("not this one"), lost=False) == "not this one"
    assert of(ValueError(), lost=False) == "ValueError"
    assert json.dumps(of(gone, lost=False))
