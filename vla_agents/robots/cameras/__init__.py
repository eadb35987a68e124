"""Cameras: each with a thread of its own that always has the newest picture and gets a lost device back."""

from __future__ import annotations

from typing import Any

from vla_agents.errors import ConfigError
from vla_agents.registry import Registry
from vla_agents.robots.cameras.stream import CameraStream

__all__ = ["CAMERAS", "CameraStream", "make_camera"]

CAMERAS = Registry(
    "camera",
    {
        "opencv": "vla_agents.robots.cameras.opencv:OpenCVCamera",
        "network": "vla_agents.robots.cameras.video:NetworkCamera",
        "realsense": "vla_agents.robots.cameras.realsense:RealSenseCamera",
        "synthetic": "vla_agents.robots.cameras.synthetic:SyntheticCamera",
        "video": "vla_agents.robots.cameras.video:VideoFileCamera",
    },
)
"""Name -> class of a kind of camera."""


def make_camera(source: str | int, name: str, height: int, width: int, **options: Any) -> CameraStream:
    """The camera behind a source, not connected yet.

    Args:
        source: `0` or `/dev/video0` (V4L2), `realsense` or `realsense:SERIAL`, `synthetic`, an address
            (`rtsp://...`, `http://...`), or a video file.
        name: What it is called in observations.
        height: Of its pictures; a device that gives others is refused.
        width: Likewise.
        **options: Of its class.
    """
    text = str(source)
    if not text:
        raise ConfigError(
            f"camera {name!r} has no source", "e.g. 0, /dev/video0, rtsp://host/stream, synthetic"
        )
    word, _, rest = text.partition(":")
    if text.isdecimal() or text.startswith("/dev/"):
        return CAMERAS.get("opencv")(text, name, height, width, **options)
    if word in ("realsense", "synthetic"):
        return CAMERAS.get(word)(rest, name, height, width, **options)
    kind = "network" if "://" in text and word != "file" else "video"
    return CAMERAS.get(kind)(text.removeprefix("file://"), name, height, width, **options)
