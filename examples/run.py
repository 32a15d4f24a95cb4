"""Run one deployment by hand: ``python -m examples.run gunicorn-threads``, or ``make examples ROW=gunicorn-threads``.

It starts a primary and two standbys of its own (extra `testing`), and the server of that row of `rows.toml` on a copy
of this folder. Without a row it lists them. Ctrl-C ends everything, SIGTERM as well.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from examples.notes.work import TABLE
from examples.programs import PATH, missing, virtual_environment
from examples.rows import FOLDER, Row, configuration, load
from pgdbpool.testing import Cluster

TRY = """
{title}, on http://127.0.0.1:{port}

    {command}

  the status page         http://127.0.0.1:{port}/status/
  a read on a standby     curl http://127.0.0.1:{port}/read
  a row                   curl -X POST 'http://127.0.0.1:{port}/write?key=a'
  two rows, or none       curl -X POST 'http://127.0.0.1:{port}/transaction?key=b'
  an import               curl -X POST 'http://127.0.0.1:{port}/batch?key=c&rows=1000'
  kill a standby          {kill}
  new workers             {reload}
  the configuration       {configuration}
  what it may open        {connections} connections on each database server

Ctrl-C ends it.
"""


def main() -> int:
    rows = load()
    parser = argparse.ArgumentParser(prog="python -m examples.run", description="Run one deployment by hand.")
    parser.add_argument("row", nargs="?", help="which one; without it they are listed")
    parser.add_argument("--port", type=int, default=8000, help="where to listen (default: 8000)")
    arguments = parser.parse_args()
    if arguments.row not in rows:
        if arguments.row:
            print(f"there is no row {arguments.row!r}; there are:", file=sys.stderr)
        width = max(map(len, rows))
        for row in rows.values():
            print(f"{row.name:{width}}  {row.title}")
        return 2 if arguments.row else 0
    row = rows[arguments.row]
    problem = missing(row) or taken(arguments.port)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(row, arguments.port)
    except KeyboardInterrupt:
        return 0


def taken(port: int) -> str:
    """What is wrong with the port, if anything."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return f"port {port} of 127.0.0.1 cannot be used ({error.strerror}): choose another, PORT=8123"
    return ""


def run(row: Row, port: int) -> int:
    with tempfile.TemporaryDirectory(prefix="pgdbpool-examples-") as temporary, Cluster(standbys=2) as cluster:
        cluster.primary.execute(TABLE)
        cluster.primary.execute(f"alter table notes owner to {cluster.primary.login.user}")
        Path(temporary).chmod(0o755)  # Apache does its work as a user of its own
        folder = Path(temporary) / "examples"
        shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
        toml = folder / "pool.toml"
        toml.write_text(configuration(row, cluster.endpoints(ssl="disable")))
        own = {
            **row.environment,
            "PWD": str(folder),
            "VIRTUAL_ENV": str(virtual_environment(row)),
            "PGDBPOOL_CONFIG": str(toml),
            "PORT": str(port),
        }
        environment = {**os.environ, "PATH": PATH, **own}
        words = row.words(port, environment)
        with subprocess.Popen(words, cwd=folder, env=environment, start_new_session=True) as server:
            how, what = row.reload.split(maxsplit=1)
            print(
                TRY.format(
                    title=row.title,
                    port=port,
                    command=shlex.join(words),
                    kill=f"pkill -9 -f {cluster.standbys[0].data}",
                    reload={"signal": f"kill -{what} {server.pid}", "edit": f"touch {folder / what}"}.get(
                        how, shlex.join(["env", *map("=".join, own.items()), *row.words(port, environment, what)])
                    ),
                    configuration=toml,
                    connections=row.connections,
                ),
                flush=True,
            )
            try:
                return server.wait()
            finally:
                end(server)


def end(server: subprocess.Popen[bytes]) -> None:
    """All its processes, in good order."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, signum)
            server.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


if __name__ == "__main__":
    sys.exit(main())
