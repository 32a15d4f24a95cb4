"""The clock of the pool, which goes on when a test stands the time still.

freezegun puts functions of its own in the place of `time.monotonic` wherever a module refers to it, by identity. Time
that stands still has no deadline, and a checkout would wait for ever. So the pool has a `monotonic` of its own: that of
a second copy of the module `time`, the same function in C, as quick, and another object.
"""

import time
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from time import monotonic as _shared
from types import BuiltinFunctionType


def _own() -> Callable[[], float]:
    spec = find_spec("time")
    if spec is None or spec.loader is None:
        return _shared
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    own: Callable[[], float] = module.monotonic
    return own


monotonic = _own()


def stands_still() -> bool:
    """Whether a test has taken over the clock of all others, such as psycopg's: then none of their time-outs comes."""
    return type(time.monotonic) is not BuiltinFunctionType
