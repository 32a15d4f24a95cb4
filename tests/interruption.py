"""Has this thread interrupted as a signal handler that raises would, at each moment in turn at which one could.

while (place := interrupt(work, at)) is not None: ...
"""

import dis
import inspect
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import pytest


class Interrupt(BaseException):
    """What the signal handler raises."""


class Interruption:
    """While it is in force this thread is interrupted at the `at`-th moment at which it could be by a signal.

    CPython calls signal handlers when a function is entered, when a loop goes round, and after a call to something not
    written in Python. Only moments in the pool's own code count.
    """

    def __init__(self, at: int) -> None:
        self._left = at
        self._last: dict[types.FrameType, str] = {}  # what was carried out before, where that matters
        self.place: str | None = None

    def __enter__(self) -> "Interruption":
        sys._getframe().f_trace_opcodes = True  # Python 3.12 begins to tell of instructions only after this
        sys.settrace(self._called)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)
        self._last.clear()

    def _called(self, frame: types.FrameType, what: str, arg: Any) -> Any:
        if frame.f_back in self._last:
            self._last[frame.f_back] = ""  # a function written in Python
        ours = str(frame.f_globals.get("__name__")).startswith("pgdbpool.")
        if not ours or frame.f_code.co_flags & inspect.CO_GENERATOR:  # which may just be collected
            return None
        frame.f_trace_opcodes = True
        self._last[frame] = "RESUME"
        return self._about_to

    def _about_to(self, frame: types.FrameType, what: str, arg: Any) -> Any:
        if what == "opcode":
            name = operation(frame.f_code, frame.f_lasti)
            if self._last.get(frame) and name != "RESUME":
                self._left -= 1
                if not self._left:
                    sys.settrace(None)
                    self.place = f"{frame.f_code.co_qualname}, line {frame.f_lineno}, before {name}"
                    raise Interrupt
            if name != "RESUME":
                matters = name.startswith("CALL") or name == "JUMP_BACKWARD"
                self._last[frame] = name if matters else ""
        return self._about_to


@cache
def operation(code: types.CodeType, offset: int) -> str:
    return dis.opname[code.co_code[offset]]


def interrupt(work: Callable[[], Any], at: int) -> str | None:
    """Do it, interrupted once; returns where, or None if it came to its end before."""
    with suppress(Interrupt), Interruption(at) as interruption:
        work()
    return interruption.place


traced = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="this Python does not tell a tracer of each instruction of a function it is in"
)
