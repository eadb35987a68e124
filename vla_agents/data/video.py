"""Pictures to h264 (or av1), through PyAV.

Small pictures are encoded on the spot, into memory; larger ones in a thread per camera, straight to a file. A
full queue blocks and never drops, so that rows and frames cannot drift apart.
"""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agents.data.atomic import TempFile
from vla_agents.data.decode import single_thread
from vla_agents.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    import av

CODECS = {"h264": "libx264", "av1": "libsvtav1"}
PRESETS = {"h264": "superfast", "av1": "10"}
SMALL = 128 * 128  # pixels; up to here a thread costs more than it gives
QUEUE = 30  # frames that may wait per camera


class VideoSettings:
    """How pictures of one size are encoded.

    Args:
        height: Rows.
        width: Columns.
        fps: Frames per second; frame k is shown at k / fps.
        codec: `"h264"` or `"av1"`.
        crf: Constant rate factor; lower is closer to the original.
        preset: The encoder's speed, or None for a fast one.
        pix_fmt: `"yuv420p"`, `"yuv444p"`, or None: full colour resolution for small pictures, whose coloured
            parts are a few pixels wide, and the usual 4:2:0 for larger ones.
    """

    def __init__(
        self,
        height: int,
        width: int,
        fps: int,
        *,
        codec: str = "h264",
        crf: int = 18,
        preset: str | None = None,
        pix_fmt: str | None = None,
    ) -> None:
        if codec not in CODECS:
            raise UnknownNameError("video codec", codec, CODECS)
        small = height * width <= SMALL
        odd = height % 2 or width % 2
        if pix_fmt is None:
            pix_fmt = "yuv444p" if codec == "h264" and (small or odd) else "yuv420p"
        if odd and pix_fmt == "yuv420p":
            raise ConfigError(
                f"pictures of {height}x{width} cannot be stored as {codec} yuv420p, which needs even sizes",
                "use codec='h264' with pix_fmt='yuv444p', or an even size",
            )
        self.height, self.width, self.fps, self.codec, self.crf = height, width, fps, codec, crf
        self.pix_fmt, self.preset, self.small, self.g = pix_fmt, preset or PRESETS[codec], small, 2

    def options(self) -> dict[str, str]:
        """The encoder's options."""
        options = {"crf": str(self.crf), "preset": self.preset, "g": str(self.g)}
        if self.codec == "h264":
            options["bf"] = "0"
            if (
                self.small
            ):  # a search over a few pixels suffices, and its tables are most of the set-up's cost
                options["x264-params"] = "subme=0:merange=4:trellis=0"
        else:
            options["svtav1-params"] = "lp=1"
        return options

    def info(self) -> dict[str, Any]:
        """LeRobot's `info` of a video feature."""
        return {
            "video.height": self.height,
            "video.width": self.width,
            "video.codec": self.codec,
            "video.pix_fmt": self.pix_fmt,
            "video.fps": self.fps,
            "video.channels": 3,
            "has_audio": False,
            "video.g": self.g,
            "video.crf": self.crf,
            "video.preset": self.preset,
            "is_depth_map": False,
        }


class VideoEncoder:
    """Encodes pictures one by one into an mp4.

    Args:
        settings: Size, rate and codec.
        target: Where the mp4 goes; None keeps it in memory.
    """

    def __init__(self, settings: VideoSettings, target: TempFile | None = None) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.frames = 0
        self._packets = 0
        self._settings = settings
        self._target = target
        self._memory = io.BytesIO()
        self._frame = av.VideoFrame
        self._reformatter, self._single = VideoReformatter(), single_thread()
        self._container = av.open(target or self._memory, "w", format="mp4")
        stream: Any = self._container.add_stream(
            CODECS[settings.codec], rate=settings.fps, options=settings.options()
        )
        stream.width, stream.height, stream.pix_fmt = settings.width, settings.height, settings.pix_fmt
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, settings.fps)
        self._stream = stream

    def add(self, image: np.ndarray) -> None:
        """Encode one picture, uint8 (H, W, 3)."""
        frame = self._frame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = self._reformatter.reformat(frame, format=self._settings.pix_fmt, **self._single)
        frame.pts = self.frames
        frame.time_base = Fraction(1, self._settings.fps)
        self._mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> bytes:
        """Complete the mp4; returns it where it is kept in memory."""
        self._mux(self._stream.encode(None))
        self._container.close()
        if self._packets != self.frames:
            raise OSError(f"the encoder returned {self._packets} frames for {self.frames}")
        if self._target is not None:
            self._target.finish()
        return self._memory.getvalue()

    def abandon(self) -> None:
        """Stop and delete what was written."""
        import av

        if self._target is not None:
            self._target.abandon()
        with contextlib.suppress(av.FFmpegError):  # it has nowhere to write the end to, and needs not
            self._container.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            self._container.mux(packet)
            self._packets += 1


class EncoderThread:
    """A `VideoEncoder` in a thread of its own; `add` blocks while the queue is full.

    Args:
        settings: Size, rate and codec.
        target: Where the mp4 goes.
    """

    def __init__(self, settings: VideoSettings, target: TempFile) -> None:
        self._target = target
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(QUEUE)
        self._error: BaseException | None = None
        self._abandoned = False
        self._encoder = VideoEncoder(settings, target)
        self._thread = threading.Thread(target=self._run, name=f"encode {target.path.name}", daemon=True)
        self._thread.start()

    @property
    def frames(self) -> int:
        """Frames encoded so far."""
        return self._encoder.frames

    def add(self, image: np.ndarray) -> None:
        """Hand over one picture, uint8 (H, W, 3), which is copied."""
        self._raise()
        self._queue.put(image.copy())

    def finish(self) -> bytes:
        """Wait until all is encoded and the file complete."""
        self._queue.put(None)
        self._thread.join()
        self._raise()
        return b""

    def abandon(self) -> None:
        """Stop without finishing."""
        self._abandoned = True
        self._queue.put(None)
        self._thread.join()
        self._encoder.abandon()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (image := self._queue.get()) is not None:
            self._try(self._encoder.add, image)
        self._try(self._encoder.finish)

    def _try(self, call: Callable[..., object], *arguments: np.ndarray) -> None:
        """Unless something went wrong before; an error is handed to the recording thread by `_raise`."""
        if self._error is None and not self._abandoned:
            try:
                call(*arguments)
            except BaseException as error:
                self._error = self._target.error or error  # the disk's own, not what the muxer makes of it
