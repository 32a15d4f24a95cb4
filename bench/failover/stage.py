"""Where a scenario plays: the servers, what the clients are told of them, and the notes that are taken.

A scenario calls these methods, in the order of its story. The cluster is made for it alone and thrown away afterwards,
so a scenario need not tidy up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.failover.client import Client
from bench.failover.effort import Effort
from bench.failover.observer import Observer
from bench.failover.ops import Kind
from bench.failover.peers import Place
from bench.failover.story import Possible, Story

if TYPE_CHECKING:
    from pgdbpool.testing import Cluster, Impostor, Node, Proxy
    from pgdbpool.testing.address import Address

TABLES = """
create table items (id bigint not null, caller int not null);
create index on items (id);
create table observed (at timestamptz default clock_timestamp());
grant all on items, observed to app
"""
LIMIT = 30.0  # s
CONNECTED = "connection received: host=127."


class Stage:
    """One performance of one scenario."""

    def __init__(self, cluster: Cluster, effort: Effort, stack: ExitStack) -> None:
        self.cluster = cluster
        self.effort = effort
        self.stack = stack
        """What a scenario has to close at the end."""
        self.places = [place(node) for node in cluster.nodes]
        """What the clients are told."""
        self.prefix: Sequence[str] = ()
        """Surroundings for the clients' processes."""
        self.proxies: dict[int, Proxy] = {}
        """By the port of the server behind each."""
        self.others = ExitStack()
        """Sessions of somebody else."""
        self.names = Path()
        """Where the clients look up names, if not in the system's files."""
        self.impostors: list[Impostor] = []
        """Servers that are not real; their attempts are counted among the connects."""
        self.clients: list[Client] = []
        self.moved: tuple[Node, Node] | None = None
        """From which server to which one a name has moved that the clients know."""
        self.watched = cluster.standbys[-1]
        self.story = Story({node.port: node.name for node in cluster.nodes}, writer=cluster.primary.port)
        self._connects_before = 0
        cluster.primary.execute(TABLES)
        cluster.wait_for_replication()

    # The course of time

    def work(self, clients: list[Client]) -> None:
        """The clients have started."""
        self.clients = clients
        self.story.began = time.monotonic()
        self._connects_before = self._connects()

    def steady(self) -> None:
        """All is well for a time."""
        time.sleep(self.effort.steady)

    def tell(self, what: str) -> None:
        """Note what was done just now."""
        self.story.tell(time.monotonic(), what)

    @contextmanager
    def blow(self, what: str) -> Iterator[None]:
        """Something bad is done: ``with stage.blow("node1 is killed"): ...``."""
        if not self.story.faults:
            self._connects_before = self._connects()
        began = time.monotonic()
        yield
        self.story.faults.append((began, time.monotonic()))
        self.story.tell(began, what)

    def promote(self, node: Node, *, known: bool = True) -> None:
        """Make a standby the primary, have the others follow it, and find out when it takes writes.

        Not `known`: no place of the clients leads there yet, so a healthy write is not possible for them.
        """
        followers = [each for each in self.cluster.standbys if each is not node and each.following is not node]
        with Observer(node, "write") as observer:
            self.tell(f"{node.name} is being promoted")
            node.promote()
            for follower in followers:
                if follower.is_running and not follower.is_frozen:
                    follower.rejoin(node)
            self.story.writer = node.port
            answer = observer.answer()
        if known:
            self.possible("write", answer)
        else:
            self.story.tell(answer.at, f"{node.name} takes writes")

    def possible(self, kind: Kind, since: Possible) -> None:
        """A healthy answer is possible."""
        self.story.possible[kind] = since
        self.story.tell(since.at, f"a healthy {kind} is possible")

    def recover(self, limit: float = 0.0) -> None:
        """Give the clients time for the first success of what became possible; ``limit``: at least so long."""
        deadline = time.monotonic() + max(limit, self.effort.recovery)
        self.until(lambda: all(self._recovered(client) for client in self.clients), deadline)

    def _recovered(self, client: Client) -> bool:
        return all(
            client.done(kind, possible.after, self.story.writer if kind == "write" else None)
            for kind, possible in self.story.possible.items()
        )

    def need(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something without which the story cannot go on."""
        if not self.until(condition, time.monotonic() + LIMIT):
            raise TimeoutError(f"{what}: not within {LIMIT:g} s")

    def until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait for it; False if the time is over."""
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def settle(self) -> None:
        """A server that came back last has to be found, too."""
        time.sleep(self.effort.settle)

    def calm(self) -> None:
        """All is well again, or as well as it will be."""
        began = time.monotonic()
        time.sleep(self.effort.calm)
        self.story.calm = (began, time.monotonic())

    def end(self) -> None:
        """Ask the callers to end, and see what the database holds."""
        for client in self.clients:
            client.tell_to_stop()
        deadline = time.monotonic() + self.effort.patience
        for client in self.clients:
            client.wait_for_callers(deadline)
        self.story.over = time.monotonic()
        self.story.connects = self._connects() - self._connects_before
        rows = self.cluster.primary.execute("select id, count(*) from items group by id")
        self.story.rows = Counter(dict(rows))

    def _connects(self) -> int:
        real = sum(node.log().count(CONNECTED) for node in self.cluster.nodes)
        return real + sum(len(impostor.attempts) for impostor in self.impostors)

    def use_proxies(self) -> None:
        """Put a proxy in front of each server; the clients know only the proxies. Before they start."""
        for node in self.cluster.nodes:
            self.proxies[node.port] = self.stack.enter_context(node.proxy())
        self.places = [place(self.proxies[node.port]) for node in self.cluster.nodes]

    def proxy_of(self, node: Node) -> Proxy:
        """The proxy in front of a server."""
        return self.proxies[node.port]

    def standby(self) -> Node:
        """The standby that something will happen to."""
        self.watched = self.cluster.standbys[-1]
        self.story.watched = self.watched.port
        return self.watched

    def returned(self, what: str) -> None:
        """The standby of the story is of use again."""
        self.story.returned = time.monotonic()
        self.tell(what)


def place(address: Address, host: str | None = None) -> Place:
    """A server as clients are told of it."""
    login = address.login
    return Place(host or address.host, address.port, login.database, login.user, login.password)
