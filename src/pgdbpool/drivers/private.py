"""What psycopg has no public way to ask of libpq, and how it is asked all the same.

Each function copes where it cannot be had: in a libpq that is linked in another way, or a psycopg that has changed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from psycopg import pq

_VERBOSE, _DEFAULT = 2, 1  # PQERRORS_VERBOSE, PQERRORS_DEFAULT


def be_verbose(pgconn: pq.abc.PGconn, on: bool) -> None:
    """Have libpq write the SQLSTATE, among others, into its words of an error of the server's; or no longer."""
    tell = _set_verbosity()
    pointer = getattr(pgconn, "pgconn_ptr", None)
    if tell is not None and pointer is not None:
        tell(pointer, _VERBOSE if on else _DEFAULT)


@cache
def _set_verbosity() -> Callable[[int, int], object] | None:
    """`PQsetErrorVerbosity` of the libpq that psycopg uses; None where it cannot be had."""
    try:
        if pq.__impl__ == "python":
            library: Any = import_module("psycopg.pq._pq_ctypes").pq
        else:
            # The C module itself: in what it depends on is looked, too, and libpq is there.
            library = ctypes.CDLL(str(import_module(f"psycopg_{pq.__impl__}.pq").__file__))
        # An object of our own, so that the library's keeps the types that psycopg gave it.
        return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(("PQsetErrorVerbosity", library))
    except (ImportError, OSError, AttributeError):
        return None
