"""Where the files of the processes are.

In a directory of the user's own that is empty after a restart of the machine: ``$XDG_RUNTIME_DIR/pgdbpool``, else
``/run/user/UID/pgdbpool``, else ``pgdbpool-UID`` in the system's directory for temporary files. A service may have been
started without the first two and whoever looks has them, so readers look in all of them.

The last is in a place where everybody may write. So a directory is used only if it is the user's own and nobody else
may write there, and it is not a link.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from pathlib import Path

from ..config.keys import STATUS_NAME

SUFFIX = ".pool.json"
_UNFINISHED = ".new"

_FILE = re.compile(rf"({STATUS_NAME})\.(\d{{1,10}})\.[0-9a-f]{{8}}{re.escape(SUFFIX)}", re.ASCII)


def candidates() -> list[Path]:
    """The directories that are used where none is configured, the preferred one first."""
    uid = os.geteuid()
    found = [Path(tempfile.gettempdir()) / f"pgdbpool-{uid}"]
    for runtime in (Path(f"/run/user/{uid}"), Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")):
        if _is_own(runtime) and runtime / "pgdbpool" not in found:
            found.insert(0, runtime / "pgdbpool")
    return found


def _is_own(directory: Path) -> bool:
    try:
        return directory.is_absolute() and directory.stat().st_uid == os.geteuid()
    except OSError:
        return False


def prepared(directory: str | None) -> Path:
    """The directory to write to, made if need be. Raises OSError, also if it is not safe to write there."""
    path = candidates()[0] if directory is None else Path(directory)
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        pass  # and is no directory, which is said below
    if problem := _problem(path):
        raise PermissionError(f"{path} {problem}")
    return path


def searched(directory: str | os.PathLike[str] | None) -> list[Path]:
    """The directories to read from: those that are there and may be believed.

    Raises PermissionError if one that was named is there and may not be believed.
    """
    if directory is None:
        return [path for path in candidates() if path.exists() and not _problem(path)]
    path = Path(directory)
    if not path.exists():
        return []
    if problem := _problem(path):
        raise PermissionError(f"{path} {problem}")
    return [path]


def _problem(path: Path) -> str:
    """Why what is written there cannot be trusted, or an empty string."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return "is not a directory"
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        return "belongs to another user"
    if status.st_mode & 0o022:
        return "may be written to by other users: chmod go-w"
    return ""


def file_name(name: str, pid: int, token: str) -> str:
    """The name of a process's file: pids may be the same in two containers, `token` is not."""
    return f"{name}.{pid}.{token}{SUFFIX}"


def application(file_name: str) -> str | None:
    """Of which application a file is; None if it is none of ours."""
    match = _FILE.fullmatch(file_name)
    return match and match[1]


def content(path: Path, limit: int) -> bytes | None:
    """What is in a file; None if it is not there, is another user's, no plain file, or longer than `limit`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        trusted = {os.geteuid(), path.parent.lstat().st_uid}
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in trusted or status.st_size > limit:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Put a file there, readable by its owner only; whoever reads it has the old one or the new one, whole."""
    new = path.with_name(f".{path.name}{_UNFINISHED}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(new, flags, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            written = file.write(data)
            if written != len(data):
                raise OSError(28, "No space left on device")
        os.replace(new, path)
    except BaseException:
        remove(new)
        raise


def remove(path: Path) -> None:
    """Have no file there."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def remove_unfinished(directory: Path, before: float) -> None:
    """Remove what was being written when its process was killed, at some time before."""
    for path in directory.glob(f".*{SUFFIX}{_UNFINISHED}"):
        try:
            if path.lstat().st_mtime < before:
                path.unlink()
        except OSError:
            continue
