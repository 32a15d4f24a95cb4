"""The command line: what can be asked, and nothing of how it is done."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

import pgdbpool

from . import MISSING
from .application import Directory, Name
from .output import AsJson, bytes_of
from .source import Source, settings_of
from .usage import Commands

app = typer.Typer(
    name="pgdbpool",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
def check(
    config: Source,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Worker processes, over all hosts: do the servers have room for them?"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Threads of a process: is each group sized for them?")
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(parser=bytes_of, metavar="SIZE", help="What each server has, such as 16GB: is it enough?"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a configuration and its servers, and whether they have room.

    Connects to every endpoint, once for each group, writes nothing, and
    shows what each server is, where each group would go, and what the
    servers must have for so many processes.

    Exit code 0: all is well. 1: something is not, and the last lines say
    what. 2: the configuration is wrong.

    [dim]pgdbpool check pool.toml
    pgdbpool check pool.toml --processes 8 --threads 4 --memory 16GB
    pgdbpool check postgresql://app@db1,db2/shop --json[/dim]
    """
    from .check import run

    raise typer.Exit(run(settings_of(config), processes, threads, memory, as_json=as_json))


@app.command()
def bench(
    config: Source,
    group: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this group; may be given several times.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=64, help="Threads. [default: 4; non-threaded: 1]", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="How long.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Put your own servers under a quick load, by your configuration.

    Threads take a connection of each group in turn, ask [i]select 1[/i] and
    give it back. Nothing is written. Shows throughput, how long a
    connection was waited for and used, and each endpoint's share.

    Exit code 0: all was done. 1: something failed, or a group got nothing
    done. 2: the configuration is wrong.

    [dim]pgdbpool bench pool.toml
    pgdbpool bench pool.toml --group read --threads 16 --seconds 10[/dim]
    """
    from .bench import run

    raise typer.Exit(run(settings_of(config), group or [], threads, seconds, as_json=as_json))


@app.command()
def top(
    name: Name = None,
    directory: Directory = None,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds from one picture to the next.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="One picture, and the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch all processes of an application on this host, live.

    Needs [i]status[/i] in the configuration: then each process publishes
    what its pools do. Press q to quit, tab for the next application. Where
    the output is no terminal there is one picture.

    Exit code 0: there was something to show. 1: no process publishes. 2:
    the directory cannot be trusted.

    [dim]pgdbpool top
    pgdbpool top shop --json | jq .shop.groups.read.leased[/dim]
    """
    from .top import run

    raise typer.Exit(run(name, directory, interval, once=once, as_json=as_json))


@app.command()
def events(
    name: Name = None,
    directory: Directory = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those to come, until Ctrl-C.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, max=100_000, help="How many of the last.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List what happened to the servers: failovers, endpoints down and up,
    changes of role, leaks.

    Needs [i]status[/i] in the configuration. What several processes have
    noticed is one line.

    Exit code 0: some process publishes, whether anything happened or not.
    1: none does. 2: the directory cannot be trusted.

    [dim]pgdbpool events -f
    pgdbpool events shop -n 1000 --json | jq -r .message[/dim]
    """
    from .events import run

    raise typer.Exit(run(name, directory, last, follow=follow, as_json=as_json))


@app.command()
def status(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0: any free port.")] = 8642,
    host: Annotated[str, typer.Option(help="Where; all but loopback needs a token.")] = "127.0.0.1",
    name: Annotated[str | None, typer.Option(help="Only this application (status.name of its configuration).")] = None,
    directory: Annotated[str | None, typer.Option(help="Where its processes publish (status.directory).")] = None,
    token_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file with the token that visitors must show.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve the status page of your applications on this host.

    The applications publish it once their configuration has [i]status[/i].
    The page can only be looked at, from this machine. For others give it a
    token: by --token-file, or the environment variable
    PGDBPOOL_STATUS_TOKEN; if there is none, one is made and shown.

    With --json: the same numbers once, added up for each application.

    [dim]pgdbpool status
    pgdbpool status --port 9000 --name shop
    pgdbpool status --json[/dim]
    """
    from .status import run

    raise typer.Exit(run(host, port, name=name, directory=directory, token_file=token_file, as_json=as_json))


@app.command()
def demo(
    duration: Annotated[float, typer.Option(min=8, max=3600, help="Seconds under load.")] = 26,
    standbys: Annotated[int, typer.Option(min=2, max=5, help="How many standbys the primary has.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON on stdout, the rest on stderr.")] = False,
) -> None:
    """Run readers and writers on a real cluster, kill a standby and the
    primary, and count what was lost.

    Exit code 0: nothing acknowledged was lost, nothing was done twice, and
    work went on after the failover.
    """
    for name in ("rich", "psutil"):
        if find_spec(name) is None:
            sys.exit(MISSING.format(name, "demo"))
    from .demo import run

    raise typer.Exit(run(duration, standbys, as_json=as_json))
