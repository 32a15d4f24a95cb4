"""Where the files of a cluster lie.

Building a cluster and copying a primary is the making of some thousand small files, which a disk that others use too
makes slow. So the files are kept in memory where the system offers that with room to spare, unless the user has said
where temporary files belong (TMPDIR).
"""

import os
import shutil
import tempfile
from pathlib import Path

from pgdbpool.testing.binaries import reachable, server_account

MEMORY = Path("/dev/shm")
ENOUGH_MEMORY = 2 << 30  # bytes; a small cluster needs about a twentieth of that
LONGEST = 60  # characters; the path of a Unix socket may have about 100 bytes


def temporary_folder() -> Path:
    """A new folder for one cluster, which only its owner can enter."""
    told = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    candidates = [Path(tempfile.gettempdir()), Path("/tmp")]
    if not told and _has_room(MEMORY):
        candidates.insert(0, MEMORY)
    base = next((folder for folder in candidates if _usable(folder)), candidates[0])
    return Path(tempfile.mkdtemp(prefix="pgdbpool-", dir=base)).resolve()


def _has_room(folder: Path) -> bool:
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    # The servers' programs may have to be copied there, and run.
    forbids_programs = os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)
    return not forbids_programs and shutil.disk_usage(folder).free >= ENOUGH_MEMORY


def _usable(folder: Path) -> bool:
    account = server_account()
    return len(str(folder)) <= LONGEST and (account is None or reachable(folder / "x", account))
