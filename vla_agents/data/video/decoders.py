"""Decoders of single frames, each for all videos that are encoded alike; of one FFmpeg thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_agents.data.video.decode import SAME, Converter, video_stream
from vla_agents.data.video.mp4 import Mp4Index

_CONTEXTS = 4  # idle decoders per process and kind of video; a few MB each
_KINDS = 256  # known per process
_COLOURS = ("color_range", "colorspace", "color_primaries", "color_trc")


class Kind(NamedTuple):
    """How a video is encoded, as far as a decoder needs to know."""

    name: str
    extradata: bytes | None
    size: tuple[int, int]  # height, width
    colours: tuple[int, ...]  # a file may say them outside of the stream of pictures

    @classmethod
    def of(cls, like: Any) -> Kind:
        """That of a file's own codec context."""
        colours = tuple(getattr(like, name) for name in _COLOURS)
        return cls(like.name, like.extradata, (like.height, like.width), colours)


class Decoder:
    """A decoder of videos that are encoded like one another.

    Args:
        kind: What tells it from others.
    """

    def __init__(self, kind: Kind) -> None:
        import av

        self.kind, self.convert = kind, Converter()
        self.context: Any = av.CodecContext.create(kind.name, "r")
        self.context.extradata = kind.extradata
        self.context.thread_count = 1
        # libavcodec itself refuses frames beyond this, before it makes room for them.
        self.context.options = {"max_pixels": str(max(4 * kind.size[0] * kind.size[1], 1 << 16))}
        for name, value in zip(_COLOURS, kind.colours, strict=True):
            setattr(self.context, name, value)

    def hand_out(
        self, frames: list[Any], base: float, wanted: list[float], missing: list[int], out: np.ndarray
    ) -> list[int]:
        """Write decoded frames to the places in `out` whose time is theirs; returns the places still missing."""
        for frame in frames:
            shown = np.inf if frame.pts is None else frame.pts * base
            for k in missing:
                if abs(wanted[k] - shown) <= SAME:
                    self.convert(frame, out[k])
            missing = [k for k in missing if abs(wanted[k] - shown) > SAME]
        return missing


class Contexts:
    """Decoders by the kind of video, each used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Kind, list[Decoder]] = {}
        self._known: dict[bytes, Kind] = {}  # by `Mp4Index.kind`

    def kind_of(self, path: Path, index: Mp4Index) -> Kind:
        """How a file is encoded; FFmpeg is asked once for all files that say the same of themselves."""
        found = self._known.get(index.kind)
        if found is None:
            import av

            with av.open(str(path), metadata_errors="replace") as container:
                found = Kind.of(video_stream(container).codec_context)
            with self._lock:
                if len(self._known) > _KINDS:
                    self._known.clear()
                self._known[index.kind] = found
        return found

    def take(self, kind: Kind) -> Decoder:
        """A decoder of this kind."""
        with self._lock:
            idle = self._idle.get(kind)
            if idle:
                return idle.pop()
        return Decoder(kind)

    def give_back(self, decoder: Decoder) -> None:
        """It may be taken again."""
        with self._lock:
            if len(self._idle) > 16:  # kinds; a dataset has one per camera at most
                self._idle.clear()
            idle = self._idle.setdefault(decoder.kind, [])
            if len(idle) < _CONTEXTS:
                idle.append(decoder)
