"""A new SO-101, and the hands that `robot setup` and `robot calibrate` ask for, so that Enter alone leads through them."""

from __future__ import annotations

import math
import time

from emulators.feetech import FeetechEmulator, sts3215
from emulators.servos import Servo

TORQUE, LOCK, OFFSET = 40, 55, 31
ENDS = {1: (1200, 3900), 2: (300, 2700), 3: (600, 2900), 4: (900, 3300), 5: (10, 4090), 6: (1700, 3200)}
"""Motor -> where the encoder truly is at the ends of its joint."""


class NewArm(FeetechEmulator):
    """Motors as from the factory, all with id 1: one alone is connected, the next when that one has its id, and then all.

    While the arm is limp, the hands hold every joint in its middle; when the middles have been stored they lead the
    joints from end to end; when the ranges are stored as well, they leave the arm in the middle.

    Args:
        sweep_s: How long from end to end and back takes them.
        shift: By how much the encoders are mounted turned; no two arms are the same.
    """

    def __init__(self, *, sweep_s: float = 4.0, shift: int = 0, **options) -> None:
        super().__init__([sts3215(1)], **options)
        self._sweep_s, self._shift = sweep_s, shift
        self.named: dict[int, Servo] = {}
        self.calibrated = False
        self._since = time.monotonic()

    def put(self, motor: int, address: int, data: bytes) -> None:
        super().put(motor, address, data)
        if address == LOCK and data[0] == 1 and len(self.named) < len(ENDS):
            self._next_motor(motor)
        if address == OFFSET and data == b"\x00\x00":
            self.calibrated = False
        if address == 9 and data[:2] != b"\x00\x00" and len(self.named) == len(ENDS):
            self.lead(0.0)
            self.calibrated = True

    def _next_motor(self, motor: int) -> None:
        self.named[motor] = self.servos[motor]
        all_there = len(self.named) == len(ENDS)
        self.servos = dict(sorted(self.named.items())) if all_there else {1: sts3215(1)}

    def move(self) -> None:
        """The motors, and where they are limp the hands."""
        super().move()
        limp = not any(servo.table[TORQUE] for servo in self.servos.values())
        if not limp or self.calibrated or len(self.named) < len(ENDS):
            return
        if not all(self.offset(servo) for servo in self.servos.values()):  # the middles are not stored yet
            self._since = time.monotonic()
        self.lead(math.sin(2 * math.pi * (time.monotonic() - self._since) / self._sweep_s))

    def lead(self, where: float) -> None:
        """All joints to a place from -1, the lower end, to 1."""
        for number, servo in self.servos.items():
            low, high = ENDS[number]
            middle = (low + high) / 2 + self._shift
            servo.position = middle + (high - low) / 2 * where - self.offset(servo)
            address, size = self.position
            servo.table[address : address + size] = self.shown(servo)
