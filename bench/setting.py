"""What all measures are given: the servers, the peers that can take part, and how long to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.async_peers import AsyncPeer
from bench.effort import Effort
from bench.peers import OURS, Limits, Peer
from bench.results import Table

if TYPE_CHECKING:
    from pgdbpool.testing import Cluster, Node


@dataclass(frozen=True)
class Setting:
    cluster: Cluster
    """A primary and two standbys."""
    peers: Sequence[type[Peer]]
    async_peers: Sequence[type[AsyncPeer]]
    """Those for asyncio, whether they can or not."""
    absent: dict[str, str]
    """Who cannot take part, and why."""
    effort: Effort
    say: Callable[[str], None]
    """Tells the user what is being done."""

    @property
    def reference(self) -> str:
        """Whom the others are compared with: pgdbpool, if it takes part."""
        names = [peer.name for peer in self.peers]
        return OURS if OURS in names or not names else names[0]

    @contextmanager
    def pools(
        self, nodes: Sequence[Node], limits: Limits, tables: Sequence[Table], more: Sequence[type[Peer]] = ()
    ) -> Iterator[dict[str, Peer]]:
        """All peers open at once, by name, each with all its connections open and used.

        Who cannot is noted as missing in the tables.
        """
        for table in tables:
            table.missing.update(self.absent)
        with ExitStack() as stack:
            pools = {}
            for peer in (*more, *self.peers):
                try:
                    pool = peer(nodes, limits)
                    stack.callback(pool.close)
                    pool.warm(limits.least * (len(nodes) if peer.name == OURS else 1))
                except Exception as error:
                    for table in tables:
                        table.missing[peer.name] = f"it does not open: {summary(error)}"
                else:
                    pools[peer.name] = pool
            yield pools


def summary(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
