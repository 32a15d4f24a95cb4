"""Servers that do not stop talking: every wait ends, no memory is filled, and other servers are used."""

import asyncio
import re
import select
import socket
import time
from pathlib import Path

import pytest
from chatter import KINDS, Chatter
from conftest import LIMIT, config, wait_for
from models import MODELS
from models import open_model as open_model
from psycopg.conninfo import conninfo_to_dict
from support import start
from support import tidy as tidy

from pgdbpool.core.evidence import Fault
from pgdbpool.drivers import ConnectFailed, DriverTimeout, asynchronous, blocking, refusals, steps
from pgdbpool.drivers.psycopg3 import fault
from pgdbpool.drivers.sealed import sealed

# Bytes: less than such an answer has. libpq reads on as long as more arrives while it reads; that is out of our hands.
MOST = 800e6


@pytest.fixture
def memory():
    """The most memory that this process has had at a time since it was asked first, beyond what it had then; bytes."""

    def most(name="VmHWM"):
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    Path("/proc/self/clear_refs").write_text("5")  # begin anew
    before = most("VmRSS")
    return lambda: most() - before


def conversation(conninfo):
    """Connect, and ask a question."""
    session = yield from steps.connecting(sealed(conninfo_to_dict(conninfo)))
    try:
        yield from steps.asking(session, b"select 1")
    finally:
        session.finish()


def by_blocking(talk, deadline):
    blocking.drive(talk, deadline)


def by_loop(talk, deadline):
    asyncio.run(asynchronous.drive(talk, deadline))


def by_monitor(talk, deadline):
    asyncio.run(asynchronous.drive(talk, asynchronous.Allowance(min(deadline, time.monotonic() + 5), until=deadline)))


DRIVERS = pytest.mark.parametrize("drive", [by_blocking, by_loop, by_monitor])


@DRIVERS
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_does_not_stop_talking_is_not_listened_to_for_long(kind, drive, memory):
    with Chatter(kind) as server:
        with pytest.raises(Exception, match="has sent more than") as caught:
            drive(conversation(server.conninfo()), time.monotonic() + LIMIT)
        assert fault(caught.value) is (Fault.MISCONFIGURED if kind == "parameters" else Fault.ENDED)
        assert memory() < MOST


@DRIVERS
@pytest.mark.parametrize("kind", ["parameters", "notices", "rows"])
def test_nor_for_longer_than_the_deadline(kind, drive, monkeypatch):
    """However much it may send."""
    monkeypatch.setattr(steps, "MOST", 1 << 60)
    monkeypatch.setattr(refusals, "MOST", 1 << 60)
    with Chatter(kind) as server:
        with pytest.raises((DriverTimeout, ConnectFailed)) as caught:
            drive(conversation(server.conninfo()), time.monotonic() + 0.5)
        assert fault(caught.value) is Fault.TIMEOUT


@DRIVERS
def test_a_conversation_in_which_there_is_always_more_ends_at_the_deadline(drive):
    def endless(descriptor):
        while True:
            yield descriptor, select.POLLIN

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"more")
        driven = start(drive, endless(ours.fileno()), time.monotonic() + 0.3)
        with pytest.raises(DriverTimeout):
            driven.result(LIMIT)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_such_a_server_keeps_nobody_from_another(kind, model, pg_node, open_model, memory):
    with Chatter(kind) as server:
        places = (server.endpoint(connect_timeout=1, priority=0), pg_node.endpoint(ssl="disable", priority=1))
        pool = open_model(config(*places, type=model, monitor={"interval": 0.1, "timeout": 0.5}))
        for _ in range(3):
            assert int(pool.ask("default", "select inet_server_port()")) == pg_node.port
        talker = f"127.0.0.1:{server.port}"
        wait_for(lambda: next(each for each in pool.pool.endpoints() if each.endpoint == talker).last_error)
        assert memory() < MOST
