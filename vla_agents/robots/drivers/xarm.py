"""UFACTORY xArm 5, 6, 7 and Lite 6 through their SDK (`xarm-python-sdk`), in its servo mode; without a gripper.

In servo mode the arm goes to each target at once and stays at the last one. **Stopping.** `stop` makes the measured
position the target. `close` leaves servo mode; the arm holds itself with its brakes as the controller sees fit. When this
program dies, the arm stays at its last target. The controller's own collision detection and limits stay on.

Efforts are joint torques as the controller estimates them, Nm.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import (
    CommunicationError,
    ConfigError,
    MissingDependencyError,
    MotorError,
    RobotError,
    RobotStateError,
    UnknownNameError,
)
from vla_agents.robots.buses.rtde import open_tcp
from vla_agents.robots.limits import Axis, Limits
from vla_agents.robots.robot import CameraSource, Reading, Robot, check_target

_TURN = 360.0
RANGES: dict[str, tuple[tuple[float, float], ...]] = {  # degrees, from the user manuals
    "xarm5": ((-_TURN, _TURN), (-118, 120), (-225, 11), (-97, 180), (-_TURN, _TURN)),
    "xarm6": ((-_TURN, _TURN), (-118, 120), (-225, 11), (-_TURN, _TURN), (-97, 180), (-_TURN, _TURN)),
    "xarm7": (
        (-_TURN, _TURN), (-118, 120), (-_TURN, _TURN), (-11, 225), (-_TURN, _TURN), (-97, 180), (-_TURN, _TURN),
    ),
    "lite6": ((-_TURN, _TURN), (-150, 150), (-3.5, 300), (-_TURN, _TURN), (-124, 124), (-_TURN, _TURN)),
}  # fmt: skip
SERVO_MODE, POSITION_MODE, READY = 1, 0, 0
_OK, _ERROR, _WARNING, _NOT_READY = 0, 1, 2, 9
_SILENT = {-1, 3, 4, 5, 6, 7, 8}  # codes of the SDK: not connected, no answer, a damaged one


class XArm(Robot):
    """An xArm.

    Args:
        host: IP address of its controller.
        model: `"xarm5"`, `"xarm6"`, `"xarm7"` or `"lite6"`.
        limits: Joint (`"joint1"`, ...) -> (low, high) in rad, narrower than the arm's own.
        home: Where episodes start, rad; all zero (or the nearest to it) by default.
        velocity: Of every joint, rad / s.
        acceleration: Of every joint, rad / s².
        control_hz: Actions per second; servo mode wants 30 to 250 commands per second, which the control loop gives.
        timeout_s: How long an answer may take.
    """

    cameras: Sequence[CameraSource] = ()
    port = 502

    def __init__(
        self,
        host: str,
        model: str = "xarm6",
        *,
        limits: Mapping[str, Sequence[float]] | None = None,
        home: Sequence[float] | None = None,
        velocity: float = 1.0,
        acceleration: float = 4.0,
        control_hz: float = 30.0,
        timeout_s: float = 0.05,
    ) -> None:
        if model not in RANGES:
            raise UnknownNameError("model", model, RANGES)
        names = [f"joint{k + 1}" for k in range(len(RANGES[model]))]
        own = dict(zip(names, (tuple(map(math.radians, ends)) for ends in RANGES[model]), strict=True))
        given = dict(limits or {})
        for name, (low, high) in given.items():
            if name not in own:
                raise UnknownNameError("joint", name, own)
            if low < own[name][0] - 1e-9 or high > own[name][1] + 1e-9:
                raise ConfigError(f"limits of {name}: {low} to {high} is wider than the arm's {own[name]}")
        ranges = {**own, **given}
        rest = home or [min(max(0.0, low), high) for low, high in ranges.values()]
        if len(rest) != len(names):
            raise ConfigError(f"home has {len(rest)} values, a {model} has {len(names)} joints")
        self.host, self.model, self.timeout_s = host, model, timeout_s
        axes = []
        for name, at in zip(names, rest, strict=True):
            low, high = ranges[name]
            axes.append(Axis(name, low, high, velocity, acceleration, float(at), resolution=1e-6))
        self.limits = Limits(axes=tuple(axes))
        self.embodiment: Embodiment = self.limits.embodiment(model, control_hz)
        self._arm: Any = None

    # ---- Robot --------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Connect, check the arm, release the brakes, enter servo mode. Nothing moves. See `Robot.connect`."""
        if self._arm is not None:
            raise RobotStateError(f"the {self.model} at {self.host} is connected already")
        open_tcp(self.host, self.port, 3.0).close()  # the SDK would only say "connect socket failed"
        arm = _open(self.host, self.timeout_s)
        try:
            if arm.axis != len(self.limits):
                raise MotorError(
                    f"the arm at {self.host} has {arm.axis} joints, a {self.model} has {len(self.limits)}",
                    "give the option model=...",
                )
            self._arm = arm
            self._check_errors()
            for call, value in (
                (arm.motion_enable, True),
                (arm.set_mode, SERVO_MODE),
                (arm.set_state, READY),
            ):
                self._done(call(value), call.__name__)
            time.sleep(0.1)  # the controller switches modes
            self._done(arm.get_state()[0], "get_state")
        except BaseException:
            self._arm = None
            arm.disconnect()
            raise

    def observe(self) -> Reading:
        """Positions and torques of all joints, with one question. See `Robot.observe`."""
        arm = self._connected()
        for attempt in range(2):
            before = time.monotonic()
            try:
                code, states = _answered(self.host, lambda: arm.get_joint_states(is_radian=True))
                now = time.monotonic()
                self._done(code, "get_joint_states")
                break
            except CommunicationError:
                if attempt or not arm.connected:
                    raise
        count = len(self.limits)
        position = np.array(states[0][:count], np.float64)
        if not np.isfinite(position).all():
            raise CommunicationError(
                f"the arm at {self.host} gave positions that are no numbers: {position.tolist()}"
            )
        return Reading(position, (before + now) / 2, effort=np.array(states[2][:count], np.float64))

    def command(self, target: np.ndarray) -> np.ndarray:
        """One servo order for all joints. See `Robot.command`."""
        arm = self._connected()
        values = check_target(target, self.limits).astype(np.float32).astype(np.float64)  # as on the wire
        self._done(
            _answered(self.host, lambda: arm.set_servo_angle_j(values.tolist(), is_radian=True)), "servo"
        )
        return values

    def close(self) -> None:
        """Leave servo mode and hang up; the arm holds itself. See `Robot.close`."""
        arm, self._arm = self._arm, None
        if arm is None:
            return
        with contextlib.suppress(Exception):  # the SDK's, where the arm is gone
            arm.set_mode(POSITION_MODE)
        with contextlib.suppress(Exception):
            arm.disconnect()

    # ---- inside -------------------------------------------------------------------------------------------------
    def _connected(self) -> Any:
        if self._arm is None:
            raise RobotStateError(f"the {self.model} at {self.host} is not connected", "call connect() first")
        return self._arm

    def _done(self, code: int, call: str) -> None:
        if code in (_OK, _WARNING):
            return
        if code in _SILENT:
            raise CommunicationError(
                f"the arm at {self.host} does not answer ({call}, code {code})", "check the network"
            )
        self._check_errors()
        raise MotorError(
            f"the arm at {self.host} refuses ({call}, code {code})",
            "is it stopped, or in another mode? See its web page, then connect again",
        )

    def _check_errors(self) -> None:
        code, numbers = self._arm.get_err_warn_code()
        if code in _SILENT:
            raise CommunicationError(
                f"the arm at {self.host} does not answer (code {code})", "check the network"
            )
        if numbers[0]:
            raise MotorError(
                f"the arm at {self.host} reports error {numbers[0]}: {_words(numbers[0])}",
                "mend the cause, clear the error on the arm's web page, and connect again",
            )


def _open(host: str, timeout_s: float) -> Any:
    try:
        from xarm.core.utils.log import logger
        from xarm.wrapper import XArmAPI
    except ImportError as error:
        raise MissingDependencyError("xarm-python-sdk", "xarm", "an xArm") from error
    logger.setLevel(logging.ERROR)  # it would warn of every servo order that it has not heard of the mode
    before = socket.getdefaulttimeout()
    try:
        arm = XArmAPI(host, is_radian=True, enable_report=False, check_joint_limit=False)
        arm.set_timeout(timeout_s)
        return arm
    except Exception as error:
        raise CommunicationError(
            f"{host} does not answer as an xArm does ({error})", "check the address"
        ) from error
    finally:
        socket.setdefaulttimeout(before)  # the SDK changes it for the whole process


def _answered(host: str, call: Any) -> Any:
    try:
        return call()
    except RobotError:
        raise
    except Exception as error:  # the SDK fails in many ways on damaged answers
        raise CommunicationError(
            f"the arm at {host} gave a damaged answer ({error!r})", "check the network"
        ) from error


def _words(number: int) -> str:
    from xarm.core.config import x_code

    known = getattr(x_code, "ControllerErrorCodeMap", {})
    entry = known.get(number, {})
    title = entry.get("en", {}).get("title") if isinstance(entry, dict) else None
    return str(title or "see its manual")
