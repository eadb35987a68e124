"""A servo's control table: where a quantity lies, how many bytes it has, and how its sign is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vla_agents.errors import ConfigError, UnknownNameError

UNSIGNED, TWOS_COMPLEMENT = "unsigned", "twos_complement"


@dataclass(frozen=True)
class Register:
    """One entry of a control table.

    Args:
        address: Of its first byte.
        size: 1, 2 or 4 bytes.
        sign: `"unsigned"`, `"twos_complement"`, or the number of the bit that is set for negative values
            whose magnitude stands in the bits below it.
    """

    address: int
    size: int
    sign: str | int = UNSIGNED

    def encode(self, value: int, byteorder: str = "little") -> bytes:
        """The bytes of a value; `ConfigError` where it does not fit."""
        bits = 8 * self.size
        if isinstance(self.sign, int):
            low, high = -(1 << self.sign) + 1, (1 << self.sign) - 1
            raw = (1 << self.sign) | -value if value < 0 else value
        elif self.sign == TWOS_COMPLEMENT:
            low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
            raw = value & ((1 << bits) - 1)
        else:
            low, high, raw = 0, (1 << bits) - 1, value
        if not low <= value <= high:
            raise ConfigError(
                f"{value} does not fit the register at address {self.address} ({low} to {high})"
            )
        return raw.to_bytes(self.size, "little" if byteorder == "little" else "big")

    def decode(self, data: bytes, byteorder: str = "little") -> int:
        """The value of the register's bytes."""
        raw = int.from_bytes(data[: self.size], "little" if byteorder == "little" else "big")
        if isinstance(self.sign, int):
            magnitude = raw & ((1 << self.sign) - 1)
            return -magnitude if raw >> self.sign & 1 else magnitude
        if self.sign == TWOS_COMPLEMENT and raw >> (8 * self.size - 1):
            return raw - (1 << (8 * self.size))
        return raw


def register(table: Mapping[str, Register], name: str) -> Register:
    """An entry of a control table by its name."""
    if name not in table:
        raise UnknownNameError("register", name, table)
    return table[name]
