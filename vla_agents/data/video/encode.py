"""Pictures to h264 (or av1), through PyAV; one by one, so that a video is complete as soon as its last picture is there."""

from __future__ import annotations

import contextlib
import io
import os
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vla_agents.data.atomic import TempFile
from vla_agents.data.video.decode import single_thread
from vla_agents.data.video.scheduling import ordinary_scheduling
from vla_agents.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    import av

CODECS = {"h264": "libx264", "av1": "libsvtav1"}
PRESETS = {"h264": "ultrafast", "av1": "10"}
SMALL = 128 * 128  # pixels; up to here a thread costs more than it gives


class VideoSettings:
    """How pictures of one size are encoded.

    Args:
        height: Rows.
        width: Columns.
        fps: Frames per second; frame k is shown at k / fps.
        codec: `"h264"` or `"av1"`.
        crf: Constant rate factor; lower is closer to the original. None: 18 for small pictures, 20 for larger ones.
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
        crf: int | None = None,
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
        self.height, self.width, self.fps, self.codec = height, width, fps, codec
        self.crf = (18 if small else 20) if crf is None else crf
        self.pix_fmt, self.small, self.g = pix_fmt, small, 2
        self.preset = preset or ("superfast" if small and codec == "h264" else PRESETS[codec])

    def options(self) -> dict[str, str]:
        """The encoder's options."""
        options = {"crf": str(self.crf), "preset": self.preset, "g": str(self.g)}
        if self.codec == "h264":
            # No picture waits in the encoder, where it could be lost.
            options |= {"bf": "0", "tune": "zerolatency"}
            # For a few pixels a small search suffices, and its tables are most of the set-up's cost.
            if self.small:
                options["x264-params"] = "subme=0:merange=4:trellis=0"
        else:
            options["svtav1-params"] = "lp=1:pred-struct=1"  # low delay
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


class PacketLog(Protocol):
    """Is told of each compressed picture, so that a video that was cut short can be put together again."""

    def inline(self, content: bytes) -> None:
        """A compressed picture of a video that is kept in memory."""

    def in_file(self, offset: int, size: int, crc: int) -> None:
        """A compressed picture that is in the file now."""


def open_stream(container: Any, settings: VideoSettings) -> Any:
    """A video stream of a PyAV container, its encoder open."""
    if settings.codec == "av1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only; by default it tells its life
    stream = container.add_stream(CODECS[settings.codec], rate=settings.fps, options=settings.options())
    stream.width, stream.height, stream.pix_fmt = settings.width, settings.height, settings.pix_fmt
    stream.codec_context.thread_count = 1
    stream.codec_context.time_base = Fraction(1, settings.fps)
    with ordinary_scheduling() if settings.codec == "av1" else contextlib.nullcontext():
        container.start_encoding()  # opens the encoder, which would else open at the first picture
    return stream


class VideoEncoder:
    """Encodes pictures one by one into an mp4.

    Args:
        settings: Size, rate and codec.
        target: Where the mp4 goes; None keeps it in memory.
        log: Is told of each compressed picture, once it is where it belongs.
    """

    def __init__(
        self, settings: VideoSettings, target: TempFile | None = None, log: PacketLog | None = None
    ) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.frames = 0
        self._packets = 0
        self._settings, self._target, self._log = settings, target, log
        self._memory = io.BytesIO()
        self._frame = av.VideoFrame
        self._reformatter, self._single = VideoReformatter(), single_thread()
        # A file gets each picture at once: what the muxer keeps back is lost when the process dies.
        options = {} if target is None else {"flush_packets": "1"}
        self._container = av.open(target or self._memory, "w", format="mp4", options=options)
        self._stream = open_stream(self._container, settings)

    @property
    def extradata(self) -> bytes:
        """What a decoder must know beforehand (h264: the parameter sets)."""
        return self._stream.codec_context.extradata or b""

    def add(self, image: np.ndarray, times: int = 1) -> bool:
        """Encode one picture, uint8 (H, W, 3), as so many frames; False, because no other is shown in its place."""
        frame = self._frame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24")
        frame = self._reformatter.reformat(frame, format=self._settings.pix_fmt, **self._single)
        frame.time_base = Fraction(1, self._settings.fps)
        for _ in range(times):
            frame.pts = self.frames
            self._mux(self._stream.encode(frame))
            self.frames += 1
        return False

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
        if self._target is not None:
            self._target.path.unlink(missing_ok=True)
        self.stop()

    def stop(self) -> None:
        """Let go of the file, as it is."""
        import av

        if self._target is not None:
            self._target.close()
        with contextlib.suppress(av.FFmpegError):  # it has nowhere to write the end to, and needs not
            self._container.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            self._packets += 1
            if self._log is None:
                self._container.mux(packet)
            elif self._target is None:
                content = bytes(packet)
                self._container.mux(packet)
                self._log.inline(content)
            else:
                start, self._target.crc = self._target.tell(), 0
                self._container.mux(packet)
                self._log.in_file(start, self._target.tell() - start, self._target.crc)
