"""What libpq is told, as one string that shows itself to nobody else."""

from __future__ import annotations

from collections.abc import Mapping

from ..config.secret import Secret
from ..core.evidence import Fault
from . import ConnectFailed

Params = Mapping[str, str | int | Secret]


def sealed(params: Params) -> Secret:
    """libpq's connection string. Raises ConnectFailed for what cannot stand in one."""
    for key, value in params.items():
        problem = _problem(value)
        if problem:
            raise ConnectFailed(f"the connection parameter {key} has {problem} in it", Fault.MISCONFIGURED)
    return Secret(" ".join(map(_pair, params.items())))


def _pair(item: tuple[str, str | int | Secret]) -> str:
    key, value = item
    return f"{key}={(value if isinstance(value, Secret) else Secret(str(value))).quoted()}"


def _problem(value: str | int | Secret) -> str:
    """Why a value cannot be told to libpq, or an empty string."""
    if isinstance(value, int):
        return ""
    hidden = value if isinstance(value, Secret) else Secret(value)
    if "\0" in hidden.reveal():
        return "a NUL character"  # libpq would take what follows, the mode of TLS say, for nothing at all
    try:
        hidden.reveal().encode()
    except UnicodeEncodeError:
        problem = "what is no Unicode text"
    else:
        problem = ""
    return problem
