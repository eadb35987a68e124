"""Whole arms: an emulated bus whose motors are calibrated, and the calibration that fits them."""

from __future__ import annotations

from emulators.dynamixel import DynamixelEmulator, xl330
from emulators.feetech import MODEL, FeetechEmulator, magnitude
from vla_agents.robots.drivers.calibration import Calibration, MotorCalibration
from vla_agents.robots.drivers.dynamixel_arms import DynamixelArm
from vla_agents.robots.drivers.so101 import SO101

RANGES = {
    "shoulder_pan": (750, 3480), "shoulder_lift": (830, 3200), "elbow_flex": (860, 3090),
    "wrist_flex": (820, 3210), "wrist_roll": (0, 4095), "gripper": (2035, 3500),
}  # fmt: skip


def so101_calibration() -> Calibration:
    motors = {
        joint.name: MotorCalibration(joint.id, 100 * joint.id - 350, *RANGES[joint.name], model=MODEL)
        for joint in SO101.joints
    }
    return Calibration("so101", motors)


class SO101Emulator(FeetechEmulator):
    """A calibrated SO-101 whose joints stand in the middle and whose gripper is half open."""

    def __init__(self, **options) -> None:
        super().__init__(range(1, 7), **options)
        self.calibration = so101_calibration()
        for motor in self.calibration.motors.values():
            servo = self.servos[motor.id]
            servo.table[31:33] = magnitude(motor.homing_offset, 11)
            servo.table[9:11] = motor.range_min.to_bytes(2, "little")
            servo.table[11:13] = motor.range_max.to_bytes(2, "little")
            servo.position = float((motor.range_min + motor.range_max) // 2)


def dynamixel_arm(kind: type[DynamixelArm], models: dict[int, int] | None = None) -> DynamixelEmulator:
    """A calibrated arm of Dynamixel servos in the middle of its ranges."""
    servos, motors = [], {}
    for joint in kind.joints:
        for name, motor in joint.motors.items():
            model = (models or {}).get(motor, joint.models[0])
            servo = xl330(motor, model=model)
            low, high = (0, 4095) if joint.full_turn else (900, 3100)
            offset = 37 * motor - 100
            servo.table[20:24] = offset.to_bytes(4, "little", signed=True)
            servo.table[48:52], servo.table[52:56] = high.to_bytes(4, "little"), low.to_bytes(4, "little")
            servo.position = float((low + high) // 2)
            servos.append(servo)
            motors[name] = MotorCalibration(motor, offset, low, high, model=model)
    device = DynamixelEmulator(servos)
    device.calibration = Calibration(kind.kind, motors)
    return device
