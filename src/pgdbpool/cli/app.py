"""The command line: what can be asked, and nothing of how it is done."""

import sys
from importlib.util import find_spec
from typing import Annotated

import typer

import pgdbpool

from . import MISSING

app = typer.Typer(name="pgdbpool", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgdbpool {pgdbpool.__version__}")
        raise typer.Exit


@app.callback()
def pgdbpool_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A PostgreSQL connection pool and load balancer."""


@app.command()
def demo(
    duration: Annotated[float, typer.Option(min=8, max=3600, help="Seconds under load.")] = 26,
    standbys: Annotated[int, typer.Option(min=2, max=5, help="How many standbys the primary has.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON on stdout, the rest on stderr.")] = False,
) -> None:
    """Run readers and writers on a real cluster, kill a standby and the primary, and count what was lost.

    Exit code 0: nothing acknowledged was lost, nothing was done twice, and work went on after the failover.
    """
    for name in ("rich", "psutil"):
        if find_spec(name) is None:
            sys.exit(MISSING.format(name))
    from .demo import run

    raise typer.Exit(run(duration, standbys, as_json=as_json))
