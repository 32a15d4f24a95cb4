"""Nothing is left of a cluster, however the process that made it ends.

A small process of its own (`processes.py`, run as a script) holds the read end of a pipe. When the write end
is closed, by `Watchdog.finish` or by the kernel because we died, it ends the servers and removes the folder.
The ordinary way out goes through the same door, so the clean-up that matters after a SIGKILL is the one every
test run exercises.
"""

import os
import subprocess
import sys
import weakref
from pathlib import Path

from pgdbpool.testing import processes
from pgdbpool.testing.errors import ClusterTimeout

_live: "weakref.WeakSet[Watchdog]" = weakref.WeakSet()


class Watchdog:
    """Ends the servers of a cluster and removes its ``folder`` when asked to, or when we are gone."""

    def __init__(self, folder: Path) -> None:
        read_end, self._pipe = os.pipe()  # neither end is inherited by programs we start
        try:
            self._process = subprocess.Popen(
                # -E and -S: quick to start, and nothing of the user's environment can get in its way.
                [sys.executable, "-E", "-S", processes.__file__, str(folder)],
                stdin=read_end,
                stdout=subprocess.DEVNULL,  # whoever reads our output must see it end when we end
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # neither Ctrl-C nor the end of the terminal may reach it
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(read_end)
        self._folder = folder
        _live.add(self)

    def finish(self, timeout: float = 60.0) -> None:
        """Have everything cleaned up now, and wait for it (seconds). May be called twice."""
        if self not in _live:
            return
        self.let_go()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ClusterTimeout(f"{self._folder} was not cleaned up within {timeout:g} s") from None

    def forget_process(self) -> None:
        """In a forked child, which is not the watchdog's parent: stop expecting its end."""
        self._process.poll()

    def let_go(self) -> None:
        """Close our end of the pipe."""
        _live.discard(self)
        os.close(self._pipe)


def _after_fork_in_child() -> None:
    # A child that kept the pipe open would keep the servers of a dead parent alive.
    for watchdog in list(_live):
        watchdog.let_go()
        watchdog.forget_process()


os.register_at_fork(after_in_child=_after_fork_in_child)
