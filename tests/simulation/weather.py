"""What goes wrong with the servers, and when.

A number of strikes at random moments, each with its own end or none; strikes overlap. When the time of trouble is over
everything gets well at once: all servers run, answer, tell the truth, and have a role that fits together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from .clock import Clock
from .names import Names
from .servers import PRIMARY, READ_ONLY, STANDBY, Server, Truth

LAGS = [0.02, 0.2, 1.0]


class Weather:
    def __init__(self, clock: Clock, servers: list[Server], names: Names | None, random: Random) -> None:
        self.clock = clock
        self.servers = servers
        self.random = random
        self.over = False
        self.on_lie: Callable[[], None] = lambda: None
        self.counts: Counter[str] = Counter()
        self._latencies = [server.latency for server in servers]
        self.kinds = [
            self.kill,
            self.crash,
            self.stop,
            self.power_off,
            self.freeze,
            self.cut_off,
            self.lag,
            self.lose_messages,
            self.fill_up,
            self.lock_out,
            self.flap,
            self.terminate_sessions,
            self.fail_over,
            self.switch_over,
            self.demote,
            self.refuse_writes,
            self.split,
            self.lie,
            self.everything_dies,
            self.swallow_connects,
        ]
        self.names = names
        if names is not None:
            moves = [self.move_name, self.lead_to_several, self.switch_over_behind_the_name, self.old_primary_lives_on]
            self.kinds += [*moves, *moves]

    def schedule(self, strikes: int, until: float, *, silence: bool) -> None:
        """`silence`: most servers that are struck answer no connect."""
        kinds = [self.swallow_connects, self.swallow_connects, self.freeze, self.cut_off, self.terminate_sessions]
        for _ in range(strikes):
            moment = self.clock.now + (until - self.clock.now) * self.random.random()
            kind = self.random.choice(kinds if silence else self.kinds)
            server = self.random.choice(self.servers)

            def strike(kind=kind, server=server) -> None:  # type: ignore[no-untyped-def]
                self.counts[kind.__name__] += 1
                if self.clock.trace:
                    self.clock.say(f"{kind.__name__} {server.label}")
                kind(server)

            self.clock.at(moment, strike)

    def duration(self) -> float:
        """From a blink to longer than all there is."""
        return 10.0 ** self.random.uniform(-2.0, 1.5)

    def later(self, what, *args, seconds: float | None = None) -> None:  # type: ignore[no-untyped-def]
        """Unless everything has become well meanwhile."""

        def happen() -> None:
            if not self.over:
                if self.clock.trace:
                    self.clock.say(f"{what.__qualname__.split('.')[-1]} {' '.join(map(label, args)) or label(what)}")
                what(*args)

        self.clock.after(self.duration() if seconds is None else seconds, happen)

    # -- single servers ---------------------------------------------------------------------------------------

    def kill(self, server: Server) -> None:
        server.stop(None)
        self.later(self.comes_back, server)

    def crash(self, server: Server) -> None:
        server.stop("57P02")
        self.later(self.comes_back, server)

    def stop(self, server: Server) -> None:
        server.stop("57P01")
        self.later(self.comes_back, server)

    def comes_back(self, server: Server) -> None:
        server.power_on()
        server.start(self.random.choice([0.0, 0.05, 0.5, 3.0]))

    def power_off(self, server: Server) -> None:
        server.power_off()
        self.later(self.comes_back, server)

    def freeze(self, server: Server) -> None:
        server.freeze()
        self.later(server.thaw)

    def cut_off(self, server: Server) -> None:
        server.cut_off()
        self.later(server.reconnect)

    def lag(self, server: Server) -> None:
        server.latency = self.random.choice(LAGS)
        self.later(self.lag_ends, server)

    def lag_ends(self, server: Server) -> None:
        server.latency = self._latencies[self.servers.index(server)]

    def lose_messages(self, server: Server) -> None:
        server.loss = self.random.choice([0.05, 0.5])
        self.later(self.loss_ends, server)

    def loss_ends(self, server: Server) -> None:
        server.loss = 0.0

    def fill_up(self, server: Server) -> None:
        server.full = True
        self.later(self.has_room, server)

    def has_room(self, server: Server) -> None:
        server.full = False

    def lock_out(self, server: Server) -> None:
        server.locked = True
        self.later(self.let_in, server)

    def let_in(self, server: Server) -> None:
        server.locked = False

    def swallow_connects(self, server: Server) -> None:
        server.deaf = True
        self.later(self.hears_again, server)

    def hears_again(self, server: Server) -> None:
        server.deaf = False
        server.changed()

    def flap(self, server: Server) -> None:
        period = self.random.choice([0.05, 0.5, 1.0])
        for turn in range(self.random.choice([4, 10])):
            self.later(self._down if turn % 2 == 0 else self._up, server, seconds=turn * period)

    def _down(self, server: Server) -> None:
        server.stop(None)

    def _up(self, server: Server) -> None:
        server.power_on()
        server.start(0.0)

    def terminate_sessions(self, server: Server) -> None:
        for session in tuple(server.sessions):
            if self.random.random() < 0.5:
                server.end(session, self.random.choice(["57P01", "57P01", "25P03", None]))

    def lie(self, server: Server) -> None:
        """Each session leads to some server, as behind a balancer that knows nothing of roles."""
        server.lying = True
        self.on_lie()
        self.later(self.tells_the_truth, server)

    def tells_the_truth(self, server: Server) -> None:
        server.lying = False
        for session in server.sessions:
            session.mask = None

    # -- roles ------------------------------------------------------------------------------------------------

    def _primary(self) -> Server | None:
        return next((server for server in self.servers if server.report == PRIMARY), None)

    def promote(self, server: Server) -> None:
        """Its sessions go on, and say so with their next answer."""
        server.report = PRIMARY
        server.timeline = 1 + max(other.timeline for other in self.servers if other.system == server.system)

    def becomes_standby(self, server: Server) -> None:
        """By a restart."""
        server.stop("57P01")
        server.report = STANDBY
        server.timeline = max(other.timeline for other in self.servers if other.system == server.system)
        server.start(0.1)

    def fail_over(self, server: Server) -> None:
        """The primary dies in some way, and `server` takes its place."""
        primary = self._primary()
        if primary is not None and primary is not server:
            self.random.choice([self.kill, self.crash, self.freeze, self.power_off, self.cut_off])(primary)
        self.later(self.promote, server, seconds=self.random.choice([0.1, 1.0, 3.0]))
        if primary is not None and primary is not server:
            self.later(self.becomes_standby, primary)

    def switch_over(self, server: Server) -> None:
        primary = self._primary()
        if primary is not None and primary is not server:
            self.becomes_standby(primary)
        self.promote(server)

    def demote(self, server: Server) -> None:
        """Its sessions stay, as with an address that moves. Another may be promoted, or not."""
        server.report = STANDBY
        if self.random.random() < 0.7:
            self.later(self.promote, self.random.choice(self.servers), seconds=self.random.choice([0.0, 0.5]))

    def refuse_writes(self, server: Server) -> None:
        if server.report == PRIMARY:
            server.report = READ_ONLY
            self.later(self.takes_writes, server)

    def takes_writes(self, server: Server) -> None:
        if server.report == READ_ONLY:
            server.report = PRIMARY

    def split(self, server: Server) -> None:
        """A second primary of the same cluster, on the next timeline."""
        self.promote(server)

    # -- names ------------------------------------------------------------------------------------------------

    def move_name(self, server: Server) -> None:
        """To this server, whatever it is; perhaps for a while."""
        names: Names = self.names  # type: ignore[assignment]
        name, before = self.random.choice(list(names)), self.random.choice(self.servers)
        names.move(name, server)
        if self.random.random() < 0.5:
            self.later(names.move, name, before)

    def lead_to_several(self, server: Server) -> None:
        """As round-robin DNS, or a service for all that may be read."""
        names: Names = self.names  # type: ignore[assignment]
        name = self.random.choice(list(names))
        names.move(name, *self.random.sample(self.servers, min(len(self.servers), self.random.choice([2, 3]))))
        self.later(names.move, name, server)

    def switch_over_behind_the_name(self, server: Server) -> None:
        """The old primary is back as a standby before the name moves to the new one."""
        primary = self._primary()
        self.switch_over(server)
        if primary is not None and primary is not server:
            self._follow(primary, server, self.random.choice([0.0, 0.01, 0.5, 3.0]))

    def old_primary_lives_on(self, server: Server) -> None:
        """A second one is promoted, and the name moves there, while sessions with the old one go on."""
        primary = self._primary()
        if primary is None or primary is server or primary.system != server.system:
            return
        self.promote(server)
        self._follow(primary, server, self.random.choice([0.0, 0.01, 0.5]))

    def _follow(self, old: Server, new: Server, seconds: float) -> None:
        names: Names = self.names  # type: ignore[assignment]
        for name in names.leading_to(old):
            self.later(names.move, name, new, seconds=seconds)

    def everything_dies(self, server: Server) -> None:
        for each in self.servers:
            self.random.choice([self.kill, self.stop, self.power_off])(each)

    # -- the end ----------------------------------------------------------------------------------------------

    def clear_up(self) -> list[Truth]:
        """All is well from now on. Of each cluster at most one is the primary, and the others follow its timeline."""
        self.over = True
        for server in self.servers:
            if server.report == READ_ONLY:
                server.report = PRIMARY
        for system in sorted({server.system for server in self.servers}):
            cluster = [server for server in self.servers if server.system == system]
            primaries = [server for server in cluster if server.report == PRIMARY]
            latest = max(server.timeline for server in cluster)
            keep = max(primaries, key=lambda server: server.timeline, default=None)
            if keep is None and self.random.random() < 0.9:
                keep = self.random.choice(cluster)
                self.promote(keep)
            elif keep is not None and keep.timeline < latest:  # nobody goes back to an old timeline
                keep = next(server for server in cluster if server.timeline == latest)
                self.promote(keep)
            for server in cluster:
                if server is not keep:
                    if server.report == PRIMARY:
                        server.stop("57P01")  # its data are made those of the primary, and it begins anew
                    server.report, server.timeline = STANDBY, keep.timeline if keep is not None else latest
        for server, latency in zip(self.servers, self._latencies, strict=True):
            server.latency, server.loss = latency, 0.0
            server.full = server.locked = server.starting = server.deaf = False
            self.tells_the_truth(server)
            server.power_on()
            server.start(0.0)
            server.reconnect()
            server.thaw()
        return [Truth(server.report, server.system, server.timeline) for server in self.servers]


def label(thing: object) -> str:
    if isinstance(thing, Server):
        return thing.label
    if isinstance(thing, str):
        return thing
    owner = getattr(thing, "__self__", None)
    return owner.label if isinstance(owner, Server) else ""
