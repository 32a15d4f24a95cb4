"""The servers' programs, and the Python they bring along.

Most come with the extra `dev` and run with its Python. Those of Debian (uWSGI, mod_wsgi) have Debian's Python in them,
so they get a virtual environment made with that. If its version is that of the tests it uses the packages of the tests,
else it gets its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import pytest

from examples.rows import FOLDER, Row

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"])
DEBIAN_PYTHON = "/usr/bin/python3"


def look_for(row: Row) -> None:
    """Skip the test if the row's server is not there. It is the first word of its command."""
    program = row.command.split()[0]
    if row.needs and (shutil.which(program, path=PATH) is None or not Path(DEBIAN_PYTHON).exists()):
        pytest.skip(f"needs {program}: {row.needs}")


def virtual_environment(row: Row) -> Path:
    """What VIRTUAL_ENV is for a row."""
    return debian_environment() if row.needs else Path(sys.prefix)


@cache
def debian_environment() -> Path:
    """A virtual environment made with Debian's Python."""
    # An ordinary user, as Apache's workers may be, has to read it.
    folder = Path(tempfile.mkdtemp(prefix="pgdbpool-venv-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    version = _run(DEBIAN_PYTHON, "-c", "import sys; print(*sys.version_info[:2], sep='.')").strip()
    if version == ".".join(map(str, sys.version_info[:2])):
        _run(DEBIAN_PYTHON, "-m", "venv", "--without-pip", str(folder))
        packages = sysconfig.get_path("purelib")
        ours = folder / "lib" / f"python{version}" / "site-packages" / "ours.pth"
        ours.write_text(f"import site; site.addsitedir({packages!r})\n")
    else:
        _run(DEBIAN_PYTHON, "-m", "venv", str(folder))
        _run(str(folder / "bin" / "pip"), "install", "--quiet", f"{FOLDER.parent}[binary]", "flask", "django")
    return folder


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
