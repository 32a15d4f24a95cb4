"""What every deployment has to come through, in one go, and what must be true of it afterwards.

::

    with at_work(row, cluster, tmp_path) as work:
        work.lose_a_standby()
        work.lose_the_primary()
        work.reload()
    work.check()

Requests of all kinds come in all the while. Each step waits until they are answered again. `check` looks at the
answers, at the rows in the database, and at what pg_stat_activity showed before, during and after:

* every acknowledged key is there, with all its rows, once; a failed one is there with all of them or not at all;
* operations failed only where a database server was lost under them, or within POLL_AFTER after: so long a process
  without a listener may hand out a connection that it has just used, and that is dead;
* no process ever used the server's session of another, and there were never more connections than computed;
* after the end there is no connection and no process.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from examples.rows import Row
from pgdbpool.base import POLL_AFTER
from pgdbpool.testing import Cluster, Node

from .load import Load, Operation
from .server import LIMIT, Server, backends
from .sockets import Connection, connections
from .watch import Watch


class Work:
    """A server at work. Made by `at_work`."""

    def __init__(self, server: Server, cluster: Cluster, load: Load, watch: Watch) -> None:
        self.server = server
        self.cluster = cluster
        self.load = load
        self.watch = watch
        self.row = server.row
        self._losses: list[tuple[float, float]] = []  # when a database server was lost, and when all was well again
        self._reloads: list[tuple[float, float]] = []

    # -- what happens to it ---------------------------------------------------------------------------------------

    def lose_a_standby(self) -> None:
        """kill -9 a standby; requests of all kinds are answered, reads by the other; it comes back and serves again."""
        node, other = self.cluster.standbys
        self.load.wait_for(1, "a read on the standby that is to be lost", by(node))
        began = time.monotonic()
        node.kill()
        self.load.wait_for_each(3, "answers without one standby")
        self._lost(began)
        self.load.wait_for(3, "reads on the standby that is left", by(other))
        node.start()
        node.wait_ready(LIMIT)
        self.load.wait_for_each(1, "answers with the standby back")
        self.load.wait_for(1, "a read on the standby that is back", by(node))

    def lose_the_primary(self) -> None:
        """kill -9 the primary and promote a standby; requests of all kinds are answered."""
        began = time.monotonic()
        new = self.cluster.failover()
        self.load.wait_for_each(3, "answers after the failover")
        self._lost(began)
        writes = [op for op in self.load.operations if op.kind != "read" and op.good and op.began > began]
        assert writes[-1].answer["server"] == address(new)

    def _lost(self, began: float) -> None:
        """All is well again, but for connections that were used a moment ago: the next step is not to be blamed."""
        ended = time.monotonic() + POLL_AFTER
        self._losses.append((began, ended))
        self.server.wait(lambda: time.monotonic() > ended, "the end of that moment")

    def reload(self, how: str = "") -> None:
        """Have new workers take over, and wait until no old one is left. `how` is in the place of the row's way."""
        workers = {op.answer["worker"] for op in self.load.operations[-200:] if op.good}
        began = time.monotonic()
        self.server.reload(how)
        self.load.wait_for(20, "answers of new workers", lambda op: op.answer["worker"] not in workers)
        self.server.wait(lambda: not self.server.processes() & workers, "the end of the old workers")
        self.load.wait_for_each(3, "answers after the reload")
        self._reloads.append((began, time.monotonic()))
        self.connections()

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many processes have answered since the beginning."""
        self.server.wait(
            lambda: len({op.answer["worker"] for op in self.load.operations if op.good}) >= count, f"{count} workers"
        )

    def check_status_page(self) -> None:
        """It is there."""
        status, page = self.server.ask("GET", "/status/")
        assert (status, b"<html" in page) == (200, True)

    # -- what can be seen now -------------------------------------------------------------------------------------

    def connections(self) -> dict[Connection, set[int]]:
        """The connections of its processes; each is had by one of them only, which is waited for.

        A child that was just forked needs a moment to let go of what it has inherited.
        """

        def parted() -> dict[Connection, set[int]]:
            found = connections(self.server.processes(), self.cluster)
            return found if all(len(pids) == 1 for pids in found.values()) else {}

        return self.server.wait(parted, "connections that belong to one process each")

    def connections_of(self, pid: int) -> set[Connection]:
        """Those of one process."""
        return {connection for connection, pids in self.connections().items() if pids == {pid}}

    def threads(self) -> set[int]:
        """How many threads the processes that have answered have, those of C libraries included."""
        workers = {op.answer["worker"] for op in self.load.operations if op.good}
        return {self.server.threads(pid) for pid in workers & self.server.processes()}

    # -- what must be true ----------------------------------------------------------------------------------------

    def check(self, *, others: int = 0, excused: Callable[[Operation], bool] = lambda op: False) -> None:
        """After the end: all of it.

        `others` are processes that have connections too, but answer nothing, such as a first process that has used the
        pool. `excused` says which operations a reload may fail, for servers that reload roughly.
        """
        operations = self.load.operations
        check_rows(self.cluster, operations)
        check_sharing(operations)
        self._check_failures(excused)
        self._check_connections(others)
        assert "Traceback" not in self.server.log(), self.server.log()[-4000:]

    def _check_failures(self, excused: Callable[[Operation], bool]) -> None:
        """For each loss at most what was in flight, and what found its connection dead before its process knew."""
        most = self.load.clients + self.row.processes * self.row.threads
        rest = self.load.failed()
        for began, ended in self._losses:
            failed = self.load.failed(began, ended)
            assert len(failed) <= most, f"{len(failed)} failed for one lost server: {failed[:40]}"
            assert {op.status for op in failed} <= {500, 502}, failed
            rest = [op for op in rest if op not in failed]
        for began, ended in self._reloads:
            failed = [op for op in self.load.failed(began, ended) if op in rest]
            unexcused = [op for op in failed if not excused(op)]
            assert not unexcused, unexcused[:10]
            rest = [op for op in rest if op not in failed]
        assert rest == [], "failed though nothing was lost"

    def _check_connections(self, others: int) -> None:
        assert any(look.seen for look in self.watch.looks), "nobody has looked"
        processes = self.row.processes
        limits = {"": self.row.connections // processes, **self.row.groups}  # of one process
        edges = [0.0, *(moment for reload in self._reloads for moment in reload), float("inf")]
        for group, limit in limits.items():
            most = limit * (processes + others)
            for since, until in zip(edges[::2], edges[1::2], strict=True):
                found = self.watch.most(group, since, until)
                assert found <= most, f"{found} connections of {group or 'all'}, {most} allowed"
            for since, until in self._reloads:  # old and new workers
                assert self.watch.most(group, since, until) <= most + limit * processes


@contextmanager
def at_work(
    row: Row,
    cluster: Cluster,
    folder: Path,
    *,
    clients: int = 8,
    groups: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
    command: str = "",
    root: str = "",
) -> Iterator[Work]:
    """The server of a row, with clients that ask it, for the length of a ``with`` block; then it is stopped.

    Stopping it sees that no process and no connection is left.
    """
    assert backends(cluster) == {}, "somebody else is at work"
    server = Server(row, cluster, folder, groups=groups, environment=environment, command=command, root=root)
    with Watch(cluster) as watch, server, Load(server, clients) as load:
        load.wait_for_each(2, "first answers")
        yield Work(server, cluster, load, watch)


def address(node: Node) -> str:
    """A server as the application names it."""
    return f"{node.host}:{node.port}"


def by(node: Node) -> Callable[[Operation], bool]:
    """Whether a read was answered by this server."""
    return lambda op: op.kind == "read" and bool(op.answer["server"] == address(node))


def check_rows(cluster: Cluster, operations: Collection[Operation]) -> None:
    """What was acknowledged is in the database once; of what failed there is all or nothing."""
    found = dict(cluster.primary.execute("select key, count(*) from notes group by key"))
    for op in operations:
        rows = found.pop(op.key, 0)
        if op.good:
            assert rows == op.rows, f"{op.key}: acknowledged {op.rows} rows, found {rows}"
        else:
            assert rows in (0, op.rows), f"{op.key}: failed, and {rows} of {op.rows} rows are there"
    assert found == {}, "nobody asked for these"


def check_sharing(operations: Collection[Operation]) -> None:
    """No session of a database server has ever served two processes."""
    workers = defaultdict(set)
    for op in operations:
        if op.good:
            workers[op.answer["server"], op.answer["backend"]].add(op.answer["worker"])
    shared = {session: pids for session, pids in workers.items() if len(pids) > 1}
    assert shared == {}
