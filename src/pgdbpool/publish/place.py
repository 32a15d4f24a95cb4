"""Where the files of the processes are.

In a directory of the user's own that is empty after a restart of the machine: ``$XDG_RUNTIME_DIR/pgdbpool``, else
``/run/user/UID/pgdbpool``, else ``pgdbpool-UID`` in the system's directory for temporary files. A service may have been
started without the first two and whoever looks has them, so readers look in all of them.

The last is in a place where everybody may write, so another user may have made it first. A directory is therefore used
only if it is this user's own, no other may write there, and it is not a link. One that the configuration or the command
line names may be another user's if root asks: an administrator may look at a service. A directory is opened first and
looked at then, and its files are reached by its descriptor, so nothing can be put in its place in between.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    with opened(path):
        return path


def searched(directory: str | os.PathLike[str] | None) -> list[Path]:
    """The directories to read from: those that are there and may be believed.

    Raises PermissionError if one that was named is there and may not be believed.
    """
    found = []
    for path in candidates() if directory is None else [Path(directory)]:
        try:
            with opened(path):
                found.append(path)
        except FileNotFoundError:
            continue
        except OSError:
            if directory is not None:
                raise
    return found


class Place:
    """A directory that may be believed, held by its descriptor. Made by `opened`."""

    def __init__(self, path: Path, descriptor: int, owner: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._trusted = {os.geteuid(), owner}

    def names(self) -> list[str]:
        """What is in it, sorted. Raises OSError."""
        return sorted(os.listdir(self._descriptor))

    def content(self, name: str, limit: int) -> bytes | None:
        """What is in a file; None if it is not there, is another user's, no plain file, or longer than `limit`."""
        try:
            descriptor = os.open(name, os.O_RDONLY | _CAREFULLY, dir_fd=self._descriptor)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not self._is_plain(status) or status.st_size > limit:
                return None
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(limit)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def replace(self, name: str, data: bytes) -> None:
        """Put a file there, readable by its owner only; whoever reads it has the old one or the new one, whole.

        Raises OSError.
        """
        new = f".{name}{_UNFINISHED}"
        self.remove(new)  # of a process of the same number that was killed
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFULLY, 0o600, dir_fd=self._descriptor)
            with open(descriptor, "wb", buffering=0) as file:
                written = file.write(data)
                if written != len(data):
                    raise OSError(28, "No space left on device")
            os.replace(new, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            self.remove(new)
            raise

    def open_lock(self, name: str) -> int:
        """The descriptor of a file to lock, made if need be. Raises OSError, also if it is no plain file of ours."""
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | _CAREFULLY, 0o600, dir_fd=self._descriptor)
        try:
            if not self._is_plain(os.fstat(descriptor)):
                raise PermissionError(f"{self.path / name} is not a file of this user's")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def remove(self, name: str) -> None:
        """Have no file there."""
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except OSError:
            pass

    def remove_unfinished(self, before: float) -> None:
        """Remove what was being written when its process was killed, at some time before."""
        for name in self.names():
            if name.startswith(".") and name.endswith(SUFFIX + _UNFINISHED):
                try:
                    if os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mtime < before:
                        os.unlink(name, dir_fd=self._descriptor)
                except OSError:
                    continue

    def _is_plain(self, status: os.stat_result) -> bool:
        return stat.S_ISREG(status.st_mode) and status.st_uid in self._trusted


# A link is not followed, a pipe is not waited for.
_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def opened(path: Path) -> Iterator[Place]:
    """A directory while its files are read or written. Raises OSError if it is not there or may not be believed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:  # or a link, with O_DIRECTORY
        raise PermissionError(f"{path} is not a directory") from None
    try:
        status = os.fstat(descriptor)
        if problem := _problem(status, may_be_anothers=os.geteuid() == 0 and path not in candidates()):
            raise PermissionError(f"{path} {problem}")
        yield Place(path, descriptor, status.st_uid)
    finally:
        os.close(descriptor)


def _problem(status: os.stat_result, *, may_be_anothers: bool) -> str:
    """Why what is written there cannot be trusted, or an empty string."""
    if status.st_uid != os.geteuid() and not may_be_anothers:
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
