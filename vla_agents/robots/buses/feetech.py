"""Feetech's serial servos: the STS and SMS series (SO-100, SO-101), and the older SCS series.

A packet is `FF FF id length instruction data checksum`, an answer `FF FF id length error data checksum`; the
checksum is the complement of the sum from the id on. STS and SMS write low bytes first, SCS high bytes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vla_agents.robots.buses.bus import Line, ServoBus, Status
from vla_agents.robots.buses.registers import Register

MODEL = Register(3, 2)
STS_TABLE: dict[str, Register] = {
    "firmware_major": Register(0, 1),
    "firmware_minor": Register(1, 1),
    "model": MODEL,
    "id": Register(5, 1),
    "baud": Register(6, 1),
    "return_delay": Register(7, 1),
    "min_position": Register(9, 2),
    "max_position": Register(11, 2),
    "max_temperature": Register(13, 1),
    "max_torque": Register(16, 2),
    "p_gain": Register(21, 1),
    "d_gain": Register(22, 1),
    "i_gain": Register(23, 1),
    "protection_current": Register(28, 2),
    "homing_offset": Register(31, 2, sign=11),
    "mode": Register(33, 1),
    "overload_torque": Register(36, 1),
    "torque_enable": Register(40, 1),
    "acceleration": Register(41, 1),
    "goal_position": Register(42, 2, sign=15),
    "goal_time": Register(44, 2),
    "goal_velocity": Register(46, 2, sign=15),
    "torque_limit": Register(48, 2),
    "lock": Register(55, 1),
    "position": Register(56, 2, sign=15),
    "velocity": Register(58, 2, sign=15),
    "load": Register(60, 2, sign=10),
    "voltage": Register(62, 1),
    "temperature": Register(63, 1),
    "moving": Register(66, 1),
    "current": Register(69, 2, sign=15),
}
SCS_TABLE: dict[str, Register] = {
    "model": MODEL,
    "id": Register(5, 1),
    "baud": Register(6, 1),
    "min_position": Register(9, 2),
    "max_position": Register(11, 2),
    "torque_enable": Register(40, 1),
    "goal_position": Register(42, 2),
    "goal_time": Register(44, 2),
    "goal_velocity": Register(46, 2),
    "lock": Register(48, 1),
    "position": Register(56, 2),
    "velocity": Register(58, 2, sign=15),
    "load": Register(60, 2, sign=10),
    "voltage": Register(62, 1),
    "temperature": Register(63, 1),
    "moving": Register(66, 1),
}
BAUDS = (1_000_000, 500_000, 250_000, 128_000, 115_200, 57_600, 38_400, 19_200)  # by the number in "baud"
_MODELS = {777: "STS3215", 2825: "STS3250", 1284: "SCS0009", 11272: "SM8512BL"}
_ALARMS = {0: "voltage", 1: "angle sensor", 2: "overheated", 3: "overcurrent", 5: "overload"}


class FeetechBus(ServoBus):
    """A bus of STS/SMS servos (`series="sts"`) or SCS servos (`"scs"`)."""

    models = _MODELS
    bauds = BAUDS
    overhead = 6

    def __init__(self, line: Line, *, series: str = "sts", timeout_s: float = 0.03, retries: int = 3) -> None:
        super().__init__(line, timeout_s=timeout_s, retries=retries)
        self.series = series
        self.byteorder = "big" if series == "scs" else "little"
        self.table: Mapping[str, Register] = SCS_TABLE if series == "scs" else STS_TABLE

    def encode(self, motor: int, instruction: int, data: bytes = b"") -> bytes:
        """`FF FF id length instruction data checksum`."""
        body = bytes([motor, len(data) + 2, instruction]) + data
        return b"\xff\xff" + body + bytes([checksum(body)])

    def parse(self, buffer: bytearray) -> Status | None:
        """Take the first whole valid answer out of `buffer`."""
        while True:
            start = buffer.find(b"\xff\xff")
            if start < 0:
                start = max(0, len(buffer) - buffer.endswith(b"\xff"))
            self.stats.corrupt += start > 0
            del buffer[:start]
            if len(buffer) < 6:
                return None
            motor, length = buffer[2], buffer[3]
            if motor > self.max_id or not 2 <= length <= 252:  # FF FF FF ..., or no answer at all
                del buffer[0]
                continue
            if len(buffer) < 4 + length:
                return None
            body, check = bytes(buffer[2 : 3 + length]), buffer[3 + length]
            if checksum(body) != check:
                self.stats.corrupt += 1
                del buffer[0]
                continue
            del buffer[: 4 + length]
            return Status(motor, body[2], body[3:])

    def split_error(self, error: int) -> tuple[int, str]:
        """A Feetech servo's error byte only ever holds alarms."""
        return error, ""

    def describe_alarm(self, alarm: int) -> str:
        """e.g. `"overload, overheated"`."""
        return ", ".join(_ALARMS.get(bit, f"bit {bit}") for bit in range(8) if alarm >> bit & 1)

    def model_of(self, motor: int, status: Status) -> int:
        """Asked for separately: a Feetech servo's answer to a ping carries none."""
        packet = self.encode_read(motor, MODEL.address, MODEL.size)
        return MODEL.decode(self._ask(packet, {motor: MODEL.size})[motor].data, self.byteorder)

    def sync_read_block(self, address: int, size: int, motors: Iterable[int]) -> dict[int, bytes]:
        """With one question; SCS servos know no sync read and are asked one by one."""
        if self.series != "scs":
            return super().sync_read_block(address, size, motors)
        packets = {motor: self.encode_read(motor, address, size) for motor in motors}
        return {motor: self._ask(packet, {motor: size})[motor].data for motor, packet in packets.items()}


def checksum(body: bytes) -> int:
    """The complement of the sum of the bytes from the id on."""
    return ~sum(body) & 0xFF
