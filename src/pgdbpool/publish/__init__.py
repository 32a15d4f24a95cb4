"""What the worker processes of one application are doing, for others on the same host to see.

A web application is several processes, each with pools of its own, and whoever looks wants to see them together. So
each process writes what its pools do to a small file of its own, about once a second, and whoever looks adds the files
up. Nobody is asked, nobody answers, and a process that hangs can still be looked at.

    place.py      where the files are
    alive.py      whether a file's process still lives
    record.py     what is in a file
    chronicle.py  what one pool did in the last minutes
    writer.py     writes a process's file
    reader.py     reads the files of all processes
    summary.py    adds them up
    heirs.py      who is told of what is about to vanish

Off unless the configuration has `status`, or a status page is mounted: a library should not leave files about that
nobody asked for.
"""

from .reader import names, read
from .record import HISTORY, STEP, GroupSample, PoolRecord, Sample, Worker
from .summary import EndpointSummary, Happening, Held, Summary, merged
from .writer import publish_all

__all__ = [
    "HISTORY",
    "STEP",
    "EndpointSummary",
    "GroupSample",
    "Happening",
    "Held",
    "PoolRecord",
    "Sample",
    "Summary",
    "Worker",
    "merged",
    "names",
    "publish_all",
    "read",
]
