"""What has to be done in a forked child: each module that keeps something says what, and here it is seen to that it is.

Python tells of a fork, if it was Python that forked. A server written in C may not tell: uWSGI runs Python's own hooks
only with ``py-call-osafterfork``, and its workers would go on with the connections of the process that loaded the
application, all of them with the same. So its `post_fork_hook` is joined too. For others that fork in silence,
`unnoticed` is asked wherever a checkout takes the long way, as it does for each connection that has rested for half a
second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from os import getpid
from types import ModuleType

_functions: list[Callable[[], None]] = []
_pid = getpid()


def in_child(function: Callable[[], None]) -> None:
    """Have it called in every child, before anything else of ours is used there; in the order of these calls."""
    _functions.append(function)


def unnoticed() -> bool:
    """Whether this process was forked and nobody has told us. Then what has to be done is done now."""
    if getpid() == _pid:
        return False
    _run()
    return True


def _run() -> None:
    global _pid
    _pid = getpid()
    for function in _functions:
        function()


os.register_at_fork(after_in_child=_run)


def join_uwsgi(uwsgi: ModuleType) -> None:
    """Be told of uWSGI's forks too, beside whoever is already. `uwsgi` is the module that only its processes have."""
    try:
        postfork = import_module("uwsgidecorators").postfork
    except Exception:  # not installed, or refuses since there is no master process
        before = getattr(uwsgi, "post_fork_hook", None)

        def hook() -> None:
            unnoticed()
            if before is not None:
                before()

        uwsgi.post_fork_hook = hook  # type: ignore[attr-defined]
    else:
        postfork(unnoticed)


try:
    join_uwsgi(import_module("uwsgi"))
except ImportError:
    pass
