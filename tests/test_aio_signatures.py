"""`Pool` and `AsyncPool` are the same to look at: names, arguments, defaults, and what is said of them."""

import inspect
from typing import Any

import pytest

from pgdbpool import AsyncLease, AsyncPool, Lease, Pool
from pgdbpool.keeper import Inline, Keeper, Threaded
from pgdbpool.tasks import Tasks

MAY_WAIT = {"open", "wait", "close", "getconn", "putconn", "check"}
TWINS = {"__enter__": "__aenter__", "__exit__": "__aexit__"}


def public(cls: type) -> dict[str, Any]:
    """What a user of the class meets."""
    names = [name for name in dir(cls) if not name.startswith("_")]
    return {name: inspect.getattr_static(cls, name) for name in names}


def parameters(function: Any) -> list[tuple[str, Any, Any, str]]:
    """Its arguments: name, kind, default and type; what is asynchronous about the type apart."""
    signature = inspect.signature(function)
    return [
        (each.name, each.kind, each.default, str(each.annotation).replace("Async", "").replace("psycopg.", ""))
        for each in signature.parameters.values()
    ]


def methods() -> list[str]:
    return [name for name, value in public(Pool).items() if inspect.isfunction(value)]


def test_both_have_the_same_public_names() -> None:
    assert set(public(Pool)) == set(public(AsyncPool))


def test_what_is_no_method_is_the_same_thing() -> None:
    others = set(public(Pool)) - set(methods())
    assert others == {"closed", "from_toml", "from_url", "name"}
    for name in others:
        assert public(Pool)[name] is public(AsyncPool)[name]


@pytest.mark.parametrize("name", ["__init__", *methods()])
def test_a_method_takes_the_same_arguments_in_both(name: str) -> None:
    assert parameters(getattr(Pool, name)) == parameters(getattr(AsyncPool, name))


@pytest.mark.parametrize("name", methods())
def test_a_method_gives_the_same_in_both(name: str) -> None:
    these, those = (str(inspect.signature(getattr(cls, name)).return_annotation) for cls in (Pool, AsyncPool))
    assert these.replace("Async", "") == those.replace("Async", "")


@pytest.mark.parametrize("name", methods())
def test_a_method_is_a_coroutine_if_it_may_wait(name: str) -> None:
    assert inspect.iscoroutinefunction(getattr(AsyncPool, name)) == (name in MAY_WAIT)


@pytest.mark.parametrize("name", methods())
def test_a_method_is_described_in_both(name: str) -> None:
    assert inspect.getdoc(getattr(Pool, name))
    assert inspect.getdoc(getattr(AsyncPool, name))


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize(("cls", "twin"), [(Pool, AsyncPool), (Lease, AsyncLease)])
def test_a_block_is_entered_and_left_alike(cls: type, twin: type, name: str) -> None:
    ours = getattr(twin, TWINS[name])
    assert parameters(getattr(cls, name)) == parameters(ours)
    assert inspect.iscoroutinefunction(ours)
    assert not hasattr(twin, name)


def test_both_leases_have_the_same_public_names() -> None:
    assert set(public(Lease)) == set(public(AsyncLease))


@pytest.mark.parametrize("name", ["opened", "closing", "wish", "wait", "abandon"])
def test_all_keepers_are_asked_alike(name: str) -> None:
    expected = parameters(getattr(Keeper, name))
    for keeper in (Threaded, Inline, Tasks):
        assert parameters(getattr(keeper, name)) == expected


def test_both_are_made_of_the_same_base() -> None:
    assert Pool.__mro__[1:] == AsyncPool.__mro__[1:]


@pytest.mark.parametrize("name", ["resize", "drain", "pause", "resume", "stats", "pop_stats", "endpoints", "on_event"])
def test_what_never_waits_is_the_same_code(name: str) -> None:
    assert getattr(Pool, name) is getattr(AsyncPool, name)
