"""The SO-101 driver against an emulated bus: units, calibration, limits, errors, and how it stops."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest
from emulators.arms import RANGES, SO101Emulator, so101_calibration
from hypothesis import given
from hypothesis import strategies as st

from vla_agents.errors import (
    ActionError,
    CalibrationError,
    CommunicationError,
    ConfigError,
    MotorError,
    PortBusyError,
    PortNotFoundError,
    RobotStateError,
    UnknownNameError,
)
from vla_agents.robots import make_robot
from vla_agents.robots.drivers import servo_arm
from vla_agents.robots.drivers.calibration import Calibration, calibration_path
from vla_agents.robots.drivers.so101 import SO101

pytest.importorskip("serial")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(servo_arm, "SINK_S", 0.05)


@pytest.fixture
def device():
    with SO101Emulator() as emulator:
        yield emulator


def arm_of(device, **options):
    options = {"calibration": device.calibration, "timeout_s": 0.05, **options}
    return make_robot("so101", port=device.path, **options)


@pytest.fixture
def arm(device):
    with arm_of(device) as robot:
        yield robot


# ---- moving ---------------------------------------------------------------------------------------------------
def test_connecting_moves_nothing_and_holds(device):
    goals = dict.fromkeys(device.servos, 1500)  # left over from an earlier program
    for motor, goal in goals.items():
        device.servos[motor].table[42:44] = goal.to_bytes(2, "little")
    before = {motor: servo.position for motor, servo in device.servos.items()}
    with arm_of(device) as robot:
        time.sleep(0.05)
        robot.observe()
        assert {motor: servo.position for motor, servo in device.servos.items()} == before
        assert all(servo.table[40] == 1 for servo in device.servos.values())
        goal_times = {motor: time for time, motor, _ in reversed(device.goals)}
        assert all(goal_times[motor] < t for t, motor, on in device.torque_log if on), "the goal comes first"
        with pytest.raises(RobotStateError, match="already"):
            robot.connect()


def test_positions_are_the_registers(device, arm):
    reading = arm.observe()
    np.testing.assert_allclose(reading.position, [0, 0, 0, 0, 0, 0.5], atol=1e-3)
    assert 0 <= time.monotonic() - reading.time < 0.5
    sent = arm.command(np.array([0.5, -0.5, 0.25, 0.1, 1.0, 0.75]))
    arm.observe()  # answered after the order was obeyed
    raw = {motor: value for _, motor, value in device.goals[-6:]}
    expected = [(sum(RANGES[joint.name]) / 2) for joint in SO101.joints[:5]]
    for motor, (middle, angle) in enumerate(zip(expected, [0.5, -0.5, 0.25, 0.1, 1.0], strict=True), 1):
        assert raw[motor] == pytest.approx(middle + angle * 4096 / (2 * np.pi), abs=0.51)
    np.testing.assert_allclose(sent, [0.5, -0.5, 0.25, 0.1, 1.0, 0.75], atol=arm.limits.resolution.max())
    time.sleep(0.4)
    np.testing.assert_allclose(arm.observe().position, sent, atol=1e-9)
    device.servos[3].table[60:62] = (1024 + 300).to_bytes(2, "little")
    assert arm.observe().effort[2] == -0.3


def test_a_joint_that_is_turned_around_pushes_the_other_way(device):
    motors = dict(device.calibration.motors)
    motors["elbow_flex"] = dataclasses.replace(motors["elbow_flex"], drive_mode=1)
    with arm_of(device, calibration=Calibration("so101", motors), on_close="hold") as robot:
        device.servos[3].table[60:62] = (1024 + 300).to_bytes(2, "little")
        assert robot.observe().effort[2] == 0.3


def test_lerobots_numbers():
    """What lerobot 0.4.4 says of the same registers (drive_mode as in its `_normalize`)."""
    with SO101Emulator() as device:
        for motor, position in zip(range(1, 7), (1000, 1500, 2000, 2500, 3000, 2400), strict=True):
            device.servos[motor].position = float(position)
        expected = {
            "deg": [-98.0220, -45.2747, 2.1978, 42.6374, 83.7363, 24.9147],
            "pm100": [-81.6850, -43.4599, 2.2422, 40.5858, 46.5201, 24.9147],
        }
        for units, numbers in expected.items():
            with arm_of(device, units=units, on_close="hold") as robot:
                np.testing.assert_allclose(robot.observe().position, numbers, atol=1e-4)
                assert robot.limits.names[0] == "shoulder_pan.pos"
                assert robot.embodiment.action[5].high == (100.0,) or robot.embodiment.action[5].high == 100.0


@pytest.mark.parametrize("units", ["rad", "deg", "pm100"])
@given(drive=st.lists(st.booleans(), min_size=6, max_size=6), seed=st.integers(0, 99))
def test_counts_survive_the_way_there_and_back(units, drive, seed):
    calibration = so101_calibration()
    motors = {
        name: dataclasses.replace(motor, drive_mode=int(turn))
        for (name, motor), turn in zip(calibration.motors.items(), drive, strict=True)
    }
    robot = SO101("/dev/null", calibration=Calibration("so101", motors), units=units)
    rng = np.random.default_rng(seed)
    counts = rng.integers(robot.scale.count_low, robot.scale.count_high + 1)
    position = robot.scale.position(counts)
    assert (robot.scale.counts(position) == counts).all()
    assert (position >= robot.limits.low - 1e-9).all() and (position <= robot.limits.high + 1e-9).all()
    far = robot.scale.counts(position + 1e3)
    assert ((far == robot.scale.count_low) | (far == robot.scale.count_high)).all()


def test_commands_that_are_not_numbers_send_nothing(device, arm):
    arm.observe()
    sent = len(device.goals)
    for bad in (np.zeros(5), np.full(6, np.nan), "abc", [[0.0] * 6]):
        with pytest.raises(ActionError, match="nothing was sent"):
            arm.command(bad)
    arm.observe()
    assert len(device.goals) == sent


def test_a_leader_is_led(device):
    with arm_of(device, passive=True) as leader:
        assert not any(servo.table[40] for servo in device.servos.values())
        device.servos[1].position = 2500.0
        assert leader.observe().position[0] == pytest.approx((2500 - 2115) * 2 * np.pi / 4096)
        with pytest.raises(RobotStateError, match="passive"):
            leader.command(np.zeros(6))
    assert not device.goals


# ---- stopping -------------------------------------------------------------------------------------------------
def test_stop_holds_where_it_is(device, arm):
    device.servos[1].speed = 500.0
    arm.command(np.array([1.0, 0, 0, 0, 0, 0.5]))
    time.sleep(0.1)
    arm.stop()
    time.sleep(0.1)
    arm.observe()
    goal = [value for _, motor, value in device.goals if motor == 1][-1]
    assert abs(device.servos[1].position - goal) <= 1
    assert goal < 2115 + 500


def test_closing_lets_the_arm_sink_and_frees_the_port(device):
    robot = arm_of(device)
    robot.close()
    robot.connect()
    robot.observe()
    robot.close()
    robot.close()
    assert not any(servo.table[40] for servo in device.servos.values())
    limits = [p for p in device.packets if p[4] == 0x83 and p[5] == 48]
    assert len(limits) >= 20, "weaker and weaker"
    with pytest.raises(RobotStateError, match="not connected"):
        robot.observe()
    robot.connect()  # the port is free, and the arm strong again
    assert all(
        int.from_bytes(s.table[48:50], "little") == (500 if m == 6 else 1000)
        for m, s in device.servos.items()
    )
    robot.on_close = "hold"
    robot.close()
    assert all(servo.table[40] for servo in device.servos.values())


def test_an_arm_that_holds_is_not_let_down_by_the_next_connect(device):
    arm_of(device, on_close="hold").__enter__().close()
    device.torque_log.clear()
    arm_of(device, on_close="hold").__enter__().close()
    assert all(on for _, _, on in device.torque_log)


def test_a_dead_wire_is_an_error_in_time_and_close_does_not_raise(device, caplog):
    robot = arm_of(device, timeout_s=0.01, retries=1)
    robot.connect()
    device.faults.mute = set(range(1, 7))
    start = time.monotonic()
    with pytest.raises(CommunicationError):
        robot.observe()
    assert time.monotonic() - start < 0.5
    robot.close()
    assert "could not be released" in caplog.text


# ---- what is refused before anything moves ----------------------------------------------------------------------
def test_missing_motor_wrong_model_wrong_speed_no_power(device):
    device.faults.mute = {3}
    with pytest.raises(MotorError, match=r"elbow_flex \(id 3\); there are \[1, 2, 4, 5, 6\]"):
        arm_of(device).connect()
    device.faults.mute = set()
    device.servos[2].table[3:5] = (1284).to_bytes(2, "little")
    with pytest.raises(MotorError, match=r"shoulder_lift.*SCS0009, expected STS3215"):
        arm_of(device).connect()
    assert not device.goals and not device.torque_log
    with SO101Emulator(baud=115_200) as slow:
        with pytest.raises(
            CommunicationError, match=r"at 1000000 baud, but motors.*at 115200[\s\S]*baud=115200"
        ):
            arm_of(slow).connect()
        with arm_of(slow, baud=115_200) as robot:
            robot.observe()
        slow.faults.mute = set(range(1, 7))
        with pytest.raises(CommunicationError, match="at no speed"):
            arm_of(slow).connect()


def test_the_port(device):
    with pytest.raises(PortNotFoundError):
        SO101("/dev/ttyNOPE", calibration=device.calibration).connect()
    with arm_of(device), pytest.raises(PortBusyError):
        arm_of(device).connect()


def test_calibration_of_another_arm(device, tmp_path):
    ours = device.calibration
    motors = {**ours.motors, "elbow_flex": dataclasses.replace(ours.motors["elbow_flex"], homing_offset=12)}
    other = Calibration("so101", motors).save(tmp_path / "other.json")
    with pytest.raises(
        CalibrationError,
        match=r"other.json[\s\S]*elbow_flex: homing_offset is 12 in the file, -50 in the motor",
    ):
        arm_of(device, calibration=other).connect()
    assert not device.goals and not device.torque_log
    with pytest.raises(CalibrationError, match="of a koch, this is a so101"):
        arm_of(device, calibration=dataclasses.replace(ours, robot="koch"))
    few = Calibration("so101", {name: motor for name, motor in ours.motors.items() if name != "gripper"})
    with pytest.raises(CalibrationError, match="'gripper' is not in it"):
        arm_of(device, calibration=few)
    swapped = {**ours.motors, "gripper": dataclasses.replace(ours.motors["gripper"], id=7)}
    with pytest.raises(CalibrationError, match="'gripper' has id 7 in it, 6 here"):
        arm_of(device, calibration=Calibration("so101", swapped))


def test_no_calibration_and_damaged_ones(device, tmp_path):
    with pytest.raises(CalibrationError, match=r"no calibration .*left.json[\s\S]*robot calibrate"):
        SO101(device.path, name="left")
    damaged = tmp_path / "x.json"
    entry = {"id": 1, "homing_offset": 0, "range_min": 5, "range_max": 9}
    for text, problem in (
        ("{", "cannot be read"),
        ("[]", "is no calibration"),
        (json.dumps({"a": {"id": 1}}), "has the fields"),
        (json.dumps({"a": {**entry, "range_max": 5}}), "has the range"),
        (json.dumps({"a": {**entry, "homing_offset": 0.5}}), "not integers"),
        (json.dumps({"a": {**entry, "drive_mode": 3}}), "drive_mode"),
    ):
        damaged.write_text(text)
        with pytest.raises(CalibrationError, match=problem):
            Calibration.load(damaged)


def test_lerobots_calibration_file_is_read(device, tmp_path):
    motors = {name: dataclasses.asdict(motor) for name, motor in device.calibration.motors.items()}
    for motor in motors.values():
        del motor["model"]
    file = tmp_path / "my_arm.json"
    file.write_text(json.dumps(motors))
    with arm_of(device, calibration=file) as robot:
        robot.observe()
    saved = device.calibration.save(calibration_path("left"))
    assert Calibration.load(saved) == device.calibration
    with SO101(device.path, name="left", timeout_s=0.1) as robot:
        robot.observe()


def test_an_arm_far_outside_its_range(device):
    device.servos[4].position = 3400.0
    with pytest.raises(CalibrationError, match="wrist_flex stands at 3400, far outside"):
        arm_of(device).connect()
    assert not any(on for _, _, on in device.torque_log)


def test_options():
    ours = so101_calibration()
    with pytest.raises(UnknownNameError, match="units"):
        SO101("/dev/null", calibration=ours, units="degrees")
    with pytest.raises(UnknownNameError, match="joint"):
        SO101("/dev/null", calibration=ours, home={"elbow": 0.0})
    with pytest.raises(ConfigError, match="home of 'elbow_flex' is 9"):
        SO101("/dev/null", calibration=ours, home={"elbow_flex": 9.0})
    with pytest.raises(ConfigError, match="on_close"):
        SO101("/dev/null", calibration=ours, on_close="drop")
    slow = SO101("/dev/null", calibration=ours, speed=0.5)
    assert slow.limits.velocity[0] == 1.5


# ---- alarms ---------------------------------------------------------------------------------------------------
def test_alarms(device, arm, caplog):
    device.alarm[6] = 0b100000
    device.alarm[1] = 0b000001
    arm.observe()
    arm.observe()
    assert caplog.text.count("'gripper' reports: overload") == 1, "a gripper may; said once"
    assert "'shoulder_pan' reports: voltage" in caplog.text
    device.alarm[2] = 0b100100
    with pytest.raises(MotorError, match=r"shoulder_lift.*overheated, overload"):
        arm.observe()
