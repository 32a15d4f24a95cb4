"""The command `pgdbpool`.

What it needs beyond the pool itself (typer, rich, a PostgreSQL to run) comes with an extra, and is imported only when
the command runs: without it the command says in one line what to install.
"""

import signal
import sys

MISSING = "pgdbpool: {} is not installed; the command needs: pip install 'pgdbpool[{}]'"


NO_LIBPQ = "pgdbpool: psycopg finds no libpq; install the system's, or: pip install 'pgdbpool[binary]'"


def _end(signum: int, frame: object) -> None:
    """What was begun is put right first: servers of the demo, the screen of a terminal."""
    raise SystemExit(128 + signum)


def main() -> None:
    """The entry point."""
    signal.signal(signal.SIGTERM, _end)
    try:
        from .app import app

        app(prog_name="pgdbpool")
    except ImportError as error:
        if (error.name or "").startswith("pgdbpool"):
            raise  # a mistake of ours
        if isinstance(error, ModuleNotFoundError):
            sys.exit(MISSING.format(error.name, "cli"))
        if "psycopg" in str(error):
            sys.exit(NO_LIBPQ)
        raise
