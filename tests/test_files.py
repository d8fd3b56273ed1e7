"""Tests of atomic writes and of the lock of a run directory."""

import errno
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentlab import files
from latentlab.errors import StoreError
from latentlab.files import Lock, append, leftovers, sha256, write

OLD, NEW = b"what was there", b"what comes"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def little_room() -> Iterator[int]:
    """Limits the size of files, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield 4096
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Not root, for whom every folder is writable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_write_replaces_the_file_and_leaves_no_other_files(target: Path):
    write(target, NEW)
    assert target.read_bytes() == NEW
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_full_disk_is_reported_and_keeps_the_old_file(target: Path, little_room: int):
    with pytest.raises(StoreError, match=rf"{target}: there is not enough disk space for {little_room + 1} bytes"):
        write(target, b"x" * (little_room + 1))
    assert target.read_bytes() == OLD
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_file_that_reads_back_differently_is_not_installed(target: Path, monkeypatch: pytest.MonkeyPatch):
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path).replace(b"c", b"k"))
    with pytest.raises(StoreError, match="reads back differently"):
        write(target, NEW)
    monkeypatch.undo()
    assert target.read_bytes() == OLD
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_an_interrupted_write_keeps_the_old_file(target: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write(target, NEW)
    assert target.read_bytes() == OLD
    assert not leftovers(target.parent)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(StoreError, match=rf"the folder {tmp_path}/gone does not exist"):
        write(tmp_path / "gone" / "file", NEW)


@pytest.mark.usefixtures("unprivileged")
def test_an_unwritable_folder_is_named():
    with pytest.raises(StoreError, match="/usr/file: no permission to write in /usr"):
        write(Path("/usr/file"), NEW)


def test_a_planted_link_is_replaced_and_not_followed(target: Path):
    link = target.with_name("link")
    link.symlink_to(target)
    write(link, NEW)
    assert target.read_bytes() == OLD
    assert not link.is_symlink()
    assert link.read_bytes() == NEW


def test_a_planted_link_with_the_temporary_name_is_not_followed(target: Path):
    written = target.with_name("written")
    target.with_name(f".written.{os.getpid()}.tmp").symlink_to(target)
    write(written, NEW)
    assert target.read_bytes() == OLD
    assert written.read_bytes() == NEW


def test_appending_extends_the_file_and_refuses_links(target: Path):
    append(target, NEW)
    assert target.read_bytes() == OLD + NEW
    link = target.with_name("link")
    link.symlink_to(target)
    with pytest.raises(StoreError, match=f"{link} is a link"):
        append(link, NEW)
    assert target.read_bytes() == OLD + NEW


def test_sha256_matches_hashlib(target: Path):
    target.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(target) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# -- the lock


def python_process(code: str, path: Path) -> subprocess.Popen[str]:
    """Starts a Python process that runs `code` with `path` as argument and communicates by lines."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", f"import sys\nfrom pathlib import Path\n{code}", str(path)], **pipes)


HOLD = """
from latentlab.files import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_its_process_and_host_until_that_is_killed(tmp_path: Path):
    path = tmp_path / ".toy.lock"
    first = python_process(HOLD, path)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match=rf"{tmp_path}/toy is being written by process {first.pid} on {socket.gethostname()}"):
        Lock(path).__enter__()
    first.kill()
    first.communicate()
    assert json.loads(path.read_text())["pid"] == first.pid, "a killed process leaves its lock"
    with Lock(path) as lock:
        assert lock.taken_over["pid"] == first.pid
    assert not path.exists()


def test_a_lock_excludes_threads_of_the_same_process(tmp_path: Path):
    refused = []

    def enter() -> None:
        try:
            Lock(tmp_path / "lock").__enter__()
        except StoreError as error:
            refused.append(str(error))

    with Lock(tmp_path / "lock"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"process {os.getpid()}" in refused[0]


TAKE_TURNS = """
from latentlab.errors import StoreError
from latentlab.files import Lock
path, taken = Path(sys.argv[1]), 0
alone = path.with_name("alone")
while taken < 60:
    try:
        with Lock(path):
            alone.open("x").close()  # fails if another process is here
            alone.unlink()
            taken += 1
    except StoreError:
        pass
"""


def test_a_lock_excludes_concurrent_processes(tmp_path: Path):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "boot": files._boot()}))  # stale at first
    racers = [python_process(TAKE_TURNS, path) for _ in range(4)]
    assert [racer.wait(timeout=60) for racer in racers] == [0, 0, 0, 0]
    for racer in racers:
        racer.communicate()


def test_a_removed_lock_file_is_recreated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, flock, removals = tmp_path / "lock", fcntl.flock, iter([True])

    def late(descriptor: int, operation: int) -> None:
        if next(removals, False):
            path.unlink()  # the holder goes between our opening the file and our locking it
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with Lock(path), pytest.raises(StoreError, match=f"process {os.getpid()}"):
        Lock(path).__enter__()


def ended_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        ({"pid": "gone"}, True),
        ({"pid": os.getppid()}, False),
        ({"pid": os.getppid(), "boot": "before the machine was started again"}, True),
        ({"pid": "gone", "host": "elsewhere"}, False),
    ],
    ids=["process gone", "process alive", "other boot", "other host"],
)
def test_without_system_locks_the_lock_file_is_used(holder: dict, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / "lock"
    said = {"host": socket.gethostname(), "boot": files._boot(), **holder}
    path.write_text(json.dumps({**said, "pid": ended_process() if said["pid"] == "gone" else said["pid"]}))
    if free:
        with Lock(path) as lock:
            assert lock.taken_over is not None
    else:
        with pytest.raises(StoreError, match=f"on {said['host']}"):
            Lock(path).__enter__()
        assert path.exists()


@pytest.mark.parametrize("locks", ["of one machine only", "none"])
def test_a_second_machine_is_refused_while_the_first_writes_its_lock(locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Machines that share a file system, but not the locks of the operating system; the second comes at the worst moment."""
    path, here, pwrite, refused = tmp_path / "lock", threading.local(), os.pwrite, []

    def no_locks(*_: object) -> None:
        if locks == "none":
            raise OSError(errno.ENOLCK, "no locks available")

    def second() -> None:
        here.host = "second"
        with pytest.raises(StoreError, match=r"is being written by process .* on first") as caught:
            Lock(path).__enter__()
        refused.append(caught.value)

    def written(*arguments: object) -> int:
        if here.host == "second":
            return pwrite(*arguments)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        threads.append(thread)
        return pwrite(*arguments)

    threads: list[threading.Thread] = []
    here.host = "first"
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(socket, "gethostname", lambda: here.host)
    monkeypatch.setattr(os, "pwrite", written)
    with Lock(path):
        threads[0].join()
        assert len(refused) == 1
    assert not path.exists()


def test_a_planted_link_is_refused_as_lock(target: Path):
    link = target.with_name("lock")
    link.symlink_to(target)
    with pytest.raises(StoreError, match=f"{link} is a link"):
        Lock(link).__enter__()
    assert target.read_bytes() == OLD
