"""ROBOTIS Dynamixel servos of the X series (Koch, ALOHA, ViperX) over protocol 2.

A packet is `FF FF FD 00 id length instruction data crc`, length and CRC of two bytes, low byte first. `FF FF FD` inside
the data is followed by one more `FD`, so that the header never occurs there. The CRC is CRC-16 with the polynomial
0x8005, over everything before it.
"""

from __future__ import annotations

from collections.abc import Mapping

from vla_agents.robots.buses.bus import ServoBus, Status
from vla_agents.robots.buses.registers import TWOS_COMPLEMENT, Register, register

X_TABLE: dict[str, Register] = {
    "model": Register(0, 2),
    "firmware": Register(6, 1),
    "id": Register(7, 1),
    "baud": Register(8, 1),
    "return_delay": Register(9, 1),
    "drive_mode": Register(10, 1),
    "mode": Register(11, 1),
    "secondary_id": Register(12, 1),
    "homing_offset": Register(20, 4, TWOS_COMPLEMENT),
    "max_temperature": Register(31, 1),
    "current_limit": Register(38, 2),
    "velocity_limit": Register(44, 4),
    "max_position": Register(48, 4),
    "min_position": Register(52, 4),
    "torque_enable": Register(64, 1),
    "hardware_error": Register(70, 1),
    "d_gain": Register(80, 2),
    "i_gain": Register(82, 2),
    "p_gain": Register(84, 2),
    "bus_watchdog": Register(98, 1),
    "goal_pwm": Register(100, 2, TWOS_COMPLEMENT),
    "goal_current": Register(102, 2, TWOS_COMPLEMENT),
    "goal_velocity": Register(104, 4, TWOS_COMPLEMENT),
    "acceleration": Register(108, 4),
    "profile_velocity": Register(112, 4),
    "goal_position": Register(116, 4, TWOS_COMPLEMENT),
    "moving": Register(122, 1),
    "current": Register(126, 2, TWOS_COMPLEMENT),
    "velocity": Register(128, 4, TWOS_COMPLEMENT),
    "position": Register(132, 4, TWOS_COMPLEMENT),
    "voltage": Register(144, 2),
    "temperature": Register(146, 1),
}
BAUDS = (9_600, 57_600, 115_200, 1_000_000, 2_000_000, 3_000_000, 4_000_000)  # by the number in "baud"
_MODELS = {
    1020: "XM430-W350", 1030: "XM430-W210", 1060: "XL430-W250", 1070: "XC430-W150", 1090: "2XL430-W250",
    1120: "XM540-W270", 1130: "XM540-W150", 1190: "XL330-M077", 1200: "XL330-M288", 1220: "XC330-M288",
}  # fmt: skip
_REFUSALS = {
    1: "it could not carry out the order", 2: "unknown instruction", 3: "damaged packet", 4: "value out of range",
    5: "too short a value", 6: "value beyond the motor's own limits",
    7: "the register cannot be written now (torque is on, or it is read-only)",
}  # fmt: skip
_HARDWARE = {0: "voltage", 2: "overheated", 3: "encoder", 4: "electrical shock", 5: "overload"}
_HEADER = b"\xff\xff\xfd\x00"
_STATUS = 0x55


def _make_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x8005 if crc & 0x8000 else crc << 1
        table.append(crc & 0xFFFF)
    return tuple(table)


_CRC_TABLE = _make_table()


def crc16(data: bytes) -> int:
    """CRC-16 with the polynomial 0x8005, from 0, highest bit first."""
    crc = 0
    for byte in data:
        crc = ((crc << 8) ^ _CRC_TABLE[(crc >> 8) ^ byte]) & 0xFFFF
    return crc


def stuff(data: bytes) -> bytes:
    """Data as it travels: no header inside."""
    return data.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")


def unstuff(data: bytes) -> bytes:
    """The inverse of `stuff`."""
    return data.replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")


def packet(motor: int, content: bytes) -> bytes:
    """A whole packet around instruction (or status) and data."""
    stuffed = stuff(content)
    body = _HEADER + bytes([motor]) + (len(stuffed) + 2).to_bytes(2, "little") + stuffed
    return body + crc16(body).to_bytes(2, "little")


class DynamixelBus(ServoBus):
    """A bus of Dynamixel X servos, protocol 2."""

    table = X_TABLE
    models = _MODELS
    max_id = 252
    bauds = BAUDS
    overhead = 12
    ping_size = 3
    homing_sign = 1
    broadcast_wait_s = 0.2  # 3 ms for every id in between
    BULK_READ = 0x92
    REBOOT = 0x08

    def encode(self, motor: int, instruction: int, data: bytes = b"") -> bytes:
        """`FF FF FD 00 id length instruction data crc`."""
        return packet(motor, bytes([instruction]) + data)

    def encode_sync(self, instruction: int, address: int, size: int, data: bytes) -> bytes:
        """Addresses and sizes have two bytes in protocol 2."""
        return self.encode(self.broadcast, instruction, _words(address, size) + data)

    def encode_read(self, motor: int, address: int, size: int) -> bytes:
        """The packet that asks for `size` bytes."""
        return self.encode(motor, self.READ, _words(address, size))

    def encode_write(self, motor: int, address: int, data: bytes) -> bytes:
        """The packet that writes `data`."""
        return self.encode(motor, self.WRITE, _words(address) + data)

    def parse(self, buffer: bytearray) -> Status | None:
        """Take the first whole valid answer out of `buffer`."""
        while True:
            start = buffer.find(_HEADER)
            if start < 0:
                start = max(0, len(buffer) - 3)
                self.stats.corrupt += not _HEADER.startswith(bytes(buffer[start:]))
                del buffer[: start if len(buffer) > 3 else 0]
                return None
            self.stats.corrupt += start > 0
            del buffer[:start]
            if len(buffer) < 7:
                return None
            length = int.from_bytes(buffer[5:7], "little")
            if not 4 <= length <= 1024:
                self.stats.corrupt += 1
                del buffer[0]
                continue
            if len(buffer) < 7 + length:
                return None
            body, check = (
                bytes(buffer[: 5 + length]),
                int.from_bytes(buffer[5 + length : 7 + length], "little"),
            )
            content = unstuff(body[7:])
            if crc16(body) != check or content[0] != _STATUS or len(content) < 2:
                self.stats.corrupt += 1
                del buffer[0]
                continue
            del buffer[: 7 + length]
            return Status(body[4], content[1], content[2:])

    def split_error(self, error: int) -> tuple[int, str]:
        """Bit 7 is the alarm, the rest the reason of a refusal."""
        reason = error & 0x7F
        return error & 0x80, _REFUSALS.get(reason, f"error {reason}") if reason else ""

    def describe_alarm(self, alarm: int) -> str:
        """`"hardware error"`; the register `hardware_error` (see `describe_hardware_error`) says which."""
        return "hardware error" if alarm else ""

    @staticmethod
    def describe_hardware_error(value: int) -> str:
        """The bits of the register `hardware_error` in words."""
        return ", ".join(_HARDWARE.get(bit, f"bit {bit}") for bit in range(8) if value >> bit & 1)

    def bulk_read(self, names: Mapping[int, str]) -> dict[int, int]:
        """Another register of every motor, with one question: motor -> register name in, motor -> value out."""
        entries = {motor: register(self.table, name) for motor, name in names.items()}
        data = b"".join(bytes([motor]) + _words(e.address, e.size) for motor, e in entries.items())
        answers = self._ask(
            self.encode(self.broadcast, self.BULK_READ, data), {motor: e.size for motor, e in entries.items()}
        )
        return {motor: entries[motor].decode(status.data) for motor, status in answers.items()}

    def reboot(self, motor: int) -> None:
        """Start a motor anew: the only way out of a hardware error. Torque is off afterwards."""
        self._ask(self.encode(motor, self.REBOOT), {motor: 0})
        self.alarms.pop(motor, None)


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)
