"""What several of these tests need."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pgdbpool.testing.binaries import Account, reachable

DEBIAN = Path("/usr/lib/postgresql/15/bin")

needs_debian = pytest.mark.skipif(
    not (DEBIAN / "postgres").exists(), reason="no PostgreSQL 15 of Debian's here: apt-get install postgresql-15"
)
needs_pgbouncer = pytest.mark.skipif(
    shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") is None,
    reason="no PgBouncer here: apt-get install pgbouncer",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run the tests as root, in a container say")


def python(
    code: str, *, user: int | None = None, interpreter: str = sys.executable, **environment: str
) -> "subprocess.Popen[str]":
    """Run a little program in a process of its own, with pipes to it."""
    return subprocess.Popen(
        [interpreter, "-W", "error", "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env={**os.environ, **environment},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )


def interpreter_for(account: Account) -> str:
    """A Python like this one that an ordinary user can run; skips the test if there is none."""
    if reachable(Path(sys.executable), account) and reachable(Path(os.__file__), account):
        return sys.executable
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for path in (Path(f"/usr/bin/python{version}"), Path(f"/usr/local/bin/python{version}")):
        if path.exists() and reachable(path, account):
            return str(path)
    pytest.skip(f"this Python is private to root: install python{version} in /usr/bin as well")


def output(process: "subprocess.Popen[str]") -> str:
    """What the program wrote until its end, which has to be a good one."""
    with process:
        written = process.communicate(timeout=60)[0]
    assert process.returncode == 0, written
    return written
