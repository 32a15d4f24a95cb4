"""What libpq is told, in an object that shows itself to nobody else."""

from __future__ import annotations

from ..config.secret import Secret
from ..core.evidence import Fault
from . import ConnectFailed, Params, tls

__all__ = ["Params", "Sealed", "sealed"]


class Sealed:
    """Connection parameters that can stand in a connection string of libpq's."""

    __slots__ = ("_params", "place")

    def __init__(self, params: Params) -> None:
        self._params = params
        self.place = tls.place_of(params)

    def __repr__(self) -> str:
        return "<the parameters of a connection>"

    def opened(self) -> tuple[Secret, bool]:
        """The connection string for a connect that begins now, and whether it keeps to TLS where libpq would not."""
        keeps_tls = tls.must_stay(self._params, self.place)
        params = {**self._params, "sslmode": "require"} if keeps_tls else self._params
        return Secret(" ".join(map(_pair, params.items()))), keeps_tls


def sealed(params: Params) -> Sealed:
    """Raises ConnectFailed for what libpq cannot be told."""
    for key, value in params.items():
        problem = _problem(value)
        if problem:
            raise ConnectFailed(f"the connection parameter {key} has {problem} in it", Fault.MISCONFIGURED)
    return Sealed(params)


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
        return "what is no Unicode text"
    return ""
