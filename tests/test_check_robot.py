"""The conformance test passes for robots that keep to the protocol, and names what others do wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
from robot_fakes import RecordingRobot, planar_limits

from vla_agents.errors import PortNotFoundError, RobotError
from vla_agents.robots.check import check_robot
from vla_agents.robots.robot import Reading, check_target
from vla_agents.robots.simulated_arm import SimulatedArm


class Quick(RecordingRobot):
    """With small ways, so that the test is."""

    def __init__(self) -> None:
        axes = planar_limits().axes
        brisk = tuple(dataclasses.replace(a, velocity=4.0, acceleration=100.0) for a in (axes[0], axes[3]))
        super().__init__(planar_limits(box=False, axes=brisk), period=0.02, hz=50)


def test_a_recording_robot_passes():
    names = check_robot(Quick())
    assert "NaN is refused" in names and "axis gripper moves as told, and alone" in names and len(names) > 20


def test_the_simulated_arm_passes():
    names = check_robot(SimulatedArm(renderer="raycast", image_size=32), moves=False)
    assert "camera front" in names


def test_the_driver_of_the_examples_passes():
    file = Path(__file__).parent.parent / "examples" / "my_robot.py"
    spec = importlib.util.spec_from_file_location("my_robot", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device = module.Controller()
    try:
        check_robot(module.MyArm("127.0.0.1", device.port), moves=False)
    finally:
        device.close()
    with pytest.raises(PortNotFoundError, match="nobody answers"):
        check_robot(module.MyArm("127.0.0.1", device.port))


@pytest.mark.slow
def test_the_simulated_arm_passes_in_motion():
    check_robot(SimulatedArm(renderer="raycast", image_size=32))


class ConnectsTwice(Quick):
    def connect(self) -> None:
        self._connected = False
        super().connect()


class OneBuffer(Quick):
    def observe(self) -> Reading:
        reading = super().observe()
        self.buffer = getattr(self, "buffer", np.zeros(2))
        self.buffer[:] = reading.position
        return Reading(self.buffer, reading.time)


class CachedTime(Quick):
    def observe(self) -> Reading:
        reading = super().observe()
        self.first = getattr(self, "first", reading.time)
        return Reading(reading.position, self.first)


class WallClock(Quick):
    def observe(self) -> Reading:
        return Reading(super().observe().position, time.time())


class SendsAnything(Quick):
    def command(self, target: np.ndarray) -> np.ndarray:
        try:
            return super().command(target)
        except Exception:
            if not self._connected:
                raise
            return target


class Secretive(Quick):
    def command(self, target: np.ndarray) -> np.ndarray:
        return super().command(target) + 0.3


class Swapped(Quick):
    def command(self, target: np.ndarray) -> np.ndarray:
        told = check_target(target, self.limits)
        home = self.limits.home
        super().command(home + (told - home)[::-1])
        return told.copy()


class GoesHomeItself(Quick):
    def home(self, position: np.ndarray) -> list[np.ndarray]:
        self.position = self.limits.home + 0.5
        return [self.limits.home]


class WorksClosed(Quick):
    def close(self) -> None:
        pass


class MotorsTheWrongWay(Quick):
    def observe(self) -> Reading:
        reading = super().observe()
        mirrored = reading.position.copy()
        mirrored[0] = 2 * self.limits.home[0] - mirrored[0]
        return Reading(mirrored, reading.time)


class OtherBounds(Quick):
    def __init__(self) -> None:
        super().__init__()
        self.embodiment = planar_limits(box=False).embodiment("wrong", 50)


class Jumps(Quick):
    def connect(self) -> None:
        super().connect()
        self.wire.append((time.monotonic(), self.position + 0.4))


BROKEN = {
    ConnectsTwice: "connecting twice is refused",
    OneBuffer: "a reading does not change",
    CachedTime: "capture times grow",
    WallClock: "capture time",
    SendsAnything: "NaN is refused",
    Secretive: "command returns what was sent",
    Swapped: "axis shoulder moves",
    GoesHomeItself: "the way home",
    WorksClosed: "observe after close",
    MotorsTheWrongWay: "axis shoulder moves",
    OtherBounds: "4 actions for 2 axes",
    Jumps: "connecting moves nothing",
}


MOVED = (Swapped, MotorsTheWrongWay)  # seen in motion only


@pytest.mark.parametrize(
    "broken",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind in MOVED), id=kind.__name__) for kind in BROKEN],
)
def test_broken_robots_are_told_what_is_wrong(broken):
    with pytest.raises(RobotError, match=BROKEN[broken]):
        check_robot(broken())
