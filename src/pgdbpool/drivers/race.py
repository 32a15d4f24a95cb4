"""Tries the addresses of a name, side by side if need be, and takes the first at which a server answers that will do.

The addresses come in the resolver's order. The next one is begun when one has failed, and beside those under way when
they have been silent for a while: shortly where nothing at all has come back, as RFC 8305 ("Happy Eyeballs") advises,
longer where a machine has accepted the connection and its server says nothing yet. It is never begun later than by its
share of the time. So an address that swallows everything costs a quarter of a second and not the whole of
`connect_timeout`; and each attempt goes on until the end, or until another one has won.

What one address says is no evidence where another one answers. Where none does, the most hopeful failure counts: a
name refuses only if every address of it does to which there is a way at all.

Like the conversations of `steps` a race does not wait itself: `blocking.run_race` and `asynchronous.run_race` do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Generic, Protocol, TypeVar

import psycopg
from psycopg import pq

from ..core.evidence import Fault
from . import ConnectFailed, DriverTimeout, steps

UNREACHED = 0.25  # s without any sign from an address before the next one is begun; RFC 8305 says the same
ACCEPTED = 1.0  # s without a word from a server whose machine has accepted the connection

# The first of several failures in this order counts. One where a server speaks is tried again the soonest, and costs no
# open sessions. The last are of no weight: this machine, or a network on the way, says that no way leads there.
_ORDER = (
    Fault.STARTING,
    Fault.FULL,
    Fault.WAITING,
    Fault.MISCONFIGURED,
    Fault.TIMEOUT,
    Fault.UNRESOLVED,
    Fault.ENDED,
    Fault.CRASHED,
    Fault.REFUSED,
    Fault.UNREACHABLE,
    Fault.LOCAL,
)


class Reached(Protocol):
    """What an attempt comes to."""

    @property
    def session(self) -> pq.abc.PGconn: ...


R = TypeVar("R", bound=Reached)
Rank = Callable[[R], int | None]
"""How well a result suits: 0 as wanted, more is second choice, None: of no use, but better than nothing at all."""


class Race(Generic[R]):
    """Attempts at the addresses of one name, all of them begun within `span` seconds from `now` on.

    A result that is second choice ends it when the other attempts have been silent for as long as would begin the next
    one. To be closed, which ends what is still under way.
    """

    def __init__(
        self, attempts: Iterable[steps.Steps[R]], now: float, span: float, rank: Rank[R] | None = None
    ) -> None:
        self._left = deque(attempts)
        self._end = now + span
        self._rank = rank
        self._running: list[tuple[steps.Steps[R], tuple[int, int]]] = []  # with what each waits for
        self._found: list[tuple[float, R]] = []  # not as wanted
        self._failures: list[Exception] = []
        self._share = now  # when the next one is begun at the latest
        self._next_at = now  # when it is, if nothing is heard before

    @property
    def events(self) -> dict[int, int]:
        """What it waits for: poll events by descriptor."""
        return dict(waits_for for _, waits_for in self._running)

    @property
    def until(self) -> float:
        """When to go on though none of them has come."""
        return self._next_at if self._left or self._useful else float("inf")

    def go_on(self, ready: Collection[int], now: float) -> R | None:
        """The descriptors in `ready` have something; none: the time has come. Returns the result once there is one.

        Raises what `together` makes of the failures if there can be none.
        """
        for runner in [each for each in self._running if each[1][0] in ready]:
            self._running.remove(runner)
            self._next_at = min(now + ACCEPTED, self._share)
            if (result := self._run(runner[0], now)) is not None:
                return result
        while self._left and (now >= self._next_at or not self._running):
            self._share = now + max(0.0, self._end - now) / len(self._left)
            self._next_at = min(now + UNREACHED, self._share)
            if (result := self._run(self._left.popleft(), now)) is not None:
                return result
        if not self._running or (self._useful and now >= self._next_at):
            return self.best()
        return None

    def _run(self, conversation: steps.Steps[R], now: float) -> R | None:
        """Up to where it has to wait. Returns its result if that is as wanted."""
        try:
            waits_for = conversation.send(None)
        except StopIteration as end:
            result: R = end.value
            rank = 0 if self._rank is None else self._rank(result)
            if rank == 0:
                return result
            self._found.append((float("inf") if rank is None else rank, result))
            steps.half_open.add(result.session)
        except (ConnectFailed, psycopg.Error) as error:
            self._failures.append(error)
        else:
            self._running.append((conversation, waits_for))
            return None
        self._next_at = now
        return None

    @property
    def _useful(self) -> bool:
        return any(rank < float("inf") for rank, _ in self._found)

    def best(self) -> R:
        """The end of the time, or of all attempts: what there is. Raises as `go_on`."""
        if not self._found:
            for conversation, _ in self._running:
                try:
                    conversation.throw(DriverTimeout("the server did not answer in time"))
                except (ConnectFailed, DriverTimeout, psycopg.Error) as error:
                    self._failures.append(error)
            self._running.clear()
            raise together(self._failures)
        best = min(self._found, key=lambda each: each[0])
        self._found.remove(best)
        steps.half_open.discard(best[1].session)
        return best[1]

    def close(self) -> None:
        """End what is under way, and what was found and not wanted."""
        for conversation, _ in self._running:
            conversation.close()
        for _, result in self._found:
            steps.half_open.discard(result.session)
            result.session.finish()
        self._running.clear()
        self._found.clear()


def together(failures: Collection[Exception]) -> Exception:
    """What the failures of all addresses mean for the name."""
    failed = [error for error in failures if isinstance(error, ConnectFailed)]
    if not failed:
        return next(iter(failures))
    chosen = min(failed, key=lambda error: _ORDER.index(error.fault))
    chosen.args = ("\n".join(dict.fromkeys(map(str, failed))),)
    chosen.options_refused = any(error.options_refused for error in failed)
    return chosen
