"""`pass` as a callable that does not return, or not soon: nobody waits longer than he may, and no threads pile up."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aio_support import OpenPool, Stage, one, run, until
from conftest import LIMIT, config, wait_for
from support import Wire
from support import one as one_of

from pgdbpool import AsyncPool, DBOfflineError, Pool
from pgdbpool.core.endpoint import BACKOFF
from pgdbpool.core.evidence import Fault
from pgdbpool.drivers import ConnectFailed, asynchronous, blocking, passwords
from pgdbpool.testing import Node

__all__ = ["run"]


class Service:
    """Where the tokens come from. It hangs until it is released."""

    def __init__(self) -> None:
        self.calls = 0
        self.released = threading.Event()
        self.token = self._token  # one object, as in a configuration

    def _token(self) -> str:
        self.calls += 1
        assert self.released.wait(LIMIT)
        return "not asked for"


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.released.set()
    wait_for(lambda: not threads())


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is misconfigured is tried again at once."""
    monkeypatch.setitem(BACKOFF, Fault.MISCONFIGURED, (0.02, 0.02))


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "pgdbpool password"]


def place(node: Node, ask: Callable[[], Any], **more: Any) -> dict[str, Any]:
    return {**node.endpoint(ssl="disable", **more), "pass": ask}


# -- the calls --------------------------------------------------------------------------------------------------------


def test_calls_that_hang_are_few_and_those_who_come_later_stand_in_line(service: Service) -> None:
    calls = [passwords.call(service.token) for _ in range(20)]
    wait_for(lambda: service.calls == 4)
    assert len(threads()) == 4
    assert not any(call.done() for call in calls)
    service.released.set()
    assert [call.result(LIMIT) for call in calls] == ["not asked for"] * 20
    assert service.calls == 20


def test_of_those_in_line_who_no_longer_wait_none_is_called_for(service: Service) -> None:
    calls = [passwords.call(service.token) for _ in range(10)]
    assert [call.cancel() for call in calls[4:]] == [True] * 6
    last = passwords.call(service.token)
    service.released.set()
    last.result(LIMIT)
    wait_for(lambda: not threads())
    assert service.calls == 5


def test_another_callable_is_not_held_up(service: Service) -> None:
    for _ in range(10):
        passwords.call(service.token)
    assert passwords.call(lambda: "secret").result(LIMIT) == "secret"


def test_while_many_hang_another_one_is_begun_now_and_then(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = iter(range(4))

    def ask() -> str:
        return service.token() if next(hangs, None) is not None else "at last"

    for _ in range(4):
        passwords.call(ask)
    wait_for(lambda: service.calls == 4)
    late = passwords.call(ask)
    assert len(threads()) == 4
    monkeypatch.setattr(passwords, "_PATIENCE", 0.0)
    assert passwords.call(ask).cancelled() is False
    assert late.result(LIMIT) == "at last"


def test_each_of_those_beyond_has_to_wait_for_twice_as_long() -> None:
    line = passwords._Line(lambda: None)
    now = 1000.0
    begun = []
    for second in range(3600):
        if line.has_room(now + second):
            line.under_way[object()] = now + second
            begun.append(second)
    assert begun == [0, 1, 2, 3, 64, 185, 426, 907, 1868]


def test_what_it_raises_is_told_by_its_type() -> None:
    def ask() -> str:
        raise LookupError("secret")

    with pytest.raises(ConnectFailed, match=r"^the callable given as pass raised LookupError$"):
        blocking.run(blocking.password_by_thread(ask, float("inf")))
    with pytest.raises(ConnectFailed, match=r"^the callable given as pass raised LookupError$"):
        asyncio.run(asynchronous.password(ask, float("inf")))


def test_a_child_does_not_wait_for_the_calls_of_its_parent(service: Service) -> None:
    for _ in range(10):
        passwords.call(service.token)
    passwords._after_fork()
    service.released.set()
    assert passwords.call(service.token).result(LIMIT) == "not asked for"


# -- pools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("monitor", [False, {"interval": 0.05}])
def test_a_threaded_pool_gives_up_one_that_does_not_return_and_asks_again(
    monitor: Any, pg_node: Node, service: Service, open_pool: Any, hasty: None
) -> None:
    lost = iter(range(2))

    def ask() -> str:
        return service.token() if next(lost, None) is not None else "not asked for"

    pool = open_pool(config(place(pg_node, ask, connect_timeout=0.2), monitor=monitor))
    conn = wait_for(lambda: connection(pool))
    assert one_of(conn, "select 1") == 1
    pool.putconn(conn)


def connection(pool: Pool) -> Any:
    try:
        return pool.getconn(timeout=LIMIT)
    except DBOfflineError:
        return None


def test_a_threaded_pool_and_its_monitor_collect_no_threads(
    pg_node: Node, service: Service, open_pool: Any, hasty: None
) -> None:
    where = place(pg_node, service.token, connect_timeout=0.2)
    pool = open_pool(config(where, monitor={"interval": 0.05}))
    wait_for(lambda: pool.endpoints()[0].last_error)
    for _ in range(8):
        with pytest.raises(DBOfflineError, match="the callable given as pass has not returned in time"):
            pool.getconn(timeout=LIMIT)
        seen = pool._topology.endpoints[0].last_error_at
        wait_for(lambda seen=seen: pool._topology.endpoints[0].last_error_at != seen)
    assert len(threads()) == 4
    service.released.set()
    pool.putconn(wait_for(lambda: connection(pool)))


def test_an_async_pool_and_its_monitor_collect_no_threads(
    pg_node: Node, service: Service, run: Stage, hasty: None
) -> None:
    async def story(open_pool: OpenPool) -> None:
        where = place(pg_node, service.token, connect_timeout=0.2)
        pool = open_pool(config(where, monitor={"interval": 0.05}))
        for _ in range(8):
            with pytest.raises(DBOfflineError, match="the callable given as pass has not returned in time"):
                await pool.getconn(timeout=LIMIT)
            seen = pool._topology.endpoints[0].last_error_at
            await until(lambda seen=seen: pool._topology.endpoints[0].last_error_at != seen)
        assert len(threads()) == 4
        service.released.set()
        await until(lambda: pool.endpoints()[0].fault is None)
        async with pool.connection(timeout=LIMIT) as conn:
            assert await one(conn, "select 1") == 1

    run(story)


def test_a_caller_in_line_for_the_password_is_not_held_up_at_the_end(
    pg_node: Node, service: Service, run: Stage
) -> None:
    async def story(open_pool: OpenPool) -> None:
        pool = open_pool(config(place(pg_node, service.token)))
        with pytest.raises(TimeoutError):
            await pool.getconn(timeout=0.05)
        await pool.close()

    run(story)


def test_a_probe_is_not_charged_with_the_time_that_the_password_takes(pg_node: Node, open_pool: Any) -> None:
    def slow() -> str:
        time.sleep(1.5)
        return "not asked for"

    events: list[Any] = []
    pool = open_pool(config(place(pg_node, slow), monitor={"interval": 0.05, "timeout": 1.0}))
    pool.on_event(events.append)
    wait_for(lambda: pool.endpoints()[0].probe_time)
    pg_node.terminate_backends("application_name = 'pgdbpool:monitor'")
    seen = pool.endpoints()[0].probe_time
    wait_for(lambda: pool.endpoints()[0].probe_time != seen)
    assert [event.message for event in events if event.kind in ("endpoint-suspect", "endpoint-down")] == []


def test_one_that_wants_to_end_the_program_does_not_end_the_monitor(pg_node: Node, open_pool: Any, hasty: None) -> None:
    wants_to = threading.Event()

    def ask() -> str:
        if wants_to.is_set():
            raise SystemExit(1)
        return "not asked for"

    wants_to.set()
    pool = open_pool(config(place(pg_node, ask), monitor={"interval": 0.05}))
    with pytest.raises(DBOfflineError, match="the callable given as pass raised SystemExit"):
        pool.getconn(timeout=LIMIT)
    wait_for(lambda: "SystemExit" in (pool.endpoints()[0].last_error or ""))
    wants_to.clear()
    wait_for(lambda: pool.endpoints()[0].probe_time)


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        ("a\0sslmode=disable", "a string with a NUL character in it"),
        ("a\ud800", "a string that is not valid Unicode"),
        (b"token", "bytes"),
        (12345, "a whole number"),
        (["token"], "a list"),
    ],
    ids=["NUL", "surrogate", "bytes", "number", "list"],
)
@pytest.mark.parametrize("model", ["threaded", "non-threaded", "asyncio"])
def test_what_can_be_no_password_is_a_wrong_configuration_and_goes_nowhere(
    gives: Any, words: str, model: str, pg_node: Node
) -> None:
    with Wire(pg_node) as wire:
        given = config(place(wire, lambda: gives), monitor=False)

        async def by_tasks() -> None:
            async with AsyncPool(given) as pool, pool.connection():
                pass

        def by_threads() -> None:
            with Pool({**given, "type": model}) as pool, pool.connection():
                pass

        with pytest.raises(DBOfflineError, match=f"callable given as pass returned {words}; expected a string"):
            asyncio.run(by_tasks()) if model == "asyncio" else by_threads()
        assert wire.startups == []


def test_a_callable_that_gives_none_leaves_it_to_libpq() -> None:
    assert blocking.run(blocking.password(lambda: None, float("inf"))) is None
