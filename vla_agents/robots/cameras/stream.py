"""The thread behind a camera: newest picture, its capture time, and a device that is got back when it was lost."""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from typing import Any

import numpy as np

from vla_agents.embodiment import Camera
from vla_agents.errors import CameraError, ConfigError
from vla_agents.robots.robot import CameraSource, Frame

logger = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
TURNS = (0, 90, 180, 270)


class CameraStream(CameraSource):
    """A camera that is read by a thread of its own.

    A kind of camera is a subclass with three methods: `open`, `grab` and `release`, all called from that thread.

    Args:
        source: Which device, address or file.
        name: What it is called in observations.
        height: Of the pictures, after turning.
        width: Likewise.
        fps: Pictures per second to ask for.
        turn: By how many degrees, clockwise, the pictures are turned: 0, 90, 180 or 270.
        wait_s: How long `connect` waits for the first picture.
        give_up_s: For how long a lost device is tried again before `latest` raises.

    Attributes:
        frames: Pictures captured since `connect`.
        reconnects: How often a lost device was got back.
    """

    def __init__(
        self,
        source: str,
        name: str,
        height: int,
        width: int,
        *,
        fps: float = 30.0,
        turn: int = 0,
        wait_s: float = 5.0,
        give_up_s: float = 60.0,
    ) -> None:
        if turn not in TURNS:
            raise ConfigError(f"camera {name!r}: turn is {turn}", f"it is one of {TURNS}")
        if not (fps > 0 and wait_s > 0 and give_up_s >= 0):
            raise ConfigError(
                f"camera {name!r}: fps {fps} and wait_s {wait_s} must be above 0, give_up_s {give_up_s} not negative"
            )
        self.camera = Camera(name, height, width)
        self.source, self.fps, self.turn, self.wait_s, self.give_up_s = source, fps, turn, wait_s, give_up_s
        self.frames = self.reconnects = 0
        self._frame: Frame | None = None
        self._error: CameraError | None = None  # final: the thread has ended
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- a kind of camera -------------------------------------------------------------------------------------
    @abstractmethod
    def open(self) -> Any:
        """Open the device; `CameraError` says why it cannot be opened."""

    @abstractmethod
    def grab(self, device: Any) -> tuple[np.ndarray, float]:
        """The next picture, uint8 RGB (H, W, 3), and its monotonic capture time; waits for it.

        Raises:
            CameraError: The device is lost.
        """

    def release(self, device: Any) -> None:
        """Close the device."""

    @property
    def device_size(self) -> tuple[int, int]:
        """`(height, width)` to ask the device for: that of the pictures before they are turned."""
        height, width = self.camera.height, self.camera.width
        return (width, height) if self.turn in (90, 270) else (height, width)

    # ---- CameraSource -------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Open the device, start the thread, wait for the first picture. See `CameraSource.connect`."""
        if self._thread is not None:
            raise CameraError(f"camera {self.camera.name!r} is connected already", "close it first")
        self._stop.clear()
        self._frame = self._error = None
        self.frames = self.reconnects = 0
        self._thread = threading.Thread(target=self._run, name=f"camera {self.camera.name}", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._error is not None, self.wait_s)
        if self._frame is None:
            error = self._error or CameraError(
                f"camera {self.camera.name!r} ({self.source}) gave no picture within {self.wait_s:g} s",
                "check its cable; over a network or with long exposures, a larger wait_s helps",
            )
            self.close()
            raise error

    def latest(self) -> Frame:
        """The newest picture, at once. See `CameraSource.latest`."""
        if self._error is not None:
            raise self._error
        if self._thread is None or self._frame is None:
            raise CameraError(f"camera {self.camera.name!r} is not connected", "call connect() first")
        return self._frame

    def close(self) -> None:
        """Stop the thread and free the device. See `CameraSource.close`."""
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None:
            thread.join(3.0)
            if thread.is_alive():
                logger.warning("camera %r (%s) does not let go of its device", self.camera.name, self.source)

    # ---- the thread ---------------------------------------------------------------------------------------------
    def _run(self) -> None:
        pause, lost = _FIRST_PAUSE_S, 0.0
        while not self._stop.is_set():
            try:
                device = self.open()
                try:
                    while not self._stop.is_set():
                        self._publish(*self.grab(device))
                        if lost:
                            self.reconnects += 1
                            logger.warning("camera %r is back", self.camera.name)
                        pause, lost = _FIRST_PAUSE_S, 0.0
                finally:
                    self.release(device)
            except CameraError as error:
                now = time.monotonic()
                if not lost:
                    lost = now
                    if self.frames:
                        logger.warning("camera %r is lost, trying again: %s", self.camera.name, error)
                if not self.frames or isinstance(error, _FinalError) or now - lost >= self.give_up_s:
                    return self._end(error)
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            except Exception as error:
                return self._end(
                    CameraError(f"camera {self.camera.name!r} ({self.source}) failed: {error!r}")
                )

    def _publish(self, image: np.ndarray, captured: float) -> None:
        image = np.ascontiguousarray(np.rot90(image, -self.turn // 90) if self.turn else image)
        wanted = (self.camera.height, self.camera.width, 3)
        if image.shape != wanted or image.dtype != np.uint8:
            raise self.wrong_size(*image.shape[:2])
        image.flags.writeable = False
        with self._changed:
            self.frames += 1
            self._frame = Frame(image, captured, self.frames)
            self._changed.notify_all()

    def _end(self, error: CameraError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wrong_size(self, height: int, width: int) -> CameraError:
        """The error for pictures of another size than asked for."""
        return _FinalError(
            f"camera {self.camera.name!r} ({self.source}) gives pictures of {height}x{width}, asked for "
            f"{self.camera.height}x{self.camera.width}",
            f"ask for height={height}, width={width} and let the transform ResizeImages bring them to the policy's "
            "size, or choose a size that the device offers",
        )

    def ended(self) -> CameraError:
        """The error of a source that is at its end for good."""
        return _FinalError(
            f"camera {self.camera.name!r}: {self.source} is at its end", "loop=True starts it again"
        )


class _FinalError(CameraError):
    """Trying again would not help."""
