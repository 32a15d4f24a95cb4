"""The TOML form: the dictionary's keys, `[[db]]` for each endpoint and `[groups.NAME]` for each group."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any

from pgdbpool.config.check import Judged, judged
from pgdbpool.config.keys import nature
from pgdbpool.config.settings import Settings

__all__ = ["judged_toml", "load_toml"]


def load_toml(path: str | os.PathLike[str], *, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read and check a TOML file.

    `overrides` has the form of the dictionary, and what it says counts instead of what the file says: dictionaries are
    merged key by key, so it may have callables for a group of the file, say. A dictionary for `db` is for each
    ``[[db]]`` of the file, a list takes the place of all of them. `pass` takes the place of `pass_env`, and the other
    way round.

    Raises `ConfigError`, each line of it beginning with the file's name, also if the file cannot be read.
    """
    found = judged_toml(path, overrides)
    del path, overrides
    return found.settings()


def judged_toml(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Judged:
    """The same without raising."""
    name = os.fspath(path)
    if overrides is not None and not isinstance(overrides, Mapping):
        return Judged(None, (f"overrides: expected a dict, got {nature(overrides)}",))
    config, problem = _read(name)
    if not problem:
        found = judged(_merged(config, overrides or {}))
        where = f"{name} with overrides" if overrides else name
        return Judged(found.found, tuple(f"{where}: {line}" for line in found.problems))
    if _may_have_a_password(name):
        problem = (
            "config: expected the path of a TOML file, or a URL such as postgresql://user@host/name; what was given is "
            "no file, and may have a password in it, so it is not repeated"
        )
        return Judged(None, (problem,))
    return Judged(None, (f"{name}: {problem}",))


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The one with what the other says."""
    merged = dict(config)
    for key, value in overrides.items():
        there = merged.get(key)
        if not isinstance(value, Mapping):
            merged[key] = value
        elif key == "db" and isinstance(there, list):
            merged[key] = [_endpoint(each, value) for each in there]
        elif key == "db":
            merged[key] = _endpoint(there, value)
        else:
            merged[key] = _merged(there, value) if isinstance(there, Mapping) else value
    return merged


def _endpoint(there: Any, overrides: Mapping[str, Any]) -> Any:
    if not isinstance(there, Mapping):
        return overrides if there is None else there
    merged = _merged(there, overrides)
    for one, other in (("pass", "pass_env"), ("pass_env", "pass")):
        if one in overrides and other not in overrides:
            merged.pop(other, None)
    return merged


def _may_have_a_password(name: str) -> bool:
    """`host=h password=x`, or a URL without its beginning."""
    return any(sign in name for sign in "=@") and not os.path.exists(name.replace("\0", ""))


def _read(name: str) -> tuple[dict[str, object], str]:
    try:
        with open(name, "rb") as file:
            content = file.read()
    except OSError as error:
        return {}, f"cannot be read: {error.strerror}"
    except ValueError:
        return {}, "cannot be read: not a file name"
    try:
        return tomllib.loads(content.decode()), ""
    except tomllib.TOMLDecodeError as error:
        return {}, f"not valid TOML: {error}"
    except UnicodeDecodeError:
        return {}, "not valid TOML: not UTF-8 text"
    except (ValueError, RecursionError):
        return {}, "not valid TOML: a number of thousands of digits, or too many levels"
