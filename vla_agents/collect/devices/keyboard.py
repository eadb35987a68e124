"""The keyboard as a device: through the terminal (SSH, Wayland, tmux), or with releases through evdev or pynput."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vla_agents.collect.devices.hand import EndEffectorDevice, HandSource, Motion
from vla_agents.collect.devices.held_keys import EvdevKeys, HeldKeys, PynputKeys, TerminalKeys
from vla_agents.collect.keys import OPERATOR_KEYS, KeyReader, events_of
from vla_agents.collect.teleop import Event
from vla_agents.errors import UnknownNameError

MOVES = {  # key -> (axis, direction) of (x, y, z, roll, pitch, yaw): turns about x, y, z
    "w": (0, 1), "s": (0, -1), "up": (0, 1), "down": (0, -1),
    "a": (1, 1), "d": (1, -1), "left": (1, 1), "right": (1, -1),
    "e": (2, 1), "c": (2, -1), "pageup": (2, 1), "pagedown": (2, -1),
    "o": (3, 1), "u": (3, -1), "i": (4, 1), "k": (4, -1), "j": (5, 1), "l": (5, -1),
}  # fmt: skip
GRIP, SLOWER, FASTER = ("space", "g"), ("-",), ("+", "=")
BACKENDS = ("terminal", "evdev", "pynput")
CONTROLS = {
    "w s, a d, e c": "away and towards you, left and right, up and down (also arrows, page up and down)",
    "o u, i k, j l": "turn about x (roll), y (pitch), z (yaw)",
    "space, g": "close and open the gripper",
    "- +": "slower, faster",
}


class KeyboardSource(HandSource):
    """Keys -> motion. What holds keys down is one of the backends below."""

    name = "keyboard"

    def __init__(self, backend: HeldKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend, self._clock = backend, clock
        self._events: list[Event] = []
        self._toggled = False
        self._pace = 1.0

    def open(self) -> None:
        """Start to listen."""
        self._backend.open()

    def close(self) -> None:
        """Stop."""
        self._backend.close()

    def read(self) -> Motion:
        """What is held now."""
        pressed = self._backend.pressed()
        self._events += events_of(pressed)
        for key in pressed:
            if key in GRIP:
                self._toggled = not self._toggled
            elif key in SLOWER + FASTER:
                self._pace = float(np.clip(self._pace * (1.25 if key in FASTER else 0.8), 0.1, 1.0))
        rate = np.zeros(6)
        for key in self._backend.held(self._clock()):
            if key in MOVES:
                axis, direction = MOVES[key]
                rate[axis] += direction
        toggle, self._toggled = self._toggled, False
        return Motion(np.clip(rate, -1, 1) * self._pace, toggle=toggle)

    def events(self) -> list[Event]:
        """Those of `OPERATOR_KEYS`, where nobody else reads the keys."""
        events, self._events = self._events, []
        return events if self._backend.own else []

    @property
    def trouble(self) -> str:
        """Of the backend."""
        return self._backend.trouble

    def controls(self) -> dict[str, str]:
        """Keys that move, and those for the recording."""
        return {**CONTROLS, **{key: event.value for key, event in OPERATOR_KEYS.items()}}


class KeyboardDevice(EndEffectorDevice):
    """Leads the tool by keys.

    Args:
        env: Whose actions.
        keys: The terminal's reader, where others read it too; they then see to the operator's keys.
        backend: One of `BACKENDS`.
        path: For evdev: the device file; by default the first keyboard.
        **options: Of `EndEffectorDevice`.
    """

    def __init__(
        self,
        env: Any,
        *,
        keys: KeyReader | None = None,
        backend: str = "terminal",
        path: str = "",
        **options: Any,
    ) -> None:
        if backend not in BACKENDS:
            raise UnknownNameError("backend of the keyboard", backend, BACKENDS)
        held: HeldKeys
        if backend == "terminal":
            held = TerminalKeys(keys)
        else:
            held = EvdevKeys(path) if backend == "evdev" else PynputKeys()
            held.own = keys is None  # the terminal gets the same presses
        source = KeyboardSource(held, options.get("clock", time.monotonic))
        super().__init__(env, source, **{"deadzone": 0.0, "curve": 1.0, **options})
