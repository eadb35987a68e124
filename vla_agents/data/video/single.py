"""Single frames of many videos, at random: what was found out about a file is kept, and nothing is decoded in vain.

What makes it cheap: the tables of a file are kept (`mp4.py`), so that a frame is one read from the key frame before it; one
decoder (of one FFmpeg thread) serves all files that are encoded alike; and no packet after the wanted one is read: the
decoder is told that the stream ends there, so that it hands the frame out instead of waiting for those it might have had to
reorder. Files whose tables are not plain are opened with FFmpeg and stay open. Where a frame is not found either
way, or anything goes wrong, `decode` has the last word (and the error message).
"""

from __future__ import annotations

import itertools
import operator
import os
import threading
from collections import OrderedDict
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.video.decode import SAME, decode, video_stream
from vla_agents.data.video.decoders import Contexts, Decoder, Kind
from vla_agents.data.video.mp4 import Mp4Index, index_of, stamp_of

KEPT = 128  # files open with FFmpeg per process, less than half a MB each
TABLES = 64 << 20  # bytes of tables per process: those of two million frames
_MOST_READ = 64 << 20  # bytes of a file at once
_NEAR = 8  # frames; wanted ones nearer than that are decoded in one go, without a seek between
_Key = tuple[Path, float, tuple[int, int]]


class VideoFile:
    """One video, kept open. Not for several threads at once.

    Args:
        path: The mp4.
        fps: Nominal frames per second.
        shape: Expected `(height, width)`.
        contexts: Where decoders come from.
    """

    def __init__(self, path: Path, fps: float, shape: tuple[int, int], contexts: Contexts) -> None:
        self._path, self._fps, self._shape, self._contexts = path, fps, shape, contexts
        self._container: Any = None

    def read(self, times: np.ndarray, out: np.ndarray) -> None:
        """Write the frames at these times into `out`.

        Args:
            times: float64 (T,), seconds inside the video, rising (equal ones are allowed).
            out: uint8 (T, H, W, 3), contiguous.

        Raises:
            DatasetError: No such frame, file missing or damaged.
        """
        for run in _runs(times, self._fps):
            if not self._read_exactly(times[run], out[run]):
                out[run] = decode(self._path, times[run], self._fps, self._shape)

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        import av

        self._container = av.open(str(self._path))
        self._stream = video_stream(self._container)
        self._base = float(self._stream.time_base)
        self._kind = Kind.of(self._stream.codec_context)

    def _read_exactly(self, times: np.ndarray, out: np.ndarray) -> bool:
        """Frames whose time stamps are the ones asked for, one seek for all; False where it does not work out."""
        import av

        try:
            if self._container is None:
                self._open()
            if self._kind.size != self._shape:
                return False
            decoder = self._contexts.take(self._kind)
            found = self._run(decoder, times, out)
            self._contexts.give_back(decoder)
            return found
        except (av.FFmpegError, IndexError, OSError):
            self.close()
            return False

    def _run(self, decoder: Decoder, times: np.ndarray, out: np.ndarray) -> bool:
        base, context, wanted = self._base, decoder.context, times.tolist()
        context.flush_buffers()
        self._container.seek(int((wanted[0] + SAME) / base), stream=self._stream, backward=True)
        unread = wanted  # times whose packet has not been seen
        missing = list(range(len(wanted)))  # places in `out` whose frame has not come out
        late = 0
        with closing(self._container.demux(self._stream)) as packets:
            for packet in packets:
                if packet.pts is None:  # the end of the file
                    return False
                now = packet.pts * base
                unread = [time for time in unread if abs(time - now) > SAME]
                frames = context.decode(packet)
                if not unread:
                    frames += context.decode(None)
                missing = decoder.hand_out(frames, base, wanted, missing, out)
                if not missing:
                    return True
                late += now > wanted[-1] + SAME
                if not unread or late > 16:  # packets may come out of order, but not that far
                    return False
        return False


def _runs(times: np.ndarray, fps: float) -> list[slice]:
    """Times that are near enough to be decoded in one go."""
    ends = np.flatnonzero(np.diff(times) >= _NEAR / fps) + 1
    edges = [0, *ends.tolist(), len(times)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]


def read_indexed(
    path: Path,
    index: Mp4Index,
    contexts: Contexts,
    times: np.ndarray,
    fps: float,
    shape: tuple[int, int],
    out: np.ndarray,
) -> bool:
    """As `VideoFile.read` of a file whose tables are known; False where it does not work out."""
    import av

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        kind = contexts.kind_of(path, index)
        if stamp_of(descriptor) != index.stamp or kind.size != shape:
            return False
        for run in _runs(times, fps):
            decoder = contexts.take(kind)
            if not _decode_run(descriptor, index, decoder, times[run], out[run]):
                return False
            contexts.give_back(decoder)
        return True
    except (av.FFmpegError, IndexError, OSError):
        return False
    finally:
        os.close(descriptor)


def _decode_run(
    descriptor: int, index: Mp4Index, decoder: Decoder, times: np.ndarray, out: np.ndarray
) -> bool:
    """Frames that are near one another, from the key frame before the first."""
    import av

    at = np.minimum(np.searchsorted(index.shown, times - SAME), len(index.shown) - 1)
    if (np.abs(index.shown[at] - times) > SAME).any():
        return False
    packets = at if index.order is None else index.order[at]
    key = int(np.searchsorted(index.keys, packets.min(), side="right")) - 1
    shown = index.pts[packets].min()
    while key > 0 and index.pts[index.keys[key]] > shown:  # shown before a key frame: may need an earlier one
        key -= 1
    run = slice(int(index.keys[key]), int(packets.max()) + 1)
    starts, sizes = index.offset[run].tolist(), index.size[run].tolist()
    begin, end = min(starts), max(map(operator.add, starts, sizes))
    if end - begin > _MOST_READ:
        return False
    data = os.pread(descriptor, end - begin, begin)
    if len(data) < end - begin:
        return False
    wanted, missing = times.tolist(), list(range(len(times)))
    decoder.context.flush_buffers()
    for start, size, pts in zip(starts, sizes, index.pts[run].tolist(), strict=True):
        packet = av.Packet(data[start - begin : start - begin + size])
        packet.pts = pts
        missing = decoder.hand_out(decoder.context.decode(packet), index.base, wanted, missing, out)
    if missing:
        missing = decoder.hand_out(decoder.context.decode(None), index.base, wanted, missing, out)
    return not missing


class DecoderPool:
    """Open videos, the least recently used of which is closed when there are too many; for any number of threads.

    A process that was forked starts with an empty pool: a file offset shared with the parent would mix up both.

    Args:
        kept: How many stay open with FFmpeg.
        tables: How many bytes of tables are kept.
    """

    def __init__(self, kept: int = KEPT, tables: int = TABLES) -> None:
        self.kept, self.tables = kept, tables
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._contexts = Contexts()
        self._idle: OrderedDict[_Key, VideoFile] = OrderedDict()
        self._indices: OrderedDict[Path, Mp4Index | None] = OrderedDict()
        self._bytes = 0

    def read(
        self, path: Path, times: np.ndarray, fps: float, shape: tuple[int, int], out: np.ndarray
    ) -> None:
        """As `VideoFile.read`, with times in any order."""
        if os.getpid() != self._process:
            self._forget()
        order = np.argsort(times, kind="stable")
        sorted_already = bool((np.diff(order) > 0).all())
        if sorted_already:
            self._read(path, times, fps, shape, out)
        else:
            frames = np.empty_like(out)
            self._read(path, times[order], fps, shape, frames)
            out[order] = frames

    def _read(
        self, path: Path, times: np.ndarray, fps: float, shape: tuple[int, int], out: np.ndarray
    ) -> None:
        for _ in range(2):
            index = self._index(path)
            if index is not None and read_indexed(path, index, self._contexts, times, fps, shape, out):
                return
            if index is None or not _changed(path, index):
                break
            with self._lock:
                if path in self._indices:
                    self._bytes -= _nbytes(self._indices.pop(path))
        key = (path, fps, shape)
        with self._lock:
            video = self._idle.pop(key, None)
        if video is None:
            video = VideoFile(path, fps, shape, self._contexts)
        video.read(times, out)
        self._put_back(key, video)

    def _index(self, path: Path) -> Mp4Index | None:
        with self._lock:
            if path in self._indices:
                self._indices.move_to_end(path)
                return self._indices[path]
        found = index_of(path)
        with self._lock:
            if path in self._indices:
                self._bytes -= _nbytes(self._indices.pop(path))
            self._bytes += _nbytes(found)
            self._indices[path] = found
            while self._bytes > self.tables and len(self._indices) > 1:
                self._bytes -= _nbytes(self._indices.popitem(last=False)[1])
        return found

    def _put_back(self, key: _Key, video: VideoFile) -> None:
        with self._lock:
            surplus = [self._idle.pop(key)] if key in self._idle else []
            self._idle[key] = video
            while len(self._idle) > self.kept:
                surplus.append(self._idle.popitem(last=False)[1])
        for old in surplus:
            with suppress(OSError):
                old.close()

    def close(self) -> None:
        """Close all that is idle."""
        with self._lock:
            videos = list(self._idle.values())
            self._idle.clear()
        for video in videos:
            video.close()


def _nbytes(index: Mp4Index | None) -> int:
    return 400 if index is None else index.nbytes


def _changed(path: Path, index: Mp4Index) -> bool:
    try:
        found = path.stat()
    except OSError:
        return True
    return (found.st_size, found.st_mtime_ns) != index.stamp


POOL = DecoderPool()  # of this process
