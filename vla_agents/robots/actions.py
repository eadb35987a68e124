"""What an agent's action means for the axes: `RobotEnv` speaks the agent's language, the safety filter the robot's."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from vla_agents.embodiment import Part
from vla_agents.errors import ActionError
from vla_agents.robots.robot import Reading


class ActionMap(Protocol):
    """From actions (D,) to targets (J,) for the axes, and back.

    `parts` are those of the env's action in place of the robot's own.
    """

    parts: tuple[Part, ...]

    def target(self, action: np.ndarray, reading: Reading) -> np.ndarray:
        """Where the axes shall be at the end of the step, float64 (J,)."""

    def action(self, target: np.ndarray, reading: Reading, asked: np.ndarray) -> np.ndarray:
        """The action (D,) that would have led from the same reading to `target`; what a target does not tell
        (a gripper that only knows open and closed) is taken from `asked`."""

    def hold(self, command: np.ndarray) -> np.ndarray:
        """The action (D,) that leaves the arm at its last command (J,)."""


class Direct:
    """The action is the target."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts

    def target(self, action: np.ndarray, reading: Reading) -> np.ndarray:
        """The action itself."""
        return np.asarray(action, np.float64)

    def action(self, target: np.ndarray, reading: Reading, asked: np.ndarray) -> np.ndarray:
        """The target itself."""
        return target

    def hold(self, command: np.ndarray) -> np.ndarray:
        """The command itself."""
        return command


def check_action(action: Any, size: int) -> np.ndarray:
    """What an agent gave, as float32 (D,), D being `size`.

    Raises:
        ActionError: It is not real numbers (truths, complex numbers, objects, text), of another shape, or not finite.
    """
    held = "nothing of it was sent; the arm holds"
    try:
        given = np.asarray(action)
    except (TypeError, ValueError) as error:  # ragged
        raise ActionError(f"the action is not an array: {action!r}", held) from error
    if given.dtype.kind not in "fiu":
        raise ActionError(f"the action is not real numbers: dtype {given.dtype}, {action!r}", held)
    if given.shape != (size,):
        raise ActionError(f"the action has shape {given.shape}, expected {(size,)}", held)
    with np.errstate(over="ignore"):
        values = given.astype(np.float32)
    if not np.isfinite(values).all():
        raise ActionError(f"the action is not finite: {given.tolist()}", held)
    return values
