"""The processes of a test server: found by name, ended, frozen, and cleaned up after.

A server is one postmaster and a changing set of children, each in a session of its own, so no process group
holds them together, and children outlive a killed postmaster for a moment. What all of them carry is the
server's mark `<temporary folder>/<node>` on their command line: the programs we start have it in their data
folder's path, and PostgreSQL's children show it as `cluster_name`. Command lines can be read by everybody, in
containers too.

This file is also the whole watchdog program: it is run as a script, with the folder of a cluster as argument,
and waits until its standard input ends, which is when the process that started it closed the pipe or died,
however it died. It must not import anything but the standard library.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

PROGRAMS = {"postgres", "initdb", "pg_basebackup", "pgbouncer"}


class Process(NamedTuple):
    """A living process. ``born`` tells it from a later one with the same number."""

    pid: int
    born: bytes
    state: bytes

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP has taken effect."""
        return self.state in (b"T", b"t")


def find(mark: str) -> list[Process]:
    """All living processes of the server marked ``mark``; if it ends in a slash, of a whole cluster."""
    endings = (mark,) if mark.endswith("/") else (mark + "/", mark + ":")
    return [process for process, command in _all_processes() if _is_ours(command, endings)]


def _is_ours(command: str, endings: tuple[str, ...]) -> bool:
    if not any(ending in command for ending in endings):
        return False
    # Somebody who looks at the log with an editor must not be taken for a server.
    return command.startswith("postgres: ") or os.path.basename(command.split("\0")[0].split(" ")[0]) in PROGRAMS


def _all_processes() -> list[tuple[Process, str]]:
    return _from_proc() if sys.platform == "linux" else _from_ps()


def _from_proc() -> list[tuple[Process, str]]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", pid, "cmdline").read_bytes()
            process = _look_at(int(pid))
        except OSError:  # gone in the meantime
            continue
        if command:  # else a kernel thread, or a process that is ending
            found.append((process, command.decode(errors="replace")))
    return found


def _look_at(pid: int) -> Process:
    fields = Path("/proc", str(pid), "stat").read_bytes().rpartition(b")")[2].split()
    return Process(pid, fields[19], fields[0])


def is_gone(process: Process) -> bool:
    """Whether a process has given back all it held: it is a zombie, or there is no such process any more.

    A process that is ending loses its command line well before its sockets.
    """
    if sys.platform != "linux":
        return all(process.pid != living.pid for living, _ in _from_ps())
    try:
        now = _look_at(process.pid)
    except OSError:
        return True
    return now.born != process.born or now.state in (b"Z", b"X")


def _from_ps() -> list[tuple[Process, str]]:
    found = []
    listing = subprocess.run(["ps", "-axo", "pid=,state=,command="], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        pid, state, command = (*line.split(None, 2), "")[:3]
        if not state.startswith("Z"):
            found.append((Process(int(pid), b"", state[:1].encode()), command))
    return found


def send(pid: int, signum: int) -> None:
    """Signal a process that may be gone already."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def kill(mark: str, limit: float = 30.0) -> set[int]:
    """SIGKILL every process of a server, wait until none is left, and return their numbers."""
    deadline = time.monotonic() + limit
    # Stopped first: those who see another one die would still have time to say goodbye to their clients.
    freeze(mark, limit)
    killed: set[int] = set()
    ending: set[Process] = set()
    while True:
        living = find(mark)
        for process in living:
            send(process.pid, signal.SIGKILL)
            killed.add(process.pid)
        ending = {process for process in ending.union(living) if not is_gone(process)}
        if not ending:
            return killed
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes of {mark} survive SIGKILL: {[process.pid for process in ending]}")
        time.sleep(0.002)


def freeze(mark: str, limit: float = 30.0) -> None:
    """SIGSTOP every process of a server, also those it starts while it is being stopped."""
    deadline = time.monotonic() + limit
    clean_looks = 0
    # Two looks: a child may be born between the listing of the processes and the postmaster's stop.
    while clean_looks < 2:
        awake = [process.pid for process in find(mark) if not process.stopped]
        for pid in awake:
            send(pid, signal.SIGSTOP)
        clean_looks = 0 if awake else clean_looks + 1
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes of {mark} do not stop: {awake}")


def thaw(mark: str) -> None:
    """SIGCONT every process of a server."""
    for process in find(mark):
        send(process.pid, signal.SIGCONT)


def remove_shared_memory(data: Path, killed: Collection[int] = ()) -> None:
    """Remove the System V segments that a server leaves behind when it cannot do so itself.

    They are those made by the processes ``killed``, and the one told by the postmaster.pid in ``data``.
    """
    creators, told = set(killed), []
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        creators.add(int(lines[0]))
        told = [int(lines[6].split()[1])]
    except (OSError, ValueError, IndexError):
        pass  # it had not come that far
    for shmid in _segments_of(creators) if sys.platform == "linux" else told:
        ipc_rmid = 0
        ctypes.CDLL(None).shmctl(shmid, ipc_rmid, None)


def _segments_of(creators: Collection[int]) -> list[int]:
    """The segments made by these processes that nobody uses any more."""
    found = []
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        _, shmid, _, _, creator, _, attached = map(int, line.split()[:7])
        if creator in creators and attached == 0:
            found.append(shmid)
    return found


def clean_up(folder: Path) -> None:
    """End every server of a cluster and remove all it left: processes, shared memory, files."""
    mark = folder.name + "/"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        killed = kill(mark)
        for data in folder.glob("*/data"):
            remove_shared_memory(data, killed)
        shutil.rmtree(folder, ignore_errors=True)
        # A program that was just being started may have written once more.
        if not folder.exists() and not find(mark):
            return
        time.sleep(0.02)


def watch(folder: Path) -> None:
    """Wait for the end of standard input, then clean up."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    clean_up(folder)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
