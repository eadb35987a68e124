"""A stand-in with the calls of franky that the driver makes, and joints behind them. It speaks no protocol."""

from __future__ import annotations

import enum
import time

import numpy as np


class RealtimeConfig(enum.Enum):
    Enforce = 0
    Ignore = 1


class RobotState:
    def __init__(self, q, error):
        self.q, self.tau_ext_hat_filtered, self.last_motion_errors = q, np.full(7, 0.1), error


class Robot:
    made: list = []  # noqa: RUF012
    unreachable = False

    def __init__(self, fci_hostname, *, default_torque_threshold, default_force_threshold, realtime_config):
        if Robot.unreachable:
            raise RuntimeError("libfranka: Connection to FCI refused")
        self.q = np.array([0.0, -0.7, 0.0, -2.3, 0.0, 1.5, 0.7])
        self.target, self.goals, self.in_control, self.error = None, [], False, ""
        self.recovered, self.config, self._then = 0, realtime_config, time.monotonic()
        Robot.made.append(self)

    @property
    def state(self):
        now = time.monotonic()
        dt, self._then = now - self._then, now
        if self.in_control and self.target is not None:
            self.q = self.q + np.clip(self.target - self.q, -3 * dt, 3 * dt)
        return RobotState(self.q.copy(), self.error)

    @property
    def has_errors(self):
        return bool(self.error)

    @property
    def is_in_control(self):
        return self.in_control

    def recover_from_errors(self):
        self.recovered += 1
        self.error = ""
        return True

    def stop(self):
        self.in_control = False


class JointImpedanceTracker:
    def __init__(self, robot, *, stiffness, lower_joint_limits, upper_joint_limits):
        assert (lower_joint_limits < upper_joint_limits).all() and stiffness.shape == (7,)
        self.robot, robot.in_control, robot.target = robot, True, robot.q.copy()

    def set_target(self, q):
        self.robot.goals.append(np.array(q))
        self.robot.state  # noqa: B018 - it moves up to now
        self.robot.target = np.array(q)

    @property
    def is_running(self):
        return self.robot.is_in_control

    def stop(self):
        self.robot.in_control = False


class Gripper:
    max_width = 0.08
    moves: list = []  # noqa: RUF012

    def __init__(self, fci_hostname):
        self.width = 0.08

    def move_async(self, width, speed):
        Gripper.moves.append(width)
        self.width = width

    def stop(self):
        pass
