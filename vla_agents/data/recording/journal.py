"""A journal of the open episode: rows and compressed pictures reach the disk while they are recorded.

It is a net, and nothing else: a saved episode does not need it, and it is removed by the save. When the process dies,
`repair` makes an episode of it. A thread appends what has come since, five times a second, so that the recording never
waits for the disk, and an episode shorter than that costs no file at all.

    bytes 0-5   VLAJ1\\n
    a record    length of the content (uint32), CRC-32 of kind and content (uint32), kind (uint8), content
    kinds       HEAD     JSON: what the episode is, and its cameras
                STEP     a row: flags, time, reward, vectors (see `pack_step`)
                PACKET   a compressed picture: camera (uint16), frame (uint32), content
                IN_FILE  one that is in the camera's mp4: camera, frame, offset (uint64), size (uint32), CRC-32 (uint32)
                BLOCK    lossless pictures: camera, first frame, count (uint32), zlib content

The first record that is cut short or damaged ends the journal.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_agents.data import atomic
from vla_agents.data.episode import Step

logger = logging.getLogger(__name__)

MAGIC = b"VLAJ1\n"
FILE = "episode.journal"
HEAD, STEP, PACKET, IN_FILE, BLOCK = range(5)
PERIOD = 0.2  # seconds between two appends
SYNC = 1.0  # seconds between two fsyncs, where the recording is durable
PENDING = 64 << 20  # bytes that may wait for a slow disk; beyond, the episode goes on without a journal
LONGEST = 1 << 28  # bytes of a record
_RECORD = struct.Struct("<IIB")
_PICTURE = struct.Struct("<HI")
_PLACE = struct.Struct("<HIQII")
_COUNTED = struct.Struct("<HII")
_ROW = struct.Struct("<BddHHB")
_FLAGS = ("terminated", "truncated", "intervened", "repeated")


class _Episode:
    """What of an open episode is on its way to the disk."""

    def __init__(self, head: Callable[[], str], sync: list[atomic.TempFile]) -> None:
        self.head, self.sync = head, sync
        self.pending: deque[tuple[int, bytes]] = deque()
        self.bytes = 0  # that wait
        self.given_up = False
        self.file: atomic.TempFile | None = None
        self.synced = 0.0
        self.counting = threading.Lock()


class Journal:
    """Appends to the journal of one open episode after the other; nothing here waits for the disk.

    Args:
        path: The file.
        durable: Whether to fsync now and then.
        on_error: Is told at once, in the journal's thread, when the disk refuses.
    """

    def __init__(self, path: Path, *, durable: bool, on_error: Callable[[BaseException], object]) -> None:
        self._path, self._durable, self._on_error = path, durable, on_error
        self._open: _Episode | None = None
        self._ended: deque[_Episode] = deque()  # whose files are still there
        self._busy = threading.Lock()  # held while a file is written or removed
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, head: Callable[[], str], sync: list[atomic.TempFile]) -> None:
        """An episode begins.

        Args:
            head: Gives what is stored first, JSON (called in the journal's thread, if the episode lasts).
            sync: Files that are brought to the disk together with the journal.
        """
        self._open = _Episode(head, sync)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()

    def append(self, kind: int, content: bytes) -> None:
        """Take a record; it is on its way to the disk within `PERIOD` seconds."""
        episode = self._open
        if episode is None or episode.given_up:
            return
        with episode.counting:
            episode.bytes += len(content)
            if episode.bytes <= PENDING:
                episode.pending.append((kind, content))
                return
            episode.given_up = True
        logger.warning(
            "%s: the disk is too slow: if the process dies, the end of the episode is lost", self._path
        )

    def end(self) -> None:
        """The episode is saved or dropped: its journal is removed, by the thread where that is writing just now."""
        episode, self._open = self._open, None
        if episode is None:
            return
        self._ended.append(episode)
        if self._busy.acquire(blocking=False):
            try:
                self._remove_ended()
            finally:
                self._busy.release()

    def close(self) -> None:
        """End, and stop the thread."""
        self.end()
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10.0)

    def _remove_ended(self) -> None:
        while self._ended:
            episode = self._ended.popleft()
            if episode.file is not None:
                atomic.hook("remove", self._path)
                episode.file.abandon()

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(PERIOD)
            with self._busy:
                episode = self._open
                try:
                    self._remove_ended()
                    if episode is not None and episode.pending and not episode.given_up:
                        self._write(episode)
                except BaseException as error:
                    if episode is not None:
                        episode.given_up = True
                    if episode is self._open:
                        self._on_error(error)

    def _write(self, episode: _Episode) -> None:
        chunks = []
        if episode.file is None:
            episode.file = atomic.TempFile(self._path, durable=False)
            episode.synced = time.monotonic()
            chunks = [MAGIC, record(HEAD, episode.head().encode())]
        while episode.pending:
            kind, content = episode.pending.popleft()
            with episode.counting:
                episode.bytes -= len(content)
            chunks.append(record(kind, content))
        episode.file.write(b"".join(chunks))
        if self._durable and time.monotonic() - episode.synced > SYNC:
            episode.synced = time.monotonic()
            for file in (*episode.sync, episode.file):
                file.sync()


class CameraLog:
    """The packets of one camera, into the journal (see `video.PacketLog`).

    Args:
        journal: Where to.
        number: Which of the embodiment's cameras.
    """

    def __init__(self, journal: Journal, number: int) -> None:
        self._journal, self._number, self._frame = journal, number, 0

    def inline(self, content: bytes) -> None:
        """A compressed picture of a video that is kept in memory."""
        self._journal.append(PACKET, _PICTURE.pack(self._number, self._frame) + content)
        self._frame += 1

    def in_file(self, offset: int, size: int, crc: int) -> None:
        """A compressed picture that is in the camera's file."""
        self._journal.append(IN_FILE, _PLACE.pack(self._number, self._frame, offset, size, crc))
        self._frame += 1

    def block(self, count: int, content: bytes) -> None:
        """Some lossless pictures."""
        self._journal.append(BLOCK, _COUNTED.pack(self._number, self._frame, count) + content)
        self._frame += count


# ---- records -------------------------------------------------------------------------------------------------
def record(kind: int, content: bytes) -> bytes:
    """A record, as it is in the file."""
    crc = zlib.crc32(content, zlib.crc32(bytes([kind])))
    return _RECORD.pack(len(content), crc, kind) + content


def records(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Kind, content and the content's offset of the whole records of a journal."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return
        at = len(MAGIC)
        while len(start := file.read(_RECORD.size)) == _RECORD.size:
            length, crc, kind = _RECORD.unpack(start)
            content = file.read(length) if length <= LONGEST else b""
            if len(content) != length or zlib.crc32(content, zlib.crc32(bytes([kind]))) != crc:
                return
            yield kind, content, at + _RECORD.size
            at += _RECORD.size + length


def pack_step(step: Step, cameras: Sequence[str]) -> bytes:
    """A row without its pictures, exact to the bit; `cameras` gives the order of their times."""
    vectors = (step.state, step.action, step.executed, step.commanded)
    flags = sum(bool(getattr(step, name)) << k for k, name in enumerate(_FLAGS))
    flags |= sum((vector is not None) << (4 + k) for k, vector in enumerate(vectors))
    state = 0 if step.state is None else len(step.state)
    times = [step.camera_times.get(name, math.nan) for name in cameras] if step.camera_times else []
    start = _ROW.pack(flags, step.time, step.reward, state, len(step.action), len(times))
    numbers = b"".join(np.asarray(v, np.float32).tobytes() for v in vectors if v is not None)
    return start + numbers + struct.pack(f"<{len(times)}d", *times)


def unpack_step(content: bytes, cameras: Sequence[str]) -> Step:
    """The inverse of `pack_step`."""
    flags, moment, reward, state, action, timed = _ROW.unpack_from(content)
    at = _ROW.size
    found: list[np.ndarray | None] = [None] * 4
    for k, size in enumerate((state, action, action, action)):
        if flags >> (4 + k) & 1:
            found[k] = np.frombuffer(content, np.float32, size, at).copy()
            at += 4 * size
    label, times = found[1], struct.unpack_from(f"<{timed}d", content, at)
    if label is None or at + 8 * timed != len(content):
        raise ValueError("not a row")
    return Step(
        images={},
        state=found[0],
        action=label,
        reward=reward,
        time=moment,
        executed=found[2],
        commanded=found[3],
        camera_times={n: t for n, t in zip(cameras, times, strict=False) if not math.isnan(t)},
        **{name: bool(flags >> k & 1) for k, name in enumerate(_FLAGS)},
    )


@dataclass
class Picture:
    """Where a compressed picture lies, or several.

    Args:
        file: The file; None: the camera's mp4.
        offset: Where it begins.
        size: Bytes.
        crc: CRC-32 of those bytes.
        count: How many pictures it is.
    """

    file: Path | None
    offset: int
    size: int
    crc: int
    count: int = 1


def unpack_picture(path: Path, kind: int, content: bytes, at: int) -> tuple[int, int, Picture]:
    """`(camera, frame, place)` of a PACKET, IN_FILE or BLOCK whose content begins at `at`."""
    if kind == IN_FILE:
        camera, frame, offset, size, crc = _PLACE.unpack(content)
        return camera, frame, Picture(None, offset, size, crc)
    form = {PACKET: _PICTURE, BLOCK: _COUNTED}.get(kind)
    if form is None:
        raise ValueError(f"a record of kind {kind}")
    camera, frame, *count = form.unpack_from(content)
    data = memoryview(content)[form.size :]
    return camera, frame, Picture(path, at + form.size, len(data), zlib.crc32(data), *count)
