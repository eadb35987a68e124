"""Dynamixel X servos over protocol 2: packets, control table, limits, alarms, the bus watchdog."""

from __future__ import annotations

import time
from collections.abc import Iterable

from emulators.servos import Servo, ServoBusEmulator

WRITABLE_EEPROM = range(7, 64)


def xl330(motor: int, position: int = 2048, model: int = 1200, speed: float = 3000.0) -> Servo:
    table = bytearray(256)
    table[0:2] = model.to_bytes(2, "little")
    table[6], table[7], table[8], table[11], table[12] = 46, motor, 3, 3, 255
    table[38:40] = (1750).to_bytes(2, "little")
    table[48:52] = (4095).to_bytes(4, "little")
    table[116:120] = position.to_bytes(4, "little")
    table[144:146], table[146] = (50).to_bytes(2, "little"), 31
    return Servo(motor, table, float(position), speed)


def crc(data: bytes) -> int:
    """Bit by bit, as the protocol's description has it."""
    value = 0
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = ((value << 1) ^ 0x8005 if value & 0x8000 else value << 1) & 0xFFFF
    return value


class DynamixelEmulator(ServoBusEmulator):
    """A bus of XL330 or others of the X series.

    Attributes:
        has_watchdog: False: the motors' own watchdog never strikes, for tests whose time is not that of the clock.
    """

    goal, position, torque = (116, 4), (132, 4), 64
    homing_sign = 1

    def offset(self, servo: Servo) -> int:
        return int.from_bytes(servo.table[20:24], "little", signed=True)

    def __init__(self, ids: Iterable[int] = range(1, 7), **options) -> None:
        servos = [motor if isinstance(motor, Servo) else xl330(motor) for motor in ids]
        self.heard: dict[int, float] = {}
        self.has_watchdog = True
        super().__init__(servos, **options)

    def on_torque(self, servo: Servo) -> None:
        servo.table[116:120] = round(servo.position).to_bytes(4, "little", signed=True)

    def target(self, servo: Servo) -> float:
        watchdog = servo.table[98] if self.has_watchdog else 0
        if watchdog == 0xFF or (
            watchdog and time.monotonic() - self.heard.get(servo.id, 0.0) > watchdog * 0.02
        ):
            servo.table[98] = 0xFF  # stays so, and refuses goals, until it is cleared
            return servo.position
        return int.from_bytes(servo.table[116:120], "little", signed=True)

    def write(self, motor: int, address: int, data: bytes) -> int:
        servo = self.servos[motor]
        if address in WRITABLE_EEPROM and servo.table[64]:
            return 7
        if address in range(64) and address not in WRITABLE_EEPROM:
            return 7
        if address == 116:
            value = int.from_bytes(data, "little", signed=True)
            low, high = self.value(motor, 52, 4), self.value(motor, 48, 4)
            if servo.table[98] == 0xFF:
                return 4
            if servo.table[11] == 3 and not low <= value <= high:
                return 4
        if address == 20:
            servo.position += int.from_bytes(data, "little", signed=True) - self.value(
                motor, 20, 4, signed=True
            )
        self.put(motor, address, data)
        for other in self.servos.values():  # those that listen to this id, too
            if other.table[12] == motor != other.id and address >= 64:
                self.put(other.id, address, data)
        if address == 7:
            self.servos[data[0]] = self.servos.pop(motor)
            servo.id = data[0]
        return 0

    def answer(self, motor: int, data: bytes = b"", error: int = 0) -> tuple[int, bytes]:
        alert = 0x80 if self.servos.get(motor) and self.servos[motor].table[70] else 0
        content = bytes([0x55, error | alert]) + data
        stuffed = content.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
        packet = b"\xff\xff\xfd\x00" + bytes([motor]) + (len(stuffed) + 2).to_bytes(2, "little") + stuffed
        return motor, packet + crc(packet).to_bytes(2, "little")

    def handle(self, buffer: bytearray) -> list[tuple[int, bytes]]:
        answers: list[tuple[int, bytes]] = []
        while True:
            start = buffer.find(b"\xff\xff\xfd\x00")
            if start < 0:
                del buffer[: max(0, len(buffer) - 3)]
                return answers
            del buffer[:start]
            if len(buffer) < 7 or len(buffer) < 7 + int.from_bytes(buffer[5:7], "little"):
                return answers
            packet = bytes(buffer[: 7 + int.from_bytes(buffer[5:7], "little")])
            if len(packet) < 10 or crc(packet[:-2]) != int.from_bytes(packet[-2:], "little"):
                self.bad += 1
                del buffer[0]
                continue
            del buffer[: len(packet)]
            self.packets.append(packet)
            content = packet[7:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
            answers += self.obey(packet[4], content[0], content[1:])

    def obey(self, motor: int, instruction: int, data: bytes) -> list[tuple[int, bytes]]:
        word = [int.from_bytes(data[i : i + 2], "little") for i in (0, 2)] if len(data) > 1 else [0, 0]
        for heard in self.servos if motor == 0xFE else [motor]:
            self.heard[heard] = time.monotonic()
        if motor != 0xFE and motor not in self.servos:
            return []
        if instruction == 0x01:
            here = sorted(self.servos) if motor == 0xFE else [motor]
            return [self.answer(m, self.get(m, 0, 2) + self.get(m, 6, 1)) for m in here]
        if instruction == 0x02:
            return [self.answer(motor, self.get(motor, *word))]
        if instruction == 0x03:
            return [self.answer(motor, error=self.write(motor, word[0], data[2:]))]
        if instruction == 0x08:
            self.servos[motor].table[70] = self.servos[motor].table[64] = 0
            return [self.answer(motor)]
        if instruction == 0x82:
            return [self.answer(m, self.get(m, *word)) for m in data[4:] if m in self.servos]
        if instruction == 0x83:
            for start in range(4, len(data), word[1] + 1):
                if data[start] in self.servos:
                    self.write(data[start], word[0], data[start + 1 : start + 1 + word[1]])
        if instruction == 0x92:
            asked = [data[i : i + 5] for i in range(0, len(data), 5)]
            return [
                self.answer(
                    a[0], self.get(a[0], int.from_bytes(a[1:3], "little"), int.from_bytes(a[3:5], "little"))
                )
                for a in asked
                if a[0] in self.servos
            ]
        return [] if instruction in (0x83, 0x93) else [self.answer(motor, error=2)]
