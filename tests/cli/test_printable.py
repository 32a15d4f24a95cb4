"""What servers, applications and files say is shown, and no terminal obeys it."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from records import endpoint, group, lane, pool, worker

from pgdbpool import Event, EventKind, Holder
from pgdbpool.publish import alive, place
from pgdbpool.publish.record import encoded
from pgdbpool.testing import Node

from .command import Terminal, run, toml

# Clears the screen, sets the title, C1's CSI, turns the direction of writing, and begins a line of its own.
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r\nCRITICAL:root:forged"
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")


@pytest.fixture
def forged(tmp_path: Path) -> Path:
    """A folder in which a living process has published such things, everywhere it could."""
    tmp_path.chmod(0o700)
    label = f"db{EVIL}:5432"
    events = tuple(
        Event(kind=kind, endpoint=label, message=f"{label} {EVIL}", at=time.time() - 20, details=EVIL)
        for kind in EventKind
    )
    holder = Holder(
        group=f"read{EVIL}", endpoint=label, connection=EVIL, since=100.0, where=EVIL, thread=EVIL, state=EVIL
    )
    record = worker(
        pool(
            group(f"read{EVIL}", lanes=(lane(label),)),
            endpoints=(endpoint(label, last_error=EVIL, last_error_age=1.0, fault=EVIL, fenced=EVIL, role=EVIL),),
            events=events,
            holders=(holder,),
        ),
        at=time.time(),
        identity=alive.myself(),
    )
    with place.opened(tmp_path) as here:
        here.replace(place.file_name("shop", os.getpid(), "00000000"), encoded(record))
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [("events",), ("events", "--json"), ("top",), ("top", "--json"), ("status", "--json")]
)
def test_what_a_status_file_says_is_not_obeyed_in_a_pipe(forged: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, "--directory", forged)
    assert done.code == 0, done.err
    assert "forged" in done.out, "it is shown"
    assert not HARMFUL.search(done.out)
    if arguments == ("events",):
        assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in done.out.splitlines()), "each line is an event"
    if "--json" in arguments:
        for document in done.out.splitlines() if arguments[0] == "events" else [done.out]:
            json.loads(document)


@pytest.mark.parametrize("command", ["events", "top"])
def test_what_a_status_file_says_is_not_obeyed_in_a_terminal(forged: Path, command: str) -> None:
    with Terminal(command, "--directory", forged) as terminal:
        terminal.read(until="forged")
        if command == "top":
            terminal.press("q")
        written = terminal.read()
    for harmful in ("\x1b[2J\x1b]", "\x1b]0;", "\x9b", "\u202e"):
        assert harmful not in written


def test_what_a_server_says_to_check_is_not_obeyed(pg_node: Node, tmp_path: Path) -> None:
    config: Any = {**pg_node.endpoint(ssl="disable"), "name": "no\x1b[2Jsuch\u202edatabase"}
    done = run("check", toml(tmp_path, config))
    assert done.code == 1
    assert "such" in done.out, "the server repeats the name"
    assert not HARMFUL.search(done.out)
    done = run("check", toml(tmp_path, config), "--json")
    assert not HARMFUL.search(done.out)
    assert "no\x1b[2Jsuch" in done.json["endpoints"][0]["error"]


def test_what_a_server_says_to_bench_is_not_obeyed(pg_node: Node, tmp_path: Path) -> None:
    config: Any = {**pg_node.endpoint(ssl="disable"), "name": "no\x1b[2Jsuch"}
    groups = "[groups.default]\nacquire_timeout = 0.5"
    done = run("bench", toml(tmp_path, config, groups=groups), "--seconds", "0.5")
    assert done.code == 1
    assert not HARMFUL.search(done.out + done.err)
