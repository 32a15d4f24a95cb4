"""The exceptions: who is whose child, what they carry, and that they survive a trip to another process."""

from __future__ import annotations

import pickle

import pytest

from pgdbpool import errors

HIERARCHY = [
    (errors.ConfigError, errors.Error, ValueError),
    (errors.UnconfiguredGroupError, errors.Error, LookupError),
    (errors.PoolClosed, errors.Error),
    (errors.PoolTimeout, errors.Error, TimeoutError),
    (errors.TooManyWaiting, errors.PoolTimeout),
    (errors.PoolExhausted, errors.PoolTimeout),
    (errors.DBConnectionError, errors.Error),
    (errors.DBOfflineError, errors.DBConnectionError),
    (errors.OutcomeUnknown, errors.DBConnectionError),
    (errors.DBQueryError, errors.Error),
]

EXAMPLES = [
    errors.Error("something"),
    errors.ConfigError("db: missing", "groups: missing"),
    errors.UnconfiguredGroupError("raed", ["read", "write"]),
    errors.PoolClosed("the pool is closed"),
    errors.PoolTimeout("all in use", group="read", waited=1.5, reason="exhausted"),
    errors.TooManyWaiting("20 wait already", group="read", waited=0.0, reason="exhausted"),
    errors.PoolExhausted("held by 3", group="read", waited=0.0, reason="exhausted"),
    errors.DBConnectionError("db1:5432: refused"),
    errors.DBOfflineError("no endpoint"),
    errors.OutcomeUnknown("lost during COMMIT"),
    errors.DBQueryError("duplicate key", sqlstate="23505"),
]


@pytest.mark.parametrize(("error", "parents"), [(row[0], row[1:]) for row in HIERARCHY])
def test_hierarchy(error: type[Exception], parents: tuple[type[Exception], ...]) -> None:
    assert error.__bases__ == parents


def test_the_warning_is_no_error() -> None:
    assert issubclass(errors.ConfigWarning, UserWarning)
    assert not issubclass(errors.ConfigWarning, errors.Error)


def test_all_names_are_listed() -> None:
    public = {name for name, value in vars(errors).items() if getattr(value, "__module__", "") == errors.__name__}
    assert {name for name in public if not name.startswith("_")} <= set(errors.__all__)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled(error: Exception, protocol: int) -> None:
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)


def test_config_error_has_a_line_for_each_problem() -> None:
    error = errors.ConfigError("db: missing", "groups: missing")
    assert str(error) == "db: missing\ngroups: missing"
    assert error.problems == ("db: missing", "groups: missing")


@pytest.mark.parametrize(
    ("group", "known", "message"),
    [
        (
            "raed",
            ["read", "write"],
            "no group 'raed' is configured, did you mean 'read'? Known groups: read, write",
        ),
        ("batch", ["read"], "no group 'batch' is configured. Known groups: read"),
        ("read", [], "no group 'read' is configured. Known groups: none"),
    ],
)
def test_unconfigured_group(group: str, known: list[str], message: str) -> None:
    error = errors.UnconfiguredGroupError(group, known)
    assert str(error) == message
    assert (error.group, error.known) == (group, tuple(known))


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("exhausted", "no connection of group 'read' after 2.0 s: all connections are in use"),
        ("unreachable", "no connection of group 'read' after 2.0 s: no endpoint could be reached"),
        ("paused", "no connection of group 'read' after 2.0 s: the pool is paused"),
    ],
)
def test_pool_timeout_explains_itself(reason: errors.TimeoutReason, message: str) -> None:
    error = errors.PoolTimeout(group="read", waited=2.0, reason=reason)
    assert str(error) == message
    assert (error.group, error.waited, error.reason) == ("read", 2.0, reason)


def test_pool_timeout_keeps_a_message_of_its_own() -> None:
    error = errors.PoolTimeout("why", group="read", waited=2.0, reason="unreachable")
    assert str(error) == "why"
    assert error.errno is None  # TimeoutError is an OSError, and takes two arguments for something else


def test_query_error_has_the_sqlstate() -> None:
    assert errors.DBQueryError("x", sqlstate="23505").sqlstate == "23505"
    assert errors.DBQueryError("x").sqlstate is None
