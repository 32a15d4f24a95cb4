"""A slot: one server connection and what the pool knows of it.

A slot is in exactly one place at any time::

    reserved ──opened──▶ idle ◀──give── leased
                          │ └───take─────▶ │
                          └──▶ closing ◀───┘ ──▶ gone

``reserved`` is only a number (`Lane.opening`): there is nothing to hold yet. ``idle`` is membership in
`Lane.idle`; ``closing`` in `Group.closing`; every other slot of `Lane.slots` is ``leased``. There is no state
field to keep in step with the containers: popping from the idle stack *is* the change of state, and one atomic
operation.

Who writes what:

* the holder of the lease, alone: ``taken``, ``rested``, ``fresh_until``, ``holder`` and the counters;
* whoever holds the pool's lock: ``expires``, which it may pull forward ("close this one when it comes back").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lane import Lane


class Slot:
    """One server connection plus its bookkeeping. Times are seconds of the pool's clock."""

    __slots__ = (
        "born",
        "clean",
        "conn",
        "expires",
        "fresh_until",
        "generation",
        "holder",
        "lane",
        "rested",
        "rollbacks",
        "taken",
        "use_time",
        "uses",
        "wait_time",
        "waits",
    )

    def __init__(
        self, lane: Lane, conn: Any, clean: Callable[[], bool], generation: int, now: float, life: float
    ) -> None:
        self.lane = lane
        self.conn = conn
        # From the driver: True when the session is idle outside any transaction, says of its server what it
        # said before, and nothing else stands in the way of simply putting it back.
        self.clean = clean
        self.generation = generation
        self.born = now
        self.expires = now + life
        self.rested = now
        self.fresh_until = now  # up to then it may be handed out without a look at its socket
        self.taken = now
        self.holder: Any = None
        self.rollbacks = 0
        self.uses = 0
        self.use_time = 0.0
        self.waits = 0
        self.wait_time = 0.0
