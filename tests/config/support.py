"""A good configuration, and the mistakes of a bad one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pgdbpool.config import Settings
from pgdbpool.errors import ConfigError

SECRET = "s3cr3t-Zq9"
SSL = "disable, allow, prefer, require, verify-ca, verify-full"
TARGETS = "any, read-write, read-only, primary, standby, prefer-standby, prefer-primary"


def config(endpoint: Any = None, group: Any = None, **top: Any) -> dict[str, Any]:
    """A good configuration of one endpoint and one group, with some keys added to either."""
    return {"db": [{"host": "h", **(endpoint or {})}], "groups": {"g": group or {}}, **top}


def problems(call: Callable[[Any], Settings], argument: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call(argument)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return list(error.problems)
