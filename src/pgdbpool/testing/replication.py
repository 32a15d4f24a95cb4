"""Can a standby go on from another primary, and if not: copy that one's data.

Each promotion starts a new timeline and writes down, in a small history file, at which position it left the
old one. A standby fits a primary if its own history is the beginning of the primary's, and if it has received
nothing that lies behind the point where the primary left. We do not use pg_rewind: a copy of a test's data
takes as long, and always works.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgdbpool.testing.node import Node


def history(data: Path, timeline: int) -> list[tuple[int, int]]:
    """The timelines before ``timeline`` and the positions where they were left, oldest first."""
    if timeline == 1:
        return []
    entries = []
    for line in (data / "pg_wal" / f"{timeline:08X}.history").read_text().splitlines():
        fields = line.split()
        if fields and not fields[0].startswith("#"):
            high, low = fields[1].split("/")
            entries.append((int(fields[0]), int(high, 16) << 32 | int(low, 16)))
    return entries


def history_contains(primary: "Node", standby: "Node") -> bool:
    """Whether all that ``standby`` has received is part of what ``primary`` has."""
    ours, theirs = standby.timeline(), primary.timeline()
    if ours >= theirs:
        # The same number may have been given twice, by two nodes promoted at the same time: not worth the
        # risk.
        return False
    try:
        our_past, their_past = history(standby.data, ours), history(primary.data, theirs)
    except OSError:
        return False
    if their_past[: len(our_past)] != our_past:
        return False
    left_at = dict(their_past).get(ours)
    return left_at is not None and standby.wal_position() <= left_at


def copy_data(node: "Node", primary: "Node") -> None:
    """Replace the data folder of ``node``, ended if it runs, by a copy of that of the running ``primary``."""
    node.kill()
    shutil.rmtree(node.data)
    node.run(
        "pg_basebackup",
        f"--pgdata={node.data}",
        f"--host={primary.socket_dir}",
        f"--port={primary.port}",
        "--username=postgres",
        "--no-password",
        "--checkpoint=fast",
        "--wal-method=fetch",
        "--no-sync",
    )
    # What ALTER SYSTEM did to the primary was done to that node, not to this one.
    (node.data / "postgresql.auto.conf").write_text("")
    node.own(node.data / "postgresql.auto.conf")
    node.follow(primary)
