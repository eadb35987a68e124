"""What the tests of devices share: an env that only has a body, a clock, a hand, and files that speak like devices."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass, field

import numpy as np

from vla_agents.collect.devices.evdev import EVENT, SYN
from vla_agents.collect.devices.hand import HandSource, Motion
from vla_agents.embodiment import Embodiment, Part
from vla_agents.envs.tabletop.env import tabletop_embodiment


class Body:
    """As much of an env as a device looks at."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment
        self.unwrapped = self


TABLETOP = Body(tabletop_embodiment(16, 16, ()))
OBS = {"state": np.array([0.1, 0.0, 0.2, 0, 0, 0, 0.05, 0.05], np.float32), "instruction": ""}


def joints_body(names, low=-3.0, high=3.0, unit="rad", gripper=False, hz=20.0) -> Body:
    parts = [Part(name, 1, "joint_position", low, high, unit) for name in names]
    if gripper:
        parts.append(Part("gripper", 1, "gripper_open_01", 0, 1))
    return Body(Embodiment("arm", tuple(parts), tuple(parts), (), hz))


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeHand(HandSource):
    """A hand that wants what it is told."""

    has_clutch: bool = True
    name: str = "fake"
    motion: Motion = field(default_factory=lambda: Motion(held=False))
    lost: str = ""

    def read(self) -> Motion:
        return self.motion

    @property
    def trouble(self) -> str:
        return self.lost


class DeviceFile:
    """A named pipe in the place of a device file; each `write` is one report, as from a real one."""

    def __init__(self, path) -> None:
        self.path = str(path)
        os.mkfifo(self.path)
        self._reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # so that the writer can open
        self._writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._writer, fcntl.F_SETFL, os.O_DIRECT | os.O_NONBLOCK)  # packets stay apart
        os.close(self._reader)

    def write(self, data: bytes) -> None:
        assert os.write(self._writer, data) == len(data)

    def events(self, *events: tuple[int, int, int]) -> None:
        """(type, code, value), and the report's end."""
        now = time.time()
        stamp = int(now), int(now % 1 * 1e6)
        self.write(b"".join(EVENT.pack(*stamp, *event) for event in (*events, (SYN, 0, 0))))

    def close(self) -> None:
        os.close(self._writer)
