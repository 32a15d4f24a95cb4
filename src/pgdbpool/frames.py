"""Functions while they run, and after: what is in their variables, and what their variables keep alive.

Before Python 3.13 a look at the variables of a running function leaves a copy of them, which would keep their values
alive until the function ends or somebody looks again. So the copy is emptied after the look, unless somebody else has
it (``locals()`` gives the same one) or a debugger is at work: such a copy is brought up to date before the next look at
what is alive.

An exception keeps the frames it came through, and their variables, for as long as it is being handled. Those of the
pool's own functions are of no use to anybody then.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from .interpreter import gil

if TYPE_CHECKING:
    import asyncio

_PACKAGE = __name__.rpartition(".")[0] + "."
_DIRECTORY = __file__.rpartition(os.sep)[0] + os.sep
# A function that keeps its own frame is kept by it.
_LOOKERS = frozenset({__name__, _PACKAGE + "holders", _PACKAGE + "leaks"})

# Those of the package that use pools as any program does.
_USERS = (_PACKAGE + "cli.", _PACKAGE + "testing.")

Stacks = Callable[[], Iterable[tuple[str, list[FrameType]]]]
"""Gives of each thread or task its name and its functions, the innermost first."""


class Line(NamedTuple):
    """A line of a function."""

    file: str
    number: int
    function: str


def here(frame: FrameType) -> Line:
    """The line it is at now."""
    return Line(frame.f_code.co_filename, frame.f_lineno or frame.f_code.co_firstlineno, frame.f_code.co_qualname)


def line(code: CodeType, lasti: int) -> Line:
    """The line of one of its instructions."""
    numbers = [number for start, end, number in code.co_lines() if start <= lasti < end and number is not None]
    return Line(code.co_filename, numbers[0] if numbers else code.co_firstlineno, code.co_qualname)


def place(line: Line) -> str:
    """As it is shown to people."""
    return f"{line.file}:{line.number} ({line.function})"


def where(frame: FrameType) -> str:
    return place(here(frame))


def is_own_file(file: str) -> bool:
    """Whether it is one of the pool's own."""
    return file.startswith(_DIRECTORY)


def is_machinery(frame: FrameType) -> bool:
    """Whether it is of a function that carries out what a pool does, or runs a thread."""
    name = str(frame.f_globals.get("__name__"))
    return name == threading.__name__ or (name.startswith(_PACKAGE) and not name.startswith(_USERS))


_skipped: tuple[str, ...] = ()  # modules, each with a dot at its end


def skip_frames_of(*modules: str) -> None:
    """Have what is said of a connection taken by `getconn` name the caller of these modules, and not the modules."""
    global _skipped
    _skipped = tuple({*_skipped, *(f"{module}." for module in modules)})


def caller(frame: FrameType) -> FrameType:
    """This function, or if it is of a module to be skipped, the first around it that is not."""
    if not _skipped:
        return frame
    found: FrameType | None = frame
    while found is not None and f"{found.f_globals.get('__name__')}.".startswith(_skipped):
        found = found.f_back
    return found or frame


def thread_names() -> dict[int | None, str]:
    return {thread.ident: thread.name for thread in threading.enumerate()}


def threads() -> Iterator[tuple[str, list[FrameType]]]:
    """The stacks of all threads; of this one alone where the others do not stand still meanwhile."""
    names = thread_names()
    frame: FrameType | None
    stacks = sys._current_frames() if gil() else {threading.get_ident(): sys._getframe()}
    for ident, frame in stacks.items():
        frames = []
        while frame is not None:
            if frame.f_globals.get("__name__") not in _LOOKERS:
                frames.append(frame)
            frame = frame.f_back
        yield names.get(ident, f"thread {ident}"), frames


def tasks(loop: asyncio.AbstractEventLoop | None) -> Stacks:
    """Those of the tasks of an event loop: they have no stack while they wait, but a chain of coroutines."""
    return partial(_tasks, loop)


def _tasks(loop: asyncio.AbstractEventLoop | None) -> Iterator[tuple[str, list[FrameType]]]:
    import asyncio  # here, so that it costs nothing where nobody uses it

    if not gil() and asyncio._get_running_loop() is not loop:  # they run, in another thread
        return
    running = asyncio.current_task(loop) if loop is not None else None
    here = list(threads()) if running is not None else []
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        chain = list(_chain(task.get_coro()))[::-1]
        if task is running and chain:  # its chain ends where it runs: the rest is on the stack of its thread
            chain = next((stack[: stack.index(chain[-1]) + 1] for _, stack in here if chain[-1] in stack), chain)
        yield task_name(task), chain


def task_name(task: asyncio.Task[Any] | None) -> str:
    """As it is shown to people."""
    return "no task" if task is None else f"task {task.get_name()}"


def _chain(waits: Any) -> Iterator[FrameType]:
    """The frames of a coroutine, of what it awaits, and so on."""
    while waits is not None:
        for kind in "cr", "ag", "gi":  # coroutine, asynchronous generator, generator
            frame = getattr(waits, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                waits = getattr(waits, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            # What `async for` awaits only leads to its generator, and does not say so.
            leads = gc.get_referents(waits) if type(waits).__name__.startswith("async_generator") else ()
            waits = next((each for each in leads if hasattr(each, "ag_frame")), None)


# -- variables --------------------------------------------------------------------------------------------------------

_LOOK_COPIES = sys.version_info < (3, 13)
_left = False  # whether there may be copies of ours


def variables(frame: FrameType) -> tuple[Any, ...]:
    """The values of its variables."""
    global _left
    copy = frame.f_locals
    values = tuple(copy.values())
    if _LOOK_COPIES and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # those of modules and classes are no copies
        if sys.getrefcount(copy) == _UNSHARED and not _is_traced(frame):
            copy.clear()
        else:
            _left = True
    return values


def _is_traced(frame: FrameType) -> bool:
    """Whether the interpreter may be about to write the copy back, for a debugger."""
    return frame.f_trace is not None or sys.gettrace() is not None or threading.gettrace() is not None


def _unshared() -> int:
    frame = sys._getframe()
    copy = frame.f_locals
    return sys.getrefcount(copy)


_UNSHARED = _unshared()  # references to a copy that nobody else has, as `variables` counts them


def remove_copies() -> None:
    """Have the copies that a look had to leave keep nothing alive, or only what their functions still have."""
    global _left
    if _left:
        _left = False
        for _, frames in threads():
            for frame in frames:
                variables(frame)


# -- the dead ---------------------------------------------------------------------------------------------------------

_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def empty_dead() -> None:
    """Empty the frames of the pool's own functions that exceptions keep: those being handled, and the shell's last."""
    for error in _exceptions():
        trace = error.__traceback__
        suspendable = _SUSPENDABLE  # one that is suspended is waiting, and would be ended
        while trace is not None:
            frame = trace.tb_frame
            if _is_ours(frame) and not frame.f_code.co_flags & suspendable:
                try:
                    frame.clear()
                    _ = frame.f_locals
                except RuntimeError:  # it is not dead
                    pass
            if _is_run(frame):
                suspendable &= ~inspect.CO_COROUTINE  # from here on they never suspend
            trace = trace.tb_next


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith(_PACKAGE)


def _is_run(frame: FrameType) -> bool:
    """That of `drivers.blocking`, by name: this module has no driver loaded."""
    return frame.f_code.co_name == "run" and frame.f_globals.get("__name__") == f"{_PACKAGE}drivers.blocking"


def _exceptions() -> Iterator[BaseException]:
    current: Iterable[Any] = sys._current_exceptions().values()
    found = [each[1] if isinstance(each, tuple) else each for each in current]
    found.append(getattr(sys, "last_value", None))
    seen: set[int] = set()
    while found:
        error = found.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            found += [error.__cause__, error.__context__]
            yield error
