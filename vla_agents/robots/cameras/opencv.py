"""Cameras of this machine through OpenCV: V4L2 on Linux, whatever OpenCV finds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.errors import CameraError, MissingDependencyError
from vla_agents.robots.buses.line import holders
from vla_agents.robots.cameras.stream import CameraStream


class OpenCVCamera(CameraStream):
    """A camera by its number or its device file.

    Args:
        source: `"0"` or `"/dev/video0"`; links such as /dev/v4l/by-id/... keep their meaning when cameras are
            plugged in another order.
        name, height, width, options: See `CameraStream`.
        fourcc: The format on the wire; MJPG leaves room on the USB bus for several cameras. Empty: the device's own.
    """

    def __init__(
        self, source: str, name: str, height: int, width: int, *, fourcc: str = "MJPG", **options: Any
    ) -> None:
        super().__init__(source, name, height, width, **options)
        self.fourcc = fourcc

    def open(self) -> Any:
        """Open it and ask for size, speed and format."""
        cv2 = _cv2()
        linux = sys.platform.startswith("linux")
        path = f"/dev/video{self.source}" if linux and self.source.isdecimal() else self.source
        if linux:
            _require_device(self.camera.name, path)
        number: int | str = path if linux else int(self.source) if self.source.isdecimal() else self.source
        device = cv2.VideoCapture(number, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
        if not device.isOpened():
            raise CameraError(
                f"camera {self.camera.name!r}: {path} cannot be opened{holders(path)}",
                "end the program that uses it; some cameras have a second device that gives no pictures "
                "(`vla-agents robot find` tells which do)",
            )
        height, width = self.device_size
        if self.fourcc:
            device.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*self.fourcc))
        device.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        device.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        device.set(cv2.CAP_PROP_FPS, self.fps)
        device.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return device

    def grab(self, device: Any) -> tuple[np.ndarray, float]:
        """The next picture; the driver's own time stamp where it has a monotonic one."""
        cv2 = _cv2()
        got, image = device.read()
        now = time.monotonic()
        if not got:
            raise CameraError(
                f"camera {self.camera.name!r} ({self.source}) gives no pictures any more", "check its cable"
            )
        stamp = device.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
        captured = stamp if now - 1.0 < stamp <= now else now
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), captured

    def release(self, device: Any) -> None:
        """Close it."""
        device.release()


def find_cameras() -> list[tuple[str, str, str]]:
    """Cameras of this machine that give pictures: `(device, name, "HEIGHTxWIDTH")`. Opens each of them shortly."""
    cv2 = _cv2()
    found = []
    for path in sorted(Path("/dev").glob("video*"), key=lambda p: (len(p.name), p.name)):
        if not os.access(path, os.R_OK | os.W_OK):
            continue
        device = cv2.VideoCapture(str(path), cv2.CAP_V4L2)
        image = device.read()[1] if device.isOpened() else None
        device.release()
        if image is not None:
            title = Path("/sys/class/video4linux") / path.name / "name"
            name = title.read_text().strip() if title.exists() else ""
            found.append((str(path), name, f"{image.shape[0]}x{image.shape[1]}"))
    return found


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError("opencv-python", "robots", "a camera of this machine") from error
    return cv2


def _require_device(name: str, path: str) -> None:
    if not os.path.exists(path):
        there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
        raise CameraError(
            f"camera {name!r}: there is no {path} (there: {there})", "`vla-agents robot find` lists cameras"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise CameraError(
            f"camera {name!r}: no permission to open {path}",
            "either `sudo usermod -aG video $USER` and log in again, or put this line into "
            '/etc/udev/rules.d/99-cameras.rules: SUBSYSTEM=="video4linux", MODE="0666"',
        )
