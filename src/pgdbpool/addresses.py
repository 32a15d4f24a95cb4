"""Watches the addresses of a name one by one, while a pool has sessions there.

A probe of an endpoint is answered by whichever address of its name answers first. That says nothing of a session with
another one, whose server may be frozen: a call on it would wait for ever. So each address at which a pool has a session
gets a watch of its own, like an endpoint. Where that is given no answer, `fall` times in a row, the sessions there are
given up and calls in flight on them ended. Nothing else is believed of it: the name may well be usable.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .config import EndpointSettings, MonitorSettings
from .core.endpoint import Endpoint
from .core.evidence import MISSES, SILENT, Fault, Sighting
from .monitor import Subscription, subscribe
from .session import Sessions


class Addresses:
    """Those of one endpoint, for one pool. `lost` is told, in the monitor's thread, of an address and why."""

    def __init__(
        self, sessions: Sessions, endpoint: Endpoint, how: MonitorSettings, lost: Callable[[str, str], None]
    ) -> None:
        self._sessions = sessions
        self._endpoint = endpoint
        self._how = how
        self._lost = lost
        self._watched: dict[str, Subscription] = {}
        self._over = False

    def look(self) -> None:
        """See where there are sessions now. In the monitor's thread."""
        lanes = self._sessions.topology.lanes(self._endpoint)
        used = {slot.address for lane in lanes for slot in lane.ledger.live} - {""}
        for address in used - self._watched.keys():
            where: EndpointSettings = self._endpoint.settings  # type: ignore[assignment]
            where = msgspec.structs.replace(where, params={**where.params, "hostaddr": address})
            told = _Address(self._sessions, self._endpoint, address, self._how, self._lost)
            self._watched[address] = subscribe(where, self._how, told)
        for address in self._watched.keys() - used:
            self._forget(address)
        if self._over:  # it has ended meanwhile
            self.end()

    def end(self) -> None:
        """Watch none of them any more. From any thread."""
        self._over = True
        for address in tuple(self._watched):
            self._forget(address)

    def _forget(self, address: str) -> None:
        watched = self._watched.pop(address, None)  # by one of two threads
        if watched is not None:
            watched.cancel()


class _Address:
    """Who is told of the probes of one address."""

    def __init__(
        self,
        sessions: Sessions,
        endpoint: Endpoint,
        address: str,
        how: MonitorSettings,
        lost: Callable[[str, str], None],
    ) -> None:
        self._sessions = sessions
        self._endpoint = endpoint
        self._address = address
        self._how = how
        self._lost = lost
        self._misses = 0

    def probed(self, sighting: Sighting, seconds: float, since: float) -> None:
        self._misses = 0

    def probe_failed(self, fault: Fault, error: str) -> None:
        speaks = fault in SILENT and self._sessions.speaks(self._endpoint, self._how.timeout / 2, self._address)
        self._misses = self._misses + 1 if fault in MISSES and not speaks else 0
        if self._misses >= self._how.fall:
            self._lost(self._address, error)

    def in_a_hurry(self) -> bool:
        return False

    def in_doubt(self) -> bool:
        return False

    def is_urgent(self) -> bool:
        return False

    def ended(self) -> None:
        pass
