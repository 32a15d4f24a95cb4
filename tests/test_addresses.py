"""A name with several addresses: each of them is tried, and what one does is nothing against the others."""

from __future__ import annotations

import select
from collections.abc import Generator
from contextlib import ExitStack
from typing import Any, NamedTuple

import psycopg
import pytest
from conftest import LIMIT, backends, config, wait_for
from names import MODELS, NAME, OBSTACLES, Client, Resolver, mute, resolver, swallows

from pgdbpool import PoolTimeout
from pgdbpool.cli.check.look import look
from pgdbpool.config import load
from pgdbpool.core.evidence import Fault
from pgdbpool.drivers import ConnectFailed, DriverTimeout
from pgdbpool.drivers.race import Race, together
from pgdbpool.testing import Node

__all__ = ["resolver"]

FOREVER = 3600.0  # s: who waits for the end of that does not get through
GOOD = "127.0.0.1"
BAD = "127.0.0.2"


def named(node: Node, **more: Any) -> dict[str, Any]:
    """The node under a name."""
    return node.endpoint(ssl="disable", **({"host": NAME, "connect_timeout": FOREVER} | more))


@pytest.mark.parametrize("monitor", [True, False])
@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("model", MODELS)
def test_an_address_that_is_of_no_use_is_nothing_against_the_name(
    model: str, obstacle: str, monitor: bool, pg_node: Node, resolver: Resolver
) -> None:
    resolver[NAME] = [BAD, GOOD]
    with (
        OBSTACLES[obstacle](BAD, pg_node.port),
        Client(model, config(named(pg_node), monitor=monitor)) as client,
    ):
        assert client.ask() == pg_node.port
        (endpoint,) = client.pool.stats().endpoints
        assert (endpoint.health, endpoint.last_error, endpoint.fault) == ("up", None, None)


@pytest.mark.parametrize("model", MODELS)
def test_the_time_of_a_caller_is_shared_by_all_addresses(model: str, pg_node: Node, resolver: Resolver) -> None:
    others = [f"127.0.0.{number}" for number in range(2, 8)]
    resolver[NAME] = [*others, GOOD]
    with ExitStack() as stack:
        for host in others:
            stack.enter_context(mute(host, pg_node.port))
        # A second for each of them, as where nobody is in a hurry, would be too long.
        with Client(model, config(named(pg_node, connect_timeout=4.0), monitor=False)) as client:
            assert client.ask(timeout=LIMIT) == pg_node.port


@pytest.mark.parametrize("model", MODELS)
def test_a_caller_has_its_error_in_time_where_no_address_answers(model: str, pg_node: Node, resolver: Resolver) -> None:
    resolver[NAME] = [BAD, "127.0.0.3"]
    with (
        mute(BAD, pg_node.port),
        swallows("127.0.0.3", pg_node.port),
        Client(model, config(named(pg_node, connect_timeout=0.6), monitor=False)) as client,
        pytest.raises(PoolTimeout, match="timed out"),
    ):
        client.ask(timeout=1.5)


@pytest.mark.parametrize("model", MODELS)
def test_an_address_that_refuses_costs_no_session_while_another_says_nothing(
    model: str, pg_node: Node, resolver: Resolver
) -> None:
    resolver[NAME] = [BAD, "127.0.0.3"]
    with (
        pg_node.proxy(host=BAD) as one,
        pg_node.proxy(host="127.0.0.3", port=one.port) as two,
        Client(model, config(named(pg_node, port=one.port, connect_timeout=0.5), monitor=False)) as client,
    ):
        backend = client.ask("select pg_backend_pid()")
        one.refuse()
        two.stall()
        pool = client.pool
        pool.resize("default", connection_count=10, min_count=2)
        for _ in range(3):
            wait_for(lambda: client.ask("select 1") and pool.stats().endpoints[0].fault is not None)
        assert pool.stats().endpoints[0].fault == "timeout"
        assert client.ask("select pg_backend_pid()") == backend


@pytest.mark.parametrize("monitor", [{"interval": 0.05, "timeout": 0.2}])
def test_the_monitor_is_not_led_astray_by_an_address_that_swallows_all(
    monitor: Any, pg_node: Node, resolver: Resolver
) -> None:
    resolver[NAME] = [BAD, GOOD]
    with swallows(BAD, pg_node.port), Client("threaded", config(named(pg_node), monitor=monitor)) as client:
        events: list[str] = []
        client.pool.on_event(lambda event: events.append(event.kind))
        for _ in range(3):
            before = wait_for(lambda: backends(pg_node, "monitor"))
            pg_node.terminate_backends("application_name = 'pgdbpool:monitor'")
            wait_for(lambda before=before: backends(pg_node, "monitor") - before)
        assert "endpoint-down" not in events


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_a_call_without_a_monitor_finds_its_server_alive_at_the_second_address(
    model: str, pg_node: Node, resolver: Resolver
) -> None:
    resolver[NAME] = [BAD, GOOD]
    with swallows(BAD, pg_node.port), Client(model, config(named(pg_node), monitor=False)) as client:
        assert client.ask("select 'done' from pg_sleep(3.5)") == "done"


def test_the_check_command_finds_the_address_that_answers(pg_node: Node, resolver: Resolver) -> None:
    resolver[NAME] = [BAD, GOOD]
    settings = load(config(named(pg_node)))
    with swallows(BAD, pg_node.port):
        found = look(settings.db[0], list(settings.groups.values()))
    assert found.error is None
    assert found.facts is not None


@pytest.mark.parametrize("model", MODELS)
def test_no_connection_is_left_at_an_address_that_was_given_up(model: str, pg_node: Node, resolver: Resolver) -> None:
    # The first address is slow: it has let us in when another one was faster.
    resolver[NAME] = [BAD, "127.0.0.3"]
    with (
        pg_node.proxy(host=BAD) as slow,
        pg_node.proxy(host="127.0.0.3", port=slow.port) as quick,
        Client(model, config(named(pg_node, port=slow.port), monitor=False)) as client,
    ):
        slow.stall()
        assert client.ask() == pg_node.port
        assert quick.accepted
        assert slow.accepted
        slow.resume()
        wait_for(lambda: not slow.connections)
        assert client.ask() == pg_node.port


# -- decisions, without any server ------------------------------------------------------------------------------------


class Result(NamedTuple):
    session: Any


def attempt(number: int, words: int, result: Any) -> Generator[tuple[int, int], None, Any]:
    """Waits so many times, on a descriptor of its own, then has this result."""
    try:
        for _ in range(words):
            yield number, select.POLLIN
    except DriverTimeout:
        raise failed(Fault.TIMEOUT) from None
    if isinstance(result, Exception):
        raise result
    return result


def failed(fault: Fault, **more: Any) -> ConnectFailed:
    return ConnectFailed(f"it is {fault}", fault, **more)


def test_an_address_that_is_silent_gets_a_neighbour_after_a_while_and_stays_in_the_race() -> None:
    first, second = Result("first"), Result("second")
    race = Race([attempt(1, 1, first), attempt(2, 1, second)], now=0.0, span=100.0)
    assert race.go_on((), 0.0) is None
    assert set(race.events) == {1}
    begun = race.until
    assert 0.0 < begun <= 1.0
    assert race.go_on((), begun) is None
    assert set(race.events) == {1, 2}
    assert race.until == float("inf")
    assert race.go_on([1], 50.0) is first


def test_an_address_that_answers_is_left_in_peace() -> None:
    race = Race([attempt(1, 10, Result(1)), attempt(2, 1, Result(2))], now=0.0, span=100.0)
    now = 0.0
    race.go_on((), now)
    for _ in range(9):  # each word a little earlier than the neighbour would be begun
        now = race.until - 0.01
        assert race.go_on([1], now) is None
        assert set(race.events) == {1}
    assert race.go_on([1], now) == Result(1)


def test_one_that_talks_on_and_on_does_not_keep_the_others_from_their_share() -> None:
    race = Race([attempt(1, 10**6, None), attempt(2, 1, Result(2))], now=0.0, span=10.0)
    now = 0.0
    race.go_on((), now)
    while 2 not in race.events:
        now += 0.01
        assert race.go_on([1], now) is None
        assert now <= 5.1
    assert race.go_on([2], now) == Result(2)


def test_a_failure_begins_the_next_one_at_once() -> None:
    race = Race([attempt(1, 1, failed(Fault.REFUSED)), attempt(2, 1, Result(2))], now=0.0, span=100.0)
    race.go_on((), 0.0)
    assert race.go_on([1], 0.001) is None
    assert set(race.events) == {2}


def test_at_the_end_of_the_time_those_that_were_not_answered_are_said_to_be() -> None:
    race = Race([attempt(1, 1, None), attempt(2, 1, failed(Fault.REFUSED))], now=0.0, span=1.0)
    race.go_on((), 0.0)
    race.go_on((), race.until)
    race.go_on([2], 0.5)
    with pytest.raises(ConnectFailed, match="it is timeout") as caught:
        race.best()
    assert "it is refused" in str(caught.value)
    assert caught.value.fault is Fault.TIMEOUT


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("other", sorted(set(Fault) - {Fault.REFUSED, Fault.UNREACHABLE, Fault.LOCAL}))
def test_a_name_has_not_refused_while_one_of_its_addresses_has_not(other: Fault, order: int) -> None:
    found = together([failed(Fault.REFUSED), failed(other)][::order])
    assert isinstance(found, ConnectFailed)
    assert found.fault is other


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("other", [Fault.REFUSED, Fault.UNREACHABLE, Fault.LOCAL])
def test_a_name_has_refused_though_no_way_leads_to_one_of_its_addresses(other: Fault, order: int) -> None:
    found = together([failed(Fault.REFUSED), failed(other)][::order])  # IPv6, say, where there is none
    assert isinstance(found, ConnectFailed)
    assert found.fault is Fault.REFUSED


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("silent", [Fault.REFUSED, Fault.TIMEOUT])
@pytest.mark.parametrize("spoken", [Fault.STARTING, Fault.FULL, Fault.MISCONFIGURED])
def test_an_address_where_a_server_speaks_counts_more_than_one_where_none_does(
    spoken: Fault, silent: Fault, order: int
) -> None:
    found = together([failed(spoken, sqlstate="12345"), failed(silent)][::order])
    assert isinstance(found, ConnectFailed)
    assert (found.fault, found.sqlstate) == (spoken, "12345")
    assert f"it is {silent}" in str(found)


def test_a_pooler_at_one_address_that_takes_no_options_is_met_without_them() -> None:
    found = together([failed(Fault.MISCONFIGURED, options_refused=True), failed(Fault.STARTING)])
    assert isinstance(found, ConnectFailed)
    assert found.options_refused


# -- one of several servers falls silent ------------------------------------------------------------------------------


@pytest.mark.parametrize("monitor", [{"interval": 0.2, "timeout": 0.4}, False])
@pytest.mark.parametrize("model", MODELS)
def test_a_call_at_an_address_that_has_fallen_silent_ends_though_another_one_answers(
    model: str, monitor: Any, pg_node: Node, resolver: Resolver
) -> None:
    if model == "asyncio" and not monitor:
        pytest.skip("there only query_timeout ends it")
    resolver[NAME] = [BAD, "127.0.0.3"]
    with (
        pg_node.proxy(host=BAD) as silent,
        pg_node.proxy(host="127.0.0.3", port=silent.port) as other,
        Client(model, config(named(pg_node, port=silent.port, connect_timeout=5.0), monitor=monitor)) as client,
    ):
        assert client.ask() == pg_node.port
        assert silent.connections
        if model != "non-threaded" and monitor:  # its address has a watch of its own
            wait_for(lambda: silent.connections + other.connections >= 3)
        silent.drop()
        with pytest.raises(psycopg.OperationalError):
            client.ask()
        assert client.ask() == pg_node.port
        assert other.connections
