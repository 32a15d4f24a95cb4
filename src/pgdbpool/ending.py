"""The end of a process: its pools go on without threads, and keep no connection open.

`atexit` calls its functions in the reverse of the order in which they were registered. So what was registered before
this package was imported is called after the pools were told of the end: logging handlers, which `logging.shutdown`
flushes, and functions of an application that imports its pool late. They may still use the pool. It is not closed, but
nothing of it needs an end any more: its threads have ended, a caller opens the connection that it needs, and what is
returned is closed at once. A connection that is leased when the end comes stays with its holder.
"""

from __future__ import annotations

from .core.topology import Topology
from .session import Sessions

LAST_WORDS = 1.0  # s that the end of the process waits for a thread


def begin(topology: Topology, sessions: Sessions) -> None:
    """Close what is idle; what comes back from now on is closed then."""
    for group in topology.groups:
        group.tend_at = float("-inf")
        for slot in group.every_slot():
            sessions.driver.leave(slot.conn)
    close_idle(topology, sessions)


def close_idle(topology: Topology, sessions: Sessions) -> None:
    """Close what is idle."""
    for group in topology.groups:
        with group.lock:
            for lane in group.lanes:
                group.drop_idle(lane, lambda slot: True, "closed")
        sessions.bury(group)
