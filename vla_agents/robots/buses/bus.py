"""What buses of servos have in common: one question at a time, answers checked, lost and damaged ones asked for again.

A protocol is a subclass with two methods, `encode` and `parse`; everything else is derived here.

An answer carries no number that says which question it belongs to. After a silence the bus therefore pings the
motor before it asks again: answers come in the order of the questions, so what arrives before the ping's is old.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from vla_agents.errors import MotorError, MotorSilentError
from vla_agents.robots.buses.registers import Register, register


class Line(Protocol):
    """What a bus sends its bytes through; `SerialLine` is one."""

    path: str
    baud: int

    def set_baud(self, baud: int) -> None:
        """Go on at another speed."""

    def write(self, data: bytes) -> None:
        """Send all of it."""

    def read(self, count: int, deadline: float) -> bytes:
        """Up to `count` bytes, as soon as there are any; empty after the deadline (`time.monotonic()`)."""
        ...

    def drain(self) -> int:
        """Throw away what has arrived; returns how many bytes that were."""
        ...

    def close(self) -> None:
        """Give the port back."""


@dataclass(frozen=True)
class Status:
    """A motor's answer: who, its error byte, the data."""

    motor: int
    error: int
    data: bytes = b""


@dataclass
class BusStats:
    """What happened on a bus so far.

    Attributes:
        questions: Packets that wanted an answer, repetitions included.
        answers: Answers that arrived whole.
        lost: Answers that did not come in time.
        corrupt: Bytes or packets that were no valid answer.
        repeated: Questions that were asked again.
        latency_s: Seconds from question to (last) answer, of the last exchanges.
    """

    questions: int = 0
    answers: int = 0
    lost: int = 0
    corrupt: int = 0
    repeated: int = 0
    latency_s: deque[float] = field(default_factory=lambda: deque(maxlen=4096))


class ServoBus(ABC):
    """A half-duplex bus of servos. Methods may be called from any thread; one exchange happens at a time.

    Args:
        line: The port; closed by `close`.
        timeout_s: How long to wait for an answer, on top of the time its bytes take on the wire. It has to
            exceed the latency of the USB adapter (up to 16 ms) and of the operating system under load.
        retries: How often to ask again before giving up.
    """

    table: Mapping[str, Register] = {}
    models: Mapping[int, str] = {}
    broadcast = 0xFE
    max_id = 0xFD
    byteorder = "little"
    homing_sign = -1  # a motor shows: encoder + homing_sign * homing_offset
    overhead = 16  # bytes around the data of an answer, at most
    ping_size = 0  # bytes of data in the answer to a ping
    broadcast_wait_s = 0.05  # how long the next answer to a broadcast ping may take
    bauds: Sequence[int] = ()
    PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x82, 0x83

    def __init__(self, line: Line, *, timeout_s: float = 0.03, retries: int = 3) -> None:
        self.line, self.timeout_s, self.retries = line, timeout_s, retries
        self.stats = BusStats()
        self.alarms: dict[int, int] = {}  # motor -> the alarm bits of its last answer
        self._lock = threading.RLock()
        self._buffer = bytearray()

    # ---- the protocol ---------------------------------------------------------------------------------------
    @abstractmethod
    def encode(self, motor: int, instruction: int, data: bytes = b"") -> bytes:
        """The packet that asks `motor` to do `instruction`."""

    @abstractmethod
    def parse(self, buffer: bytearray) -> Status | None:
        """Take the first whole valid answer out of `buffer`, with all that stands before it; None: more is needed.

        What is damaged is dropped and counted in `stats.corrupt`.
        """

    @abstractmethod
    def split_error(self, error: int) -> tuple[int, str]:
        """`(alarm bits, refusal)`: what the motor suffers from, and why it did not obey (empty: it did)."""

    @abstractmethod
    def describe_alarm(self, alarm: int) -> str:
        """Alarm bits in words."""

    def encode_sync(self, instruction: int, address: int, size: int, data: bytes) -> bytes:
        """The packet of a sync read (`data`: ids) or sync write (`data`: ids and values)."""
        return self.encode(self.broadcast, instruction, bytes([address, size]) + data)

    def encode_read(self, motor: int, address: int, size: int) -> bytes:
        """The packet that asks for `size` bytes."""
        return self.encode(motor, self.READ, bytes([address, size]))

    def encode_write(self, motor: int, address: int, data: bytes) -> bytes:
        """The packet that writes `data`."""
        return self.encode(motor, self.WRITE, bytes([address]) + data)

    def model_of(self, motor: int, status: Status) -> int:
        """The model number, from the answer to a ping."""
        return int.from_bytes(status.data[:2], "little")

    # ---- one motor ------------------------------------------------------------------------------------------
    def ping(self, motor: int) -> int:
        """The model number of a motor; `MotorSilentError` where none answers."""
        status = self._ask(self.encode(motor, self.PING), {motor: self.ping_size})[motor]
        return self.model_of(motor, status)

    def read(self, name: str, motor: int) -> int:
        """The value of a register, by its name in `table`."""
        entry = register(self.table, name)
        packet = self.encode_read(motor, entry.address, entry.size)
        return entry.decode(self._ask(packet, {motor: entry.size})[motor].data, self.byteorder)

    def write(self, name: str, motor: int, value: int) -> None:
        """Set a register and wait until the motor has confirmed it."""
        entry = register(self.table, name)
        packet = self.encode_write(motor, entry.address, entry.encode(value, self.byteorder))
        self._ask(packet, {motor: 0})

    # ---- several at once ------------------------------------------------------------------------------------
    def sync_read(self, name: str, motors: Iterable[int]) -> dict[int, int]:
        """A register of several motors with one question; only those who stay silent are asked again."""
        entry = register(self.table, name)
        blocks = self.sync_read_block(entry.address, entry.size, motors)
        return {motor: entry.decode(data, self.byteorder) for motor, data in blocks.items()}

    def sync_read_block(self, address: int, size: int, motors: Iterable[int]) -> dict[int, bytes]:
        """`size` bytes from `address` of several motors with one question."""
        found: dict[int, bytes] = {}
        missing = list(motors)
        with self._lock:
            for attempt in range(self.retries + 1):
                if attempt:
                    self._repeat(missing[0])
                packet = self.encode_sync(self.SYNC_READ, address, size, bytes(missing))
                answers = self._exchange(packet, dict.fromkeys(missing, size))
                found.update({motor: status.data for motor, status in answers.items()})
                missing = [motor for motor in missing if motor not in found]
                if not missing:
                    return found
        raise MotorSilentError(missing, self.line.path, self.line.baud, self.retries + 1)

    def sync_write(self, name: str, values: Mapping[int, int]) -> None:
        """Set a register of several motors with one packet. Nobody confirms it."""
        entry = register(self.table, name)
        data = b"".join(
            bytes([motor]) + entry.encode(value, self.byteorder) for motor, value in values.items()
        )
        with self._lock:
            self.line.write(self.encode_sync(self.SYNC_WRITE, entry.address, entry.size, data))

    # ---- who is there ---------------------------------------------------------------------------------------
    def scan(self, motors: Iterable[int] | None = None) -> dict[int, int]:
        """Motor -> model number of those that answer; all ids, unless `motors` names some.

        All ids are asked by one broadcast ping, twice, so that a damaged answer does not hide a motor.
        """
        if motors is None:
            heard: set[int] = set()
            with self._lock:
                for _ in range(2):
                    heard |= set(self._exchange(self.encode(self.broadcast, self.PING), None))
            motors = sorted(heard)
        found = {}
        for motor in motors:
            try:
                found[motor] = self.ping(motor)
            except MotorSilentError:
                continue
        return found

    def find_baud(self) -> dict[int, list[int]]:
        """Speed -> motors that answer at it, over all speeds the protocol knows; the speed is as before after it."""
        before, found = self.line.baud, {}
        with self._lock:
            try:
                for baud in self.bauds:
                    self.line.set_baud(baud)
                    heard = self._exchange(self.encode(self.broadcast, self.PING), None)
                    if heard:
                        found[baud] = sorted(heard)
            finally:
                self.line.set_baud(before)
        return found

    # ---- exchanges ------------------------------------------------------------------------------------------
    def _ask(self, packet: bytes, expected: dict[int, int]) -> dict[int, Status]:
        """Send until everybody in `expected` (motor -> bytes of data) has answered."""
        with self._lock:
            answers: dict[int, Status] = {}
            for attempt in range(self.retries + 1):
                if attempt:
                    self._repeat(next(iter(expected)))
                answers = self._exchange(packet, expected)
                if len(answers) == len(expected):
                    return answers
        silent = [motor for motor in expected if motor not in answers]
        raise MotorSilentError(silent, self.line.path, self.line.baud, self.retries + 1)

    def _exchange(self, packet: bytes, expected: dict[int, int] | None) -> dict[int, Status]:
        """One question and its answers; those that are not expected are dropped. None: anybody, until the end."""
        self.line.drain()
        self._buffer.clear()
        self.stats.questions += 1
        start = time.monotonic()
        self.line.write(packet)
        wanted = self.overhead if expected is None else sum(self.overhead + n for n in expected.values())
        wait = self.timeout_s if expected is not None else max(self.timeout_s, self.broadcast_wait_s)
        wait += 10 * (len(packet) + wanted) / self.line.baud
        deadline = start + wait
        answers: dict[int, Status] = {}
        while expected is None or len(answers) < len(expected):
            status = self._receive(deadline)
            if status is None:
                break
            if expected is not None and expected.get(status.motor) != len(status.data):
                self.stats.corrupt += 1  # an old answer
                continue
            self._check(status)
            answers[status.motor] = status
            if expected is None:
                deadline = time.monotonic() + wait
        self.stats.answers += len(answers)
        if expected is not None:
            self.stats.lost += len(expected) - len(answers)
            if len(answers) == len(expected):
                self.stats.latency_s.append(time.monotonic() - start)
        return answers

    def _receive(self, deadline: float) -> Status | None:
        while True:
            status = self.parse(self._buffer)
            if status is not None:
                return status
            data = self.line.read(512, deadline)
            self._buffer += data
            if not data:
                if not self._buffer:
                    return None
                del self._buffer[0]  # the header of a packet that never ended: one may stand behind it
                self.stats.corrupt += 1

    def _check(self, status: Status) -> None:
        alarm, refusal = self.split_error(status.error)
        if alarm:
            self.alarms[status.motor] = alarm
        else:
            self.alarms.pop(status.motor, None)
        if refusal:
            raise MotorError(f"motor {status.motor} on {self.line.path} refuses: {refusal}")

    def _repeat(self, motor: int) -> None:
        """Before asking again: wait for the answer to a ping, so that what was late is behind us."""
        self.stats.repeated += 1
        self._exchange(self.encode(motor, self.PING), {motor: self.ping_size})

    def close(self) -> None:
        """Give the port back. Safe to call twice."""
        with self._lock:
            self.line.close()

    def __enter__(self) -> ServoBus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
