"""Intel RealSense cameras: the colour picture. Not run on hardware yet; the calls are checked against pyrealsense2."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from vla_agents.errors import CameraError, MissingDependencyError
from vla_agents.robots.cameras.stream import CameraStream

_WAIT_MS = 2000


class RealSenseCamera(CameraStream):
    """A RealSense by its serial number (empty: the only one there is)."""

    def open(self) -> Any:
        """Start the colour stream."""
        rs = _pyrealsense()
        found = {device.get_info(rs.camera_info.serial_number) for device in rs.context().query_devices()}
        if not found or (self.source and self.source not in found):
            there = ", ".join(sorted(found)) or "none"
            raise CameraError(
                f"camera {self.camera.name!r}: there is no RealSense {self.source} (there: {there})",
                "plug it into a USB 3 port",
            )
        if not self.source and len(found) > 1:
            raise CameraError(
                f"camera {self.camera.name!r}: there are several RealSense cameras",
                f"name one by its serial number: {', '.join('realsense:' + serial for serial in sorted(found))}",
            )
        config = rs.config()
        if self.source:
            config.enable_device(self.source)
        height, width = self.device_size
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, round(self.fps))
        pipeline = rs.pipeline()
        try:
            pipeline.start(config)
        except RuntimeError as error:
            raise CameraError(
                f"camera {self.camera.name!r}: {height}x{width} at {self.fps:g} fps cannot be had ({error})",
                "`rs-enumerate-devices` lists the sizes it offers; end other programs that use it",
            ) from error
        return pipeline

    def grab(self, device: Any) -> tuple[np.ndarray, float]:
        """The next colour picture; its capture time is that of the camera where the clocks are in step."""
        rs = _pyrealsense()
        try:
            frame = device.wait_for_frames(_WAIT_MS).get_color_frame()
        except RuntimeError as error:
            raise CameraError(
                f"camera {self.camera.name!r} gives no pictures any more ({error})", "check its cable"
            ) from error
        now = time.monotonic()
        age = 0.0
        if (
            frame.get_frame_timestamp_domain() == rs.timestamp_domain.global_time
        ):  # ms of the host's wall clock
            age = time.time() - frame.get_timestamp() / 1000.0
        return np.array(frame.get_data()), now - age if 0.0 <= age < 1.0 else now

    def release(self, device: Any) -> None:
        """Stop the stream."""
        device.stop()


def _pyrealsense() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise MissingDependencyError("pyrealsense2", "realsense", "a RealSense camera") from error
    return pyrealsense2
