"""What happens to the servers, and when.

The times are parts of the duration. A step that takes longer than its part only delays the ones after it; the run
always ends with a calm stretch, so that it can be seen whether work goes on.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from pgdbpool.testing import Cluster, Node

from .measure import Measure

KILL_STANDBY = 0.15
START_STANDBY = 0.33
KILL_PRIMARY = 0.50
REJOIN = 0.72
CALM = 0.15  # at least this part comes after the last step


class Event(NamedTuple):
    """Something that was done to a server."""

    at: float
    """Seconds since the start of the load."""
    text: str
    good: bool
    """Whether it made things better."""


class Scenario:
    """The script of one run."""

    def __init__(
        self, cluster: Cluster, measure: Measure, duration: float, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.duration = duration
        self.events: list[Event] = []
        self.without_primary = 0.0
        """Seconds from the death of the primary to the end of the promotion."""
        self.recovered_at = float("inf")
        """When the other standbys followed the new primary, so that commits could be confirmed again."""
        self.killed_at = float("inf")
        """When the primary was killed."""
        self._cluster = cluster
        self._measure = measure
        self._pause = sleep

    def play(self) -> None:
        """The whole script, in this thread."""
        standby = self._cluster.standbys[-1]
        self._until(KILL_STANDBY)
        standby.kill()
        self._tell(f"{standby.name}, a standby, is killed", good=False)
        self._until(START_STANDBY)
        standby.start()
        self._tell(f"{standby.name} is started again", good=True)
        self._until(KILL_PRIMARY)
        old = self._fail_over()
        self._until(REJOIN)
        old.rejoin(self._cluster.primary)
        self._tell(f"{old.name}, the old primary, is back as a standby", good=True)
        calm = self._measure.elapsed() + CALM * self.duration
        self._sleep(max(calm, self.duration))
        self._measure.end()

    def _fail_over(self) -> Node:
        cluster = self._cluster
        old = cluster.primary
        self.killed_at = self._measure.elapsed()
        old.kill()
        self._tell(f"{old.name}, the primary, is killed", good=False)
        new = cluster.most_advanced_standby()
        new.promote()
        self.without_primary = self._measure.elapsed() - self.killed_at
        self._tell(f"{new.name} had received most, and is promoted", good=True)
        for node in cluster.standbys:
            node.rejoin(new)
            self._tell(f"{node.name} follows {new.name}: commits are confirmed again", good=True)
        self.recovered_at = self._measure.elapsed()
        return old

    def _tell(self, text: str, *, good: bool) -> None:
        self.events.append(Event(self._measure.elapsed(), text, good))

    def _until(self, part: float) -> None:
        self._sleep(part * self.duration)

    def _sleep(self, until: float) -> None:
        self._pause(max(0.0, until - self._measure.elapsed()))
