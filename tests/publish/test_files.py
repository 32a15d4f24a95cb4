"""Where the files are, who may be believed, and whose process lives."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import wait_for
from records import group, pool, worker

from pgdbpool.publish import alive, merged, names, place, read
from pgdbpool.publish.reader import sweep
from pgdbpool.publish.record import Worker, decoded, encoded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def write(path: Path, data: bytes) -> None:
    with place.opened(path.parent) as here:
        here.replace(path.name, data)


def put(folder: Path, record: Worker, token: str = "00000000") -> Path:
    path = folder / place.file_name(record.name, record.pid, token)
    write(path, encoded(record))
    return path


def mine(**more: object) -> Worker:
    return worker(pool(group("read", 3)), at=time.time(), **{"identity": alive.myself()} | more)


# -- what is written ------------------------------------------------------------------------------------------


def test_what_is_written_can_be_read(folder):
    record = mine()
    put(folder, record)
    assert read("shop", folder) == [record]
    assert read(directory=folder) == [record]
    assert names(folder) == ["shop"]


def test_a_file_is_for_its_owners_eyes_and_leaves_nothing_beside_it(folder):
    path = put(folder, mine())
    put(folder, mine())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(folder) == [path.name]


def test_one_application_does_not_see_another(folder):
    put(folder, mine())
    put(folder, mine(name="shop-2"))
    assert [each.name for each in read("shop", folder)] == ["shop"]
    assert names(folder) == ["shop", "shop-2"]


def test_a_writing_that_fails_leaves_the_old_file_and_nothing_else(folder, monkeypatch):
    path = put(folder, mine())
    before = path.read_bytes()

    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write(path, b"new")
    assert path.read_bytes() == before
    assert os.listdir(folder) == [path.name]


# -- what is not believed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 1}', b'{"version": "1"}', b"null"],
)
def test_what_is_no_record_is_left_out(folder, data):
    write(folder / place.file_name("shop", os.getpid(), "00000000"), data)
    assert read(directory=folder) == []


def test_another_format_is_left_out(folder):
    put(folder, mine(version=2))
    assert read(directory=folder) == []
    assert decoded(encoded(mine(version=2))) is None


def test_fields_that_are_not_known_are_not_heeded():
    data = encoded(mine())
    assert decoded(data[:-1] + b',"more":[1,2]}') == decoded(data)


def test_a_file_that_says_it_is_another_application_is_left_out(folder):
    record = mine()
    put(folder, record).rename(folder / place.file_name("other", record.pid, "00000000"))
    assert read(directory=folder) == []


@pytest.mark.parametrize("name", ["shop.1.pool.json", "x", "shop.1.00000000.pool.json.new", "a b.1.00000000.pool.json"])
def test_other_files_are_left_alone(folder, name):
    (folder / name).write_bytes(encoded(mine()))
    assert read(directory=folder) == []


def test_links_pipes_and_folders_are_not_read(folder):
    record = mine()
    real = put(folder, record)
    hidden = real.rename(folder / "real")
    os.symlink(hidden, folder / place.file_name("shop", 1, "00000001"))
    os.mkfifo(folder / place.file_name("shop", 1, "00000002"))
    (folder / place.file_name("shop", 1, "00000003")).mkdir()
    assert read(directory=folder) == []


def test_a_folder_where_others_may_write_is_refused(folder):
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="may be written to by other users: chmod go-w"):
        read(directory=folder)
    with pytest.raises(PermissionError, match="may be written to by other users"):
        place.prepared(str(folder))


def test_a_link_to_a_folder_is_refused(folder):
    os.symlink(folder, folder / "link")
    with pytest.raises(PermissionError, match="is not a directory"):
        place.prepared(str(folder / "link"))


def test_a_folder_of_another_user_is_refused(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    with pytest.raises(PermissionError, match="belongs to another user"):
        read(directory=folder)


def test_a_file_of_another_user_in_it_is_left_out(folder, monkeypatch):
    put(folder, mine())
    if os.geteuid() == 0:
        os.chown(next(folder.iterdir()), 4_000_000, -1)
    else:
        monkeypatch.setattr(os, "fstat", lambda descriptor: os.stat("/"))
    assert read(directory=folder) == []


def test_a_folder_that_is_not_there_has_no_files(folder):
    assert read(directory=folder / "none") == []
    assert not (folder / "none").exists(), "reading makes nothing"


# -- nonsense in a file ---------------------------------------------------------------------------------------


def mistaken(**more: object) -> bytes:
    """A record with the right fields, and nonsense in some."""
    data = json.loads(encoded(mine()))
    return json.dumps(data | more).encode()


NONSENSE = {
    "nested": b'{"version": 1, "name": ' + b"[" * 100_000,
    "cut off": mistaken()[:-20],
    "the end of time": mistaken(at=1e300),
    "before all time": mistaken(at=-1.0),
    "not JSON": b"\x00" * 100,
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_in_one_file_is_left_out_and_said_once(folder, caplog, data):
    put(folder, mine())
    path = folder / place.file_name("shop", 1, "0000000f")
    write(path, data)
    for _ in range(3):
        assert [each.pid for each in read(directory=folder)] == [os.getpid()]
    (message,) = caplog.messages
    assert message.startswith(f"{path} is left out, since it is no file of a process: ")


def test_a_sample_that_is_nonsense_is_left_out_and_the_rest_is_read(folder):
    data = json.loads(encoded(mine()))
    data["pools"][0]["samples"] = [[100.0, {}, {}], {"no": "sample"}, [104.0, {}, {}]]
    write(folder / place.file_name("shop", os.getpid(), "00000000"), json.dumps(data).encode())
    [worker] = read(directory=folder)
    assert [sample.at for sample in merged([worker]).samples] == [100.0, 104.0]


def test_a_histogram_with_too_few_places_is_nonsense():
    data = json.loads(encoded(mine()))
    data["pools"][0]["stats"]["groups"]["read"]["counters"]["wait_times"] = [1, 2, 3]
    with pytest.raises(ValueError, match="histogram"):
        decoded(json.dumps(data).encode())


# -- a folder that another user has made first ----------------------------------------------------------------


def anothers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The usual folder under the one for temporary files, made by another user; we are root if we can be."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    usual = folder / f"pgdbpool-{os.geteuid()}"
    usual.mkdir(mode=0o755)
    monkeypatch.setattr(place, "candidates", lambda: [usual])
    if os.geteuid() == 0:
        os.chown(usual, 4_000_000, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    return usual


def test_root_does_not_write_to_the_usual_folder_if_another_user_has_made_it(folder, monkeypatch):
    usual = anothers(folder, monkeypatch)
    with pytest.raises(PermissionError, match="belongs to another user"):
        place.prepared(None)
    assert list(usual.iterdir()) == []


def test_root_believes_no_file_in_the_usual_folder_of_another_user(folder, monkeypatch):
    usual = anothers(folder, monkeypatch)
    path = usual / place.file_name("shop", os.getpid(), "00000000")
    path.write_bytes(encoded(mine()))
    if os.getuid() == 0:
        os.chown(path, 4_000_000, -1)
    assert read() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at what is another user's")
def test_root_reads_a_folder_of_another_user_that_it_has_named(folder):
    put(folder, mine())
    for path in (folder, *folder.iterdir()):
        os.chown(path, 4_000_000, -1)
    assert [each.pid for each in read(directory=folder)] == [os.getpid()]


def test_a_folder_that_is_swapped_for_a_link_while_it_is_open_leads_nowhere_else(folder):
    inside, outside = folder / "inside", folder / "outside"
    inside.mkdir(mode=0o700)
    outside.mkdir(mode=0o700)
    with place.opened(inside) as here:
        inside.rename(folder / "moved")
        inside.symlink_to(outside)
        here.replace("shop", b"{}")
    assert list(outside.iterdir()) == []
    assert os.listdir(folder / "moved") == ["shop"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/etc/passwd", path)], ids=["pipe", "link"])
def test_what_stands_in_the_way_of_a_file_is_replaced_and_not_written_to(folder, make):
    make(folder / ".shop.new")
    make(folder / "shop")
    with place.opened(folder) as here:
        here.replace("shop", b"new")
    assert (folder / "shop").read_bytes() == b"new"
    assert stat.S_ISREG((folder / "shop").lstat().st_mode)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/etc/passwd", path)], ids=["pipe", "link"])
def test_a_lock_is_a_plain_file(folder, make):
    make(folder / "lock")
    with place.opened(folder) as here, pytest.raises(OSError):
        here.open_lock("lock")


# -- where they are -------------------------------------------------------------------------------------------


def test_the_usual_place_is_the_runtime_directory_and_readers_look_in_the_others_too(folder, monkeypatch):
    runtime, temporary = folder / "run", folder / "tmp"
    runtime.mkdir(mode=0o700)
    temporary.mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    without = place.prepared(None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with_it = place.prepared(None)
    assert with_it == runtime / "pgdbpool"
    assert stat.S_IMODE(with_it.stat().st_mode) == 0o700
    assert without != with_it
    record = mine()
    put(without, record)
    put(with_it, mine(name="cart"))
    assert names() == ["cart", "shop"]


def test_a_runtime_directory_that_is_not_ones_own_is_not_used(folder, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert all(path.is_absolute() for path in place.candidates())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "none"))
    assert folder / "none" / "pgdbpool" not in place.candidates()


def test_a_private_folder_under_the_temporary_one_must_not_be_anothers(folder, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(place, "candidates", lambda: [folder / "pgdbpool-1"])
    os.symlink("/", folder / "pgdbpool-1")
    with pytest.raises(PermissionError, match="is not a directory"):
        place.prepared(None)
    assert place.searched(None) == []


# -- who lives ------------------------------------------------------------------------------------------------


def test_a_process_that_was_killed_is_gone_though_its_parent_has_not_collected_it(folder):
    program = "from pgdbpool.publish import alive; print(*alive.myself(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        boot, namespace, pid, began = process.stdout.readline().decode().split()
        put(folder, mine(identity=alive.Identity(boot, namespace, int(pid), int(began))))
        assert [each.pid for each in read(directory=folder)] == [process.pid]
        process.kill()
        wait_for(lambda: read(directory=folder) == [])
        assert process.returncode is None, "nobody has asked for it yet"


def test_a_pid_that_was_given_to_another_process_is_not_believed(folder):
    identity = alive.myself()
    put(folder, mine(identity=identity._replace(began=identity.began - 1)))
    assert read(directory=folder) == []


def test_a_file_from_before_the_machine_was_started_is_not_believed(folder):
    put(folder, mine(identity=alive.myself()._replace(boot="an earlier one")))
    assert read(directory=folder) == []


@pytest.mark.parametrize(("silent", "by_itself", "lives"), [(5, True, True), (60, True, False), (60, False, True)])
def test_a_process_of_another_container_lives_while_it_writes(silent, by_itself, lives):
    stranger = alive.myself()._replace(namespace="another", pid=1)
    assert alive.alive(stranger, silent, writes_by_itself=by_itself) is lives


def test_a_name_with_brackets_and_blanks_does_not_confuse(folder):
    program = (
        "import ctypes; from pgdbpool.publish import alive\n"
        "ctypes.CDLL(None).prctl(15, b'a) Z 1 (b')\n"
        "who = alive.myself(); print(who.began > 1 and alive.alive(who, 0.0, writes_by_itself=True))"
    )
    assert subprocess.check_output([sys.executable, "-c", program]).strip() == b"True"


def test_what_dead_processes_left_is_swept_away(folder):
    identity = alive.myself()
    put(folder, mine())
    put(folder, mine(identity=identity._replace(began=1)), token="00000001")
    other = put(folder, mine(name="cart", identity=identity._replace(began=1)))
    unfinished = folder / ".shop.1.00000002.pool.json.new"
    unfinished.write_bytes(b"{")
    os.utime(unfinished, (0, 0))
    sweep(folder, "shop")
    assert sorted(os.listdir(folder)) == sorted([place.file_name("shop", os.getpid(), "00000000"), other.name])
