"""The server around a pool: whether the pool's threading model suits it.

A non-threaded pool has no locks, so two threads must not use it. To ask at each checkout which thread it is would cost
every checkout. Instead the lock that the driver takes around each statement is replaced, in this model, by a `Door`
that lets in only the pool's own thread: a stranger's first statement is refused before anything is sent, and so is a
checkout that finds no connection at rest. The checkout that finds one, and the return, are as quick as before.

A threaded pool needs threads that run. uWSGI gives them no time unless told to; that is said once in the log. And if
they run while it forks its workers, those may hang: such a pool starts them in the workers, with its first use. Under
gevent or eventlet a thread is a greenlet, and what libpq does with its sockets when a server dies can end the whole
process (an assertion of libev's); so a pool refuses to start there. In an event loop a waiting caller holds up
everybody else; that is said once in the log, too.

In a process with several interpreters (mod_wsgi without ``WSGIApplicationGroup %{GLOBAL}``, uWSGI with several
applications) there is no monitor: up to Python 3.11 asyncio mixes up the event loops and the exceptions of a process's
interpreters. A pool then does as with ``monitor: false``. Sub-interpreters may come late, so the main one looks again
while it runs. uWSGI tells none but the main one that it has forked; see `forks_in_silence`.
"""

from __future__ import annotations

import logging
import sys
import threading
from _thread import get_ident
from asyncio import _get_running_loop
from importlib import import_module
from types import ModuleType

from .errors import WrongModelError

logger = logging.getLogger("pgdbpool")

_said: dict[str, object] = {}  # in this process


class Door:
    """Stands in for the lock of each connection of a non-threaded pool. The first thread that comes owns the pool.

    Owned by nobody again when that thread has ended.
    """

    __slots__ = ("_name", "owner")

    def __init__(self, name: str) -> None:
        self._name = name
        self.owner = 0

    def __enter__(self) -> None:
        if get_ident() != self.owner:
            self._knock()

    def __exit__(self, *exc: object) -> None: ...

    @property
    def open(self) -> bool:
        """Whether the calling thread would be let in."""
        return self.owner == get_ident() or self.owner not in sys._current_frames()

    def _knock(self) -> None:
        if not self.open:
            words = (
                f'{self._name}: type is "non-threaded", but two threads use this pool, {_name(self.owner)} and '
                f'{_name(get_ident())}: say type = "threaded", or have each process serve with one thread'
            )
            say_once(logging.ERROR, words, of=f"{self._name}: threads")
            raise WrongModelError(words)
        refuse_greenlets()
        self.owner = get_ident()


def _name(ident: int) -> str:
    # Not `threading.current_thread`, which makes an object for a thread that Python did not start.
    return next((repr(each.name) for each in threading.enumerate() if each.ident == ident), f"thread {ident}")


def refuse_greenlets() -> None:
    """Raise WrongModelError where gevent or eventlet has put greenlets in the place of threads."""
    for library, module, question in (
        ("gevent", "gevent.monkey", "is_module_patched"),
        ("eventlet", "eventlet.patcher", "is_monkey_patched"),
    ):
        patcher = sys.modules.get(module)
        if patcher is not None and getattr(patcher, question)("socket"):
            raise WrongModelError(
                f"{library} has patched this process: libpq does not go with it when a database server is lost. "
                'Serve with threads (Gunicorn: --worker-class gthread --threads N) and type = "threaded", or use an '
                "AsyncPool with an ASGI server"
            )


def look_for_threads(name: str) -> None:
    """Say once in the log if the threads of a threaded pool would not run: under uWSGI they do only if it is told."""
    try:
        options = import_module("uwsgi").opt
    except ImportError:
        return
    if not any(options.get(key) for key in (b"enable-threads", b"threads", "enable-threads", "threads")):
        say_once(
            logging.WARNING,
            f'{name}: type is "threaded", but uWSGI gives no time to threads: say type = "non-threaded", or start '
            "uWSGI with --enable-threads",
        )


def is_to_fork() -> bool:
    """Whether uWSGI loads the application in this process, to fork its workers from it later.

    It forks without the interpreter's lock. Whatever thread has that at the moment is not there in the worker, and does
    not give it back: the worker hangs with its first request.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None or not (uwsgi.opt.get(b"master") or uwsgi.opt.get("master")):
        return False
    return not uwsgi.worker_id() and not uwsgi.mule_id()


def look_for_fork(name: str) -> None:
    """Say once in the log if threads are started in a process that is to fork its workers, which may hang then."""
    if is_to_fork():
        say_once(
            logging.WARNING,
            f'{name}: type is "threaded", and the pool is used in the process from which uWSGI forks its workers: they '
            'may hang. Use it in the workers only, say type = "non-threaded", or start uWSGI with --lazy-apps',
        )


def look_for_loop(name: str) -> None:
    """Say once in the log if a caller that waits holds up an event loop, and with it all other tasks."""
    if sub_interpreter():
        return  # what it would be told there may be of another interpreter's
    # A notebook runs its cells in a loop, and one after the other all the same.
    if _get_running_loop() is not None and "ipykernel" not in sys.modules:
        say_once(
            logging.WARNING,
            f"{name}: a Pool is used in an event loop, which stands still while a caller waits: use an AsyncPool, or "
            "asyncio.to_thread",
        )


def may_monitor(name: str) -> bool:
    """Whether event loops work in this process; if they may not, that is said once in the log."""
    group = sub_interpreter()
    if not group and not _has_sub_interpreters():
        return True
    where = f"the sub-interpreter {group!r}" if group else "a process that has sub-interpreters as well"
    server, remedy = "uWSGI", "start it with --single-interpreter"
    if "uwsgi" not in sys.modules:
        server = "mod_wsgi"
        remedy = "say WSGIApplicationGroup %{GLOBAL} in Apache's configuration, with a WSGIDaemonProcess for each"
    say_once(
        logging.WARNING,
        f"{name}: {server} runs several applications in one process, this one in {where}, where there can be no "
        f"monitor: {remedy}",
    )
    return False


def forks_in_silence() -> bool:
    """Whether a pool that is made here is perhaps never told of a fork: so it has to look at each checkout.

    uWSGI calls the `post_fork_hook` of the main interpreter only. Those of its applications that are in others would
    otherwise share, in all workers, the connections that they had before the fork.
    """
    return "uwsgi" in sys.modules and bool(sub_interpreter())


def sub_interpreter() -> str:
    """Its name, if mod_wsgi or uWSGI runs us in one."""
    if "uwsgi" in sys.modules:
        interpreters = _interpreters()
        current = interpreters.get_current()
        number = current[0] if isinstance(current, tuple) else current  # since 3.13 there is more in it
        return "" if current == interpreters.get_main() else str(number)
    return str(getattr(sys.modules.get("mod_wsgi"), "application_group", ""))


def _has_sub_interpreters() -> bool:
    if sys.version_info >= (3, 12) or sys.modules.keys().isdisjoint(("mod_wsgi", "uwsgi")):
        return False
    return len(_interpreters().list_all()) > 1


def _interpreters() -> ModuleType:
    return import_module("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")


def say_once(level: int, words: str, of: str = "") -> None:
    """Log it unless these words were said before, or others `of` the same."""
    mine = object()
    if _said.setdefault(of or words, mine) is mine:  # in one step, so that of several threads one says it
        logger.log(level, words)
