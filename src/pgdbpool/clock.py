"""The clock of the pool, which goes on when a test stands the time still.

freezegun puts functions of its own in the place of `time.monotonic` wherever a module refers to it, by identity. Time
that stands still has no deadline, and a checkout would wait for ever. So the pool has a `monotonic` of its own: that of
a second copy of the module `time`, the same function in C, as quick, and another object.
"""

from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from time import monotonic as _shared


def _own() -> Callable[[], float]:
    spec = find_spec("time")
    if spec is None or spec.loader is None:
        return _shared
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    own: Callable[[], float] = module.monotonic
    return own


monotonic = _own()
