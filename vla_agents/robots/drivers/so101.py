"""SO-100 and SO-101: six Feetech STS3215 on one bus, as follower (driven) or leader (led by hand).

Efforts are the servos' load: the part of full torque, -1 to 1. Close lets the arm sink.
"""

from __future__ import annotations

import numpy as np

from vla_agents.robots.buses.bus import ServoBus
from vla_agents.robots.buses.feetech import STS_TABLE, FeetechBus
from vla_agents.robots.buses.line import SerialLine
from vla_agents.robots.drivers.joints import Joint
from vla_agents.robots.drivers.servo_arm import ServoArm, set_torque

STS3215 = 777
SETTINGS = {"mode": 0, "return_delay": 0, "acceleration": 254, "p_gain": 16, "i_gain": 0, "d_gain": 32}
# What keeps a closed gripper from burning out: half the torque and current, and little of it when blocked.
GRIPPER_SETTINGS = {"max_torque": 500, "protection_current": 250, "overload_torque": 25}
# Alarm bits: 0 voltage, 1 angle sensor, 2 overheated, 3 overcurrent, 5 overload.
FAULTS, GRIPPER_FAULTS = 0b101110, 0b000110  # a gripper that holds something is overloaded by right
_FIRST, _LAST = STS_TABLE["position"], STS_TABLE["load"]
_BLOCK = _LAST.address + _LAST.size - _FIRST.address


class SO101(ServoArm):
    """An SO-101 follower, or a leader with `passive=True`."""

    kind = "so101"
    joints = (
        Joint("shoulder_pan", 1, (STS3215,)),
        Joint("shoulder_lift", 2, (STS3215,)),
        Joint("elbow_flex", 3, (STS3215,)),
        Joint("wrist_flex", 4, (STS3215,)),
        Joint("wrist_roll", 5, (STS3215,), full_turn=True),
        Joint("gripper", 6, (STS3215,), gripper=True),
    )

    @classmethod
    def open_bus(cls, line: SerialLine) -> ServoBus:
        """A Feetech bus."""
        return FeetechBus(line)

    def configure(self, bus: ServoBus) -> None:
        """Position mode and LeRobot's gains; a motor that needs no change keeps its torque."""
        for joint in self.joints:
            wanted = {**SETTINGS, **(GRIPPER_SETTINGS if joint.gripper else {})}
            changes = {name: value for name, value in wanted.items() if bus.read(name, joint.id) != value}
            if changes:
                set_torque(bus, [joint.id], False)
                for name, value in changes.items():
                    bus.write(name, joint.id, value)

    def measure(self, bus: ServoBus) -> tuple[np.ndarray, np.ndarray]:
        """Position, velocity and load lie side by side: one question."""
        blocks = bus.sync_read_block(_FIRST.address, _BLOCK, self.ids)
        positions = [_FIRST.decode(blocks[motor]) for motor in self.ids]
        loads = [_LAST.decode(blocks[motor][_BLOCK - _LAST.size :]) for motor in self.ids]
        return np.array(positions), np.array(loads) / 1000.0

    def weaken(self, bus: ServoBus, strength: float) -> None:
        """Through the torque limit in RAM, which starts at the one in EEPROM."""
        full = {joint.id: GRIPPER_SETTINGS["max_torque"] if joint.gripper else 1000 for joint in self.joints}
        bus.sync_write("torque_limit", {motor: round(strength * value) for motor, value in full.items()})

    def is_fault(self, joint: Joint, alarm: int) -> bool:
        """All but low voltage, and but the overload of a gripper that holds something."""
        return bool(alarm & (GRIPPER_FAULTS if joint.gripper else FAULTS))


class SO100(SO101):
    """An SO-100: the same motors and joints as the SO-101."""

    kind = "so100"
