"""Callables and classes given by name, as a TOML file has to: ``package.module.name``, or ``package.module:name``."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

__all__ = ["NotFound", "is_name", "named"]

_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*(?:[.:][^\W\d]\w*)+")


class NotFound(Exception):
    """There is nothing of this name. The text goes after "path: "."""


def is_name(value: object) -> bool:
    """Whether this is written as such a name: a word with a dot or a colon in it."""
    return isinstance(value, str) and len(value) <= 200 and _NAME.fullmatch(value) is not None


def named(name: str) -> Any:
    """What has this name; its module is imported. Raises NotFound."""
    module, _, attribute = name.rpartition(":") if ":" in name else name.rpartition(".")
    try:
        found: Any = import_module(module)
    except Exception as error:  # of a module that is not there, or of one that fails
        raise NotFound(f"cannot import {name!r}: importing {module} raised {type(error).__name__}: {error}") from None
    try:
        return getattr(found, attribute)
    except AttributeError:
        raise NotFound(f"cannot import {name!r}: module {module} has no {attribute!r}") from None
