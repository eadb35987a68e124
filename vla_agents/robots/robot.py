"""What a robot is to this library: a few methods, and limits that are known before anything moves.

A driver is one class. It speaks positions: `observe` says where each axis is, `command` says where each shall
be now. Everything else happens outside it, in `vla_agents.robots`: rate, interpolation, limits, watchdog and
emergency stop. A driver never smooths, limits or repeats commands on its own.

    class MyArm(Robot):
        def __init__(self, port: str) -> None:
            self.limits = Limits(axes=(Axis("base", -1.5, 1.5, velocity=1.0, acceleration=4.0, home=0.0), ...))
            self.embodiment = self.limits.embodiment("my_arm", control_hz=30)

        def connect(self) -> None: ...
        def observe(self) -> Reading: ...
        def command(self, target: np.ndarray) -> np.ndarray: ...
        def close(self) -> None: ...

**Threads.** No two methods of a robot are ever called at the same time, but not all calls come from the same
thread: `connect` comes from the caller's, `observe`, `command` and `stop` from the control loop's, `close` from
either. A driver needs no lock for its own state. What it runs in threads of its own, it locks itself.
Cameras are the exception: each is asked from the caller's thread while the robot is driven from the loop's.

**Time.** `time.monotonic()` everywhere: seconds, never going back. A capture time says when the device
measured; where the device does not say, take the middle between asking and having the answer.

**Blocking.** `observe`, `command` and `stop` return or raise within a fraction of a control period (10 ms at
100 Hz), retries included; a read timeout belongs on every port and socket. `connect`, `close` may take seconds.

**Errors** (`vla_agents.errors`), each naming the port or address and the remedy:

    PortNotFoundError       no such device file, nobody listens at the address
    PortPermissionError     it is there and may not be opened (the udev rule or the group to join)
    PortBusyError           another program holds it
    MotorError              a motor does not answer, is of another model, reports a fault
    CalibrationError        not calibrated, or calibrated for another arm
    CommunicationError      no answer or a damaged one, after the driver's own retries; wrong baud rate
    RobotStateError         called in the wrong order: connect twice, command before connect or after close
    CameraError             the same for cameras
    ActionError             a command of wrong shape or not finite; nothing was sent
    MissingDependencyError  the SDK is not installed

`CommunicationError` from `observe` or `command` is taken as passing: the loop brakes, holds and goes on when the
device answers again; when it does not for `Limits.give_up`, the stop is latched and the error reaches the
caller. Any other error latches the stop at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np

from vla_agents.embodiment import Camera, Embodiment
from vla_agents.errors import ActionError
from vla_agents.robots.limits import Axis, Limits, Workspace

__all__ = ["Axis", "CameraSource", "Frame", "Limits", "Reading", "Robot", "Workspace", "check_target"]


@dataclass(frozen=True)
class Reading:
    """What a robot measured at one instant.

    Args:
        position: float64 (J,) of every axis, in the axes' units. May lie a little outside the limits.
        time: Monotonic capture time of `position`, s.
        state: float32 (S,) in the embodiment's state units; None where the state *is* the positions.
        effort: float64 (J,): force, torque or current of every axis, positive where the motor pushes the position
            up (a joint that is turned around needs its sign turned around); NaN where an axis measures none. None
            where the robot measures none.
    """

    position: np.ndarray
    time: float
    state: np.ndarray | None = None
    effort: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """A picture and when it was taken.

    Args:
        image: uint8 RGB (H, W, 3), upright; not written to afterwards.
        time: Monotonic capture time, s: the exposure, as well as the device tells.
        number: Counts the frames the source has captured; equal numbers are the same picture.
    """

    image: np.ndarray
    time: float
    number: int = 0


@runtime_checkable
class CameraSource(Protocol):
    """A camera with a thread of its own that always has the newest picture.

    `camera` gives name and size of what `latest` returns and is known before `connect`. A source that loses
    its device tries to get it back by itself; meanwhile `latest` keeps returning the last picture with its
    old time, and whoever asks sees that it is old. No method but `connect` and `close` ever waits.
    """

    camera: Camera

    def connect(self) -> None:
        """Open the device, start the thread, and return when there is a first picture.

        Raises:
            CameraError: Missing, busy, not permitted, no picture, or not of the size asked for.
        """

    def latest(self) -> Frame:
        """The newest picture, at once.

        Raises:
            CameraError: Not connected, or the source has given up.
        """

    def close(self) -> None:
        """Stop the thread and free the device. May be called twice, and before `connect`."""


@runtime_checkable
class Robot(Protocol):
    """A robot whose axes are told where to be. Drivers derive from it.

    Attributes:
        limits: Axes and what they may do; known before `connect`, never changed after it.
        embodiment: What state and action mean; without cameras. The action vector is the command: the same
            axes in the same order and units. `control_hz` is the rate at which actions come by default.
        cameras: Cameras that belong to the robot itself (a simulator's, those of an SDK).
    """

    limits: Limits
    embodiment: Embodiment
    cameras: Sequence[CameraSource] = ()

    def connect(self) -> None:
        """Open the device, check it (motors there, calibration fits), and hold where it is.

        Nothing moves: a servo whose torque is switched on here gets its present position as goal first. Where
        the device has a command watchdog of its own, set it here (to about `limits.watchdog`).

        Raises:
            RobotStateError: Connected already.
            RobotError: See the list at the head of this module. What was opened is closed again.
        """

    def observe(self) -> Reading:
        """Measure now. No cached value: the capture time grows from call to call.

        Raises:
            CommunicationError: No answer, or a damaged one, after a retry or two.
            RobotStateError: Not connected.
        """
        raise NotImplementedError

    def command(self, target: np.ndarray) -> np.ndarray:
        """Tell every axis where to be, at once and without waiting for it to get there.

        Called at the control rate with positions that are a small step apart; limits have been applied
        already, and are not applied again here. Use the device's immediate position mode, not one that plans a
        trajectory. The target holds until the next one comes.

        Args:
            target: float64 (J,). Start with `check_target(target, self.limits)`.

        Returns:
            float64 (J,): what was really sent, read back from the words on the wire (rounded to the
            device's resolution), in the axes' units.

        Raises:
            ActionError: Wrong shape or not finite; nothing was sent.
            CommunicationError: It is not known whether it arrived.
            RobotStateError: Not connected.
        """
        raise NotImplementedError

    def home(self, position: np.ndarray) -> Sequence[np.ndarray]:
        """The way home from a position: targets (J,) to pass, the last of them home. Moves nothing.

        The loop drives there through the safety filter, axis after axis as fast as the limits allow. Override
        where the straight way could hit something: "lift first, then turn".
        """
        return [self.limits.home]

    def stop(self) -> None:
        """Come to rest with the device's own means, and stay: called when commands no longer get through or
        the loop ends in an error, as a last try. By default the measured position becomes the target.

        Raises:
            CommunicationError: It is not known whether it arrived.
        """
        self.command(self.observe().position)

    def close(self) -> None:
        """Leave the arm safe and free the device. May be called twice, and before `connect`.

        The arm is at rest when this is called. Safe means what the driver's documentation says for its arm:
        holding, or torque off where it would otherwise heat up and cannot fall. Never raises because the
        device no longer answers.
        """

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_target(target: np.ndarray, limits: Limits) -> np.ndarray:
    """The target as float64 (J,), or `ActionError` where it is not J finite numbers.

    The last line of defence in a driver, before the wire; the limits themselves are the filter's business.
    """
    try:
        values = np.asarray(target, np.float64)
    except (TypeError, ValueError) as error:
        raise ActionError(f"the command is not numbers: {target!r}", "nothing was sent") from error
    if values.shape != (len(limits),):
        raise ActionError(
            f"the command has shape {values.shape}, expected ({len(limits)},): {', '.join(limits.names)}",
            "nothing was sent",
        )
    if not np.isfinite(values).all():
        bad = [name for name, value in zip(limits.names, values, strict=True) if not np.isfinite(value)]
        raise ActionError(
            f"the command is not finite for {', '.join(bad)}: {values.tolist()}", "nothing was sent"
        )
    return values
