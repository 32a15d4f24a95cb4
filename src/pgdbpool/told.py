"""What the monitor finds out about an endpoint, on its way to one pool."""

from __future__ import annotations

from collections.abc import Callable

from .addresses import Addresses
from .clock import monotonic
from .config import MonitorSettings
from .core.endpoint import Endpoint
from .core.evidence import SILENT, Fault, Sighting
from .session import Sessions


class Told:
    """Passes on what the monitor finds out about one endpoint, in the monitor's thread."""

    def __init__(self, sessions: Sessions, endpoint: Endpoint, how: MonitorSettings, wake: Callable[[], None]) -> None:
        self._sessions = sessions
        self._topology = sessions.topology
        self._endpoint = endpoint
        # A word that came in the first half of a probe's time may be older than the silence that it met.
        self._lately = how.timeout / 2
        self._wake = wake
        self._addresses = Addresses(sessions, endpoint, how, self._desert)

    def probed(self, sighting: Sighting, seconds: float, since: float) -> None:
        """A probe was answered, on a connection that was made at `since`."""
        self._believe(sighting, seconds, since)
        self._addresses.look()

    def probe_failed(self, fault: Fault, error: str) -> None:
        """A probe that got no answer says nothing against a server that answers others at the same time."""
        speaks = fault in SILENT and self._sessions.speaks(self._endpoint, self._lately)
        self._disbelieve(fault, error, speaks)
        self._addresses.look()

    def _believe(self, sighting: Sighting, seconds: float, since: float) -> None:
        if self._topology.probed(self._endpoint, sighting, seconds, monotonic(), since):
            self._wake()

    def _disbelieve(self, fault: Fault, error: str, speaks: bool) -> None:
        if self._topology.probe_failed(self._endpoint, fault, error, monotonic(), speaks=speaks):
            self._wake()

    def _desert(self, address: str, error: str) -> None:
        self._topology.deserted(self._endpoint, address, error, monotonic())
        self._wake()

    def ended(self) -> None:
        self._addresses.end()

    def in_a_hurry(self) -> bool:
        return self._topology.searching(monotonic())

    def in_doubt(self) -> bool:
        return self._topology.doubts(self._endpoint)

    def is_urgent(self) -> bool:
        return self._topology.urgent(self._endpoint, monotonic())
