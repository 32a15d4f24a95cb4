"""`pgdbpool top`: all processes of an application in one picture, live in a terminal."""

import io
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import config, python, wait_for
from records import endpoint, group, pool, worker
from rich.console import Console

from pgdbpool import Event, EventKind, Holder, Pool
from pgdbpool.cli.top import figures
from pgdbpool.cli.top.screen import picture
from pgdbpool.publish import STEP, EndpointSummary, GroupSample, Happening, Held, Sample, Summary, merged
from pgdbpool.testing import Cluster, Node

from .command import LIMIT, Terminal, run

APPLICATION = """
import sys
from pgdbpool import Pool
pool = Pool(eval(sys.argv[1]))
with pool.connection("read"), pool.connection("read"):
    print("holds", flush=True)
    sys.stdin.read()
"""


def published(folder: Path, *nodes: Node, name: str = "shop", **groups: Any) -> dict[str, Any]:
    """A configuration whose processes publish to this folder."""
    groups = groups or {"read": {"connection_count": 4}, "write": {"target_session_attrs": "primary"}}
    status = {"directory": str(folder), "name": name, "interval": 0.1}
    return config(*nodes, groups=groups) | {"status": status}


def shown(folder: Path, *arguments: str) -> Any:
    """What `top --json` says of the application shop, once there is something."""
    return wait_for(lambda: (done := run("top", "--directory", folder, "--json", *arguments)).code == 0 and done.json)


def test_it_shows_what_all_processes_do(pg_cluster: Cluster, tmp_path: Path) -> None:
    what = repr(published(tmp_path, *pg_cluster.nodes))
    with python(APPLICATION, what) as one, python(APPLICATION, what) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == "holds\n"
        summary = wait_for(lambda: (found := shown(tmp_path)["shop"])["groups"]["read"]["leased"] == 4 and found)
        assert (summary["workers"], summary["pools"]) == (2, 2)
        assert summary["groups"]["read"]["limit"] == 2 * 3 * 4
        roles = {each["stats"]["endpoint"]: each["stats"]["role"] for each in summary["endpoints"]}
        assert sorted(roles.values()) == ["primary", "standby", "standby"]

        done = run("top", "--directory", tmp_path)
        assert (done.code, done.err) == (0, "")
        assert re.search(r"^shop +2 processes", done.out)
        assert re.search(r"^ read .* 4/24 ", done.out, re.MULTILINE)
        assert "\x1b" not in done.out
        for process in (one, two):
            process.communicate("", timeout=LIMIT)
    assert run("top", "--directory", tmp_path).code == 1, "they have ended, and are gone"


def test_where_nobody_publishes_it_says_how_to(tmp_path: Path) -> None:
    done = run("top", "--directory", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert "put [status] with name" in done.err
    done = run("top", "shop", "--directory", tmp_path)
    assert done.code == 1
    assert "no process of application 'shop' publishes" in done.err


def test_status_as_json_ends_as_top_does_where_nobody_publishes(tmp_path: Path) -> None:
    for name in ((), ("shop",)):
        top = run("top", *name, "--directory", tmp_path, "--json")
        status = run("status", *(("--name", *name) if name else ()), "--directory", tmp_path, "--json")
        assert (status.code, status.json) == (top.code, top.json) == (1, {})
        assert status.err.replace("status:", "top:") == top.err


@pytest.mark.parametrize("command", ["top", "events", "status"])
def test_a_directory_that_others_may_write_to_is_not_believed(tmp_path: Path, command: str) -> None:
    tmp_path.chmod(0o777)
    done = run(command, "--directory", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "may be written to by other users" in done.err


def test_in_a_terminal_it_is_live_and_q_ends_it(pg_node: Node, tmp_path: Path, open_pool: Callable[..., Pool]) -> None:
    pool = open_pool(published(tmp_path, pg_node))
    shown(tmp_path)
    with Terminal("top", "--directory", tmp_path, "--interval", "0.2") as terminal:
        terminal.read(until="0/4")
        with pool.connection("read"):
            terminal.read(until="1/4")
        terminal.press("x")  # means nothing
        terminal.press("\x1b[A")  # nor does an arrow, though it begins as Escape does
        terminal.read(until="\x1b[H")
        terminal.press("q")
        written = terminal.read()
        assert terminal.process.wait(LIMIT) == 0
    assert "\x1b[?1049h" in written
    assert written.count("\x1b[?1049l") == written.count("\x1b[?1049h"), "the screen is as it was before"
    assert "Traceback" not in written


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_ends_it_as_well(
    pg_node: Node, tmp_path: Path, open_pool: Callable[..., Pool], signum: signal.Signals, code: int
) -> None:
    open_pool(published(tmp_path, pg_node))
    shown(tmp_path)
    with Terminal("top", "--directory", tmp_path) as terminal:
        terminal.read(until="0/4")
        terminal.process.send_signal(signum)
        written = terminal.read()
        assert terminal.process.wait(LIMIT) == code
    assert "\x1b[?1049l" in written
    assert "Traceback" not in written


def test_tab_goes_on_to_the_next_application(pg_node: Node, tmp_path: Path) -> None:
    what = [repr(published(tmp_path, pg_node, name=name)) for name in ("first", "second")]
    with python(APPLICATION, what[0]) as one, python(APPLICATION, what[1]) as two:
        wait_for(lambda: len(shown(tmp_path)) == 2)
        with Terminal("top", "--directory", tmp_path, "--interval", "30") as terminal:
            terminal.read(until="first")
            assert "second" not in terminal.written
            terminal.press("\t")
            terminal.read(until="second")
            terminal.press("q")
            terminal.read()
        for process in (one, two):
            process.communicate("", timeout=LIMIT)


# The picture, without servers


def busy(pools: int) -> Summary:
    """Much of everything."""
    names = ("read", "write", "transaction", "batch")
    db = [{"host": f"db{number}.example.com", "name": "app", "user": "app"} for number in (1, 2, 3)]
    stats = Pool({"db": db, "groups": {name: {"connection_count": 40} for name in names}}, open=False).stats()
    words = "db1.example.com:5432 is down: connection to server failed: Connection refused, and so on, and so forth"
    event = Event(kind=EventKind.ENDPOINT_DOWN, endpoint="db1.example.com:5432", message=words, at=90.0)
    holder = Holder(
        group="batch", endpoint="db1", connection="1", since=12.3, where="/srv/shop/a.py:9 (work)", thread="Thread-7"
    )
    lately = GroupSample(requests=500, waits=50, timeouts=7, wait_times=((10, 50),), use_times=((12, 500),))
    samples = [
        Sample(2.0 * number, dict.fromkeys(names, lately), {"db1.example.com:5432": 2000}) for number in range(50)
    ]
    return Summary(
        at=100.0,
        workers=4,
        pools=pools,
        groups=dict(stats.groups),
        endpoints=tuple(EndpointSummary(stats=each, views={"unknown, suspect": 4}) for each in stats.endpoints),
        events=(Happening(event=event, pools=3),) * 40,
        holders=(Held(pid=1, holder=holder),) * 40,
        samples=tuple(samples),
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (132, 43)])
def test_it_fits_the_screen_however_much_there_is(width: int, height: int) -> None:
    screen = Console(width=width, height=height, file=io.StringIO())
    screen.print(picture("shop", busy(4), 101.6, width, height, 1, "tab next, q quits"))
    assert isinstance(screen.file, io.StringIO)
    lines = screen.file.getvalue().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    heads = [line for line in lines if line.startswith((" endpoint", " group"))]
    assert len(heads) == 2
    assert not any("…" in line for line in heads), "no head is cut"
    assert "timed out" in heads[1]
    assert any("▼" in line for line in lines)
    assert any("batch /srv/shop/a.py:9" in line for line in lines)


def lines_of(summary: Summary, now: float) -> list[str]:
    screen = Console(width=120, height=40, file=io.StringIO())
    screen.print(picture("shop", summary, now, 120, 40))
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue().splitlines()


def test_a_server_that_is_down_shows_what_it_was_and_neither_rate_nor_share() -> None:
    samples = tuple(Sample(2.0 * number, {}, {"db1:5432": 600, "db2:5432": 200}) for number in range(50))
    gone = endpoint("db1:5432", health="down", role="unknown", last_role="primary", down_for=3.0, share=0.0)
    there = endpoint("db2:5432", role="standby", last_role="standby")
    summary = msgspec.structs.replace(merged([worker(pool(endpoints=(gone, there)))]), samples=samples)
    first, second = (line for line in lines_of(summary, 101.6) if "db1:5432" in line or "db2:5432" in line)
    assert first.split() == ["db1:5432", "was", "primary", "down", "3", "s", "2", "1"]
    assert second.split()[-3:] == ["100", "██████", "100%"], "the others do all that is done"


def test_a_group_bound_to_one_role_shows_the_limit_of_what_it_can_use() -> None:
    summary = merged([worker(pool(group("read", limit=4, configured_limit=6, leased=4, idle=0, waiting=22)))])
    [line] = [line for line in lines_of(summary, 101.6) if "read" in line]
    assert "██████ 4/4" in line


# The figures, without servers


def sample(at: float, requests: int, **more: Any) -> Sample:
    return Sample(at, {"g": GroupSample(requests=requests, **more)}, {"db1": requests})


def test_a_sample_counts_when_nobody_can_add_to_it_any_more() -> None:
    samples = [sample(at, 10) for at in (100.0, 102.0, 104.0)]
    assert [each.at for each in figures.finished(samples, 105.0)] == [100.0]
    assert [each.at for each in figures.finished(samples, 107.5)] == [100.0, 102.0, 104.0]


def test_rates_are_about_the_last_ten_seconds() -> None:
    samples = [sample(100.0 + STEP * number, 20) for number in range(30)]
    lately = figures.lately(samples, 100.0 + STEP * 30 + 1.5)
    assert len(lately) == 5
    assert figures.of_group(lately, "g").rate == 10.0
    assert figures.of_endpoints(lately) == {"db1": 10.0}


def test_rates_of_an_application_that_began_a_moment_ago_are_about_its_life() -> None:
    samples = [sample(100.0, 20), sample(104.0, 20)]
    now = 106.0 + 1.5
    lately = figures.lately(samples, now)
    assert figures.span(samples, now) == 6.0
    assert figures.of_group(lately, "g", 6.0).rate == pytest.approx(40 / 6)
    assert figures.of_endpoints(lately, 6.0) == {"db1": pytest.approx(40 / 6)}
    assert figures.span(samples, 300.0) == figures.LATELY


def test_callers_who_got_nothing_count_among_those_that_waited() -> None:
    found = figures.of_group([sample(100.0, 10, prompt=10, waits=10, timeouts=10, wait_times=((25, 10),))], "g")
    assert found.wait_p99 == 2.0**5


def test_leases_that_did_not_wait_count_as_waits_of_nothing() -> None:
    half = [sample(100.0, 100, prompt=60, waits=40, wait_times=((10, 40),))]
    assert figures.of_group(half, "g").wait_p99 == 2.0**-10
    few = [sample(100.0, 1000, prompt=996, waits=4, wait_times=((10, 4),))]
    assert figures.of_group(few, "g").wait_p99 == 0.0


def test_a_quantile_is_the_upper_limit_of_its_place() -> None:
    found = figures.of_group([sample(100.0, 100, use_times=((5, 98), (12, 2)))], "g")
    assert (found.use_p50, found.use_p99) == (2.0**-15, 2.0**-8)
    longer = figures.of_group([sample(100.0, 1, use_times=((31, 1),))], "g")
    assert longer.use_p99 == float("inf")


def test_a_group_that_did_nothing_has_no_quantiles() -> None:
    found = figures.of_group([], "g")
    assert (found.rate, found.wait_p99, found.use_p50) == (0.0, None, None)


def test_the_history_has_gaps_where_nothing_was_done() -> None:
    samples = [sample(100.0, 3), sample(104.0, 5)]
    assert figures.history(samples, "g", 107.5, 4) == [0, 3, 0, 5]
