"""Calibrating an arm of bus servos by hand: give the motors their ids, show the middle, move through the ranges.

The arm is limp meanwhile. Offsets and ranges go into the motors and into a file; an interrupted calibration leaves the
motors as they were.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from vla_agents.errors import CalibrationError, MotorError, RobotError
from vla_agents.robots.buses.bus import ServoBus
from vla_agents.robots.buses.line import port_info
from vla_agents.robots.drivers.calibration import Calibration, MotorCalibration
from vla_agents.robots.drivers.joints import COUNTS, Joint, motors_of
from vla_agents.robots.drivers.servo_arm import (
    ServoArm,
    check_motors,
    read_calibration,
    set_torque,
    write_calibration,
)

logger = logging.getLogger(__name__)
MIDDLE = COUNTS // 2 - 1
LEAST = 200  # counts (18 degrees): a joint that was moved less has been forgotten
AT_MIDDLE = 60  # counts by which an arm may have sunk after its middle was shown


class Prompt(Protocol):
    """How the person is spoken to; `terminal.TerminalPrompt` is one."""

    def ask(self, text: str) -> None:
        """Say something and wait until it is confirmed."""

    def show_ranges(self, text: str, measure: Callable[[], Mapping[str, tuple[int, int, int]]]) -> None:
        """Call `measure` (joint -> lowest, present, highest so far) again and again, until it is confirmed."""


def calibrate(arm: type[ServoArm], bus: ServoBus, prompt: Prompt) -> Calibration:
    """Calibrate the arm on a bus; its motors are set accordingly.

    Raises:
        MotorError: Motors are missing.
        CalibrationError: A joint was not moved, or its middle was not its middle.
    """
    models = check_motors(bus, arm.joints)
    before = Calibration(arm.kind, read_calibration(bus, arm.joints))
    prompt.ask("The motors are switched off now and the arm sinks: hold it.")
    set_torque(bus, list(motors_of(arm.joints).values()), False)
    try:
        offsets = _find_offsets(arm, bus, prompt)
        ranges = _record_ranges(arm, bus, prompt)
        motors = {
            name: MotorCalibration(motor, offsets[name], *ranges[name], model=models[name])
            for name, motor in motors_of(arm.joints).items()
        }
        calibration = Calibration(arm.kind, motors, port_info(bus.line.path).serial)
        write_calibration(bus, arm.joints, calibration)
    except BaseException:
        _put_back(arm, bus, before)
        raise
    return calibration


def _put_back(arm: type[ServoArm], bus: ServoBus, before: Calibration) -> None:
    try:
        write_calibration(bus, arm.joints, before)
    except RobotError as error:
        logger.error("the former calibration could not be written back: %s", error)


def _find_offsets(arm: type[ServoArm], bus: ServoBus, prompt: Prompt) -> dict[str, int]:
    motors = motors_of(arm.joints)
    prompt.ask("Move every joint to the middle of its range, the gripper half open, and hold it there.")
    free = {name: MotorCalibration(motor, 0, 0, COUNTS - 1) for name, motor in motors.items()}
    write_calibration(bus, arm.joints, Calibration(arm.kind, free))
    positions = bus.sync_read("position", motors.values())
    offsets = {}
    for name, motor in motors.items():
        offset = bus.homing_sign * (MIDDLE - positions[motor])
        entry = bus.table["homing_offset"]
        largest = (1 << entry.sign) - 1 if isinstance(entry.sign, int) else 1 << 20
        offsets[name] = max(-largest, min(largest, offset))
        bus.write("homing_offset", motor, offsets[name])
    for name, position in zip(motors, bus.sync_read("position", motors.values()).values(), strict=True):
        if abs(position - MIDDLE) > AT_MIDDLE:
            raise CalibrationError(
                f"{name} shows {position} after its middle was set, expected {MIDDLE}",
                "hold the arm still while the middle is set, and try again",
            )
    return offsets


def _record_ranges(arm: type[ServoArm], bus: ServoBus, prompt: Prompt) -> dict[str, tuple[int, int]]:
    turning = {name for joint in arm.joints if joint.full_turn for name in joint.motors}
    motors = {name: motor for name, motor in motors_of(arm.joints).items() if name not in turning}
    seen: dict[str, tuple[int, int, int]] = {}

    def measure() -> Mapping[str, tuple[int, int, int]]:
        positions = bus.sync_read("position", motors.values())
        for name, motor in motors.items():
            now = positions[motor]
            low, _, high = seen.get(name, (now, now, now))
            seen[name] = (min(low, now), now, max(high, now))
        return seen

    measure()
    names = ", ".join(joint.name for joint in arm.joints if not joint.full_turn)
    prompt.show_ranges(f"Move each of these joints from end to end: {names}.", measure)
    for name, (low, _, high) in seen.items():
        if high - low < LEAST:
            raise CalibrationError(
                f"{name} was moved by {high - low} counts only",
                "calibrate again and move every joint from end to end",
            )
        if not (low >= 0 and high <= COUNTS - 1):
            raise CalibrationError(
                f"{name} was seen from {low} to {high}, beyond a turn",
                "calibrate again; every joint must be in the middle of its range when that is asked for",
            )
    ranges = {name: (low, high) for name, (low, _, high) in seen.items()}
    return ranges | dict.fromkeys(turning, (0, COUNTS - 1))


def set_up_motor(bus: ServoBus, joint: Joint, name: str, motor: int, baud: int) -> str:
    """Give the only motor on the bus its id and speed; returns what was changed.

    Raises:
        MotorError: There is none, there are several, or it is of another model.
    """
    for speed in (baud, *(speed for speed in bus.bauds if speed != baud)):
        bus.line.set_baud(speed)
        found = bus.scan()
        if found:
            break
    else:
        raise MotorError("no motor answers, at no speed", "check its cable and the power")
    if len(found) > 1:
        raise MotorError(f"motors {sorted(found)} answer", "connect one motor alone")
    (old, model), speed = next(iter(found.items())), bus.line.baud
    if model not in joint.models:
        raise MotorError(f"this is a {bus.models.get(model, f'model {model}')}: not the motor of {name}")
    set_torque(bus, [old], False)
    if old != motor:  # which id the answer would come from is not told: ask instead
        bus.sync_write("id", {old: motor})
        time.sleep(0.05)
        if "lock" in bus.table:
            bus.write("lock", motor, 0)
    if speed != baud:
        bus.sync_write("baud", {motor: bus.bauds.index(baud)})
        time.sleep(0.05)
        bus.line.set_baud(baud)
    bus.ping(motor)
    if "lock" in bus.table:
        bus.write("lock", motor, 1)
    return f"id {old} -> {motor}, {speed} -> {baud} baud"
