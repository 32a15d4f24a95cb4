"""A password is nowhere but at libpq: a canary is given, all that can fail does, and all is looked through.

What tools collect that report errors is looked through too: the variables of each of the pool's frames in a traceback.
To have every frame at every moment, an exception is thrown into a connect at each line that it runs.
"""

import asyncio
import copy
import itertools
import linecache
import logging
import pickle
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytest
from conftest import LIMIT, config, wait_for
from support import Wire

import pgdbpool
from pgdbpool import AsyncPool, ConfigError, DBOfflineError, Pool, PoolTimeout
from pgdbpool.config import EndpointSettings, MonitorSettings, conninfo, load, load_toml, load_url
from pgdbpool.core.evidence import Fault
from pgdbpool.drivers import asynchronous, blocking
from pgdbpool.monitor import Watch
from pgdbpool.probe import death_of
from pgdbpool.search import Search
from pgdbpool.testing import Cluster, Impostor, Node

CANARY = "c4n4ry-0f-the-p4ssword"
OURS = str(Path(pgdbpool.__file__).parent)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Node]:
    """A server that asks for the password."""
    with Cluster(0, password=CANARY) as cluster:
        yield cluster.primary


class Own(Exception):
    """Of the application."""


def text() -> Any:
    return CANARY


def call() -> Any:
    return lambda: CANARY


def coroutine() -> Any:
    async def ask() -> str:
        await asyncio.sleep(0)
        return CANARY

    return ask


def raises() -> Any:
    def ask() -> str:
        raise Own(CANARY)

    return ask


def unfit() -> Any:
    return lambda: CANARY + "\0"


def of_bytes() -> Any:
    return lambda: CANARY.encode()


WAYS = [text, call, coroutine, raises, unfit, of_bytes]


def place(server: Any, way: Callable[[], Any], **more: Any) -> dict[str, Any]:
    params = {"sslpassword": CANARY, **more.pop("params", {})}
    return {**server.endpoint(ssl="disable", **more), "pass": way(), "params": params}


# -- what is looked through --


def shown_by(error: BaseException | None) -> Iterator[str]:
    """All that a tool would tell of an exception: its words, and the variables of our frames."""
    while error is not None:
        if not isinstance(error, Own):  # the application tells its own
            yield repr(error)
            yield str(error)
        yield from of_frames(error.__traceback__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def of_frames(tb: TracebackType | None) -> Iterator[str]:
    for frame, _ in traceback.walk_tb(tb):
        if frame.f_code.co_filename.startswith(OURS):
            for name, value in frame.f_locals.items():
                yield f"{frame.f_code.co_qualname}, {name} = {shown(value)}"


def shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # of something half made
        return str(error)


def found_in(texts: Any) -> list[str]:
    return [each for each in texts if CANARY in each]


class Logged(logging.Handler):
    """Keeps what a record has, and what is in the frames of its exception."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts += [record.getMessage(), repr(record.__dict__)]
        if record.exc_info:
            self.texts += shown_by(record.exc_info[1])


@pytest.fixture
def logged() -> Iterator[list[str]]:
    handler, root = Logged(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.texts
    root.setLevel(level)
    root.removeHandler(handler)


def said(pool: Pool | AsyncPool) -> list[str]:
    parts = [pool, pool._settings, pool._settings.db[0].params, pool.stats(), pool.endpoints(), pool._topology.__dict__]
    return [*map(repr, parts), *map(str, parts)]


# -- what fails --


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_of_pools(way: Callable[[], Any], model: str, guarded: Node, logged: list[str], tmp_path: Path) -> None:
    texts: list[str] = []
    with Wire(guarded) as wire, Impostor("53300") as full, Impostor("28P01") as wrong, guarded.proxy() as proxy:
        proxy.refuse()
        for server in (wire, full, wrong, proxy):
            status = {"directory": str(tmp_path / "status"), "interval": 1}
            given = config(place(server, way), type=model, acquire_timeout=0.3, connection_count=1)
            with Pool({**given, "status": status}) as pool:
                pool.on_event(lambda event: texts.append(repr(event)))
                for _ in range(2):
                    try:
                        with pool.connection() as conn:
                            texts.extend([repr(conn), repr(pool.holders())])
                            wire.reset()
                            conn.execute("select 1")
                    except Exception as error:
                        texts.extend(shown_by(error))
                texts.extend(said(pool))
        for file in tmp_path.rglob("*"):
            texts.extend([file.read_text("utf-8", "replace")] if file.is_file() else [])
    assert len(texts) > 20
    assert not found_in(texts)
    assert not found_in(logged)


@pytest.mark.parametrize("way", WAYS)
def test_of_an_async_pool(way: Callable[[], Any], guarded: Node, logged: list[str]) -> None:
    texts: list[str] = []

    async def story() -> None:
        with Wire(guarded) as wire, Impostor("53300") as full:
            for server in (wire, full):
                async with AsyncPool(config(place(server, way), acquire_timeout=0.5)) as pool:
                    try:
                        async with pool.connection() as conn:
                            texts.append(repr(conn))
                    except Exception as error:
                        texts.extend(shown_by(error))
                    task = asyncio.create_task(pool.getconn())
                    await asyncio.sleep(0.01)
                    texts.extend(map(repr, asyncio.all_tasks()))
                    task.cancel()
                    try:
                        await pool.putconn(await task)
                    except (Exception, asyncio.CancelledError) as error:
                        texts.extend(shown_by(error))
                    texts.extend(said(pool))

    asyncio.run(story(), debug=True)
    assert not found_in(texts)
    assert not found_in(logged)


def test_of_a_monitor_that_fails(guarded: Node, logged: list[str], monkeypatch: Any) -> None:
    """An error that nobody has foreseen is logged with its traceback."""

    def failing(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pgdbpool.drivers.steps.sighting", failing)
    with Pool(config(place(guarded, call))):
        wait_for(lambda: any("failed to probe" in each for each in logged))
    assert not found_in(logged)


# -- an exception at each line --


class Thrown(KeyboardInterrupt):  # an event loop lets it through, and not any other
    pass


def thrown_into(work: Callable[[], Any]) -> Iterator[BaseException]:
    """Do it again and again, each time with an exception at a later line of ours, until it runs to its end."""
    for number in itertools.count():
        left = number

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal left
            name = frame.f_code.co_filename
            # Within `Secret` itself the text is in the hand of whoever makes one.
            if not name.startswith(OURS) or name.endswith("config/secret.py"):
                return None
            # The line of a `with` comes once more before it is left. No signal handler gets in between there, and a
            # lock would stay locked.
            if event == "line" and not linecache.getline(name, frame.f_lineno).strip().startswith("with "):
                left -= 1
                if left == -1:
                    raise Thrown
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            work()
        except Thrown as error:
            sys.settrace(before)
            yield error
        except Exception as error:  # of what fails anyway
            sys.settrace(before)
            yield error
            if left >= 0:
                return
        else:
            sys.settrace(before)
            if left >= 0:
                return
        finally:
            sys.settrace(before)


def looked_through(work: Callable[[], Any]) -> int:
    count = 0
    for error in thrown_into(work):
        assert not found_in(shown_by(error)), "".join(traceback.format_tb(error.__traceback__))
        count += 1
    return count


def settings(server: Any, way: Callable[[], Any]) -> EndpointSettings:
    return load({"db": place(server, way), "groups": {"g": {}}}).db[0]


def in_a_loop(coroutine: Any) -> None:
    """Run it in a loop of its own, which is left as it is when it is interrupted."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        loop.run_until_complete(coroutine)
    finally:
        sys.settrace(None)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


# What is thrown into leaves coroutines and connections as they are.
left_as_they_are = pytest.mark.filterwarnings("ignore")
PARTICULAR = pytest.mark.parametrize("way", [text, call, raises, unfit])


@left_as_they_are
@PARTICULAR
def test_interrupted_by_threads(way: Callable[[], Any]) -> None:
    group = load(config({"host": "h"})).groups["default"]
    with Impostor("28P01") as server:
        where = settings(server, way)

        def connect() -> None:
            secret: Any = where.password
            if callable(secret):
                secret = blocking.run(blocking.password(secret, float("inf")))
            blocking.run(blocking.connect(conninfo(where, group, secret), True, float("inf")))

        assert looked_through(connect) > (50 if way in (text, call) else 5)


@left_as_they_are
@PARTICULAR
def test_interrupted_by_tasks(way: Callable[[], Any]) -> None:
    group = load(config({"host": "h"})).groups["default"]
    with Impostor("28P01") as server:
        where = settings(server, way)

        async def connect() -> None:
            secret: Any = where.password
            if callable(secret):
                secret = await asynchronous.password(secret, float("inf"))
            await asynchronous.connect(conninfo(where, group, secret), True, float("inf"))

        assert looked_through(lambda: in_a_loop(connect())) > (50 if way in (text, call) else 5)


@left_as_they_are
@PARTICULAR
def test_interrupted_by_the_monitor(way: Callable[[], Any]) -> None:
    with Impostor("28P01") as server:
        where = settings(server, way)
        assert looked_through(lambda: in_a_loop(Watch(where, Search(random.random))._attempt(fresh=True))) > 5


@left_as_they_are
@PARTICULAR
def test_interrupted_by_a_call_that_asks_whether_its_server_is_dead(way: Callable[[], Any]) -> None:
    with Impostor("28P01") as server:
        pool = Pool(config(place(server, way)), open=False)
        topology = pool._topology
        ask = death_of(topology, topology.endpoints[0], MonitorSettings(fall=1), blocking.password)
        assert looked_through(lambda: ask(float("inf"))) > 5


# -- what is wrong with it --


def test_of_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    wrong = config({"host": "h", "pass": CANARY, "port": 0, "params": {"sslpassword": CANARY, "foo": CANARY}})
    url = f"postgresql://u:{CANARY}@h:0/db?sslpassword={CANARY}"
    file = tmp_path / "pool.toml"
    file.write_text(f'[[db]]\nhost = "h"\npass = "{CANARY}"\nport = 0\nfoo = {CANARY}\n[groups.g]\n')
    also = tmp_path / "also.toml"
    also.write_text(f'[[db]]\nhost = "h"\npass = "{CANARY}"\nport = 0\n[groups.g]\n')
    calls: list[Callable[[], Any]] = [
        lambda: load(wrong),
        lambda: Pool(wrong),
        lambda: AsyncPool(wrong),
        lambda: pgdbpool.Connection.init(wrong),
        lambda: load_url(url),
        lambda: load_url(f"postgresql://u:{CANARY}@h/db?sslmode=no"),
        lambda: load_url(f"postgresql://u:{CANARY}@h/db", groups={"g": {"foo": 1}}),
        lambda: Pool.from_url(url),
        lambda: AsyncPool.from_url(url),
        lambda: load_toml(file),
        lambda: load_toml(also),
        lambda: Pool.from_toml(also),
        lambda: load_toml(f"host=h password={CANARY}"),
        lambda: Pool.from_toml(f"host=h password={CANARY}"),
    ]
    for each in calls:
        with pytest.raises(ConfigError) as caught:
            each()
        assert not found_in(shown_by(caught.value))


def test_of_settings() -> None:
    found = load(config({"host": "h", "pass": CANARY, "params": {"sslpassword": CANARY}}))
    for each in (found, copy.deepcopy(found), found.db[0], found.db[0].params, found.db[0].password):
        assert CANARY not in repr(each) + str(each) + repr(getattr(each, "__dict__", ""))
        with pytest.raises(TypeError) as caught:
            pickle.dumps(each)
        assert not found_in(shown_by(caught.value))


def test_a_callable_that_gives_nothing_of_use_is_misconfigured(guarded: Node) -> None:
    with Pool(config(place(guarded, unfit))) as pool:
        with pytest.raises((DBOfflineError, PoolTimeout), match="NUL character"):
            pool.getconn(timeout=LIMIT)
        assert pool._topology.endpoints[0].fault is Fault.MISCONFIGURED
