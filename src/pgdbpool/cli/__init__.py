"""The command `pgdbpool`.

What it needs beyond the pool itself (typer, rich, a PostgreSQL to run) comes with an extra, and is imported only when
the command runs: without it the command says in one line what to install.
"""

import sys

MISSING = "pgdbpool: {} is not installed; the command needs: pip install pgdbpool[{}]"


def main() -> None:
    """The entry point."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pgdbpool"):
            raise  # a mistake of ours
        sys.exit(MISSING.format(error.name, "cli"))
    app(prog_name="pgdbpool")
