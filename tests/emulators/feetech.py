"""STS3215 servos: the packets, the registers that matter, the error byte."""

from __future__ import annotations

from collections.abc import Iterable

from emulators.servos import Servo, ServoBusEmulator

MODEL = 777


def sts3215(motor: int, position: int = 2048, speed: float = 3000.0, homing_offset: int = 0) -> Servo:
    table = bytearray(128)
    table[0], table[1] = 3, 10
    table[3:5] = MODEL.to_bytes(2, "little")
    table[5] = motor
    table[9:11] = (0).to_bytes(2, "little")
    table[11:13] = (4095).to_bytes(2, "little")
    table[13], table[16:18] = 70, (1000).to_bytes(2, "little")
    table[31:33] = magnitude(homing_offset, 11)
    table[42:44] = position.to_bytes(2, "little")
    table[48:50] = (1000).to_bytes(2, "little")
    table[62], table[63] = 120, 30
    return Servo(motor, table, float(position), speed)


def magnitude(value: int, bit: int) -> bytes:
    return (abs(value) | (value < 0) << bit).to_bytes(2, "little")


def signed(data: bytes, bit: int) -> int:
    raw = int.from_bytes(data, "little")
    return -(raw & ((1 << bit) - 1)) if raw >> bit & 1 else raw


class FeetechEmulator(ServoBusEmulator):
    """A bus of STS3215. `Servo.position` is what the encoder shows after the homing offset."""

    goal, position, torque = (42, 2), (56, 2), 40
    homing_sign = -1

    def offset(self, servo: Servo) -> int:
        return signed(servo.table[31:33], 11)

    def __init__(self, ids: Iterable[int] = range(1, 7), **options) -> None:
        servos = [motor if isinstance(motor, Servo) else sts3215(motor) for motor in ids]
        self.alarm: dict[int, int] = {}
        super().__init__(servos, **options)

    def put(self, motor: int, address: int, data: bytes) -> None:
        servo = self.servos[motor]
        if address == 31:  # the position shown moves with the offset
            before = signed(self.get(motor, 31, 2), 11)
            servo.position += before - signed(data, 11)
        if address == 40 and data[0] == 128:  # "here is the middle"
            offset = signed(self.get(motor, 31, 2), 11)
            servo.table[31:33] = magnitude(int(offset + servo.position - 2048), 11)
            servo.position = 2048.0
            servo.table[42:44] = (2048).to_bytes(2, "little")
            data = b"\x00"
        super().put(motor, address, data)
        if address == 6:
            self.baud = (1_000_000, 500_000, 250_000, 128_000, 115_200, 57_600, 38_400, 19_200)[data[0]]
        if address == 5:
            self.servos[data[0]] = self.servos.pop(motor)
            servo.id = data[0]

    def target(self, servo: Servo) -> float:
        low, high = (int.from_bytes(servo.table[a : a + 2], "little") for a in (9, 11))
        return min(max(signed(servo.table[42:44], 15), low), high)

    def shown(self, servo: Servo) -> bytes:
        return magnitude(round(servo.position), 15)

    def answer(self, motor: int, data: bytes = b"") -> tuple[int, bytes]:
        body = bytes([motor, len(data) + 2, self.alarm.get(motor, 0)]) + data
        return motor, b"\xff\xff" + body + bytes([~sum(body) & 0xFF])

    def handle(self, buffer: bytearray) -> list[tuple[int, bytes]]:
        answers: list[tuple[int, bytes]] = []
        while True:
            start = buffer.find(b"\xff\xff")
            if start < 0:
                del buffer[: max(0, len(buffer) - 1)]
                return answers
            del buffer[:start]
            if len(buffer) < 6 or len(buffer) < 4 + buffer[3]:
                return answers
            packet = bytes(buffer[: 4 + buffer[3]])
            if ~sum(packet[2:-1]) & 0xFF != packet[-1]:
                self.bad += 1
                del buffer[0]
                continue
            del buffer[: len(packet)]
            self.packets.append(packet)
            answers += self.obey(packet[2], packet[4], packet[5:-1])

    def obey(self, motor: int, instruction: int, data: bytes) -> list[tuple[int, bytes]]:
        here = sorted(self.servos) if motor == 0xFE else [motor] if motor in self.servos else []
        if instruction == 0x01:
            return [self.answer(m) for m in here]
        if instruction == 0x02 and motor != 0xFE:
            return [self.answer(m, self.get(m, data[0], data[1])) for m in here]
        if instruction == 0x03:
            for m in here:
                self.put(m, data[0], data[1:])
            return [self.answer(m) for m in here if motor != 0xFE]
        if instruction == 0x82:
            return [self.answer(m, self.get(m, data[0], data[1])) for m in data[2:] if m in self.servos]
        if instruction == 0x83:
            for start in range(2, len(data), data[1] + 1):
                if data[start] in self.servos:
                    self.put(data[start], data[0], data[start + 1 : start + 1 + data[1]])
        return []
