"""What a probe of an endpoint is: whom it asks, by which connection, and who is the same as whom."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import sleep
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from .clock import monotonic
from .config import EndpointSettings, GroupSettings, MonitorSettings, Secret, conninfo
from .core.endpoint import Endpoint
from .core.evidence import MISSES, Fault, Health, Report, Role, Sighting
from .core.topology import Topology
from .drivers import ConnectFailed, DriverTimeout, NoServer, Unanswered, names, psycopg3, steps
from .drivers.asynchronous import Allowance, resolved
from .drivers.blocking import drive, reach, run
from .drivers.blocking import resolved as resolved_here
from .drivers.sealed import Sealed
from .poolers import is_pooled

Password = Callable[[Callable[[], Any], float], Coroutine[Any, Any, Secret | None]]  # as `Driver.password`

_AS = GroupSettings(name="monitor")  # application_name is pgdbpool:monitor
_PAUSE = 0.25  # s between two connects of `death_of` that are refused at once


class Asked(NamedTuple):
    """An answered probe."""

    session: pq.abc.PGconn
    sighting: Sighting
    seconds: float
    since: float
    """When its connection was made."""


def key_of(where: EndpointSettings) -> object:
    """Endpoints with the same key are reached in the same way, and are probed once for all pools."""
    return (
        where.host,
        where.port,
        where.name,
        where.user,
        id(where.password) if callable(where.password) else where.password,
        where.ssl,
        where.keepalives,
        where.params,
    )


def name_of(where: EndpointSettings) -> str | None:
    """The host name that leads there; None: an address, or the folder of a socket."""
    return names.name_in(conninfo(where, _AS, None, startup_options=False))


async def request(where: EndpointSettings, password: Secret | None, allowance: Allowance) -> list[Sealed]:
    """What libpq is told, for each address of the host. Raises ConnectFailed."""
    # No startup options: a pooler in between may refuse them, and the question needs none.
    return await resolved(conninfo(where, _AS, password, startup_options=False), allowance)


def asking(session: pq.abc.PGconn, since: float | None = None, *, pooled: bool = False) -> steps.Steps[Asked]:
    """The question, on a session that was made at `since`, or just now.

    A server that answers by an error is there; what it is, is not known then. Where the last answer came through a
    pooler, what the session reports is not believed.
    """
    began = monotonic()
    try:
        sighting = yield from steps.sighting(session, pooled=pooled)
    except Unanswered:
        sighting = Sighting(Report(Role.UNKNOWN), pooled=pooled)
    return Asked(session, sighting, monotonic() - began, began if since is None else since)


def death_of(
    topology: Topology, endpoint: Endpoint, how: MonitorSettings, password: Password
) -> Callable[[float], str | None]:
    """For pools without a monitor: asked by a call that gets no answer, says whether its server is dead, and how.

    A call that ends anyway at a given time is not held up longer; a look that was cut short is no evidence.

    Tries to connect, `fall` times, each bounded; so a frozen server is found out after at most
    ``1.1 + 0.75 * timeout * fall`` seconds of silence (a call looks at the clock ten times a second), or twice the
    silence of the last look. A primary that is alive may have been overtaken by a promotion, so then the others are
    looked at as well.
    """

    def ask(until: float, address: str = "") -> str | None:
        words, fault = "", None
        for _ in range(how.fall):
            if fault is not None and fault is not Fault.TIMEOUT:
                sleep(_PAUSE)
            try:
                _look(topology, endpoint, 0.75 * how.timeout, password, until, address)
                break
            except ConnectFailed as error:
                fault, words = error.fault, str(error)
                if fault is Fault.WAITING:
                    if monotonic() < until and topology.waits(endpoint, words, monotonic()):
                        return words
                    break
                if fault not in MISSES or monotonic() >= until:
                    return None  # it speaks, or was not given its time
            except Exception:  # of our own
                return None
        else:
            if address:
                topology.deserted(endpoint, address, words, monotonic())
            else:
                topology.silent(endpoint, words, monotonic())
            return words
        if endpoint.role is Role.PRIMARY:
            for other in topology.endpoints:
                if other is not endpoint and other.health is not Health.DOWN:
                    with suppress(Exception):
                        _look(topology, other, 0.25 * how.timeout, password, until)
        return endpoint.fenced_by

    return ask


def _look(
    topology: Topology, endpoint: Endpoint, limit: float, password: Password, until: float, address: str = ""
) -> None:
    """One probe on a connection of its own; the server has `limit` seconds for each word. Raises ConnectFailed."""
    where: EndpointSettings = endpoint.settings  # type: ignore[assignment]
    secret = where.password
    if callable(secret):
        secret = run(password(secret, monotonic() + where.connect_timeout))
    deadline = min(until, monotonic() + max(limit, where.connect_timeout))
    params = conninfo(where, _AS, secret, startup_options=False)
    places = resolved_here({**params, "hostaddr": address} if address else params)
    session = reach(places, steps.meeting, deadline, each=limit).session
    try:
        asked = drive(asking(session, pooled=is_pooled(endpoint)), deadline, each=limit)
        topology.probed(endpoint, asked.sighting, asked.seconds, monotonic())
    except DriverTimeout as error:
        waiting = endpoint.pooled or isinstance(error, NoServer)
        raise ConnectFailed("connection timed out", Fault.WAITING if waiting else Fault.TIMEOUT) from None
    except psycopg.Error as error:  # it let us in, and a pooler, say, has no server for us
        raise ConnectFailed(str(error).strip(), psycopg3.fault(error) or Fault.ENDED) from None
    finally:
        session.finish()
