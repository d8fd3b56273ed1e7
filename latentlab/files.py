"""Atomic writing of files, and a lock for one writing process at a time."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from latentlab.errors import LockError, StoreError

PATIENCE = 50
"""Number of looks, 0.02 s apart, at a lock file without content, whose creator may be about to write it."""


def now() -> str:
    """Return the current time in UTC, in ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(path: Path, data: bytes | memoryview | Callable[[BinaryIO], None], check: Callable[[Path], None] | None = None) -> None:
    """Write a file atomically: to a temporary name, flushed to the disk and read back, before it is renamed to `path`.

    A link at `path` is replaced, not followed.

    Args:
        path: The file.
        data: Content of the file, or a function that writes it to a stream.
        check: Function that reads the file at a given path, and raises an error if the content differs. If None, bytes are
            compared; a function `data` needs one.

    Raises:
        StoreError: The disk is full, the folder does not exist, or there is no permission; the file at `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("x+b") as stream:
            if callable(data):
                data(stream)
            else:
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if check is not None:
            check(temporary)
        elif not callable(data) and temporary.read_bytes() != data:
            raise StoreError(f"{path}: the written file reads back differently; the disk may be faulty.")
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise explained(path, error, _n_written(temporary) if callable(data) else len(data)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, if they do not exist.

    Raises:
        StoreError: It is a file, or there is no permission.
    """
    if path.is_file():
        raise StoreError(f"{path} is a file, and a folder is needed; choose another --out.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(path, error) from error


def _n_written(temporary: Path) -> int:
    """Size of an unfinished file."""
    with contextlib.suppress(OSError):
        return temporary.stat().st_size
    return 0


def append(path: Path, data: bytes) -> None:
    """Append to a file, which is created if it does not exist; a link is refused.

    Raises:
        StoreError: The file is a link, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise explained(path, error, len(data)) from error


def leftovers(folder: Path) -> list[Path]:
    """Temporary files in a folder, such as those of processes that were killed while writing."""
    return [path for path in folder.glob(".*.tmp") if not path.is_dir()]


def sync(folder: Path) -> None:
    """Flush the entries of a folder to the disk, so that they survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explained(path: Path, error: OSError, n_bytes: int = 0) -> StoreError:
    """Convert an error on writing to a `StoreError` with a remedy."""
    if isinstance(error, StoreError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(f"{path}: there is not enough disk space for {n_bytes} bytes; an existing file is unchanged.")
    if error.errno == errno.ENOENT and not path.parent.exists():
        return StoreError(f"{path}: the folder {path.parent} does not exist.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"{path}: no permission to write in {path.parent}.")
    if error.errno == errno.ELOOP:
        return StoreError(f"{path} is a link, and links are not followed; remove it.")
    return StoreError(f"{path}: cannot be written: {error.strerror or error}.")


class Lock:
    """Lock for one writer at a time: a locked file that contains process, host and time of its holder.

    The operating system releases the lock when a process ends. If the file system has no locks, the content of the file decides:
    it is stale if its process does not exist, or this host was restarted since. A holder on another host is never stale.

    On a file system shared by machines, locks of the operating system may be invisible to other machines. The file is therefore
    created exclusively, which file systems guarantee, and its content decides between machines, which need distinct host names.

    Raises:
        LockError: Another process holds the lock; names its number and its host.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken_over: dict[str, Any] | None = None
        self._descriptor = -1

    def __enter__(self) -> "Lock":
        while True:
            created = True
            try:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            except FileExistsError:
                created = False
            except OSError as error:
                raise explained(self.path, error) from error
            try:
                if not created:
                    self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # the previous holder has just removed the file
            except OSError as error:
                raise explained(self.path, error) from error
            try:
                if self._obtained(created=created):
                    return self
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._descriptor)

    def _obtained(self, *, created: bool) -> bool:
        """Whether this process now holds the lock; False if the previous holder has just removed the file.

        A file that this process has not `created` may be one whose creator is about to write its content.
        """
        held_by_system = True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._locked_error(self._holder()) from None
        except OSError:
            held_by_system = False
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(self._descriptor).st_ino == self.path.stat().st_ino:
                holder = None if created else self._holder()
                if holder and not _has_ended(holder, held_by_system=held_by_system):
                    raise self._locked_error(holder)
                self.taken_over = holder
                mine = {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot(), "since": now()}
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps(mine).encode(), 0)
                os.fsync(self._descriptor)
                return True
        return False

    def _holder(self) -> dict[str, Any] | None:
        for _ in range(PATIENCE):
            with contextlib.suppress(ValueError, FileNotFoundError):
                holder = json.loads(self.path.read_bytes())  # opened anew: an open file may show an old state on NFS
                if isinstance(holder, dict):
                    return holder
            time.sleep(0.02)
        return None

    def _locked_error(self, holder: dict[str, Any] | None) -> LockError:
        who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}" if holder else "another process"
        return LockError(
            f"{_owner(self.path)} is being written by {who}; wait for it, or choose another --out. "
            f"If that process no longer exists, remove {self.path}."
        )


def _owner(lock: Path) -> Path:
    return lock.with_name(lock.name.removeprefix(".").removesuffix(".lock"))


def _has_ended(holder: Mapping[str, Any], *, held_by_system: bool) -> bool:
    if holder.get("host") != socket.gethostname():
        return False
    if held_by_system or holder.get("boot") != _boot():
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError):
        return False
    return False


def _boot() -> str:
    """Identifier of the current boot of this machine; empty if the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
