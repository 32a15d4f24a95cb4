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

_CALLS = ("CALL", "CALL_FUNCTION_EX")


class Interrupt(BaseException):
    """What the signal handler raises."""


class Interruption:
    """While it is in force this thread is interrupted at the `at`-th moment at which it could be by a signal.

    CPython calls signal handlers when a function is entered, when a loop goes round, and after a call to something not
    written in Python. Only moments in the pool's own code count.

    What a handler raises after a call, the call itself raises, as far as the function is concerned. So it is raised
    there, by the profiler, and not before the next instruction. That one may be the first outside of the ``try``; and
    if it is the one that ends an ``except`` block, the exception handled there would be taken for handled for ever, by
    `sys.exc_info` and as the context of all that is raised later.
    """

    def __init__(self, at: int) -> None:
        self._left = at
        self._calls: dict[types.FrameType, int] = {}  # those that the profiler may not be told of: of a class, say
        self.place: str | None = None

    def __enter__(self) -> "Interruption":
        sys._getframe().f_trace_opcodes = True  # Python 3.12 begins to tell of instructions only after this
        sys.setprofile(self._returned)
        sys.settrace(self._called)
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def _end(self) -> None:
        sys.settrace(None)
        sys.setprofile(None)
        self._calls.clear()

    def _called(self, frame: types.FrameType, what: str, arg: Any) -> Any:
        self._calls.pop(frame.f_back, None)  # type: ignore[arg-type]  # a function written in Python
        if not is_ours(frame):
            return None
        frame.f_trace_opcodes = True
        if is_entered(frame):
            self._moment(frame)
        return self._about_to

    def _about_to(self, frame: types.FrameType, what: str, arg: Any) -> Any:
        if what == "exception":
            self._calls.pop(frame, None)
        elif what == "opcode":
            call = self._calls.pop(frame, None)
            if call is not None and handler(frame.f_code, call) == handler(frame.f_code, frame.f_lasti):
                self._moment(frame)
            name = operation(frame.f_code, frame.f_lasti)
            if name == "JUMP_BACKWARD":  # before or after it makes no difference
                self._moment(frame)
            elif name in _CALLS:
                self._calls[frame] = frame.f_lasti
        return self._about_to

    def _returned(self, frame: types.FrameType, what: str, arg: Any) -> None:
        if what in ("c_return", "c_exception"):
            self._calls.pop(frame, None)
        if what == "c_return" and is_ours(frame):
            self._moment(frame)

    def _moment(self, frame: types.FrameType) -> None:
        self._left -= 1
        if not self._left:
            self._end()
            name = operation(frame.f_code, frame.f_lasti)
            self.place = f"{frame.f_code.co_qualname}, line {frame.f_lineno}, {name}"
            raise Interrupt


def is_ours(frame: types.FrameType) -> bool:
    """Whether it is of the pool's own code; and no generator, which may just be collected."""
    name = str(frame.f_globals.get("__name__"))
    return name.startswith("pgdbpool.") and not frame.f_code.co_flags & inspect.CO_GENERATOR


def is_entered(frame: types.FrameType) -> bool:
    """And does not go on after an ``await``."""
    return operation(frame.f_code, frame.f_lasti) != "RESUME" or frame.f_code.co_code[frame.f_lasti + 1] < 2


@cache
def operation(code: types.CodeType, offset: int) -> str:
    return dis.opname[code.co_code[offset]]


@cache
def handler(code: types.CodeType, offset: int) -> int | None:
    """Where a function goes on when the instruction there raises."""
    entries = dis.Bytecode(code).exception_entries
    return next((entry.target for entry in entries if entry.start <= offset < entry.end), None)


def interrupt(work: Callable[[], Any], at: int) -> str | None:
    """Do it, interrupted once; returns where, or None if it came to its end before."""
    with suppress(Interrupt), Interruption(at) as interruption:
        work()
    return interruption.place


traced = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="this Python does not tell a tracer of each instruction of a function it is in"
)
