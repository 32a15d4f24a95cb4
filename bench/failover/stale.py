"""How long a pool goes on writing to the old primary when it has a session with the new one.

The servers' logs tell: when the new primary let in the first session of a process, and when the last statement that
writes, finished or not, reached the old one from the same process. The clock is the same, and counts milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

SETTINGS = {"log_statement": "mod", "log_line_prefix": "%m [%p] app=%a "}
"""What the servers have to log."""

_LINE = re.compile(r"^(\S+ \S+) \S+ \[\d+\] app=(\S*) (.*)$", re.MULTILINE)
_LET_IN = re.compile(r"LOG: +connection authorized:.* application_name=(\S+)")
_WRITES = re.compile(r"LOG: +(statement|execute [^:]*): insert into items", re.IGNORECASE)


def stale(old: str, new: str, processes: Iterable[str]) -> float | None:
    """Seconds, by the logs of the old and the new primary; the longest of these processes (their application names).

    0: no statement came later. None: the new primary let none of them in.
    """
    let_in: dict[str, datetime] = {}
    for at, _, words in _LINE.findall(new):
        if found := _LET_IN.search(words):
            let_in.setdefault(found[1], _time(at))
    wrote = {name: _time(at) for at, name, words in _LINE.findall(old) if _WRITES.match(words)}
    known = [name for name in processes if name in let_in]
    late = [(wrote[name] - let_in[name]).total_seconds() for name in known if name in wrote]
    return max([0.0, *late]) if known else None


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f")
