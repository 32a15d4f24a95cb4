"""What the interpreter promises: asked in this one place.

With a global interpreter lock (GIL) no other thread runs between two instructions of this one, so a look at another
thread's functions, or at the number of references to a thing, is of one moment. A free-threaded build promises neither.
There the pool does not look, and says that it does not know. Such a build may still turn the lock on when an extension
asks for it, so the question is asked each time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


def _always() -> bool:
    return True


_enabled: Callable[[], bool] = getattr(sys, "_is_gil_enabled", _always)  # Python 3.13 and newer


def gil() -> bool:
    """Whether only one thread at a time runs Python."""
    return _enabled()
