"""The xArm driver: the maker's SDK against an emulated control box."""

from __future__ import annotations

import math
import socket
import time

import numpy as np
import pytest

from vla_agents.errors import (
    ActionError,
    CommunicationError,
    ConfigError,
    MotorError,
    PortNotFoundError,
    RobotStateError,
    UnknownNameError,
)
from vla_agents.robots import make_robot
from vla_agents.robots.drivers.xarm import XArm

config = pytest.importorskip("xarm.core.config.x_config")
from emulators.xarm import XArmEmulator  # noqa: E402


@pytest.fixture
def device(monkeypatch):
    with XArmEmulator() as emulator:
        monkeypatch.setattr(config.XCONF.SocketConf, "TCP_CONTROL_PORT", emulator.port)
        monkeypatch.setattr(XArm, "port", emulator.port)
        yield emulator


def arm_of(**options):
    return make_robot("xarm", host="127.0.0.1", **{"timeout_s": 0.5, **options})


def test_servo_mode_measures_and_follows(device):
    start = list(device.q)
    with arm_of() as robot:
        assert (device.mode, device.state, device.enabled) == (1, 2, True) and not device.goals
        reading = robot.observe()
        np.testing.assert_allclose(reading.position, start, atol=1e-6)
        np.testing.assert_allclose(reading.effort, 2.5)
        assert robot.observe().time > reading.time
        target = reading.position + 0.05
        sent = robot.command(target)
        np.testing.assert_allclose(sent, target, atol=1e-6)
        robot.observe()
        assert device.goals[-1][1] == sent.tolist(), "the very numbers on the wire"
        time.sleep(0.05)
        np.testing.assert_allclose(robot.observe().position, sent, atol=1e-6)
        with pytest.raises(ActionError, match="nothing was sent"):
            robot.command(np.full(6, np.nan))
        with pytest.raises(RobotStateError, match="already"):
            robot.connect()
    assert device.mode == 0 and len(device.goals) == 1
    robot.close()
    with pytest.raises(RobotStateError, match="not connected"):
        robot.observe()
    assert socket.getdefaulttimeout() is None, "the SDK sets it for the whole process"


def test_a_bad_network(device):
    with arm_of(timeout_s=0.05) as robot:
        device.lose = device.corrupt = 0.15
        good = failed = 0
        for _ in range(40):
            try:
                np.testing.assert_allclose(robot.observe().position, device.q, atol=1e-6)
                good += 1
            except CommunicationError:
                failed += 1
        assert good > 20 and failed > 0
        device.lose = device.corrupt = 0.0
        device.silent = True
        start = time.monotonic()
        with pytest.raises(CommunicationError, match="does not answer"):
            robot.observe()
        assert time.monotonic() - start < 1.0
        device.silent = False
        robot.observe()
        device.hang_up()
        with pytest.raises(CommunicationError):
            for _ in range(3):
                robot.observe()
        with pytest.raises(CommunicationError):
            robot.command(np.array(device.q))


def test_errors_of_the_controller(device):
    device.error = 2
    with pytest.raises(MotorError, match=r"error 2: The Emergency IO of the Control Box"):
        arm_of().connect()
    device.error = 0
    with arm_of() as robot:
        robot.observe()
        device.error = 31
        with pytest.raises(MotorError, match="error 31"):
            robot.command(np.array(device.q))
        device.error, device.state = 0, 4
        with pytest.raises(MotorError, match=r"refuses[\s\S]*web page"):
            robot.command(np.array(device.q))
    with pytest.raises(MotorError, match="has 6 joints, a xarm7 has 7"):
        arm_of(model="xarm7").connect()


def test_options_and_nobody_there(device):
    device.close()
    with pytest.raises(PortNotFoundError):
        arm_of().connect()
    seven = make_robot("xarm", host="x", model="xarm7", limits={"joint2": (-1.0, 1.0)})
    assert len(seven.limits) == 7 and seven.limits.high[1] == 1.0
    assert seven.limits.low[0] == pytest.approx(-2 * math.pi)
    for options, error in (
        ({"model": "xarm8"}, UnknownNameError),
        ({"limits": {"joint9": (0, 1)}}, UnknownNameError),
        ({"limits": {"joint2": (-3.0, 1.0)}}, ConfigError),
        ({"home": [0.0]}, ConfigError),
    ):
        with pytest.raises(error):
            make_robot("xarm", host="x", **options)
