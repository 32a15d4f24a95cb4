"""The rows of `examples/rows.toml` and what is made of them."""

import re

import pytest

from examples.rows import FOLDER, GROUPS, Row, load

from . import ROOT

ROWS = load()


def what_the_server_is_told(row: Row) -> str:
    """Its command, and what is in the file that it names."""
    file = re.search(r"-f (\S+\.conf)", row.command)
    return row.command + ("\n" + (FOLDER / file[1]).read_text() if file else "")


def numbers(row: Row, *options: str) -> list[int]:
    """What the server is told by some options, in the order of the text."""
    names = "|".join(re.escape(option) for option in options)
    return [int(number) for number in re.findall(rf"(?:{names})[ =]+(\d+)", what_the_server_is_told(row))]


def test_every_row_has_its_section_in_the_manual() -> None:
    page = (ROOT / "docs" / "deploying.rst").read_text()
    assert sorted(re.findall(r"^\.\. deployment:: (\S+)$", page, re.MULTILINE)) == sorted(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_its_numbers_fit_its_model(name: str) -> None:
    row = ROWS[name]
    assert set(row.groups) == {"read", "write", "transaction", "batch"}
    assert all(1 <= count <= row.threads for count in row.groups.values())
    assert (row.threads == 1) is (row.model == "non-threaded")
    assert row.connections >= row.processes * sum(row.groups.values())


@pytest.mark.parametrize("name", ROWS)
def test_its_processes_and_threads_are_those_of_the_command(name: str) -> None:
    row = ROWS[name]
    processes = numbers(row, "--workers", "--processes", "StartServers", "ServerLimit", " processes")
    threads = numbers(row, "--threads", "ThreadsPerChild", "ThreadLimit", " threads")
    assert set(processes) <= {row.processes}
    assert bool(processes) is not name.endswith("-development")
    if row.model == "threaded" and processes:
        assert set(threads) == {row.threads}


@pytest.mark.parametrize("name", [name for name in ROWS if not name.endswith("-development")])
def test_its_server_gives_a_request_the_time_that_the_pool_and_the_database_give_it(name: str) -> None:
    row = ROWS[name]
    longest = 30 + max(group["query_timeout"] for group in GROUPS.values()) / 1000  # acquire_timeout, and a statement
    limits = numbers(
        row, "--timeout", "--graceful-timeout", "--worker-reload-mercy", "socket-timeout", "shutdown-timeout"
    )
    assert all(limit > longest for limit in limits)
    limited = {"gunicorn-processes": 2, "gunicorn-preload": 2, "gunicorn-threads": 1, "gunicorn-uvicorn": 1}
    limited |= {"uwsgi": 1, "uwsgi-lazy-apps": 1, "apache-daemon": 2}
    assert len(limits) == limited.get(name, 0)  # the others wait as long as it takes
