"""Teleoperation: a device in a person's hand is an `Agent`, and the operator's wishes about the episode are events.

A `Device` answers `act(obs)` in the units of the env it was made for, exactly like a policy, at once and without
ever waiting for the person. Whoever runs the loop (`vla-agents collect`) asks it three things per tick:

    for event in device.events(): ...     # save, discard, success, takeover, ... pressed on the device itself
    if device.engaged: action = device.act(obs)
    else: device.follow(obs, action)      # somebody else drives: the device is told, so that it starts from there

**No jumps.** `act` starts from where the body is: from the last action it was told of (`follow`), its own last one, or
the state. A device that is lost, silent, or whose dead-man's switch is open gives the action that moves nothing (no delta,
the same joints), `trouble` says why, and it only goes on from a neutral position.

Keys of the terminal are read once and handed to everybody who wants them: `vla_agents.collect.keys.KeyReader`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np

from vla_agents.agent import Agent, Observation
from vla_agents.errors import ConfigError
from vla_agents.registry import Registry

__all__ = ["DEVICES", "Device", "Event", "make_device"]


class Event(StrEnum):
    """What the operator wants of the recording. Each is a press, delivered once.

    `SAVE` and `DISCARD` end the episode; `SUCCESS` and `FAILURE` end and save it with that label. `PAUSE` and `TAKEOVER`
    switch on and off.
    """

    SAVE = "save"  # end the episode and keep it (its success as the env judges, if it does)
    DISCARD = "discard"  # end it and drop it, go on with the next
    REDO = "redo"  # drop it and record the same once more (same seed and instruction)
    SUCCESS = "success"  # end and keep it, labelled a success
    FAILURE = "failure"  # end and keep it, labelled a failure
    PAUSE = "pause"  # hold still and record nothing until pressed again
    TAKEOVER = "takeover"  # the person drives instead of the policy; pressed again: the policy drives
    QUIT = "quit"  # drop the open episode and end the recording


class Device(Agent):
    """A person's hand on the robot. Subclasses write `act`, and what they have of the rest.

    Entering the context (or `connect`) opens the hardware; errors are raised there, before anything moves.

    Attributes:
        name: As it stands in `DEVICES`, for messages and metadata.
    """

    name = "device"
    _switched_on = True

    def connect(self) -> None:
        """Open the hardware.

        Raises:
            PortNotFoundError, PortPermissionError, PortBusyError: With what to do about it.
            CalibrationError, EmbodimentMismatchError: A leader that is not calibrated, or of another shape.
            MissingDependencyError: A package that is not installed.
        """

    def events(self) -> list[Event]:
        """What was pressed on the device since the last call, oldest first. Never waits."""
        return []

    @property
    def engaged(self) -> bool:
        """Whether the person drives now.

        With a policy in the loop this decides who acts, tick by tick. A device with a dead-man's switch (gamepad,
        phone, headset) is engaged while it is held. One without (keyboard, leader arm) after a takeover key.
        Without a policy the device acts anyway, and holds while it is not engaged.
        """
        return self._switched_on

    @engaged.setter
    def engaged(self, value: bool) -> None:
        self._switched_on = bool(value)

    @property
    def switched(self) -> bool:
        """Whether `engaged` is set from outside (by `Event.TAKEOVER`), there being no dead-man's switch."""
        return True

    def follow(self, obs: Observation, action: np.ndarray) -> None:
        """Somebody else acts on `obs` with `action` (D,); when the person takes over, `act` starts from there."""

    @property
    def trouble(self) -> str:
        """Why the device gives no motion (lost, silent, not neutral yet); empty where all is well."""
        return ""

    def controls(self) -> dict[str, str]:
        """What to press for what, for the operator's help: control -> meaning."""
        return {}

    def __enter__(self) -> Device:
        self.connect()
        return self


DEVICES = Registry(
    "device",
    {
        "expert": "vla_agents.collect.devices.scripted:ExpertDevice",
        "gamepad": "vla_agents.collect.devices.gamepad:GamepadDevice",
        "keyboard": "vla_agents.collect.devices.keyboard:KeyboardDevice",
        "leader": "vla_agents.collect.devices.leader:LeaderDevice",
        "phone": "vla_agents.collect.devices.phone:PhoneDevice",
        "replay": "vla_agents.collect.devices.scripted:ReplayDevice",
        "spacemouse": "vla_agents.collect.devices.spacemouse:SpaceMouseDevice",
    },
)
"""Name -> class that makes the device from `(env, **options)`."""


def make_device(name: str, /, env: Any, **options: Any) -> Device:
    """A device by name for an env, not connected yet: `with make_device("gamepad", env) as device`.

    Args:
        name: One of `DEVICES`.
        env: A Gymnasium env with an embodiment; the device speaks its units.
        **options: Of the device's class; `keys=` (a `KeyReader`) where it shall share the terminal.

    Raises:
        UnknownNameError: No such device.
        ConfigError: An option it does not have, or an env it cannot drive.
    """
    kind = DEVICES.get(name)
    try:
        return kind(env, **options)
    except TypeError as error:
        raise ConfigError(f"the device {name!r} cannot be made of these options ({error})") from error
