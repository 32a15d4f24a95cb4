"""What the pools of a process do is published: in all models, over forks, to the end of the process."""

import asyncio
import itertools
import json
import logging
import os
import re
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import config, output, python, wait_for

from pgdbpool import AsyncPool, ConfigError, Pool
from pgdbpool.config import StatusSettings, load
from pgdbpool.publish import merged, place, read, writer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def published(*places: Any, folder: Path, **more: Any) -> dict[str, Any]:
    return config(*places, **more) | {"status": {"name": "shop", "directory": str(folder), "interval": 0.1}}


def select(pool: Pool, times: int = 1, group: str = "default") -> None:
    for _ in range(times):
        with pool.connection(group) as conn:
            conn.execute("select 1")


def requests(folder: Path | None) -> int:
    groups = merged(read("shop", folder)).groups
    return groups["default"].counters.requests if groups else -1


def publishers() -> list[str]:
    # One that died at birth, in another test, is listed for ever.
    return [each.name for each in threading.enumerate() if each.name == "pgdbpool publisher" and each.is_alive()]


# -- the models -----------------------------------------------------------------------------------------------


def test_nothing_is_published_unless_somebody_wants_it(pg_node, open_pool, folder, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    select(open_pool(config(pg_node)))
    assert os.listdir(folder) == []
    assert publishers() == []


def test_a_threaded_pool_is_published_by_a_thread(pg_node, open_pool, folder):
    pool = open_pool(published(pg_node, folder=folder))
    select(pool, 3)
    wait_for(lambda: requests(folder) == 3)
    select(pool, 2)
    wait_for(lambda: requests(folder) == 5)
    [worker] = read("shop", folder)
    assert (worker.pid, worker.by_itself, worker.pools[0].kind) == (os.getpid(), True, "threaded")
    assert worker.pools[0].stats.endpoints[0].role == "primary"
    assert len(publishers()) == 1


def test_an_asyncio_pool_is_published_by_a_thread(pg_node, folder):
    async def main() -> None:
        async with AsyncPool(published(pg_node, folder=folder)) as pool:
            async with pool.connection() as conn:
                await conn.execute("select 1")
            while requests(folder) != 1:
                await asyncio.sleep(0.01)
            [worker] = read("shop", folder)
            assert worker.pools[0].kind == "asyncio"

    asyncio.run(asyncio.wait_for(main(), 30))
    wait_for(lambda: os.listdir(folder) == [])


def test_a_non_threaded_pool_is_published_on_the_way_and_starts_no_thread(pg_node, open_pool, folder):
    pool = open_pool(published(pg_node, folder=folder, type="non-threaded"))
    before = threading.active_count()

    def seen() -> bool:
        select(pool)
        return requests(folder) > 1

    wait_for(seen)
    [worker] = read("shop", folder)
    assert (worker.by_itself, worker.pools[0].kind) == (False, "non-threaded")
    assert threading.active_count() == before


def test_a_non_threaded_pool_writes_at_most_once_a_second(pg_node, open_pool, folder, monkeypatch):
    written = []
    replace = place.Place.replace
    monkeypatch.setattr(place.Place, "replace", lambda *args: (written.append(time.monotonic()), replace(*args)))
    pool = open_pool(published(pg_node, folder=folder, type="non-threaded"))
    wait_for(lambda: (select(pool, 100), len(written) > 3)[1])
    assert all(later - earlier >= 0.99 for earlier, later in itertools.pairwise(written[1:]))


def test_several_pools_of_a_process_are_in_one_file(pg_node, open_pool, folder):
    for _ in range(2):
        select(open_pool(published(pg_node, folder=folder)))
    wait_for(lambda: requests(folder) == 2)
    [worker] = read("shop", folder)
    assert len(worker.pools) == 2
    assert len(publishers()) == 1


def test_all_pools_can_be_published_whatever_they_are_configured_for(pg_node, open_pool, folder, monkeypatch):
    monkeypatch.setattr(writer, "_everybody", None)
    before, after = open_pool(config(pg_node)), None
    select(before)
    writer.publish_all("shop", str(folder), 0.1)
    wait_for(lambda: requests(folder) == 1)
    after = open_pool(config(pg_node))
    select(after)
    wait_for(lambda: requests(folder) == 2)


# -- what is in it --------------------------------------------------------------------------------------------


def test_events_holders_and_samples_are_told(pg_node, open_pool, folder):
    pool = open_pool(published(pg_node, folder=folder))
    wait_for(lambda: (select(pool, 5), merged(read("shop", folder)).samples)[1])
    with pool.connection() as conn:
        assert conn
        [held] = wait_for(lambda: merged(read("shop", folder)).holders)
        assert held.pid == os.getpid()
        assert Path(__file__).name in held.holder.where
    wait_for(lambda: merged(read("shop", folder)).holders == ())
    summary = merged(read("shop", folder))
    assert "endpoint-up" in [each.event.kind for each in summary.events]
    label = summary.endpoints[0].stats.endpoint
    wait_for(
        lambda: (
            sum(sample.endpoints.get(label, 0) for sample in merged(read("shop", folder)).samples)
            == requests(folder)
            == pool.stats().groups["default"].counters.requests
        )
    )


def test_statistics_that_were_popped_are_still_counted(pg_node, open_pool, folder):
    pool = open_pool(published(pg_node, folder=folder))
    select(pool, 3)
    pool.pop_stats()
    select(pool)
    wait_for(lambda: requests(folder) == 4)


def test_no_secret_is_written(pg_node, open_pool, folder):
    secret = "correct horse battery staple"
    endpoint = pg_node.endpoint(ssl="disable") | {"pass": secret}
    pool = open_pool(published(endpoint, endpoint | {"host": "localhost", "port": 1}, folder=folder))
    select(pool)
    wait_for(lambda: requests(folder) == 1)
    [file] = folder.iterdir()
    assert secret not in file.read_text()


def test_the_manuals_program_reads_it(pg_node, open_pool, folder, monkeypatch, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "status-page.rst").read_text()
    [program] = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", page, re.MULTILINE)
    monkeypatch.setattr(place, "candidates", lambda: [Path(folder)])  # others may publish in the usual ones
    select(open_pool(config(pg_node, connection_count=7) | {"status": {"name": "shop"}}))
    wait_for(lambda: requests(None) == 1)
    exec(textwrap.dedent(program), {})
    assert capsys.readouterr().out == "shop: 1 processes\n  default: 0 of 7 in use, 0 waiting\n"


# -- life and death -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_closing_the_last_pool_removes_the_file(pg_node, open_pool, folder, model):
    pool = open_pool(published(pg_node, folder=folder, type=model))
    select(pool)
    wait_for(lambda: read("shop", folder))
    pool.close()
    wait_for(lambda: os.listdir(folder) == [])
    wait_for(lambda: publishers() == [])
    pool.open()
    select(pool)
    wait_for(lambda: read("shop", folder))


def test_a_pool_that_nobody_knows_any_more_is_forgotten(pg_node, folder):
    pool = Pool(published(pg_node, folder=folder))
    select(pool)
    wait_for(lambda: read("shop", folder))
    del pool
    wait_for(lambda: os.listdir(folder) == [])


PROGRAM = """
import json, os, signal, sys, time
from pgdbpool import Pool
from pgdbpool.publish import read

config = json.loads(sys.argv[1])
folder = config["status"]["directory"]

def use(pool):
    with pool.connection() as conn:
        conn.execute("select 1")

def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)

def pids():
    return sorted(worker.pid for worker in read("shop", folder))
"""


def run(program: str, node: Any, folder: Path, **more: Any) -> None:
    output(python(PROGRAM + program, json.dumps(published(node, folder=folder, **more))), limit=60.0)


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_process_that_ends_takes_its_file_with_it(pg_node, folder, model):
    program = """
pool = Pool(config)
use(pool)
wait_for(lambda: pids() == [os.getpid()])
"""
    run(program, pg_node, folder, type=model)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_forked_children_are_seen_once_they_use_the_pool_and_vanish_when_they_are_killed(pg_node, folder, model):
    program = """
pool = Pool(config)
for _ in range(3):
    use(pool)
wait_for(lambda: pids() == [os.getpid()])
children = []
for uses in (True, True, False):
    pid = os.fork()
    if pid == 0:
        if uses:
            use(pool)
        time.sleep(60)
        os._exit(1)
    children.append(pid)
first, second, idle = children
try:
    wait_for(lambda: pids() == sorted([os.getpid(), first, second]))
    counted = {worker.pid: worker.pools[0].stats.groups["default"].counters.requests for worker in read("shop", folder)}
    assert counted[first] <= 1, "what the parent counted is not the child's"
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: pids() == sorted([os.getpid(), second]))
finally:
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
wait_for(lambda: pids() == [os.getpid()])
"""
    run(program, pg_node, folder, type=model)


def test_what_a_killed_process_left_is_swept_away_by_the_next(pg_node, open_pool, folder, monkeypatch):
    monkeypatch.setattr(writer, "_FIRST_SWEEP", 0.0)
    program = PROGRAM + "pool = Pool(config); use(pool); print('up'); input()"
    killed = python(program, json.dumps(published(pg_node, folder=folder)))
    assert killed.stdout.readline() == "up\n"
    wait_for(lambda: os.listdir(folder))
    killed.kill()
    killed.communicate()
    [left] = os.listdir(folder)
    select(open_pool(published(pg_node, folder=folder)))
    wait_for(lambda: read("shop", folder))
    wait_for(lambda: left not in os.listdir(folder))


# -- when it goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_folder_that_cannot_be_written_to_is_said_once_and_disturbs_nobody(pg_node, open_pool, folder, caplog, model):
    blocked = folder / "file"
    blocked.touch()
    with caplog.at_level(logging.WARNING, "pgdbpool"):
        pool = open_pool(published(pg_node, folder=blocked, type=model))
        select(pool, 20)
        wait_for(lambda: caplog.messages)
        [publisher] = [each for each in writer.applications() if each.directory == str(blocked)]
        for _ in range(3):
            writer._publishers[publisher]._write()
        select(pool, 20)
    assert caplog.messages == [f"cannot publish what the pools do: {blocked} is not a directory"]


def test_a_disk_that_is_full_is_said_once_and_written_to_again_when_it_has_room(
    pg_node, open_pool, folder, caplog, monkeypatch
):
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    replace = place.Place.replace
    monkeypatch.setattr(place.Place, "replace", full)
    monkeypatch.setattr(writer, "_AFTER_FAILURE", 0.05)
    with caplog.at_level(logging.WARNING, "pgdbpool"):
        pool = open_pool(published(pg_node, folder=folder))
        select(pool, 20)
        wait_for(lambda: caplog.messages)
        monkeypatch.setattr(place.Place, "replace", replace)
        wait_for(lambda: requests(folder) == 20)
    assert caplog.messages == ["cannot publish what the pools do: [Errno 28] No space left on device"]


def test_a_disk_that_hangs_holds_up_no_checkout(pg_node, open_pool, folder, monkeypatch):
    hangs, go_on = threading.Event(), threading.Event()

    def hang(*args: Any) -> None:
        hangs.set()
        go_on.wait(30)

    monkeypatch.setattr(place.Place, "replace", hang)
    pool = open_pool(published(pg_node, folder=folder))
    try:
        assert hangs.wait(30)
        select(pool, 50)
        pool.close()
        assert not go_on.is_set()
    finally:
        go_on.set()
    wait_for(lambda: publishers() == [])


def test_a_folder_that_was_removed_is_made_again(pg_node, open_pool, folder):
    below = folder / "run"
    select(open_pool(published(pg_node, folder=below)))
    wait_for(lambda: read("shop", below))
    for file in below.iterdir():
        file.unlink()

    def gone() -> bool:  # a writing may come in between
        try:
            below.rmdir()
        except OSError:
            for file in below.iterdir():
                file.unlink(missing_ok=True)
            return False
        return True

    wait_for(gone)
    writer_of = writer._publishers[StatusSettings(name="shop", directory=str(below), interval=0.1)]
    wait_for(lambda: (writer_of._wake.set(), below.exists() and read("shop", below))[1])


# -- the configuration ----------------------------------------------------------------------------------------


def test_the_configuration_says_what_is_published():
    db = {"host": "db1"}
    assert load({"db": db, "groups": {"default": {}}}).status is None
    assert load({"db": db, "groups": {"default": {}}, "status": False}).status is None
    assert load({"db": db, "groups": {"default": {}}, "status": True}).status == StatusSettings()
    found = load({"db": db, "groups": {"default": {}}, "status": {"name": "shop", "interval": 5}}).status
    assert found == StatusSettings(name="shop", interval=5.0)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"name": "a/b"}, "status.name: expected up to 60 letters, digits, - and _, the first a letter or digit"),
        ({"name": "../x"}, "status.name: expected up to 60 letters, digits, - and _, the first a letter or digit"),
        ({"directory": "run"}, "status.directory: expected a path that begins with /"),
        ({"interval": 0}, "status.interval: expected 0.1 or more, got 0"),
        ({"directry": "/run"}, "status.directry: unknown key, did you mean directory?"),
        ("yes", "status: expected a dict, True or False, got a string"),
    ],
)
def test_a_mistake_in_it_is_named(status, message):
    with pytest.raises(ConfigError) as raised:
        load({"db": {"host": "db1"}, "groups": {"default": {}}, "status": status})
    assert raised.value.problems == (message,)
