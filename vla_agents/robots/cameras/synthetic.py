"""A camera that draws its pictures: for trying things out, and for tests."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from vla_agents.robots.cameras.stream import CameraStream


class SyntheticCamera(CameraStream):
    """A grey square that wanders over a gradient; the picture's number stands in its first pixels (`number_in`)."""

    def open(self) -> Any:
        """A clock: when the next picture is due, and the background."""
        height, width = self.device_size
        y, x = np.mgrid[0:height, 0:width]
        ground = np.stack([255 * x // width, 255 * y // height, np.full_like(x, 96)], -1).astype(np.uint8)
        return [time.monotonic(), ground]

    def grab(self, device: Any) -> tuple[np.ndarray, float]:
        """Wait until it is due, draw it."""
        due, ground = device
        self._stop.wait(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        device[0] = max(due + 1.0 / self.fps, now)
        image, (height, width) = ground.copy(), ground.shape[:2]
        size = max(1, min(height, width) // 4)
        top, left = (self.frames * 3) % max(1, height - size), (self.frames * 5) % max(1, width - size)
        image[top : top + size, left : left + size] = 200
        image[0, :4, 0] = np.frombuffer(np.uint32(self.frames + 1).tobytes(), np.uint8)[:width]
        return image, now

    @staticmethod
    def number_in(image: np.ndarray) -> int:
        """The number drawn into a picture (at least 4 pixels wide, not turned)."""
        return int(np.frombuffer(np.ascontiguousarray(image[0, :4, 0]).tobytes(), np.uint32)[0])
