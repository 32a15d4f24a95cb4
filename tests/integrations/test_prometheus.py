"""Prometheus, scraped for real: over HTTP, also from gunicorn with several workers."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from conftest import LIMIT, config, wait_for
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.parser import text_string_to_metric_families
from support import hold, put, start, stats

from pgdbpool.integrations.catalogue import METRICS
from pgdbpool.integrations.prometheus import PoolCollector
from pgdbpool.publish import read, writer


@pytest.fixture(autouse=True)
def nothing_stays_published(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test has published it alone has."""
    monkeypatch.setattr(writer, "_everybody", None)
    monkeypatch.setattr(writer, "_publishers", {})
    before = set(threading.enumerate())
    yield
    wait_for(lambda: "pgdbpool publisher" not in {thread.name for thread in set(threading.enumerate()) - before})


Scraped = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Scraped:
    """Each series of a scrape and its value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(scraped: Scraped, name: str, **labels: str) -> float:
    """The one series of this name that has these labels."""
    [found] = [number for (each, its), number in scraped.items() if each == name and labels.items() <= set(its)]
    return found


def get(url: str) -> tuple[str, int | None]:
    """What it answers, and which worker did."""
    with urllib.request.urlopen(url, timeout=LIMIT) as answer:
        worker = answer.headers.get("X-Worker")
        return answer.read().decode(), worker and int(worker)


class Silent(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None: ...


@contextmanager
def served(collector: PoolCollector) -> Iterator[str]:
    """The URL of its metrics."""
    registry = CollectorRegistry()
    registry.register(collector)
    with make_server("127.0.0.1", 0, make_wsgi_app(registry), handler_class=Silent) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join(LIMIT)


def test_a_scrape_tells_what_the_pools_of_the_process_do(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=3, groups=None))
    pool.wait(LIMIT)
    held = hold(pool, 1)
    with served(PoolCollector(pool)) as url:
        scraped = parsed(get(url)[0])
    where = {"pool": pool.name, "group": "default", "endpoint": f"127.0.0.1:{pg_node.port}"}
    assert value(scraped, "pgdbpool_connections", state="used", **where) == 1
    assert value(scraped, "pgdbpool_connections_max", pool=pool.name) == 3
    assert value(scraped, "pgdbpool_create_time_seconds_count", **where) == stats(pool).counters.connects
    assert value(scraped, "pgdbpool_endpoint_health", health="up") == 1
    assert value(scraped, "pgdbpool_endpoint_health", health="down") == 0
    assert value(scraped, "pgdbpool_processes") == 1
    put(pool, *held)


def test_everything_of_the_catalogue_is_there(pg_cluster, open_pool):
    pool = open_pool(config(*pg_cluster.nodes))
    wait_for(lambda: any(each.lag is not None for each in pool.endpoints()))
    pool.drain()
    wait_for(lambda: stats(pool).counters.closed)
    families = {family.name for family in PoolCollector(pool).collect()}
    assert {metric.prometheus for metric in METRICS} - families <= {"pgdbpool_events"}


def test_histograms_are_cumulative_and_exact(pg_node, open_pool):
    pool = open_pool(config(pg_node, connection_count=1))
    pool.wait(LIMIT)
    for _ in range(20):
        with pool.connection(timeout=LIMIT):
            pass
    held = pool.getconn(timeout=LIMIT)
    waiting = start(pool.getconn)
    wait_for(lambda: stats(pool).longest_wait > 0.3)
    pool.putconn(held)
    pool.putconn(waiting.result(LIMIT))
    with served(PoolCollector(pool)) as url:
        scraped = parsed(get(url)[0])
    counted = stats(pool).counters
    assert value(scraped, "pgdbpool_use_time_seconds_count") == counted.requests == 22
    assert value(scraped, "pgdbpool_use_time_seconds_sum") == pytest.approx(counted.use_time)
    where = f"127.0.0.1:{pg_node.port}"
    assert value(scraped, "pgdbpool_wait_time_seconds_count", endpoint=where) == 22
    assert value(scraped, "pgdbpool_wait_time_seconds_count", endpoint="") == 0
    assert value(scraped, "pgdbpool_wait_time_seconds_bucket", le="0.25", endpoint=where) == 21
    buckets = [
        (float(dict(its)["le"]), number)
        for (name, its), number in scraped.items()
        if name == "pgdbpool_wait_time_seconds_bucket" and ("endpoint", where) in its
    ]
    counts = [number for _, number in sorted(buckets)]
    assert counts == sorted(counts)


def test_without_pools_all_of_the_process_are_there(pg_node, open_pool):
    collector = PoolCollector()
    pools = [open_pool(config(pg_node)) for _ in range(2)]
    [most] = [family for family in collector.collect() if family.name == "pgdbpool_connections_max"]
    assert {sample.labels["pool"] for sample in most.samples} >= {pool.name for pool in pools}


def test_popping_the_statistics_does_not_disturb(pg_node, open_pool):
    pool = open_pool(config(pg_node))
    with pool.connection(timeout=LIMIT):
        pass
    pool.pop_stats()
    with served(PoolCollector(pool)) as url:
        assert value(parsed(get(url)[0]), "pgdbpool_use_time_seconds_count") == 1


def test_registering_asks_nobody():
    class Untouched:
        def stats(self, *, all_time: bool = False) -> Any:
            raise AssertionError

    CollectorRegistry(auto_describe=True).register(PoolCollector(Untouched()))


def test_pools_beside_an_application_are_a_mistake(pg_node, open_pool):
    with pytest.raises(ValueError, match="application: expected no pools beside it"):
        PoolCollector(open_pool(config(pg_node)), application="shop")


def test_where_the_ledger_cannot_be_kept_the_living_are_added_up(pg_node, open_pool, tmp_path, monkeypatch, caplog):
    directory = tmp_path / "files"
    directory.mkdir(mode=0o700)
    settings = config(pg_node) | {"status": {"name": "shop", "directory": str(directory), "interval": 0.1}}
    pool = open_pool(settings)
    with pool.connection(timeout=LIMIT):
        pass
    (directory / "shop.ledger.lock").mkdir()
    collector = PoolCollector(application="shop", directory=str(directory))

    def scraped() -> Any:
        return [family for family in collector.collect() if family.name == "pgdbpool_use_time_seconds"]

    wait_for(scraped)
    assert caplog.text.count("cannot be kept") == 1


# -- several processes ------------------------------------------------------------------------------------------------


class Gunicorn:
    """Three workers, and what they answer."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process = process
        self.url = url

    def use(self) -> int | None:
        """One lease; returns whose."""
        return get(f"{self.url}/use")[1]

    def scrape(self) -> tuple[Scraped, int | None]:
        text, worker = get(f"{self.url}/metrics")
        return parsed(text), worker


@contextmanager
def gunicorn(node: Any, directory: Path, *arguments: str, interval: float = 0.1) -> Iterator[Gunicorn]:
    settings = config(node, connection_count=2) | {
        "status": {"name": "shop", "directory": str(directory), "interval": interval}
    }
    here = Path(__file__).parent
    log = directory.parent / "gunicorn.log"
    with open(log, "w") as out:
        command = [sys.executable, "-m", "gunicorn", "-w", "3", "-b", "127.0.0.1:0", "--chdir", str(here)]
        process = subprocess.Popen(
            [*command, *arguments, "workers:application"],
            stdout=out,
            stderr=out,
            text=True,
            env={**os.environ, "POOL": json.dumps(settings), "DIRECTORY": str(directory)},
        )
        try:
            [url] = wait_for(lambda: re.findall(r"Listening at: (http://\S+)", log.read_text()))
            yield Gunicorn(process, url)
        finally:
            process.terminate()
            process.wait(LIMIT)
    assert "Traceback" not in log.read_text(), log.read_text()


# The first process has opened its pool too where it loads the application.
@pytest.mark.parametrize(("arguments", "processes"), [([], 3), (["--preload"], 4)], ids=["each loads", "preload"])
def test_whichever_worker_is_scraped_tells_of_all_and_none_is_counted_twice(pg_node, tmp_path, arguments, processes):
    directory = tmp_path / "files"
    directory.mkdir(mode=0o700)
    with gunicorn(pg_node, directory, *arguments) as server:
        used: dict[int | None, int] = {}

        def everybody_used() -> bool:
            worker = server.use()
            used[worker] = used.get(worker, 0) + 1
            return len(used) == 3

        wait_for(everybody_used)
        leases = sum(used.values())
        wait_for(lambda: value(server.scrape()[0], "pgdbpool_use_time_seconds_count") == leases)
        seen: set[int | None] = set()

        def everybody_scraped() -> bool:
            scraped, worker = server.scrape()
            seen.add(worker)
            assert value(scraped, "pgdbpool_use_time_seconds_count") == leases
            assert value(scraped, "pgdbpool_processes") == processes
            assert value(scraped, "pgdbpool_connections_max") == 2 * processes
            return seen == used.keys()

        wait_for(everybody_scraped)


def test_counters_go_on_when_workers_die_and_are_replaced(pg_node, tmp_path):
    directory = tmp_path / "files"
    directory.mkdir(mode=0o700)
    with gunicorn(pg_node, directory) as server:
        first: set[int | None] = set()
        count = 0

        def use_until_three(workers: set[int | None]) -> int:
            uses = 0
            while len(workers) < 3:
                workers.add(server.use())
                uses += 1
            return uses

        count += use_until_three(first)
        wait_for(lambda: value(server.scrape()[0], "pgdbpool_use_time_seconds_count") == count)
        killed = sorted(first, key=str)[0]
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        history = []

        def replaced() -> bool:
            scraped, _ = server.scrape()
            history.append(value(scraped, "pgdbpool_use_time_seconds_count"))
            server.use()
            return len(history) > 20 and value(scraped, "pgdbpool_processes") == 3

        wait_for(replaced)
        count += len(history)
        assert history == sorted(history), "no sum shrinks"
        wait_for(lambda: value(server.scrape()[0], "pgdbpool_use_time_seconds_count") == count)
        assert value(server.scrape()[0], "pgdbpool_connections_max") == 6, "the dead have no connections"
        server.process.send_signal(signal.SIGHUP)  # all workers are replaced
        second: set[int | None] = set()

        def renewed() -> bool:
            second.add(server.scrape()[1])
            return len(second - first) >= 2

        wait_for(renewed)
        assert value(server.scrape()[0], "pgdbpool_use_time_seconds_count") >= count


def test_workers_that_live_shorter_than_from_one_scrape_to_the_next_are_counted(pg_node, tmp_path):
    directory = tmp_path / "files"
    directory.mkdir(mode=0o700)
    with gunicorn(pg_node, directory, "--max-requests", "4", interval=3600) as server:
        workers = {server.use() for _ in range(16)}
        assert len(workers) >= 4
        wait_for(lambda: value(server.scrape()[0], "pgdbpool_use_time_seconds_count") == 16)


def test_one_that_was_killed_is_counted_though_its_file_was_removed_before_the_next_scrape(pg_node, tmp_path):
    directory = tmp_path / "files"
    directory.mkdir(mode=0o700)

    def published() -> dict[int, int]:
        return {
            worker.pid: sum(pool.stats.groups["default"].counters.requests for pool in worker.pools)
            for worker in read("shop", directory)
        }

    with gunicorn(pg_node, directory) as server:
        killed = server.use()
        assert killed is not None
        wait_for(lambda: published().get(killed))
        [file] = directory.glob(f"shop.{killed}.*.json")
        os.kill(killed, signal.SIGKILL)
        uses = 1

        def removed() -> bool:
            nonlocal uses
            server.use()
            uses += 1
            return not file.exists()

        wait_for(removed)
        wait_for(lambda: value(server.scrape()[0], "pgdbpool_use_time_seconds_count") == uses)


def test_what_a_pool_counted_that_is_closed_is_kept(pg_node, open_pool, tmp_path):
    directory = tmp_path / "files"
    directory.mkdir(mode=0o700)
    settings = config(pg_node) | {"status": {"name": "shop", "directory": str(directory), "interval": 3600}}
    pool = open_pool(settings)
    collector = PoolCollector(application="shop", directory=str(directory))
    pool.wait(LIMIT)
    wait_for(lambda: read("shop", directory))
    for _ in range(3):
        with pool.connection(timeout=LIMIT):
            pass
    pool.close()

    def counted() -> Any:
        families = [family for family in collector.collect() if family.name == "pgdbpool_use_time_seconds"]
        return [sample.value for family in families for sample in family.samples if sample.name.endswith("_count")]

    wait_for(lambda: counted() == [3])
    assert read("shop", directory) == []
