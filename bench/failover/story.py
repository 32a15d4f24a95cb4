"""What happened to the servers, and when: written by the stage, read by `figures`. All times are `time.monotonic`."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.failover.ops import Kind


class Possible(NamedTuple):
    """When a healthy answer became possible."""

    after: float
    """Before this moment there was certainly none."""
    at: float
    """An observer, who asked the server directly, had its answer."""


@dataclass
class Story:
    servers: dict[int, str]
    """The name of each server by its port."""
    told: list[tuple[float, str]] = field(default_factory=list)
    """Everything that was done, in words."""
    faults: list[tuple[float, float]] = field(default_factory=list)
    """From when to when each blow fell: what was under way then may fail."""
    possible: dict[Kind, Possible] = field(default_factory=dict)
    """For the operations that were impossible for a time."""
    calm: tuple[float, float] = (0.0, 0.0)
    """The end, when all was well."""
    over: float = 0.0
    """When those who had not ended were given up."""
    began: float = 0.0
    """When all callers worked."""
    writer: int | None = None
    """The port of the server that has to take the writes now."""
    watched: int | None = None
    """The port of the standby that this is about."""
    returned: float | None = None
    """When it came back."""
    connects: int = 0
    """Attempts to connect that reached a server, from the first blow on."""
    rows: Counter[int] = field(default_factory=Counter)
    """What the database holds in the end: how often each id is there."""

    def tell(self, when: float, what: str) -> None:
        self.told.append((when, what))
