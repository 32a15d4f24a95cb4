"""Ctrl-C, taken where nothing is half done.

A KeyboardInterrupt may come between any two instructions: a server that was just started is then in no variable yet, a
file has been opened and nobody closes it. The demo is busy with servers, files and processes, so the first Ctrl-C is
kept until the next *safe point*: a pause of the scenario, or the end of a longer step. Somebody who presses the keys
again does not want to wait for that, and is not made to.
"""

import signal
import time
from types import FrameType, TracebackType
from typing import Self


class CtrlC:
    """Keeps Ctrl-C for the length of a ``with`` block, in the main thread."""

    def __init__(self) -> None:
        self._pressed = False
        self._safe = False

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler:  # else it is ignored, or somebody else's
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, signum: int, frame: FrameType | None) -> None:
        now = self._safe or self._pressed
        self._pressed = True
        if now:
            raise KeyboardInterrupt

    def check(self) -> None:
        """A safe point."""
        if self._pressed:
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """`time.sleep`, and safe all the while."""
        self._safe = True
        try:
            self.check()
            time.sleep(max(0.0, seconds))
        finally:
            self._safe = False
