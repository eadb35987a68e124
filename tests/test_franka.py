"""The Franka driver against a stand-in for franky, whose names and parameters are those of the real one."""

from __future__ import annotations

import inspect
import sys
import time

import numpy as np
import pytest
from emulators import fake_franky

from vla_agents.errors import (
    ConfigError,
    MissingDependencyError,
    MotorError,
    PortNotFoundError,
    UnknownNameError,
)
from vla_agents.robots import make_robot
from vla_agents.robots.check import check_robot
from vla_agents.robots.drivers import franka


@pytest.fixture
def franky(monkeypatch):
    monkeypatch.setitem(sys.modules, "franky", fake_franky)
    monkeypatch.setattr(fake_franky.Robot, "made", [])
    monkeypatch.setattr(fake_franky.Gripper, "moves", [])
    return fake_franky


def test_it_keeps_to_the_protocol(franky):
    assert "connecting moves nothing" in check_robot(make_robot("franka", host="x"), moves=False)


def test_it_follows_and_the_hand_moves_beside_it(franky):
    with make_robot("franka", host="x", realtime=False) as robot:
        device = franky.Robot.made[-1]
        assert device.config is franky.RealtimeConfig.Ignore and not device.goals
        start = robot.observe().position
        assert start[7] == 1.0 and np.isnan(robot.observe().effort[7])
        target = start + np.append(np.full(7, 0.05), -0.5)
        robot.command(target)
        time.sleep(0.2)
        np.testing.assert_allclose(robot.observe().position, target)
        for _ in range(5):
            robot.command(target)
        time.sleep(0.15)
        assert franky.Gripper.moves == [pytest.approx(0.04)], "sent once"
    assert not device.in_control


def test_reflexes_and_old_errors(franky, monkeypatch):
    with make_robot("franka", host="x", gripper=False) as robot:
        device = franky.Robot.made[-1]
        device.in_control, device.error = False, "joint_reflex"
        for call in (robot.observe, lambda: robot.command(robot.limits.home)):
            with pytest.raises(MotorError, match=r"stopped by itself \(joint_reflex"):
                call()
    plain = franky.Robot.__init__
    monkeypatch.setattr(
        franky.Robot,
        "__init__",
        lambda self, *a, **k: (plain(self, *a, **k), setattr(self, "error", "old"))[0],
    )
    with make_robot("franka", host="x", gripper=False) as robot:
        assert franky.Robot.made[-1].recovered == 1
        robot.observe()


def test_what_is_refused(franky, monkeypatch):
    monkeypatch.setattr(franky.Robot, "unreachable", True)
    with pytest.raises(PortNotFoundError, match="activate FCI"):
        make_robot("franka", host="x").connect()
    for options, error in (({"model": "fr4"}, UnknownNameError), ({"home": [0.0]}, ConfigError)):
        with pytest.raises(error):
            make_robot("franka", host="x", **options)
    monkeypatch.setitem(sys.modules, "franky", None)
    with pytest.raises(MissingDependencyError, match="franky-control"):
        make_robot("franka", host="x").connect()


def test_the_real_franky_has_these_names():
    real = pytest.importorskip("franky", reason="franky-control is not installed")
    for name, attributes in franka.calls().items():
        for attribute in attributes:
            assert hasattr(getattr(real, name), attribute), f"{name}.{attribute}"
    wanted = inspect.signature(fake_franky.JointImpedanceTracker.__init__).parameters
    assert set(wanted) <= set(inspect.signature(real.JointImpedanceTracker.__init__).parameters)
    for parameter in inspect.signature(fake_franky.Robot.__init__).parameters:
        assert parameter in real.Robot.__init__.__doc__ or parameter == "self"
    for parameter in inspect.signature(fake_franky.Gripper.move_async).parameters:
        assert parameter in real.Gripper.move_async.__doc__ or parameter == "self"
