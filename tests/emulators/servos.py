"""A serial bus of servos on a pseudo-terminal: registers, first-order motion, and every way a wire can fail."""

from __future__ import annotations

import os
import pty
import random
import select
import termios
import threading
import time
import tty
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

SPEEDS = {
    getattr(termios, name): int(name[1:]) for name in dir(termios) if name[1:].isdigit() and name[0] == "B"
}


@dataclass
class Faults:
    """What goes wrong, each with its probability per answer (or a count of answers still to be spoilt)."""

    lose: float = 0.0
    corrupt: float = 0.0
    truncate: float = 0.0
    noise: float = 0.0  # stray bytes before an answer
    delay: float = 0.0  # probability of an answer that comes late, by `delay_s`
    delay_s: float = 0.0
    lose_next: int = 0
    corrupt_next: int = 0
    mute: set[int] = field(default_factory=set)


@dataclass
class Servo:
    """Registers and motion. Positions are the raw register values."""

    id: int
    table: bytearray
    position: float
    speed: float  # raw units per second


class ServoBusEmulator(ABC):
    """`with FeetechEmulator(ids) as device: ... device.path`. A thread answers; nothing outlives `close`.

    Attributes:
        goals: Every goal position that reached a servo, in order: (monotonic time, id, raw value).
        torque_log: Every write to torque enable: (monotonic time, id, value).
        packets: Every valid packet that arrived.
    """

    goal: tuple[int, int]
    position: tuple[int, int]
    torque: int

    def __init__(self, servos: list[Servo], *, baud: int = 1_000_000, seed: int = 0) -> None:
        self.servos = {servo.id: servo for servo in servos}
        self.baud, self.faults = baud, Faults()
        self.goals: list[tuple[float, int, int]] = []
        self.torque_log: list[tuple[float, int, int]] = []
        self.packets: list[bytes] = []
        self.bad = 0
        self.lock = threading.Lock()
        self._random = random.Random(seed)
        self._master, self._slave = pty.openpty()
        tty.setraw(self._master)
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self._wake_read, self._wake_write = os.pipe()
        self._then = time.monotonic()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=f"emulator {self.path}", daemon=True)
        self._thread.start()

    # ---- the protocol ---------------------------------------------------------------------------------------
    @abstractmethod
    def handle(self, buffer: bytearray) -> list[tuple[int, bytes]]:
        """Take all whole packets out of `buffer`; returns the answers, each with the id of its servo."""

    # ---- memory ---------------------------------------------------------------------------------------------
    def get(self, motor: int, address: int, size: int) -> bytes:
        return bytes(self.servos[motor].table[address : address + size])

    def put(self, motor: int, address: int, data: bytes) -> None:
        """What a write does; overridden where a register is more than memory."""
        servo = self.servos[motor]
        servo.table[address : address + len(data)] = data
        goal, size = self.goal
        if address <= goal < address + len(data):
            value = int.from_bytes(data[goal - address : goal - address + size], "little")
            self.goals.append((time.monotonic(), motor, value))
        if address <= self.torque < address + len(data):
            on = data[self.torque - address]
            self.torque_log.append((time.monotonic(), motor, on))
            if on:
                self.on_torque(servo)

    def on_torque(self, servo: Servo) -> None:  # noqa: B027 - most do nothing
        """What else happens when torque is switched on."""

    def value(self, motor: int, address: int, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.get(motor, address, size), "little", signed=signed)

    def move(self) -> None:
        """First-order motion of every servo whose torque is on, up to now."""
        now = time.monotonic()
        dt, self._then = now - self._then, now
        for servo in self.servos.values():
            if servo.table[self.torque] == 1:
                step = self.target(servo) - servo.position
                servo.position += max(-servo.speed * dt, min(servo.speed * dt, step))
            address, size = self.position
            servo.table[address : address + size] = self.shown(servo)

    def target(self, servo: Servo) -> float:
        address, size = self.goal
        return int.from_bytes(servo.table[address : address + size], "little")

    def shown(self, servo: Servo) -> bytes:
        return round(servo.position).to_bytes(self.position[1], "little", signed=True)

    # ---- the line -------------------------------------------------------------------------------------------
    def _serve(self) -> None:
        buffer = bytearray()
        while True:
            readable, _, _ = select.select([self._master, self._wake_read], [], [])
            if self._wake_read in readable:
                return
            try:
                data = os.read(self._master, 4096)
            except OSError:
                return
            if SPEEDS.get(termios.tcgetattr(self._master)[4]) != self.baud:
                continue  # at another speed these bytes are noise
            buffer += data
            with self.lock:
                self.move()
                answers = self.handle(buffer)
            for motor, packet in answers:
                self._send(motor, packet)

    def _send(self, motor: int, packet: bytes) -> None:
        faults, chance = self.faults, self._random.random
        if motor in faults.mute or chance() < faults.lose:
            return
        if faults.lose_next > 0:
            faults.lose_next -= 1
            return
        if faults.corrupt_next > 0 or chance() < faults.corrupt:
            faults.corrupt_next = max(0, faults.corrupt_next - 1)
            place = self._random.randrange(len(packet))
            packet = (
                packet[:place]
                + bytes([packet[place] ^ (1 << self._random.randrange(8))])
                + packet[place + 1 :]
            )
        if chance() < faults.truncate:
            packet = packet[: self._random.randrange(1, len(packet))]
        if chance() < faults.noise:
            packet = self._random.randbytes(self._random.randrange(1, 6)) + packet
        if chance() < faults.delay:
            time.sleep(faults.delay_s)
        os.write(self._master, packet)

    def pull_the_cable(self) -> None:
        """The port vanishes, as when a USB adapter is pulled out."""
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        os.write(self._wake_write, b"x")
        self._thread.join(5.0)
        assert not self._thread.is_alive()
        for descriptor in (self._master, self._slave, self._wake_read, self._wake_write):
            os.close(descriptor)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
