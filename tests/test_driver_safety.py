"""Every driver behind the safety filter: what arrives at the device, read from its wire, is never unsafe.

A driver joins with one function in `WIRES`: it yields the robot and a function that returns what has arrived at the
device since the last call, in axis units, worked out from the device's own words and not with the driver's code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from robot_fakes import Clock, RecordingRobot, checker_for

from vla_agents.errors import CommunicationError, RobotError
from vla_agents.robots import make_robot
from vla_agents.robots.loop import ControlLoop
from vla_agents.robots.robot import Reading, Robot

HZ = 100.0
Wire = tuple[Robot, Callable[[], list[np.ndarray]]]


def _new(log: list[Any]) -> Callable[[], list[Any]]:
    """What was appended since the last call."""
    seen = [0]

    def take() -> list[Any]:
        fresh = log[seen[0] :]
        seen[0] += len(fresh)
        return fresh

    return take


@contextmanager
def recording() -> Iterator[Wire]:
    robot = RecordingRobot()
    take = _new(robot.wire)
    yield robot, lambda: [command for _, command in take()]


@contextmanager
def simulated_arm() -> Iterator[Wire]:
    robot = make_robot("simulated_arm", cameras=())
    sent: list[np.ndarray] = []
    original = robot.command

    def command(target: np.ndarray) -> np.ndarray:
        original(target)
        sent.append(robot.env.world.data.ctrl[:7].copy())  # what the motors have for a goal
        return sent[-1].copy()

    robot.command = command
    yield robot, _new(sent)


def _servo_arm(kind: str, device: Any) -> Iterator[Wire]:
    device.has_watchdog = (
        False  # a pause of this process is none in virtual time, and the filter could not know of it
    )
    device.faults.lose = device.faults.corrupt = 0.005
    for servo in device.servos.values():
        servo.speed *= 50  # virtual time passes faster than the emulator's
    robot = make_robot(kind, port=device.path, calibration=device.calibration, timeout_s=0.05)
    motors = [device.calibration.motors[joint.name] for joint in robot.joints]
    take = _new(device.goals)

    def arrived() -> list[np.ndarray]:
        goals = {motor.id: [] for motor in motors}
        with device.lock:  # an order to all motors has arrived as a whole
            for _, motor, raw in take():
                if motor in goals:  # not the second motor of a shaft, which listens to the first one's orders
                    goals[motor].append(raw)
        columns = []
        for joint, motor in zip(robot.joints, motors, strict=True):
            raw, width = np.array(goals[motor.id], float), motor.range_max - motor.range_min
            turn = (raw - (motor.range_min + motor.range_max) / 2) * 2 * np.pi / 4096
            columns.append((raw - motor.range_min) / width if joint.gripper else turn)
        return list(np.stack(columns, 1))

    yield robot, arrived


@contextmanager
def so101() -> Iterator[Wire]:
    from emulators.arms import SO101Emulator

    with SO101Emulator() as device:
        yield from _servo_arm("so101", device)


@contextmanager
def koch() -> Iterator[Wire]:
    from emulators.arms import dynamixel_arm

    from vla_agents.robots.drivers.dynamixel_arms import Koch

    with dynamixel_arm(Koch) as device:
        yield from _servo_arm("koch", device)


@contextmanager
def viperx() -> Iterator[Wire]:
    from emulators.arms import dynamixel_arm

    from vla_agents.robots.drivers.dynamixel_arms import ViperX

    with dynamixel_arm(ViperX) as device:
        yield from _servo_arm("viperx", device)


@contextmanager
def ur() -> Iterator[Wire]:
    from emulators.ur import UREmulator

    with UREmulator(speed=100.0) as device:
        robot = make_robot("ur", host="127.0.0.1", timeout_s=1.0, **device.ports)
        take = _new(device.followed)
        yield robot, lambda: [np.array(q) for q in take()]


@contextmanager
def ros() -> Iterator[Wire]:
    from emulators.rosbridge import RosbridgeEmulator

    names = ("base", "lift", "wrist")
    axes = [
        {"name": name, "low": -2.0, "high": 2.0, "velocity": 2.0, "acceleration": 8.0, "home": 0.1}
        for name in names
    ]
    description = {"axes": axes, "commands": [{"topic": "/arm", "joints": list(names)}]}
    with RosbridgeEmulator(names, hz=500.0, speed=100.0) as device:
        device.lose = device.garbage = 0.02
        robot = make_robot("ros", host="127.0.0.1", port=device.port, description=description, timeout_s=1.0)
        take = _new(device.goals)
        yield robot, lambda: [np.array([goal[name] for name in names]) for _, goal in take()]


@contextmanager
def xarm() -> Iterator[Wire]:
    from emulators.xarm import XArmEmulator
    from xarm.core.config.x_config import XCONF

    from vla_agents.robots.drivers.xarm import XArm

    with XArmEmulator(speed=100.0) as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(XCONF.SocketConf, "TCP_CONTROL_PORT", device.port)
        patch.setattr(XArm, "port", device.port)
        robot = make_robot("xarm", host="127.0.0.1", timeout_s=1.0)
        take = _new(device.goals)
        yield robot, lambda: [np.array(goal) for _, goal in take()]


@contextmanager
def lerobot() -> Iterator[Wire]:
    """The real LeRobot, where it is installed."""
    import json
    import tempfile

    from emulators.arms import SO101Emulator

    with SO101Emulator() as device, tempfile.TemporaryDirectory() as folder:
        motors = {name: dataclasses.asdict(motor) for name, motor in device.calibration.motors.items()}
        for motor in motors.values():
            del motor["model"]
        with open(f"{folder}/arm.json", "w") as file:
            json.dump(motors, file)
        for servo in device.servos.values():
            servo.speed *= 50
            servo.table[42:44] = round(servo.position).to_bytes(2, "little")  # LeRobot does not set it first
        config = {"type": "so101_follower", "port": device.path, "id": "arm", "calibration_dir": folder}
        robot = make_robot("lerobot", config={**config, "use_degrees": False})
        take = _new(device.goals)

        def arrived() -> list[np.ndarray]:
            with device.lock:
                raw = np.array([goal for _, _, goal in take()], float).reshape(-1, 6)
            low = np.array([motor["range_min"] for motor in motors.values()])
            high = np.array([motor["range_max"] for motor in motors.values()])
            part = (raw - low) / (high - low)
            return list(np.concatenate([200 * part[:, :5] - 100, 100 * part[:, 5:]], 1))

        yield robot, arrived


WIRES = {
    wire.__name__: wire for wire in (recording, simulated_arm, so101, koch, viperx, ur, ros, xarm, lerobot)
}
NEEDS = {
    "so101": "serial",
    "koch": "serial",
    "viperx": "serial",
    "ros": "websockets",
    "xarm": "xarm",
    "lerobot": "lerobot",
}


class Virtual(Robot):
    """A robot whose readings carry the time of a test's clock; tells the checker what was measured."""

    def __init__(self, robot: Robot, clock: Clock) -> None:
        self._robot, self._clock = robot, clock
        self.limits, self.embodiment = robot.limits, robot.embodiment
        self.checker = checker_for(robot.limits, 1 / HZ)
        self.on_the_way = 0
        self.failed, self._rng = False, np.random.default_rng(0)
        self.connect, self.stop, self.close = robot.connect, robot.stop, robot.close

    def observe(self) -> Reading:
        reading = dataclasses.replace(self._robot.observe(), time=self._clock())
        self.checker.measured(reading.time, reading.position, reading.effort)
        return reading

    def command(self, target: np.ndarray) -> np.ndarray:
        fails = self._rng.random()
        if fails < 0.01:
            self._fail("did not get through")
        sent = self._robot.command(target)
        self.on_the_way += 1
        if fails > 0.99:
            self._fail("got through, unnoticed")
        return sent

    def _fail(self, how: str) -> None:
        self.failed = True
        raise CommunicationError(how)


def torment(robot: Robot, arrived: Callable[[], list[np.ndarray]], ticks: int, seed: int) -> Virtual:
    """Drive a robot through nonsense; the checker judges what arrives at the device in every tick."""
    rng, clock = np.random.default_rng(seed), Clock()
    seen = Virtual(robot, clock)
    loop = ControlLoop(seen, HZ, clock=clock, sleep=clock.sleep)
    loop.connect(thread=False)
    with contextlib.suppress(CommunicationError):
        robot.observe()  # an answer: what was sent before it has arrived
    arrived()  # what holds it; that this moves nothing is the drivers' own test
    low, high = robot.limits.low, robot.limits.high
    target = np.array(robot.limits.home)
    for _ in range(ticks):
        kind = rng.random()
        if kind < 0.05:
            target = rng.uniform(low - 1, high + 1)
        elif kind < 0.07:
            target = np.where(rng.random(len(low)) < 0.3, rng.choice([np.nan, np.inf, 1e9]), target)
        elif kind < 0.5:
            target = np.clip(np.nan_to_num(target), low, high) + rng.normal(0, 0.02, len(low)) * (high - low)
        if rng.random() < 0.95:
            with contextlib.suppress(RobotError):
                loop.aim(target)
                seen.checker.wished(clock.now, target)
        if rng.random() < 0.01:
            loop.stop("torment")
        if loop.stopped and rng.random() < 0.2:
            with contextlib.suppress(RobotError):
                loop.clear(timeout=0.0)
        if rng.random() < 0.02:
            clock.now += rng.uniform(0, 0.1)
        _tick(loop, seen, arrived, clock)
    loop.close()
    seen.checker.stopped()
    return seen


def _tick(loop: ControlLoop, seen: Virtual, arrived: Callable[[], list[np.ndarray]], clock: Clock) -> None:
    if loop.stopped:
        seen.checker.stopped()
    clearing = loop._clear
    loop.tick()
    if clearing and not loop._clear and not loop.stopped:  # a stop that came meanwhile cancels the clearing
        seen.checker.cleared(clock.now)
    until = time.monotonic() + 60.0
    while seen.on_the_way and time.monotonic() < until:
        for command in arrived():
            seen.checker.sent(loop.now.time, command)
            seen.on_the_way -= 1
    if seen.failed:
        seen.failed = False
        seen.checker.doubted(loop.now.time)
    assert seen.on_the_way == 0, "what was sent without an error did not arrive: the judge does not know all"
    assert not seen.checker.unsafe, seen.checker.unsafe[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    if importlib.util.find_spec("serial") is not None:
        from vla_agents.robots.drivers import servo_arm

        monkeypatch.setattr(servo_arm, "SINK_S", 0.02)


@pytest.mark.parametrize("name", WIRES)
def test_nothing_unsafe_arrives_at_the_device(name):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    with WIRES[name]() as (robot, arrived):
        seen = torment(robot, arrived, 200, seed=0)
        assert seen.checker.commands > 100


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", WIRES)
def test_nothing_unsafe_arrives_in_a_hundred_thousand_periods(name):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    total = 0
    for seed in range(1, 21):
        with WIRES[name]() as (robot, arrived):
            total += torment(robot, arrived, 5_000, seed).checker.commands
    assert total > 50_000
