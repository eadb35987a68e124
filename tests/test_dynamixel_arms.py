"""Koch and ALOHA's arms against an emulated bus: modes, shadows, watchdog, what a Dynamixel does otherwise."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from emulators.arms import dynamixel_arm
from emulators.dynamixel import xl330

from vla_agents.errors import CalibrationError, MotorError, RobotStateError
from vla_agents.robots import ROBOTS, make_robot
from vla_agents.robots.drivers import servo_arm
from vla_agents.robots.drivers.dynamixel_arms import Koch, ViperX

pytest.importorskip("serial")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(servo_arm, "SINK_S", 0.05)


def arm_of(device, kind="koch", **options):
    return make_robot(kind, port=device.path, calibration=device.calibration, timeout_s=0.05, **options)


@pytest.fixture
def koch():
    with dynamixel_arm(Koch) as device, arm_of(device) as robot:
        yield device, robot


def test_a_koch_holds_measures_and_moves(koch):
    device, robot = koch
    reading = robot.observe()
    np.testing.assert_allclose(reading.position, [0, 0, 0, 0, 0, 0.5], atol=1e-3)
    assert np.isnan(reading.effort[:2]).all(), "an XL430 measures no current"
    device.servos[3].table[126:128] = (-250).to_bytes(2, "little", signed=True)
    assert robot.observe().effort[2] == -250.0
    sent = robot.command(np.array([0.3, -0.2, 0.1, 0.0, 0.5, 0.8]))
    time.sleep(0.25)
    np.testing.assert_allclose(robot.observe().position, sent, atol=1e-9)
    modes = {motor: servo.table[11] for motor, servo in device.servos.items()}
    assert modes == {1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 5}
    assert device.value(3, 84, 2) == 1500, "the elbow's gain"
    assert device.value(6, 102, 2) == robot.gripper_current


def test_the_watchdog_in_the_motors_stops_them_and_is_cleared(koch):
    device, robot = koch
    robot.observe()
    assert all(servo.table[98] for servo in device.servos.values())
    device.servos[1].speed = 100.0
    robot.command(np.array([1.0, 0, 0, 0, 0, 0.5]))
    time.sleep(0.9)  # longer than the watchdog
    stopped = robot.observe().position[0]
    assert device.servos[1].table[98] == 0xFF and stopped < 0.2
    sent = robot.command(np.array([0.1, 0, 0, 0, 0, 0.5]))
    device.servos[1].speed = 3000.0
    time.sleep(0.1)
    assert robot.observe().position[0] == pytest.approx(sent[0])


def test_torque_goes_off_at_the_end_and_the_watchdog_is_off():
    with dynamixel_arm(Koch) as device:
        with arm_of(device):
            assert all(servo.table[64] for servo in device.servos.values())
        assert not any(servo.table[64] or servo.table[98] for servo in device.servos.values())
        with arm_of(device, on_close="hold"):
            pass
        assert all(servo.table[64] and not servo.table[98] for servo in device.servos.values())
        with arm_of(device, passive=True) as leader, pytest.raises(RobotStateError, match="passive"):
            leader.command(np.zeros(6))


def test_a_hardware_error_says_which(koch):
    device, robot = koch
    device.servos[2].table[70] = 0b100100
    with pytest.raises(MotorError, match=r"shoulder_lift.*overheated, overload"):
        robot.observe()


def test_a_leader_is_no_follower():
    with (
        dynamixel_arm(Koch, models={3: 1190}) as device,
        pytest.raises(MotorError, match=r"elbow_flex.*XL330-M077, expected XL330-M288"),
    ):
        arm_of(device).connect()


# ---- two motors on one shaft ------------------------------------------------------------------------------------
def test_shadows_follow_and_are_checked():
    with dynamixel_arm(ViperX) as device:
        with arm_of(device, "viperx") as robot:
            assert len(robot.observe().position) == 7
            assert device.servos[3].table[12] == 2 and device.servos[5].table[12] == 4
            sent = robot.command(np.array([0.0, 0.2, -0.1, 0, 0, 0, 0.5]))
            time.sleep(0.2)
            np.testing.assert_allclose(robot.observe().position, sent, atol=1e-9)
            assert device.servos[3].position == device.servos[2].position
            assert all(device.servos[m].table[64] for m in (2, 3))
        assert not any(servo.table[64] for servo in device.servos.values())
        device.servos[3].position += 100
        device.torque_log.clear()
        with pytest.raises(CalibrationError, match=r"two motors of shoulder stand 100 counts apart"):
            arm_of(device, "viperx").connect()
        assert not any(on for _, _, on in device.torque_log)


def test_every_arm_by_its_name_refuses_the_calibration_of_another():
    with dynamixel_arm(Koch) as device:
        for kind in ("koch_leader", "viperx", "widowx", "so101"):
            assert kind in ROBOTS
            with pytest.raises(CalibrationError, match="of another arm"):
                make_robot(kind, port=device.path, calibration=device.calibration)
        other = dataclasses.replace(device.calibration, robot="")
        with pytest.raises(CalibrationError, match="'waist' is not in it"):
            make_robot("viperx", port=device.path, calibration=other)


def test_the_emulated_watchdog_is_not_only_in_our_favour():
    """A goal that comes after it has struck is refused, as a real motor does."""
    servo = xl330(1)
    servo.table[98] = 0xFF
    with dynamixel_arm(Koch) as device:
        device.servos[1].table[98] = 0xFF
        assert device.write(1, 116, (100).to_bytes(4, "little")) == 4
