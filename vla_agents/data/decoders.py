"""Single frames of many videos, at random: open decoders are kept, and nothing is decoded that is not needed.

What makes it cheap: a decoder stays open per file (and process), one FFmpeg thread, a seek to the key frame before the
wanted one, and no packet after it: the decoder is told that the stream ends there, so that it hands the frame out
instead of waiting for the ones it might have had to reorder. Where a frame is not found this way, or anything goes
wrong, `decode` has the last word (and the error message).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.decode import SAME, Converter, decode, video_stream

KEPT = 32  # open decoders per process; a few MB each
_Key = tuple[Path, float, tuple[int, int]]
_NEAR = 8  # frames; wanted ones nearer than that are decoded in one go, without a seek between


class VideoDecoder:
    """One video, kept open. Not for several threads at once.

    Args:
        path: The mp4.
        fps: Nominal frames per second.
        shape: Expected `(height, width)`.
    """

    def __init__(self, path: Path, fps: float, shape: tuple[int, int]) -> None:
        self._path, self._fps, self._shape = path, fps, shape
        self._container: Any = None

    def read(self, times: np.ndarray, out: np.ndarray) -> None:
        """Write the frames at these times into `out`.

        Args:
            times: float64 (T,), seconds inside the video, rising (equal ones are allowed).
            out: uint8 (T, H, W, 3), contiguous.

        Raises:
            DatasetError: No such frame, file missing or damaged.
        """
        first = 0
        while first < len(times):
            end = first + 1
            while end < len(times) and times[end] - times[end - 1] < _NEAR / self._fps:
                end += 1
            run = slice(first, end)
            if not self._read_exactly(times[run], out[run]):
                out[run] = decode(self._path, times[run], self._fps, self._shape)
            first = end

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        import av

        self._container = av.open(str(self._path))
        self._stream = video_stream(self._container)
        self._context = self._stream.codec_context
        self._base = float(self._stream.time_base)
        self._convert = Converter()

    def _read_exactly(self, times: np.ndarray, out: np.ndarray) -> bool:
        """Frames whose time stamps are the ones asked for, one seek for all; False where it does not work out."""
        import av

        try:
            if self._container is None:
                self._open()
            if (self._context.height, self._context.width) != self._shape:
                return False
            return self._run(times, out)
        except (av.FFmpegError, IndexError, OSError):
            self.close()
            return False

    def _run(self, times: np.ndarray, out: np.ndarray) -> bool:
        base, context = self._base, self._context
        self._container.seek(int((times[0] + SAME) / base), stream=self._stream, backward=True)
        missing = np.ones(len(times), bool)  # whose packet has not been seen
        done = late = 0
        for packet in self._container.demux(self._stream):
            if packet.pts is None:  # the end of the file
                return False
            now = packet.pts * base
            missing &= np.abs(times - now) > SAME
            frames = context.decode(packet)
            if not missing.any():
                frames += context.decode(None)
            for frame in frames:
                while done < len(times) and _is_at(frame, base, times[done]):
                    self._convert(frame, out[done])
                    done += 1
            if done == len(times):
                return True
            late += now > times[-1] + SAME
            if not missing.any() or late > 16:  # packets may come out of order, but not that far
                return False
        return False


def _is_at(frame: Any, base: float, time: float) -> bool:
    return frame.pts is not None and abs(frame.pts * base - time) <= SAME


class DecoderPool:
    """Open decoders, the least recently used of which is closed when there are too many; for any number of threads.

    A process that was forked starts with an empty pool: a file offset shared with the parent would mix up both.

    Args:
        kept: How many stay open.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._idle: OrderedDict[_Key, VideoDecoder] = OrderedDict()

    def read(
        self, path: Path, times: np.ndarray, fps: float, shape: tuple[int, int], out: np.ndarray
    ) -> None:
        """As `VideoDecoder.read`, with times in any order."""
        if os.getpid() != self._process:
            self._forget()
        order = np.argsort(times, kind="stable")
        sorted_already = bool((np.diff(order) > 0).all())
        key = (path, fps, shape)
        with self._lock:
            decoder = self._idle.pop(key, None)
        if decoder is None:
            decoder = VideoDecoder(path, fps, shape)
        if sorted_already:
            decoder.read(times, out)
        else:
            frames = np.empty_like(out)
            decoder.read(times[order], frames)
            out[order] = frames
        self._put_back(key, decoder)

    def _put_back(self, key: _Key, decoder: VideoDecoder) -> None:
        with self._lock:
            surplus = [self._idle.pop(key)] if key in self._idle else []
            self._idle[key] = decoder
            while len(self._idle) > self.kept:
                surplus.append(self._idle.popitem(last=False)[1])
        for old in surplus:
            with suppress(OSError):
                old.close()

    def close(self) -> None:
        """Close all that is idle."""
        with self._lock:
            decoders = list(self._idle.values())
            self._idle.clear()
        for decoder in decoders:
            decoder.close()


POOL = DecoderPool()  # of this process
