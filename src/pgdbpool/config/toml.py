"""The TOML form: the dictionary's keys, `[[db]]` for each endpoint and `[groups.NAME]` for each group."""

from __future__ import annotations

import os
import tomllib

from pgdbpool.config.check import Judged, judged
from pgdbpool.config.settings import Settings

__all__ = ["judged_toml", "load_toml"]


def load_toml(path: str | os.PathLike[str]) -> Settings:
    """Read and check a TOML file.

    Raises `ConfigError`, each line of it beginning with the file's name, also if the file cannot be read.
    """
    found = judged_toml(path)
    del path
    return found.settings()


def judged_toml(path: str | os.PathLike[str]) -> Judged:
    """The same without raising."""
    name = os.fspath(path)
    config, problem = _read(name)
    if not problem:
        found = judged(config)
        return Judged(found.found, tuple(f"{name}: {line}" for line in found.problems))
    if _may_have_a_password(name):
        problem = (
            "config: expected the path of a TOML file, or a URL such as postgresql://user@host/name; what was given is "
            "no file, and may have a password in it, so it is not repeated"
        )
        return Judged(None, (problem,))
    return Judged(None, (f"{name}: {problem}",))


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
