"""Files that are on disk whole or not at all: temporary name, fsync, rename, fsync of the folder.

Every operation that changes the disk calls `hook` first, so that a test can stop the world between any two.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from vla_agents.errors import DatasetError, RecordingError

TEMPORARY = (
    ".recording"  # folder of temporary files, inside the dataset so that a rename never crosses file systems
)
LOCK = ".vla_agents.lock"


def _no_hook(operation: str, path: Path) -> None:
    """Called as `hook("rename", path)` before each operation; replaced by tests."""


hook: Callable[[str, Path], None] = _no_hook


class TempFile:
    """A file being written under a temporary name; has the `write`, `seek` and `tell` that a muxer needs.

    Args:
        path: The temporary name; its folder must exist.
        durable: Whether `finish` waits until the bytes are on the disk itself.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        hook("open", path)
        self.path = path
        self.durable = durable
        self.error: OSError | None = None  # what `write` raised
        self.crc = 0  # CRC-32 of what was written since somebody set it to 0
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by finish or abandon

    def write(self, data: bytes) -> int:
        """Write all of `data`; a short write (the disk filled up) is continued, so that the error shows."""
        if self._file.closed:  # abandoned; a muxer may still want to write its end
            return len(data)
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                hook("write", self.path)
                written += self._file.write(view[written:]) or 0
        except OSError as error:
            self.error = error
            raise
        self.crc = zlib.crc32(data, self.crc)
        return written

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        return 0 if self._file.closed else self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of a file."""
        return 0 if self._file.closed else self._file.tell()

    def sync(self) -> None:
        """Bring what is there to the disk while the file is written, from another thread; nothing where it is closed."""
        with contextlib.suppress(ValueError):  # closed in between
            hook("fsync", self.path)
            os.fdatasync(self._file.fileno())

    def finish(self) -> None:
        """Bring the bytes to the disk (where `durable`) and close."""
        if self.durable:
            hook("fsync", self.path)
            os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Close; what is written afterwards is lost."""
        self._file.close()

    def abandon(self) -> None:
        """Close and delete."""
        self.close()
        self.path.unlink(missing_ok=True)


class Transaction:
    """Several files that appear in a fixed order, the last of which makes the others count.

    Everything is written under temporary names by `write` (or `stage`, for a file that somebody else
    wrote); `commit` fsyncs them all, and renames them in the order given. The last one is the commit point: it is renamed
    only when all the others, and the folders that name them, are on disk.

    Args:
        root: The dataset's folder.
        durable: Whether to fsync. Without, a rename still survives `kill -9`, but perhaps not a power cut.
    """

    def __init__(self, root: Path, *, durable: bool) -> None:
        self.root = root
        self.durable = durable
        self._staged: list[tuple[Path, Path]] = []
        self._unsynced: list[Path] = []

    def write(self, target: Path, data: bytes) -> None:
        """Stage `data` as the content of `target`."""
        file = TempFile(self.root / TEMPORARY / f"{len(self._staged):02d}.tmp", durable=False)
        try:
            file.write(data)
            file.finish()
        except BaseException:
            file.abandon()
            raise
        self._staged.append((file.path, target))
        self._unsynced.append(file.path)

    def stage(self, target: Path, temporary: Path) -> None:
        """Stage a temporary file as `target`; it is finished, and on the disk where `durable`."""
        self._staged.append((temporary, target))

    def commit(self) -> None:
        """Give all staged files their names, the last one last."""
        if self.durable:
            _sync_all(self._unsynced)
        for temporary, target in self._staged[:-1]:
            make_folder(target.parent, durable=self.durable)
            hook("rename", target)
            os.replace(temporary, target)
        if self.durable:
            _sync_all(list(dict.fromkeys(target.parent for _, target in self._staged[:-1])))
        temporary, target = self._staged[-1]
        make_folder(target.parent, durable=self.durable)
        hook("rename", target)
        os.replace(temporary, target)
        if self.durable:
            _sync_all([target.parent])

    def abandon(self) -> None:
        """Delete the temporary files that were not renamed, as far as that is possible."""
        for temporary, _ in self._staged:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_file(root: Path, target: Path, data: bytes, *, durable: bool) -> None:
    """Write one file of the dataset at `root` atomically."""
    transaction = Transaction(root, durable=durable)
    try:
        transaction.write(target, data)
        transaction.commit()
    except BaseException:
        transaction.abandon()
        raise


def make_folder(path: Path, *, durable: bool) -> None:
    """Make a folder and its parents, each entry on disk before anything is put into it."""
    if path.is_dir():
        return
    make_folder(path.parent, durable=durable)
    hook("mkdir", path)
    path.mkdir(exist_ok=True)
    if durable:
        _sync_all([path.parent])


def _sync_all(paths: list[Path]) -> None:
    """Fsync files (their content) and folders (the names in them) at once: the disk then needs one pass."""
    for path in paths:
        hook("fsync", path)
    if len(paths) < 2:
        for path in paths:
            _sync(path)
        return
    list(_pool(os.getpid()).map(_sync, paths))


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that wait for the disk; a forked process has none of its parent's."""
    return ThreadPoolExecutor(4, "fsync")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a whole folder of leftovers; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        hook("remove", path)
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        hook("remove", path)
        path.unlink()


class FolderLock:
    """At most one writer per dataset: a lock file, whose `flock` the kernel frees however the holder dies.

    Args:
        root: The dataset's folder, which must exist.
    """

    def __init__(self, root: Path) -> None:
        path = root / LOCK
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 64, 0).decode(errors="replace").strip() or "another process"
            self.release()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise DatasetError(
                root,
                f"is being written by {holder}",
                "close that writer first, or record into another folder",
            ) from None
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go; may be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def recording_error(error: OSError, path: Path, what: str) -> RecordingError:
    """Say what went wrong on disk, with the free space and what to do; keeps the errno."""
    free = "unknown"
    with contextlib.suppress(OSError):
        existing = next(p for p in (path, *path.parents) if p.exists())
        free = f"{shutil.disk_usage(existing).free / 1e6:,.0f} MB"
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space, or go on in another folder; the episodes saved before are intact"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "choose a folder that may be written to (see `ls -ld`)"
    else:
        remedy = "check the disk (`dmesg`, `df -h`); the episodes saved before are intact"
    found = RecordingError(f"{path}: {what} failed: {reason} ({free} free)", remedy)
    found.errno = error.errno
    return found
