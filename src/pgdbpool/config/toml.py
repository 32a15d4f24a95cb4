"""The TOML form: the dictionary's keys, `[[db]]` for each endpoint and `[groups.NAME]` for each group."""

from __future__ import annotations

import os
import tomllib

from pgdbpool.config.check import load
from pgdbpool.config.settings import Settings
from pgdbpool.errors import ConfigError

__all__ = ["load_toml"]


def load_toml(path: str | os.PathLike[str]) -> Settings:
    """Read and check a TOML file.

    Raises `ConfigError`, each line of it beginning with the file's name, also if the file cannot be read.
    """
    name = os.fspath(path)
    # Raised outside of the except blocks: a decoder's exception may carry the document, and so the password.
    config, problem = _read(name)
    if problem:
        raise ConfigError(f"{name}: {problem}")
    try:
        return load(config)
    except ConfigError as error:
        problems = error.problems
    raise ConfigError(*(f"{name}: {line}" for line in problems))


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
