"""A gamepad as a device: Xbox, PlayStation, Switch Pro and others that the Linux kernel calls gamepads.

The dead-man's switch is the right shoulder button (RB, R1): nothing moves unless it is held.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from vla_agents.collect.devices.evdev import ABS, InputDevice, choose_input
from vla_agents.collect.devices.hand import EndEffectorDevice, HandSource, Motion
from vla_agents.collect.teleop import Event

# The kernel's gamepad convention (Documentation/input/gamepad.rst): code -> (axis, sign); up and left are negative.
LEFT_X, LEFT_Y, LEFT_TRIGGER, RIGHT_X, RIGHT_Y, RIGHT_TRIGGER, HAT_X, HAT_Y = 0, 1, 2, 3, 4, 5, 16, 17
# Drivers do not agree which of the two upper buttons is which (X and Y of an Xbox pad): they are left alone.
SOUTH, EAST, RB, SELECT, START, MODE = 0x130, 0x131, 0x137, 0x13A, 0x13B, 0x13C
USUAL = {  # where the device does not say
    **dict.fromkeys((LEFT_X, LEFT_Y, RIGHT_X, RIGHT_Y), (-32768, 32767)),
    **dict.fromkeys((LEFT_TRIGGER, RIGHT_TRIGGER), (0, 1023)),
    **dict.fromkeys((HAT_X, HAT_Y), (-1, 1)),
}
EVENTS = {START: Event.SAVE, SELECT: Event.DISCARD, EAST: Event.REDO, MODE: Event.PAUSE}
CONTROLS = {
    "hold RB / R1": "dead-man's switch: nothing moves without it",
    "left stick": "away and towards you, left and right",
    "triggers": "right: up, left: down",
    "right stick": "turn about the vertical (left, right) and nod (up, down)",
    "cross left, right": "roll",
    "A / cross": "close and open the gripper",
    "start, select": "save, discard",
    "cross up, down": "success, failure",
    "B / circle, middle button": "redo, pause",
}


class GamepadSource(HandSource):
    """Sticks and buttons -> motion."""

    name = "gamepad"
    has_clutch = True

    def __init__(self, device: InputDevice | None = None, path: str = "") -> None:
        self._device, self._path = device, path
        self._forget()

    def _forget(self) -> None:
        self._axes: dict[int, float] = {}
        self._held = False
        self._toggled = False
        self._events: list[Event] = []

    def open(self) -> None:
        """Open it."""
        if self._device is None:
            self._device = choose_input("gamepad", self._path)
        self._forget()
        self._device.open()

    def close(self) -> None:
        """Give it back."""
        if self._device is not None:
            self._device.close()

    def read(self) -> Motion:
        """Where the sticks are now."""
        assert self._device is not None
        for event in self._device.read():
            if event.type == ABS:
                if event.code == HAT_Y and event.value:
                    self._events.append(Event.SUCCESS if event.value < 0 else Event.FAILURE)
                self._axes[event.code] = self._share(event.code, event.value)
            elif event.code == RB:
                self._held = event.value != 0
            elif event.value == 1 and event.code == SOUTH:
                self._toggled = not self._toggled
            elif event.value == 1 and event.code in EVENTS:
                self._events.append(EVENTS[event.code])
        if self._device.trouble:
            self._axes, self._held = {}, False
        axis = self._axes.get
        rate = np.array([
            -axis(LEFT_Y, 0.0), -axis(LEFT_X, 0.0), axis(RIGHT_TRIGGER, 0.0) - axis(LEFT_TRIGGER, 0.0),
            axis(HAT_X, 0.0), -axis(RIGHT_Y, 0.0), -axis(RIGHT_X, 0.0),
        ])  # fmt: skip
        toggle, self._toggled = self._toggled, False
        return Motion(rate, toggle=toggle, held=self._held)

    def _share(self, code: int, value: int) -> float:
        """-1 to 1 of a stick, 0 to 1 of a trigger."""
        assert self._device is not None
        low, high = self._device.ranges.get(code) or USUAL.get(code, (-1, 1))
        share = (value - low) / (high - low)
        share = share if code in (LEFT_TRIGGER, RIGHT_TRIGGER) else 2 * share - 1
        return float(np.clip(share, -1.0, 1.0))

    def events(self) -> list[Event]:
        """Of the buttons."""
        events, self._events = self._events, []
        return events

    @property
    def trouble(self) -> str:
        """Unplugged, out of reach."""
        return "" if self._device is None else self._device.trouble

    def controls(self) -> dict[str, str]:
        """Sticks and buttons."""
        return CONTROLS


class GamepadDevice(EndEffectorDevice):
    """Leads the tool by a gamepad.

    Args:
        env: Whose actions.
        path: e.g. `/dev/input/event5`; by default the first gamepad.
        keys: Not needed: the gamepad has buttons for the recording.
        **options: Of `EndEffectorDevice`.
    """

    def __init__(self, env: Any, *, path: str = "", keys: Any = None, **options: Any) -> None:
        options.setdefault("clock", time.monotonic)
        super().__init__(env, GamepadSource(path=path), **options)
