"""The UR driver against an emulated controller that runs the script it uploads."""

from __future__ import annotations

import math
import struct
import time

import numpy as np
import pytest
from emulators import urscript
from emulators.ur import RobotiqEmulator, TcpServer, UREmulator, read

from vla_agents.errors import (
    ActionError,
    CommunicationError,
    ConfigError,
    MotorError,
    PortNotFoundError,
    RobotError,
    RobotStateError,
    UnknownNameError,
)
from vla_agents.robots import make_robot
from vla_agents.robots.buses.rtde import Recipe
from vla_agents.robots.drivers import ur as driver


@pytest.fixture
def device():
    with UREmulator() as emulator:
        yield emulator
        assert not emulator.errors


def arm_of(device, **options):
    return make_robot("ur", host="127.0.0.1", timeout_s=0.5, **device.ports, **options)


def follow(robot, target, seconds, period=0.02):
    """Command a target until the time is over, as a control loop does; the last reading."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        reading = robot.observe()
        robot.command(target)
        time.sleep(period)
    return reading


def test_connecting_moves_nothing_and_the_arm_follows(device):
    start = list(device.q)
    with arm_of(device) as robot:
        first = robot.observe()
        time.sleep(0.1)
        second = robot.observe()
        assert device.q == start and not device.goals
        np.testing.assert_allclose(first.position, start)
        assert first.effort.tolist() == [0.5] * 6
        assert second.time > first.time and abs(time.monotonic() - second.time) < 0.1, (
            "in this machine's time"
        )
        target = np.array(start) + 0.2
        device.speed = 10.0
        reading = follow(robot, target, 0.5)
        np.testing.assert_allclose(reading.position, target, atol=1e-6)
        assert device.goals[-1][1] == target.tolist()
        with pytest.raises(RobotStateError, match="already"):
            robot.connect()
        with pytest.raises(ActionError, match="nothing was sent"):
            robot.command(np.full(6, np.inf))
    assert device.outputs["runtime_state"] == 1, "the script has ended"
    assert device.stops
    robot.close()
    with pytest.raises(RobotStateError, match="not connected"):
        robot.observe()
    with robot:
        robot.observe()


def test_silence_stops_the_arm_and_it_goes_on_only_from_where_it_stands(device):
    with arm_of(device) as robot:
        device.speed = 0.2
        far = np.array(device.q) + 5.0
        follow(robot, far, 0.1)
        before, silent = len(device.stops), time.monotonic()
        while len(device.stops) == before:
            assert time.monotonic() < silent + 10, "it never stopped by itself"
            time.sleep(0.01)
        assert device.stops[-1] - silent > 0.8 * robot.limits.watchdog, "not before the time"
        stopped = list(device.q)
        time.sleep(0.05)
        reading = robot.observe()
        assert (reading.position < far - 0.3).all()
        with pytest.raises(MotorError, match="no command reached the arm for"):
            robot.command(far)
        time.sleep(0.05)
        assert device.q == stopped
        robot.command(reading.position)
        target = reading.position + 0.03
        np.testing.assert_allclose(follow(robot, target, 0.5).position, target, atol=1e-6)


def test_stop_decelerates_and_holds(device):
    with arm_of(device) as robot:
        device.speed = 0.5
        target = np.array(device.q) + 1.0
        follow(robot, target, 0.1)
        robot.stop()
        time.sleep(0.05)
        held = list(device.q)
        time.sleep(0.1)
        assert device.q == held and held[0] < target[0] - 0.5
        robot.observe()
        robot.command(np.array(held))
        assert follow(robot, np.array(held) + 0.02, 0.2).position[0] > held[0]


def test_stops_of_the_robot_are_errors(device):
    with arm_of(device) as robot:
        for mode, words in ((3, "a protective stop"), (7, "an emergency stop"), (42, "safety mode 42")):
            device.outputs["safety_mode"] = mode
            time.sleep(0.05)
            with pytest.raises(MotorError, match=f"{words}[\\s\\S]*pendant"):
                for _ in range(3):
                    robot.observe()


def test_a_script_that_somebody_ended(device):
    with arm_of(device) as robot:
        robot.observe()
        with arm_of(device) as other:
            other.observe()
            time.sleep(0.05)
            with pytest.raises(MotorError, match="has ended"):
                for _ in range(5):
                    robot.observe()


def test_a_lost_connection(device):
    with arm_of(device) as robot:
        robot.observe()
        device.frozen = True
        robot.timeout_s = 0.1
        start = time.monotonic()
        with pytest.raises(CommunicationError, match="no data"):
            for _ in range(3):
                robot.observe()
        assert time.monotonic() - start < 0.5
        device.frozen = False
        robot.observe()
        device.hang_up()
        with pytest.raises(CommunicationError, match="is lost"):
            for _ in range(20):
                robot.observe()
        with pytest.raises(CommunicationError):
            for _ in range(20):
                robot.command(np.array(device.q))
    with robot:
        robot.observe()


def test_what_is_refused_before_anything_moves(device, monkeypatch):
    with pytest.raises(PortNotFoundError, match=r"nobody answers at 127\.0\.0\.1:1 "):
        make_robot("ur", host="127.0.0.1", rtde_port=1).connect()
    device.in_use = {"input_int_register_24"}
    with pytest.raises(RobotError, match=r"input_int_register_24 .* is in use"):
        arm_of(device).connect()
    device.in_use = set()
    device.outputs["robot_mode"] = 3
    with pytest.raises(MotorError, match="release the brakes"):
        arm_of(device).connect()
    device.outputs["robot_mode"] = 7
    assert not device.scripts
    device.remote = False
    monkeypatch.setattr(driver, "START_S", 0.3)
    with pytest.raises(RobotError, match="remote control"):
        arm_of(device).connect()


def test_somebody_else_listens_there():
    def nonsense(connection):
        read(connection, 3)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server = TcpServer(nonsense, "127.0.0.1", 0)
    with pytest.raises(CommunicationError, match=r"as a UR controller does|something else"):
        make_robot("ur", host="127.0.0.1", rtde_port=server.port).connect()
    server.close()


def test_options():
    robot = make_robot("ur", host="x", limits={"shoulder": (-3.0, 0.0)}, gripper="robotiq")
    assert robot.limits.low[1] == -3.0 and robot.limits.high[0] == pytest.approx(2 * math.pi)
    assert robot.limits.names[-1] == "gripper"
    for options, error in (
        ({"gripper": "hand"}, UnknownNameError),
        ({"limits": {"shouldr": (0, 1)}}, UnknownNameError),
        ({"home": [0.0]}, ConfigError),
        ({"gain": 10}, ConfigError),
    ):
        with pytest.raises(error):
            make_robot("ur", host="x", **options)


# ---- gripper --------------------------------------------------------------------------------------------------
def test_the_gripper_moves_beside_the_arm(device):
    with (
        RobotiqEmulator(active=False) as hand,
        arm_of(device, gripper="robotiq", gripper_port=hand.port) as robot,
    ):
        assert hand.settings["ACT"] == 1 and hand.settings["GTO"] == 1
        assert robot.observe().position[6] == 1.0
        sent = robot.command(np.append(device.q, 0.2))
        assert sent[6] == pytest.approx(0.2, abs=1 / 255)
        follow(robot, np.append(device.q, 0.2), 0.6)
        assert [goal for _, goal in hand.goals] == [204], "sent once"
        assert robot.observe().position[6] == pytest.approx(sent[6])
        hand.silent = True
        robot.gripper.timeout_s = 0.1
        time.sleep(1.3)
        with pytest.raises(CommunicationError, match="gripper"):
            robot.observe()


# ---- the wire -------------------------------------------------------------------------------------------------
def test_recipes():
    recipe = Recipe(["a", "b", "c"], ["INT32", "VECTOR6D", "DOUBLE"], 3)
    values = {"a": -5, "b": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "c": 0.5}
    data = recipe.pack(values)
    assert data == struct.pack(">Bi7d", 3, -5, 1, 2, 3, 4, 5, 6, 0.5)
    assert recipe.unpack(data) == values
    for wrong in (data[:-1], b"\x04" + data[1:], b""):
        with pytest.raises(ValueError, match="data package"):
            recipe.unpack(wrong)


def test_the_script_is_what_the_controller_takes():
    """Balanced blocks, functions of the manual, and no placeholder left; lines short enough for the interpreter."""
    with UREmulator() as device:
        with arm_of(device) as robot:
            robot.observe()
        (script,) = device.scripts
        assert "@" not in script and script.endswith("end\n")
        assert str(robot.limits.watchdog) in script
        source, name = urscript.translate(script)
        assert name == "vla_agents" and "servoj(q, t=step, lookahead_time=0.1, gain=300.0)" in source
    for broken in ("def a():\n  while True:\n    sync()\n  end\n", "def a():\n end\nend\n", "if x:\nend\n"):
        with pytest.raises(SyntaxError):
            urscript.translate(broken)
    assert driver.HOME[1] == -math.pi / 2
