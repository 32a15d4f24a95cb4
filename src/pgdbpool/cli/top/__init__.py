"""`pgdbpool top`: what all processes of an application do now, live in the terminal.

Everything comes from the files that the processes write; `figures` makes rates of it, `screen` a picture. Here is the
loop: draw, and wait for a key or for the next second.
"""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import time

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from pgdbpool.cli.application import nobody, workers_of
from pgdbpool.cli.output import Printable, console, print_json
from pgdbpool.publish import merged

from .screen import picture

__all__ = ["run"]

QUIT = ("q", "Q", "\x1b", "\x03", "\x04")  # Escape, Ctrl-C, Ctrl-D
NEXT = "\t"
ARROWS = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]")  # and others that begin as Escape does


def run(name: str | None, directory: Path | None, interval: float, *, once: bool, as_json: bool) -> int:
    """Show it until somebody has seen enough; the exit code."""
    screen = console()
    if as_json or once or not screen.is_terminal:
        return _once(name, directory, as_json=as_json)
    chosen = 0

    def draw() -> RenderableType:
        applications = workers_of(name, directory)
        if not applications:
            return Text(f"{nobody(name)}\n\nq quits", "dim")
        which = sorted(applications)[chosen % len(applications)]
        keys = "q quits" if len(applications) == 1 else "tab next, q quits"
        width, height = screen.size
        others = len(applications) - 1
        return Printable(picture(which, merged(applications[which]), time(), width, height, others, keys))

    try:
        with _keys() as keys, ExitStack() as stack:
            live = Live(draw(), console=screen, screen=True, auto_refresh=False)
            stack.callback(live.stop)  # before it starts: Ctrl-C may come in the middle of that
            live.start(refresh=True)
            while not (pressed := _pressed(keys, interval)).intersection(QUIT):
                chosen += NEXT in pressed
                live.update(draw(), refresh=True)
    except KeyboardInterrupt:
        pass  # as good an end as any
    return 0


def _once(name: str | None, directory: Path | None, *, as_json: bool) -> int:
    applications = workers_of(name, directory)
    if as_json:
        print_json({which: merged(workers) for which, workers in sorted(applications.items())})
    elif applications:
        screen = console()
        height = screen.size.height if screen.is_terminal else 100
        width = screen.size.width if screen.is_terminal else 120
        screen.width = width
        for which, workers in sorted(applications.items()):
            screen.print(picture(which, merged(workers), time(), width, height))
    if not applications:
        print(f"pgdbpool top: {nobody(name)}", file=sys.stderr)
    return 0 if applications else 1


@contextmanager
def _keys() -> Iterator[int | None]:
    """The descriptor that keys can be read from, one by one and unseen; None if there is no keyboard."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(descriptor: int | None, seconds: float) -> set[str]:
    """The keys that were pressed by the first moment within so many seconds that any was."""
    ready, _, _ = select.select([] if descriptor is None else [descriptor], [], [], seconds)
    if not ready or descriptor is None:
        return set()
    data = os.read(descriptor, 1024)
    if not data:  # the terminal is gone
        return {QUIT[0]}
    return set(ARROWS.sub("", data.decode(errors="replace")))
