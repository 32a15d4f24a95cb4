"""A wrong command line is answered with what was wrong in it; but not with a URL or a connection string, nor with
arguments for which there is no place: these may carry a password.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

UsageError: Any = typer.BadParameter.__base__  # that of click, or of the one within typer


class Commands(TyperGroup):
    """All commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The command line up to the command."""
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            _again(error)

    def invoke(self, ctx: Any) -> Any:
        """The command, its own arguments included."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            _again(error)


def _again(error: Any) -> NoReturn:
    message = re.sub(r"://[^\s'\")]+", "://...", str(error.message))
    message = re.sub(r"(extra argument\S*) \(.*\)", r"\1", message, flags=re.DOTALL)
    error.message = re.sub(r"=[^\s'\")]+", "=...", message)
    raise error from None
