"""Servers that are there and yet of no use: full, starting up, closed to us, renamed, one too many, never the same."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from bench.failover.observer import Observer
from bench.failover.peers import Place
from bench.failover.scenarios import Scenario
from bench.failover.stage import Stage

FLAP = 1.0  # s up, and as long down
NAME = "writer.test"  # a name that nobody can have: RFC 6761
LIMIT = 30.0


# -- a full server --------------------------------------------------------------------------------------------------


def fill_a_standby(stage: Stage) -> None:
    """Others have taken all its places before the clients come."""
    import psycopg

    standby = stage.standby()
    stage.others = stage.stack.enter_context(ExitStack())
    for _ in range(1000):
        try:
            stage.others.enter_context(psycopg.connect(standby.conninfo()))
        except psycopg.OperationalError:
            return
    raise RuntimeError(f"{standby.name} does not get full")


def full_standby(stage: Stage) -> None:
    time.sleep(stage.effort.silence)
    stage.others.close()
    stage.returned(f"{stage.watched.name} has room again")
    time.sleep(stage.effort.silence)
    stage.calm()


# -- a server that starts up ----------------------------------------------------------------------------------------


def starting_up(stage: Stage) -> None:
    """The primary goes down and recovers for seconds. Meanwhile an impostor says so in its place."""
    from pgdbpool.testing import Impostor

    stage.steady()
    primary = stage.cluster.primary
    proxy = stage.proxy_of(primary)
    impostor = stage.stack.enter_context(Impostor("57P03", login=primary.login))
    stage.impostors.append(impostor)
    with stage.blow(f"{primary.name}, the primary, is killed, and says that it is starting up"):
        proxy.target = impostor
        primary.kill()
    time.sleep(stage.effort.silence)
    primary.start()
    with Observer(primary, "write") as observer:
        proxy.target = primary
        stage.possible("write", observer.answer())
    stage.recover()
    stage.calm()


# -- a wrong password -----------------------------------------------------------------------------------------------


def lock_a_standby(stage: Stage) -> None:
    """It asks for a password, and ours is wrong. The others ask for none."""
    import psycopg

    standby = stage.standby()
    stage.places = [Place(place.host, place.port, place.database, place.user, "wrong") for place in stage.places]
    hba = standby.data / "pg_hba.conf"
    hba.write_text(hba.read_text().replace("127.0.0.1/32 trust", "127.0.0.1/32 scram-sha-256"))
    standby.own(hba)
    standby.execute("select pg_reload_conf()")
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        try:
            psycopg.connect(standby.conninfo(password="wrong")).close()
        except psycopg.OperationalError:
            return
    raise TimeoutError(f"{standby.name} lets everybody in")


def wrong_password(stage: Stage) -> None:
    stage.steady()
    time.sleep(stage.effort.silence)
    stage.calm()


# -- a name that changes its address --------------------------------------------------------------------------------

# A process that sees its own /etc/hosts and asks no name server. $0 is the folder with the two files.
OWN_NAMES = 'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf && exec "$@"'


def own_names(folder: Path) -> list[str]:
    """What to put before a command so that it finds names in this folder's ``hosts`` alone."""
    become_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *become_root, "--mount", "sh", "-c", OWN_NAMES, str(folder)]


def write_names(folder: Path, address: str) -> None:
    """Addresses are of the same length, so the change is that of a few bytes, and nobody finds half a file."""
    (folder / "nsswitch.conf").write_text("hosts: files\n")
    hosts = folder / "hosts"
    hosts.touch()
    with hosts.open("r+b", buffering=0) as file:
        file.write(f"{address} {NAME}\n".encode())


@cache
def no_own_names() -> str:
    """Why a process cannot have names of its own here; empty if it can."""
    with tempfile.TemporaryDirectory() as folder:
        write_names(Path(folder), "127.0.0.2")
        try:
            answer = subprocess.run(
                [*own_names(Path(folder)), "getent", "ahosts", NAME], capture_output=True, text=True, timeout=LIMIT
            )
        except OSError as error:
            return f"a process cannot be given names of its own: {error}"
    if "127.0.0.2" not in answer.stdout:
        return f"a process cannot be given names of its own: {answer.stderr.strip() or 'unshare has no effect'}"
    return ""


def name_the_primary(stage: Stage) -> None:
    """The clients know one name and one port: as a managed database is reached."""
    folder = Path(stage.stack.enter_context(tempfile.TemporaryDirectory()))
    folder.chmod(0o755)
    port = None
    for number, node in enumerate(stage.cluster.nodes, 2):
        proxy = stage.stack.enter_context(node.proxy(host=f"127.0.0.{number}", port=port))
        stage.proxies[node.port] = proxy
        port = proxy.port
    write_names(folder, stage.proxy_of(stage.cluster.primary).host)
    login = stage.cluster.primary.login
    assert port is not None
    stage.places = [Place(NAME, port, login.database, login.user)]
    stage.prefix = own_names(folder)
    stage.names = folder


def name_moves(stage: Stage) -> None:
    stage.steady()
    old = stage.cluster.primary
    with stage.blow(f"{old.name}, the primary, is killed"):
        stage.proxy_of(old).refuse()
        old.kill()
    time.sleep(stage.effort.gap)
    new = stage.cluster.most_advanced_standby()
    stage.promote(new)
    with Observer(new, "write") as write, Observer(new, "read") as read:
        write_names(stage.names, stage.proxy_of(new).host)
        stage.tell(f"{NAME} is the name of {new.name}")
        stage.possible("write", write.answer())
        stage.possible("read", read.answer())
    stage.recover()
    stage.calm()


# -- two primaries --------------------------------------------------------------------------------------------------


def split_brain(stage: Stage) -> None:
    """A standby is promoted, and the old primary is not told. Nothing it does from now on can be confirmed."""
    stage.steady()
    old = stage.cluster.primary
    new, other = stage.cluster.standbys
    with stage.blow(f"{new.name} is promoted beside {old.name}, which lives on"):
        other.follow(new)
        other.configure()
        stage.need(lambda: other.name not in old.receivers(), f"{other.name} leaves {old.name}")
        stage.need(lambda: new.wal_position() >= other.wal_position(), f"{new.name} has what {other.name} has")
        stage.promote(new)
    stage.recover()
    stage.calm()


# -- flapping -------------------------------------------------------------------------------------------------------


def flapping(stage: Stage) -> None:
    stage.steady()
    standby = stage.standby()
    for _ in range(stage.effort.flaps):
        with stage.blow(f"{standby.name}, a standby, is killed"):
            standby.kill()
        time.sleep(FLAP)
        standby.start()
        stage.tell(f"{standby.name} accepts connections")
        time.sleep(FLAP)
    stage.settle()
    stage.calm()


ODDITIES: tuple[Scenario, ...] = (
    Scenario(
        "full-standby",
        "A standby is full (53300), then has room",
        full_standby,
        fill_a_standby,
        settings={"max_connections": 40},
        apart=lambda effort: effort.silence * 7 / 4,  # two at a time, at most
    ),
    Scenario(
        "starting-up",
        "The primary starts up for seconds (57P03)",
        starting_up,
        Stage.use_proxies,
        kinds=("write",),
    ),
    Scenario(
        "wrong-password",
        "A standby does not accept the password",
        wrong_password,
        lock_a_standby,
        apart=lambda effort: effort.silence * 5 / 4,  # two at a time, at most
    ),
    Scenario(
        "name",
        "The primary is killed, and its name gets another address",
        name_moves,
        name_the_primary,
        no_own_names,
        kinds=("write", "read"),
    ),
    Scenario("split-brain", "A standby is promoted beside the living primary", split_brain, kinds=("write",)),
    Scenario(
        "flapping",
        "A standby goes down every other second",
        flapping,
        apart=lambda effort: FLAP * (2 * effort.flaps + 1),  # two at a time, at most
    ),
)
