"""Making a decode-once cache block by block, so that a build that was killed goes on where it was."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vla_agents.data.cache.files import MANIFEST, CacheSettings, amount, camera_file, encode
from vla_agents.data.video.frames import Frames, resize_all

_log = logging.getLogger(__name__)
_BLOCK = 64  # rows decoded and written at a time
_SYNC = 64_000_000  # bytes after which what is written is made durable, and noted
_SAMPLES = 24  # pictures that are encoded to guess the size of a JPEG cache
_JOURNAL = "journal"
Blobs = dict[str, list[bytes]]  # camera -> its pictures, encoded
MakeBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def building(place: Path) -> Path:
    """Where the cache that will be at `place` lies until it is complete."""
    return place.with_name(place.name + ".building")


class Builder:
    """Makes a cache.

    Args:
        lengths: int64 (E,): steps per episode.
        sizes: Camera -> `(height, width)` of the cached pictures.
        frames: Camera -> pictures as recorded.
        threads: Threads that decode and encode.
    """

    def __init__(
        self, lengths: np.ndarray, sizes: dict[str, tuple[int, int]], frames: dict[str, Frames], threads: int
    ) -> None:
        self.sizes, self._frames, self._threads = sizes, frames, threads
        self._total = int(lengths.sum())
        self._blocks = [
            (first, min(first + _BLOCK, int(end)))
            for end, length in zip(np.cumsum(lengths), lengths, strict=True)
            for first in range(int(end - length), int(end), _BLOCK)
        ]
        self._known: dict[str, int] = {}

    def size(self, format: str) -> int:
        """Bytes of the cache; for JPEG a guess from some pictures."""
        if format == "raw":
            return self._total * sum(height * width * 3 for height, width in self.sizes.values())
        if format not in self._known:
            rows = np.unique(np.linspace(0, self._total - 1, _SAMPLES).astype(np.int64))
            samples = [self._encoded((int(row), int(row) + 1), format) for row in rows]
            each = [len(blob) for sample in samples for blobs in sample.values() for blob in blobs]
            self._known[format] = int(1.1 * np.mean(each) * self._total * len(self.sizes))
        return self._known[format]

    def build(self, place: Path, settings: CacheSettings, source: str, bar: MakeBar | None) -> None:
        """Make the cache at `place`, going on with what an interrupted build left.

        Args:
            place: Where it will be.
            settings: What it holds.
            source: `fingerprint` of the dataset.
            bar: Makes a progress bar.
        """
        size, free = self.size(settings.format), shutil.disk_usage(place.parent).free
        title = (
            f"Caching {self._total:,} x {len(self.sizes)} pictures as {settings.format}: "
            f"{amount(size)} in {place.parent}, {amount(free)} are free"
        )
        _log.info("%s", title)
        folder = building(place)
        with ExitStack() as stack:
            journal = stack.enter_context(Journal(folder, settings, source))
            advance = stack.enter_context(bar(title, self._total)) if bar else lambda number: None
            advance(sum(last - first for first, last in self._blocks[: journal.done]))
            blocks = self._blocks[journal.done :]
            for (first, last), blobs in zip(blocks, self._ahead(blocks, settings.format), strict=True):
                journal.append(blobs)
                advance(last - first)
            journal.finish()
        os.rename(folder, place)
        (place / _JOURNAL).unlink()
        _sync(place.parent)

    def _ahead(self, blocks: list[tuple[int, int]], format: str) -> Iterator[Blobs]:
        """The pictures of each block, in order; some blocks are worked on at a time."""
        waiting: deque[Future[Blobs]] = deque()
        todo = iter(blocks)
        pool = ThreadPoolExecutor(self._threads)
        try:
            for block in itertools.islice(todo, self._threads + 1):
                waiting.append(pool.submit(self._encoded, block, format))
            while waiting:
                yield waiting.popleft().result()
                for block in itertools.islice(todo, 1):
                    waiting.append(pool.submit(self._encoded, block, format))
        finally:
            pool.shutdown(cancel_futures=True)

    def _encoded(self, block: tuple[int, int], format: str) -> Blobs:
        rows = np.arange(*block)
        resized = {name: resize_all(self._frames[name][rows], size) for name, size in self.sizes.items()}
        return {name: [encode(image, format) for image in images] for name, images in resized.items()}


class Journal:
    """A cache under construction, and which of its blocks are safely in its files; a context manager.

    Where settings or dataset are not those of what lies there, it starts afresh.

    Args:
        folder: Where.
        settings: What the cache holds.
        source: `fingerprint` of the dataset.
    """

    def __init__(self, folder: Path, settings: CacheSettings, source: str) -> None:
        self._folder = folder
        self._head = {"settings": settings.to_dict(), "fingerprint": source, "block": _BLOCK}
        self._names = list(settings.sizes)
        self.done = 0  # blocks
        self._sizes: dict[str, list[int]] = {name: [] for name in self._names}
        self._crc = dict.fromkeys(self._names, 0)
        self._notes: list[str] = []
        self._unsynced = 0

    def __enter__(self) -> Journal:
        lines = self._lines()
        if not lines or lines[0] != self._head:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            lines = [self._head]
            (self._folder / _JOURNAL).write_text(json.dumps(self._head) + "\n")
        for line in lines[1:]:
            for name in self._names:
                self._sizes[name] += line["sizes"][name]
                self._crc[name] = line["crc"][name]
            self.done += 1
        (self._folder / _JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._files: dict[str, BinaryIO] = {}
        for name in self._names:
            file = open(self._folder / camera_file(name), "ab")
            self._files[name] = file
            file.truncate(sum(self._sizes[name]))  # what was written and not noted
            file.seek(0, os.SEEK_END)
        return self

    def _lines(self) -> list[dict[str, Any]]:
        """The notes of an interrupted build, as far as the files hold what they say."""
        try:
            text = (self._folder / _JOURNAL).read_text()
            there = {n: (self._folder / camera_file(n)).stat().st_size for n in self._names}
        except (OSError, UnicodeDecodeError):
            return []
        found: list[dict[str, Any]] = []
        used = dict.fromkeys(self._names, 0)
        for line in text.splitlines():
            try:
                note = json.loads(line)
                if found:
                    used = {n: used[n] + sum(note["sizes"][n]) for n in self._names}
            except (ValueError, KeyError, TypeError):
                break  # the last line, cut short
            if any(used[n] > there[n] for n in self._names):
                break
            found.append(note)
        return found

    def append(self, pictures: dict[str, list[bytes]]) -> None:
        """Write a block: camera -> its pictures."""
        sizes = {}
        for name, blobs in pictures.items():
            for blob in blobs:
                self._files[name].write(blob)
                self._crc[name] = zlib.crc32(blob, self._crc[name])
            sizes[name] = [len(blob) for blob in blobs]
            self._sizes[name] += sizes[name]
            self._unsynced += sum(sizes[name])
        self._notes.append(json.dumps({"sizes": sizes, "crc": self._crc}) + "\n")
        if self._unsynced >= _SYNC:
            self._sync()

    def _sync(self) -> None:
        """Pictures to the disk, then the note that they are there."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        with open(self._folder / _JOURNAL, "a") as journal:
            journal.write("".join(self._notes))
            journal.flush()
            os.fsync(journal.fileno())
        self._notes, self._unsynced = [], 0

    def finish(self) -> None:
        """Write the tables and the manifest; all that is missing then is the name."""
        self._sync()
        files: dict[str, int] = {}
        for name, sizes in self._sizes.items():
            path = self._folder / camera_file(name)
            ends = np.cumsum(np.asarray(sizes, np.int64))
            with open(path.with_suffix(".npy"), "wb") as table:
                np.save(table, np.stack([ends - sizes, sizes], axis=1).astype(np.int64))
                table.flush()
                os.fsync(table.fileno())
            files |= {p.name: p.stat().st_size for p in (path, path.with_suffix(".npy"))}
        with open(self._folder / MANIFEST, "w", encoding="utf-8") as manifest:
            json.dump(self._head | {"files": files, "checksums": self._crc}, manifest, indent=2)
            manifest.flush()
            os.fsync(manifest.fileno())
        _sync(self._folder)

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, ValueError):  # after Ctrl-C or an error: what is there is kept
            self._sync()
        for file in self._files.values():
            with suppress(OSError):
                file.close()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
