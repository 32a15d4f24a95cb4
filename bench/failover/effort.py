"""How long each part of a scenario goes on, in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How long each part of a scenario goes on, in seconds."""

    name: str
    steady: float
    """All is well, before anything happens."""
    gap: float
    """Between the loss of the primary and the promotion."""
    restart: float
    """How long a primary that restarts is down."""
    outage: float
    """How long all servers are down."""
    silence: float
    """How long a server is frozen, or the network swallows everything, before what comes next."""
    down: float
    """How long a standby that comes back has been away."""
    returned: float
    """How long a standby that came back is watched; its share is that of the last ``calm`` seconds."""
    flaps: int
    """How often a flapping standby goes down."""
    recovery: float
    """How long to wait for the first success once it is possible."""
    settle: float
    """After the first success, before the calm: a server that came back last has to be found, too."""
    calm: float
    """All is well again, at the end; shares are measured then."""
    patience: float
    """After the end: who has not finished the present operation after so long hangs."""
    pause: float
    """Between two operations of one caller."""


FULL = Effort(
    name="full",
    steady=1.0,
    gap=1.0,
    restart=0.5,
    outage=30.0,
    silence=4.0,
    down=2.0,
    returned=15.0,
    flaps=3,
    recovery=8.0,
    settle=2.5,
    calm=2.0,
    patience=3.0,
    pause=0.01,
)

QUICK = Effort(
    name="quick",
    steady=1.0,
    gap=1.0,
    restart=0.5,
    outage=6.0,
    silence=3.5,
    down=2.0,
    returned=12.0,
    flaps=2,
    recovery=6.0,
    settle=2.5,
    calm=1.5,
    patience=3.0,
    pause=0.01,
)
