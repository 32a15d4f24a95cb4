"""No secret is in a repr or message, whatever is given; and whatever is given, it is an answer or a ConfigError."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgdbpool.config import EndpointSettings, Secret, Settings, load, load_toml, load_url
from pgdbpool.config.environment import libpq_parameters
from pgdbpool.errors import ConfigError

from .support import SECRET, config, problems

# -- secrets --

# Those of the parameters that are, as far as the installed libpq knows them.
SECRETS = dict.fromkeys({"sslpassword", "oauth_client_secret", "scram_client_key"} & libpq_parameters(), SECRET)


def rotating() -> str:
    """A callable password, whose name must not be shown either."""
    return SECRET


@pytest.mark.parametrize("password", [SECRET, rotating], ids=["text", "callable"])
def test_no_secret_in_any_repr(password: Any) -> None:
    settings = load(
        config(
            {
                "pass": password,
                "params": {**SECRETS, "passfile": "/shown"},
            }
        )
    )
    endpoint = settings.db[0]
    for text in (
        repr(settings),
        str(settings),
        f"{endpoint}",
        repr(endpoint),
        str(list(endpoint.__rich_repr__())),
    ):
        assert SECRET not in text
        assert "rotating" not in text
        assert "password='***'" in text or "('password', '***')" in text
        assert "/shown" in text


def test_no_secret_in_what_settings_are_turned_into() -> None:
    endpoint = load(config({"pass": SECRET, "params": SECRETS})).db[0]
    for shown in (endpoint, endpoint.password, endpoint.params):
        texts = [repr(shown), str(shown), f"{shown}", f"{shown!r:>20}", json.dumps(shown, default=str)]
        texts.append(msgspec.json.encode(shown, enc_hook=str).decode())
        assert SECRET not in "".join(texts)
        with pytest.raises(TypeError) as caught:
            msgspec.json.encode(shown)
        assert SECRET not in str(caught.value)
    assert SECRET not in repr(msgspec.structs.asdict(endpoint))
    assert SECRET not in repr(msgspec.to_builtins(endpoint, enc_hook=repr))
    assert SECRET not in repr(dict(endpoint.params)) + "".join(map(str, endpoint.params.values()))
    assert not hasattr(endpoint.password, "__dict__")


def test_a_secret_equals_its_text_and_no_other() -> None:
    assert Secret("a") == Secret("a") == "a"
    assert Secret("a") not in ("b", Secret("b"), None, b"a")
    assert {Secret("a"): 1}["a"] == 1  # type: ignore[index]
    assert Secret("a").reveal() == "a"
    assert (bool(Secret("")), bool(Secret("a"))) == (False, True)


def test_an_absent_password_is_shown_as_absent() -> None:
    assert "password=None" in repr(EndpointSettings(host="h"))


def test_no_secret_through_rich() -> None:
    pretty = pytest.importorskip("rich.pretty")
    settings = load(config({"pass": SECRET, "params": {"sslpassword": SECRET}}))
    assert SECRET not in pretty.pretty_repr(settings)


@pytest.mark.parametrize(
    "given",
    [
        config({"pass": SECRET, "port": 0}),
        config({"pass": [SECRET]}),
        config({"pass": {SECRET: SECRET}}),
        config({"pass": SECRET.encode()}),
        config({"password": SECRET}),
        config({"pass_env": SECRET}),
        config({"pass_env": SECRET.replace("-", "_")}),
        config({"pass_env": [SECRET]}),
        config({"pass_env": "HOME", "pass": SECRET}),
        config({"port": SECRET, "name": [SECRET], "query_timeout": SECRET}),
        config({"host": f"postgresql://u:{SECRET}@h"}),
        config({"host": f"u:{SECRET}@h"}),
        config({"params": {"sslpassword": [SECRET], "password": SECRET, "foo": SECRET}}),
        config({"params": SECRET}),
        {"db": f"postgresql://u:{SECRET}@h", "groups": {}},
        {"db": {f"postgresql://u:{SECRET}@h": 1}, "groups": {}},
        {f"postgresql://u:{SECRET}@h": 1, "groups": {}, "db": [SECRET]},
        f"postgresql://u:{SECRET}@h",
    ],
)
def test_no_secret_in_any_message(given: Any) -> None:
    assert SECRET not in "".join(problems(load, given))


# -- whatever is given, it is an answer or a ConfigError --

KEYS = st.sampled_from(
    [
        *("type", "db", "groups", "host", "port", "name", "user", "ssl", "weight", "tags", "params", "g"),
        *("connection_count", "min_count", "total_count", "check", "balance", "max_idle", "query_timeout"),
        *("connect_timeout", "autocommit", "options", "application_name", "target_session_attrs", ""),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["h", "any", "threaded", "on", "prefer", "5"])
)


def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(children, max_size=4) | st.dictionaries(KEYS | st.text(max_size=8), children, max_size=5)


ANYTHING = st.recursive(SCALARS, nested, max_leaves=12)


def with_password(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "pass": SECRET}


ENTRIES = st.dictionaries(KEYS, ANYTHING, max_size=5).map(with_password)
NEARLY = st.fixed_dictionaries(
    {"db": ENTRIES | st.lists(ENTRIES, max_size=3) | ANYTHING},
    optional={
        "groups": st.dictionaries(st.text(max_size=4), st.dictionaries(KEYS, ANYTHING, max_size=5), max_size=3),
        "type": ANYTHING,
    },
)


def answer(call: Callable[[Any], Settings], argument: Any) -> Settings | ConfigError:
    """Settings or the error. Whatever else is raised fails the test, and so does the password in a text."""
    try:
        result: Settings | ConfigError = call(argument)
    except ConfigError as error:
        result = error
    if isinstance(result, ConfigError):
        assert result.problems
        assert all(re.match(r"[^\n]+: .", line) for line in result.problems)
    assert SECRET not in str(result) + repr(result)
    return result


@given(ANYTHING | NEARLY)
@example(json.loads('{"db": {"host": "h"}, "groups": {"g": {}}}'))
def test_anything_given_to_load_is_answered(given: Any) -> None:
    result = answer(load, given)
    if isinstance(result, Settings):
        assert load(result) == result
        assert isinstance(given, Mapping)


@given(st.text(alphabet=f"postgresql:/@[]?&=,.%20h1{SECRET}\0", max_size=30))
def test_any_text_given_to_load_url_is_answered(text: str) -> None:
    answer(load_url, text)
    answer(load_url, f"postgresql://u:{SECRET}@{text}")
    answer(load_url, f"postgresql://u:{text}{SECRET}@h/db")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_in_a_toml_file_are_answered(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(content)
    answer(load_toml, file)
