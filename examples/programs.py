"""The servers' programs, and the Python they bring along.

Most come with the extra `servers` and run with the Python that runs this. Those of Debian (uWSGI, mod_wsgi) have
Debian's Python in them, so they get a virtual environment made with that. If its version is ours it uses our packages,
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

from examples.rows import FOLDER, Row

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"])
DEBIAN_PYTHON = "/usr/bin/python3"
SERVERS = "pip install 'pgdbpool[servers]'"


# What each needs beside its program, which is the first word of the command.
_PARTS = {"apache2": "/usr/lib/apache2/modules/mod_wsgi.so", "uwsgi": "/usr/lib/uwsgi/plugins/python3_plugin.so"}


def missing(row: Row) -> str:
    """How to get the row's server, if it is not there; else nothing."""
    program = row.command.split()[0]
    parts = [program, DEBIAN_PYTHON, _PARTS[program]] if program in _PARTS else [program]
    if all(shutil.which(part, path=PATH) or Path(part).exists() for part in parts):
        return ""
    return f"needs {program}: {row.needs or SERVERS}"


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
