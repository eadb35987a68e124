"""Pictures from a network camera (RTSP, MJPEG over HTTP) or from a video file, through PyAV."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from vla_agents.errors import CameraError, ConfigError
from vla_agents.robots.cameras.stream import CameraStream

_SILENCE_S = 5.0  # a network camera that sends nothing for so long is lost


class _Stream:
    """An open container and its decoded pictures."""

    def __init__(self, source: str, name: str, remedy: str, **options: Any) -> None:
        import av

        self._error = av.error.FFmpegError
        self.name, self.source, self.remedy = name, source, remedy
        try:
            self.container = av.open(source, **options)
            self.video = self.container.streams.video[0]
        except self._error as error:
            raise CameraError(f"camera {name!r}: {source} cannot be opened ({error})", remedy) from error
        except IndexError:
            self.container.close()
            raise CameraError(f"camera {name!r}: {source} holds no video") from None
        self.frames: Iterator[Any] = self.container.decode(self.video)

    def next(self) -> Any | None:
        """The next decoded picture; None at the end."""
        try:
            return next(self.frames, None)
        except self._error as error:
            raise CameraError(
                f"camera {self.name!r}: {self.source} was lost ({error})", self.remedy
            ) from error

    def close(self) -> None:
        self.container.close()


class NetworkCamera(CameraStream):
    """A camera at an address, e.g. `rtsp://user:secret@host/stream` or `http://host:8080/video`.

    The capture time is that of the arrival: how long a picture was on its way is not known. Many phones and
    cameras can be had this way; expect 50 ms to 300 ms.
    """

    def open(self) -> Any:
        """Connect, and decode with as little delay as the format allows."""
        options = {"fflags": "nobuffer", "flags": "low_delay", "rtsp_transport": "tcp"}
        return _Stream(
            self.source,
            self.camera.name,
            "check that the address opens in a browser or a video player on this machine",
            options=options,
            timeout=(self.wait_s, _SILENCE_S),
        )

    def grab(self, device: Any) -> tuple[np.ndarray, float]:
        """The next picture."""
        frame = device.next()
        if frame is None:
            raise CameraError(f"camera {self.camera.name!r}: {self.source} ended", "check the camera")
        return frame.to_ndarray(format="rgb24"), time.monotonic()

    def release(self, device: Any) -> None:
        """Hang up."""
        device.close()


class VideoFileCamera(CameraStream):
    """A video file, played at the speed of `fps` (by default its own) as if it were a camera.

    Args:
        source: The file.
        name, height, width, options: See `CameraStream`.
        fps: Pictures per second; 0 takes the file's own.
        loop: Start again at the end; otherwise `latest` raises from then on.
    """

    def __init__(
        self,
        source: str,
        name: str,
        height: int,
        width: int,
        *,
        fps: float = 0.0,
        loop: bool = True,
        **options: Any,
    ) -> None:
        if not os.path.exists(source):
            raise ConfigError(f"camera {name!r}: there is no file {source}")
        super().__init__(source, name, height, width, fps=fps or 1.0, **options)
        self.own_speed, self.loop = not fps, loop
        self._due = 0.0

    def open(self) -> Any:
        """Open the file at its start."""
        stream = _Stream(self.source, self.camera.name, "it must be a video that FFmpeg can read")
        if self.own_speed:
            self.fps = float(stream.video.average_rate or 30.0)
        return stream

    def grab(self, device: Any) -> tuple[np.ndarray, float]:
        """Wait until the next picture is due, and take it."""
        frame = device.next()
        if frame is None:
            if not self.loop or not self.frames:
                raise self.ended()
            device.container.seek(0)
            device.frames = device.container.decode(device.video)
            frame = device.next()
        image = frame.to_ndarray(format="rgb24")
        self._stop.wait(max(0.0, self._due - time.monotonic()))
        now = time.monotonic()
        self._due = max(self._due + 1.0 / self.fps, now)
        return image, now

    def release(self, device: Any) -> None:
        """Close the file."""
        device.close()
