"""Arms of Dynamixel X servos: Koch v1.1, and ALOHA's ViperX 300 and WidowX 250, as follower or leader.

The joints run in extended position mode, where the offset of the calibration may be of any size; the range is kept
by the driver. The gripper's current is limited, so that it can hold things. A watchdog in the motors stops them when
no packet has come for about `limits.watchdog`. Efforts are currents in mA; XL430 motors measure none.
"""

from __future__ import annotations

import math
import time
from typing import ClassVar

import numpy as np

from vla_agents.robots.buses.bus import ServoBus
from vla_agents.robots.buses.dynamixel import X_TABLE, DynamixelBus
from vla_agents.robots.buses.line import SerialLine
from vla_agents.robots.drivers.joints import Joint
from vla_agents.robots.drivers.servo_arm import ServoArm, set_torque

XL430, XL330_M288, XL330_M077, XM430, XM540, XC430 = 1060, 1200, 1190, 1020, 1120, 1070
MILLIAMPERE = {
    XL330_M288: 1.0,
    XL330_M077: 1.0,
    XM430: 2.69,
    XM540: 2.69,
}  # per unit; others measure no current
EXTENDED_POSITION, CURRENT_POSITION = 4, 5
FULL_PWM = 885
_FIRST, _LAST = X_TABLE["current"], X_TABLE["position"]
_BLOCK = _LAST.address + _LAST.size - _FIRST.address
_TICK_S = 0.02  # of the watchdog


class DynamixelArm(ServoArm):
    """An arm of Dynamixel X servos.

    Attributes:
        gripper_current: What the gripper may draw, in units of its motor; None where its motor cannot limit it.
        gains: Joint -> registers that differ from the factory's.
    """

    gripper_current: int | None = 500
    gains: ClassVar[dict[str, dict[str, int]]] = {}
    _last = 0.0  # when there was last a packet on the bus
    _struck = False  # whether the watchdog may have stopped the motors since

    @classmethod
    def open_bus(cls, line: SerialLine) -> ServoBus:
        """A Dynamixel bus."""
        return DynamixelBus(line)

    def configure(self, bus: ServoBus) -> None:
        """Modes, gains and shadows; a motor that needs no change keeps its torque."""
        for joint in self.joints:
            limited = joint.gripper and self.gripper_current is not None
            wanted = {"return_delay": 0, "mode": CURRENT_POSITION if limited else EXTENDED_POSITION}
            wanted |= self.gains.get(joint.name, {})
            for motor in joint.motors.values():
                extra = {"secondary_id": joint.id} if motor == joint.shadow else {}
                settings = {**wanted, **extra}
                changes = {name: value for name, value in settings.items() if bus.read(name, motor) != value}
                if changes:
                    set_torque(bus, [motor], False)
                    for name, value in changes.items():
                        bus.write(name, motor, value)

    def measure(self, bus: ServoBus) -> tuple[np.ndarray, np.ndarray]:
        """Current, velocity and position lie side by side: one question."""
        self._note_pause()
        blocks = bus.sync_read_block(_FIRST.address, _BLOCK, self.ids)
        positions = [_LAST.decode(blocks[motor][_BLOCK - _LAST.size :]) for motor in self.ids]
        per_unit = [MILLIAMPERE.get(joint.models[0], np.nan) for joint in self.joints]
        currents = [_FIRST.decode(blocks[motor]) for motor in self.ids]
        return np.array(positions), np.array(currents) * np.array(per_unit)

    def weaken(self, bus: ServoBus, strength: float) -> None:
        """Through the goal PWM, which limits the output in every mode."""
        bus.sync_write("goal_pwm", dict.fromkeys(self.all_ids, round(strength * FULL_PWM)))

    def is_fault(self, joint: Joint, alarm: int) -> bool:
        """Every hardware error: the motor has switched itself off."""
        return True

    def explain_alarm(self, bus: ServoBus, joint: Joint, alarm: int) -> str:
        """What the motor's register says."""
        value = bus.read("hardware_error", joint.id)
        return DynamixelBus.describe_hardware_error(value) or bus.describe_alarm(alarm)

    def before_command(self, bus: ServoBus) -> None:
        """After a pause the watchdog may have struck: a motor then takes no goals until it is cleared."""
        self._note_pause()
        if self._struck:
            bus.sync_write("bus_watchdog", dict.fromkeys(self.all_ids, 0))
            self.set_watchdog(bus, True)

    def set_watchdog(self, bus: ServoBus, on: bool) -> None:
        """In steps of 20 ms; 0 clears it, and is confirmed by each motor."""
        if not on:
            for motor in self.all_ids:
                bus.write("bus_watchdog", motor, 0)
            return
        bus.sync_write("bus_watchdog", dict.fromkeys(self.all_ids, self._ticks))
        if self.gripper_current is not None:
            grippers = [joint.id for joint in self.joints if joint.gripper]
            bus.sync_write("goal_current", dict.fromkeys(grippers, self.gripper_current))
        self._last, self._struck = time.monotonic(), False

    def _note_pause(self) -> None:
        now = time.monotonic()
        self._struck |= now - self._last > 0.7 * self._ticks * _TICK_S
        self._last = now

    @property
    def _ticks(self) -> int:
        return min(127, max(5, math.ceil(1.5 * self.limits.watchdog / _TICK_S)))


class Koch(DynamixelArm):
    """The Koch v1.1 follower."""

    kind = "koch"
    joints = (
        Joint("shoulder_pan", 1, (XL430,), full_turn=True),
        Joint("shoulder_lift", 2, (XL430,)),
        Joint("elbow_flex", 3, (XL330_M288,)),
        Joint("wrist_flex", 4, (XL330_M288,)),
        Joint("wrist_roll", 5, (XL330_M288,), full_turn=True),
        Joint("gripper", 6, (XL330_M288,), gripper=True),
    )
    gains: ClassVar = {"elbow_flex": {"p_gain": 1500, "i_gain": 0, "d_gain": 600}}


class KochLeader(DynamixelArm):
    """The Koch v1.1 leader; use it with `passive=True`."""

    kind = "koch_leader"
    joints = tuple(
        Joint(joint.name, joint.id, (XL330_M077,), gripper=joint.gripper, full_turn=joint.full_turn)
        for joint in Koch.joints
    )


class ViperX(DynamixelArm):
    """ALOHA's follower, a ViperX 300 with six joints; two of them have two motors."""

    kind = "viperx"
    joints = (
        Joint("waist", 1, (XM540,), velocity=2.0, acceleration=8.0),
        Joint("shoulder", 2, (XM540,), velocity=2.0, acceleration=8.0, shadow=3),
        Joint("elbow", 4, (XM540,), velocity=2.0, acceleration=8.0, shadow=5),
        Joint("forearm_roll", 6, (XM540,), velocity=3.0, acceleration=12.0, full_turn=True),
        Joint("wrist_angle", 7, (XM540,), velocity=3.0, acceleration=12.0),
        Joint("wrist_rotate", 8, (XM430,), velocity=3.0, acceleration=12.0, full_turn=True),
        Joint("gripper", 9, (XM430,), gripper=True, velocity=3.0, acceleration=20.0),
    )
    gripper_current = 200


class WidowX(DynamixelArm):
    """ALOHA's leader, a WidowX 250 with six joints; use it with `passive=True`."""

    kind = "widowx"
    joints = (
        Joint("waist", 1, (XM430,)),
        Joint("shoulder", 2, (XM430,), shadow=3),
        Joint("elbow", 4, (XM430,), shadow=5),
        Joint("forearm_roll", 6, (XM430,), full_turn=True),
        Joint("wrist_angle", 7, (XM430,)),
        Joint("wrist_rotate", 8, (XL430,), full_turn=True),
        Joint("gripper", 9, (XL430, XC430), gripper=True),
    )
    gripper_current = None
