"""`pgdbpool status`: the status page in a server of its own, or what it shows as JSON."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from ..publish import merged, names, read
from ..web import serve
from ..web.guard import is_loopback
from .application import nobody
from .output import complain, print_json
from .source import WRONG

TOKEN = "PGDBPOOL_STATUS_TOKEN"


def run(
    host: str, port: int, *, name: str | None, directory: str | None, token_file: Path | None, as_json: bool
) -> int:
    """Serve until Ctrl-C, or print once. Returns the exit code."""
    try:
        there = names(directory)
        if as_json:
            return _once([name] if name else there, name, directory)
    except PermissionError as error:  # others may write there
        complain(error, "status")
        return WRONG
    try:
        token, made = _token(token_file, host)
        server = serve.make(host, port, name=name, directory=directory, token=token)
    except OSError as error:
        where = error.filename or f"port {port}"
        sys.exit(f"pgdbpool status: {where}: {error.strerror}; another one can be named by --port")
    except ValueError as error:
        complain(error, "status")
        return WRONG
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"The status page is at http://{shown}:{server.server_port}/")
    if made:
        typer.echo(f"Token, made for this run: {token}")
    typer.echo("Ctrl-C ends it.")
    sys.stdout.flush()
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 130
    return 0


def _once(names: Sequence[str], name: str | None, directory: str | None) -> int:
    """What the page would show, as JSON. As `pgdbpool top --json`, also where no application is found."""
    found = {each: workers for each in names if (workers := read(each, directory))}
    print_json({each: merged(workers) for each, workers in sorted(found.items())})
    if not found:
        complain(nobody(name), "status")
    return 0 if found else 1


def _token(file: Path | None, host: str) -> tuple[str | None, bool]:
    """The token, and whether it was made here, so that it has to be shown. Never an argument: `ps` shows those."""
    if file is not None:
        return file.read_text().strip(), False
    if given := os.environ.get(TOKEN):
        return given, False
    if not is_loopback(host):
        return secrets.token_urlsafe(), True
    return None, False
