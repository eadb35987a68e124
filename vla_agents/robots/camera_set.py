"""The cameras of an env: opened and closed together, each picture with its age."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from vla_agents.embodiment import Camera
from vla_agents.errors import CameraError, ConfigError
from vla_agents.robots.robot import CameraSource

logger = logging.getLogger(__name__)


class CameraSet:
    """Several sources seen as one.

    Args:
        sources: Not connected yet; each with a name of its own.
        timeout: A picture older than this, s, is too old to act on.
    """

    def __init__(self, sources: Sequence[CameraSource], timeout: float) -> None:
        self._sources, self.timeout = tuple(sources), timeout
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            raise ConfigError(f"two cameras of the same name: {names}", "give each its own")

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """What they are, in order."""
        return tuple(source.camera for source in self._sources)

    def connect(self) -> None:
        """Open all, or none.

        Raises:
            CameraError: See `CameraSource.connect`.
        """
        for index, source in enumerate(self._sources):
            try:
                source.connect()
            except BaseException:
                _close(self._sources[: index + 1])
                raise

    def close(self) -> None:
        """Close all, whatever one of them says."""
        _close(self._sources)

    def old(self) -> list[str]:
        """Names of the cameras whose newest picture is too old."""
        oldest = time.monotonic() - self.timeout
        return [source.camera.name for source in self._sources if source.latest().time < oldest]

    def pictures(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Copies of the newest pictures, uint8 (H, W, 3), and their capture times, s.

        Raises:
            CameraError: One of another size than its source promised.
        """
        images, times = {}, {}
        for source in self._sources:
            frame, camera = source.latest(), source.camera
            if frame.image.shape != (camera.height, camera.width, 3) or frame.image.dtype != np.uint8:
                raise CameraError(
                    f"camera {camera.name!r} gives {frame.image.dtype} {frame.image.shape}, "
                    f"expected uint8 {(camera.height, camera.width, 3)}"
                )
            images[camera.name], times[camera.name] = frame.image.copy(), frame.time
        return images, times


def _close(sources: Sequence[CameraSource]) -> None:
    for source in sources:
        try:
            source.close()
        except Exception as error:
            logger.error("camera %r: %s", source.camera.name, error)
