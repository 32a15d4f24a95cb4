"""What a user names on the command line -> checked settings, or one clear message and exit code 2.

A URL may carry a password, so it is never repeated: neither in a message nor in what is shown.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import typer

from pgdbpool.config import Settings, load_toml, load_url
from pgdbpool.errors import ConfigError

from .output import complain

WRONG = 2  # exit code: what was asked for makes no sense; nothing was connected to

Source = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        envvar="PGDBPOOL_CONFIG",
        help="A TOML file, or a URL as postgresql://user@db1,db2/app.",
        show_default=False,
    ),
]


def is_url(source: str) -> bool:
    """Whether it is a URL, of whatever kind, and not the name of a file."""
    return "://" in source


def settings_of(source: str) -> Settings:
    """The settings; ends the program with the mistakes on stderr if there are any."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        try:
            settings = load_url(source) if is_url(source) else load_toml(source)
        except ConfigError as error:
            problems = error.problems
        else:
            problems = ()
    for warning in noted:
        complain(warning.message)
    if problems:
        for line in problems:
            complain(line)
        raise typer.Exit(WRONG)
    return settings
