"""Cameras of the simulated arm: one thread draws what they see, at their rate, beside the physics."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from vla_agents.embodiment import Camera
from vla_agents.envs import rendering
from vla_agents.errors import CameraError
from vla_agents.robots.robot import Frame
from vla_agents.robots.timing import Ticker

if TYPE_CHECKING:
    from vla_agents.robots.simulated_arm import SimulatedArm

logger = logging.getLogger(__name__)


class Studio:
    """Draws for all cameras of an arm, in one thread: an OpenGL context belongs to the thread that made it.

    Args:
        arm: Whose world is drawn, and whose lock is held while its state is copied.
        size: (height, width) of the pictures.
        fps: Pictures per second and camera.
        renderer: A name of `vla_agents.envs.rendering`.
    """

    def __init__(self, arm: SimulatedArm, size: tuple[int, int], fps: float, renderer: str) -> None:
        self.size = size
        self.frames: dict[str, Frame] = {}
        self.open: set[str] = set()
        self.problem = ""
        self._arm, self._fps, self._renderer = arm, fps, renderer
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, name: str, timeout: float = 20.0) -> None:
        """Start to draw for a camera; returns with its first picture."""
        self.problem = ""
        self.frames.pop(name, None)
        self.open.add(name)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="simulated-cameras", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: name in self.frames or self.problem, timeout)
        if name not in self.frames:
            self.open.discard(name)
            raise CameraError(f"the simulated camera {name!r} gives no picture: {self.problem or 'timeout'}")

    def remove(self, name: str) -> None:
        """Stop drawing for a camera; the thread ends with the last one."""
        self.open.discard(name)
        thread = self._thread
        if not self.open and thread is not None and thread is not threading.current_thread():
            thread.join(5.0)
            self._thread = None

    def _run(self) -> None:
        try:
            self._draw()
        except Exception as error:
            logger.exception("the simulated cameras have stopped")
            with self._changed:
                self.problem = str(error) or type(error).__name__
                self._changed.notify_all()

    def _draw(self) -> None:
        world = self._arm.env.world
        mujoco: Any = rendering.import_mujoco()
        renderer = rendering.make_renderer(world.model, *self.size, self._renderer)
        still = mujoco.MjData(world.model)
        ticker = Ticker(self._fps)
        try:
            while names := sorted(self.open):
                ticker.wait()
                with self._arm.lock:
                    now = time.monotonic()
                    still.qpos[:], still.mocap_pos[:] = world.data.qpos, world.data.mocap_pos
                mujoco.mj_kinematics(world.model, still)
                mujoco.mj_camlight(world.model, still)
                found = {name: Frame(renderer.render(still, name), now, ticker.number) for name in names}
                with self._changed:
                    self.frames.update(found)
                    self._changed.notify_all()
        finally:
            renderer.close()


class SimulatedCamera:
    """One of them (`CameraSource`)."""

    def __init__(self, studio: Studio, name: str) -> None:
        self.camera = Camera(name, *studio.size)
        self._studio = studio

    def connect(self) -> None:
        """Returns with the first picture."""
        self._studio.add(self.camera.name)

    def latest(self) -> Frame:
        """The newest picture."""
        if self._studio.problem:
            raise CameraError(f"the simulated camera {self.camera.name!r} has failed: {self._studio.problem}")
        frame = self._studio.frames.get(self.camera.name)
        if frame is None or self.camera.name not in self._studio.open:
            raise CameraError(f"the simulated camera {self.camera.name!r} is not connected", "call connect()")
        return frame

    def close(self) -> None:
        """Stop drawing."""
        self._studio.remove(self.camera.name)
