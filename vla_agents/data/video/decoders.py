"""Single frames of many videos, at random: files and decoders stay open, and nothing is decoded that is not needed.

What makes it cheap: a file stays open, one decoder (of one FFmpeg thread) serves all files that are encoded alike, a seek
leads to the key frame before the wanted one, and no packet after it is read: the decoder is told that the stream ends
there, so that it hands the frame out instead of waiting for those it might have had to reorder. Where a frame is not
found this way, or anything goes wrong, `decode` has the last word (and the error message).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.video.decode import SAME, Converter, decode, video_stream

KEPT = 128  # open files per process, less than half a MB each
_CONTEXTS = 4  # idle decoders per process and kind of video; a few MB each
_NEAR = 8  # frames; wanted ones nearer than that are decoded in one go, without a seek between
_COLOURS = ("color_range", "colorspace", "color_primaries", "color_trc")
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
        self._base = float(self._stream.time_base)
        like = self._stream.codec_context
        self._size = (like.height, like.width)
        self._kind = (like.name, like.extradata, *self._size, *(getattr(like, name) for name in _COLOURS))

    def _read_exactly(self, times: np.ndarray, out: np.ndarray) -> bool:
        """Frames whose time stamps are the ones asked for, one seek for all; False where it does not work out."""
        import av

        try:
            if self._container is None:
                self._open()
            if self._size != self._shape:
                return False
            decoder = self._contexts.take(self._kind, self._stream.codec_context)
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
                for frame in frames:
                    shown = np.inf if frame.pts is None else frame.pts * base
                    for k in missing:
                        if abs(wanted[k] - shown) <= SAME:
                            decoder.convert(frame, out[k])
                    missing = [k for k in missing if abs(wanted[k] - shown) > SAME]
                if not missing:
                    return True
                late += now > wanted[-1] + SAME
                if not unread or late > 16:  # packets may come out of order, but not that far
                    return False
        return False


class Decoder:
    """A decoder of videos that are encoded like one another.

    Args:
        kind: What tells it from others.
        like: The codec context of a file.
    """

    def __init__(self, kind: tuple[Any, ...], like: Any) -> None:
        import av

        self.kind, self.convert = kind, Converter()
        self.context: Any = av.CodecContext.create(like.name, "r")
        self.context.extradata = like.extradata
        self.context.thread_count = 1
        for name in _COLOURS:  # a file may say them outside of the stream of pictures
            setattr(self.context, name, getattr(like, name))


class Contexts:
    """Decoders by the kind of video, each used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[Any, ...], list[Decoder]] = {}

    def take(self, kind: tuple[Any, ...], like: Any) -> Decoder:
        """A decoder of this kind; where none is idle, one like a file's own codec context."""
        with self._lock:
            idle = self._idle.get(kind)
            if idle:
                return idle.pop()
        return Decoder(kind, like)

    def give_back(self, decoder: Decoder) -> None:
        """It may be taken again."""
        with self._lock:
            if len(self._idle) > 16:  # kinds; a dataset has one per camera at most
                self._idle.clear()
            idle = self._idle.setdefault(decoder.kind, [])
            if len(idle) < _CONTEXTS:
                idle.append(decoder)


class DecoderPool:
    """Open videos, the least recently used of which is closed when there are too many; for any number of threads.

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
        self._contexts = Contexts()
        self._idle: OrderedDict[_Key, VideoFile] = OrderedDict()

    def read(
        self, path: Path, times: np.ndarray, fps: float, shape: tuple[int, int], out: np.ndarray
    ) -> None:
        """As `VideoFile.read`, with times in any order."""
        if os.getpid() != self._process:
            self._forget()
        order = np.argsort(times, kind="stable")
        sorted_already = bool((np.diff(order) > 0).all())
        key = (path, fps, shape)
        with self._lock:
            video = self._idle.pop(key, None)
        if video is None:
            video = VideoFile(path, fps, shape, self._contexts)
        if sorted_already:
            video.read(times, out)
        else:
            frames = np.empty_like(out)
            video.read(times[order], frames)
            out[order] = frames
        self._put_back(key, video)

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


POOL = DecoderPool()  # of this process
