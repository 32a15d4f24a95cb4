"""What pgdbpool has to reach in each scenario, with its default settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from bench.failover.figures import Figures
from bench.failover.peers import OURS
from bench.targets import Target

STORM = 50.0  # connects per second to each server, on the average, that are still no storm
SERVERS = 3
STALE = 0.01  # s


class Check(NamedTuple):
    """One thing that is asked of one scenario."""

    what: str
    needed: str
    measured: Callable[[Figures], str]
    reached: Callable[[Figures], bool]


def seconds(value: float | None) -> str:
    return "-" if value is None else "never" if value == inf else f"{value:.2f} s"


def within(limit: float, of: str, what: str) -> Check:
    """A time in seconds that must not be longer."""

    def value(one: Figures) -> float | None:
        found: float | None = getattr(one, of)
        return found

    return Check(
        what,
        f"at most {limit:g} s",
        lambda one: seconds(value(one)),
        lambda one: (found := value(one)) is not None and found <= limit,
    )


FIRST_WRITE = "first write after it was possible"
NOBODY_HANGS = Check("callers that hang", "none", lambda one: str(one.hung), lambda one: not one.hung)
NOTHING_FAILS = Check("failed operations", "none", lambda one: str(one.failed), lambda one: not one.failed)
ONLY_IN_FLIGHT = Check(
    "failed operations",
    "at most those in flight",
    lambda one: f"{one.failed} of {one.in_flight}",
    lambda one: one.failed_writes <= one.writes_in_flight and one.failed_reads <= one.reads_in_flight,
)
NO_CHECKOUT_FAILS = Check(
    "failed checkouts",
    "none",
    lambda one: str(one.failed_checkouts),
    lambda one: not one.failed_checkouts,
)
ONE_EACH = Check(
    "failed operations",
    "at most one for each writer",
    lambda one: f"{one.failed} of {one.callers // 2}",
    lambda one: one.failed <= one.callers // 2,
)
NO_STORM = Check(
    "connects per second and server",
    f"at most {STORM:g}",
    lambda one: f"{one.connects / one.seconds / SERVERS:.0f}",
    lambda one: one.connects / one.seconds / SERVERS <= STORM,
)
RIGHT_SERVER = Check(
    "writes of the calm on other servers than the primary",
    "none",
    lambda one: ", ".join(one.writes) or "no writes",
    lambda one: len(one.writes) == 1,
)
KEPT = Check(
    "acknowledged writes lost, done twice, or done though they failed",
    "none",
    lambda one: f"{one.lost}, {one.twice}, {one.phantoms}",
    lambda one: not (one.lost or one.twice or one.phantoms),
)
RETURN = Check(
    "standby reads on the one that came back",
    "40 to 60 %",
    lambda one: f"{one.share or 0:.0%}".replace("%", " %"),
    lambda one: one.share is not None and 0.4 <= one.share <= 0.6,
)
QUIET_RETURN = Check(
    "failed operations after the return",
    "none",
    lambda one: str(one.failed_on_return),
    lambda one: not one.failed_on_return,
)
AVOIDED = Check(
    "standby reads on the slow one",
    "under 10 %",
    lambda one: f"{one.share or 0:.1%}".replace("%", " %"),
    lambda one: one.share is not None and one.share < 0.1,
)
EVEN = Check(
    "99 % of the reads, compared with the fast standby's",
    "at most 1.5x",
    lambda one: "-" if one.p99_ratio is None else f"{one.p99_ratio:.2f}x",
    lambda one: one.p99_ratio is not None and one.p99_ratio <= 1.5,
)

MOVED = "first write after the name had moved"
NOT_STALE = Check(
    "writes that reached the old primary after the new one had let the pool in",
    f"none later than {STALE * 1000:g} ms",
    lambda one: "-" if one.stale is None else f"for {one.stale * 1000:.0f} ms" if one.stale else "none",
    lambda one: one.stale is not None and one.stale <= STALE,
)

CHECKS: Mapping[str, Sequence[Check]] = {
    "kill-primary": (ONLY_IN_FLIGHT, within(0.25, "first_write", FIRST_WRITE)),
    "freeze-primary": (NOBODY_HANGS, within(3.0, "first_write", FIRST_WRITE)),
    "refuse-writes": (ONE_EACH, within(0.5, "first_write", FIRST_WRITE)),
    "switchover": (ONLY_IN_FLIGHT, within(0.25, "first_write", FIRST_WRITE)),
    "restart-primary": (ONLY_IN_FLIGHT, within(0.25, "first_write", FIRST_WRITE)),
    "kill-standby": (
        NO_CHECKOUT_FAILS,
        ONLY_IN_FLIGHT,
        within(0.1, "stall_read", "longest read, less the time that the killing took"),
    ),
    "freeze-standby": (NOBODY_HANGS, within(3.0, "longest_read", "longest read")),
    "standby-returns": (RETURN, QUIET_RETURN),
    "network": (
        NOBODY_HANGS,
        within(3.0, "longest_read", "longest read"),
        within(3.0, "first_write", "first write after the network healed"),
    ),
    "all-down": (within(1.0, "first_read", "first read after the first server answered"),),
    "slow-standby": (AVOIDED, EVEN),
    "full-standby": (NOBODY_HANGS, NOTHING_FAILS, NO_STORM),
    "starting-up": (NOBODY_HANGS, ONLY_IN_FLIGHT, NO_STORM),
    "wrong-password": (NOBODY_HANGS, NOTHING_FAILS, NO_STORM),
    "name": (NOBODY_HANGS, ONLY_IN_FLIGHT, RIGHT_SERVER, NO_STORM),
    "split-brain": (NOBODY_HANGS, RIGHT_SERVER),
    "flapping": (NOBODY_HANGS, ONLY_IN_FLIGHT, NO_STORM),
    "name-switchover": (NOBODY_HANGS, ONLY_IN_FLIGHT, RIGHT_SERVER, NOT_STALE, within(1.0, "first_write", MOVED)),
    "name-old-lives-on": (NOBODY_HANGS, ONLY_IN_FLIGHT, RIGHT_SERVER, NOT_STALE, within(1.0, "first_write", MOVED)),
}


def targets(scenario: str, rows: Sequence[Figures]) -> list[Target]:
    """What was to be reached in a scenario, and whether it was."""
    return [
        Target(f"{scenario}, {one.peer}: {check.what}", check.needed, check.measured(one), check.reached(one))
        for check in (*CHECKS.get(scenario, ()), KEPT)
        for one in rows
        if one.peer.startswith(OURS)
    ]
