"""Which application to look at: the one that is named, or the ones whose processes publish what they do.

What is read are the small files of `pgdbpool.publish`. Nothing is connected to.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgdbpool.config.keys import STATUS_NAME

from .output import complain
from .source import WRONG

if TYPE_CHECKING:
    from pgdbpool.publish import Worker

NOBODY = 'no process of this user publishes what its pools do: put [status] with name = "..." in the configuration'

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="The application, as its `status.name` says. Without it: all there are.",
        show_default=False,
    ),
]
Directory = Annotated[
    Path | None,
    typer.Option(
        metavar="DIRECTORY", help="Where the files are, as `status.directory` says.", show_default="the usual places"
    ),
]


def workers_of(name: str | None, directory: Path | None) -> dict[str, list[Worker]]:
    """The living processes by application. Ends the program where the directory cannot be trusted."""
    from pgdbpool.publish import read  # not above: `--help` needs no driver

    if name is not None and not re.fullmatch(STATUS_NAME, name, re.ASCII):
        # Not repeated: it may be a URL.
        complain("NAME: expected up to 60 letters, digits, - and _, as in status.name")
        raise typer.Exit(WRONG)
    try:
        found = read(name, directory)
    except PermissionError as error:
        complain(error)
        raise typer.Exit(WRONG) from None
    applications: dict[str, list[Worker]] = {}
    for worker in found:
        applications.setdefault(worker.name, []).append(worker)
    return applications


def nobody(name: str | None) -> str:
    """What to say where there is no process."""
    return NOBODY if name is None else f"no process of application {name!r} publishes; is it running?"
