"""What the envs over other people's simulators share: checks of what they are given, and a Panda arm's body."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ActionError, ConfigError, UnknownNameError

IMAGE_SIZES = (8, 2048)  # of a side, pixels
RENDER_MODES = ("rgb_array",)


def panda_by_its_hand(
    name: str, cameras: tuple[str, ...], image_size: int, control_hz: float = 20.0
) -> Embodiment:
    """A Panda arm moved by its hand as robosuite's operational-space control does it (LIBERO, robosuite)."""
    return Embodiment(
        name=name,
        action=(
            Part("delta_position", 3, "delta_xyz", -1.0, 1.0, "0.05 m"),
            Part("delta_rotation", 3, "delta_axis_angle", -1.0, 1.0, "0.5 rad"),
            Part("gripper", 1, "gripper_close_pm1", -1.0, 1.0),
        ),
        state=(
            Part("eef_position", 3, "xyz", -3.0, 3.0, "m"),
            Part("eef_rotation", 3, "axis_angle", -2 * np.pi, 2 * np.pi, "rad"),
            Part("gripper", 2, "gripper_position", -0.1, 0.1, "m"),
        ),
        cameras=tuple(Camera(camera, image_size, image_size) for camera in cameras),
        control_hz=control_hz,
    )


def check_view(
    simulator: str, cameras: Iterable[str], known: Iterable[str], image_size: int, render_mode: str | None
) -> None:
    """Refuse cameras, a size of pictures or a render mode that a simulator does not have.

    Raises:
        UnknownNameError: No such camera or render mode.
        ConfigError: The size is out of range, or `cameras` is no list.
    """
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise UnknownNameError("render_mode", render_mode, RENDER_MODES)
    names = list(known)
    if isinstance(cameras, str):  # its letters would be taken for cameras
        raise ConfigError(f"cameras is {cameras!r}", f"give a list: cameras=[{cameras}]")
    for camera in cameras:
        if camera not in names:
            raise UnknownNameError(f"{simulator} camera", camera, names)
    low, high = IMAGE_SIZES
    if not low <= image_size <= high:
        raise ConfigError(f"image_size={image_size}", f"it is between {low} and {high}")


def episode_number(
    rng: np.random.Generator, seed: int | None, options: dict[str, Any] | None, known: tuple[str, ...] = ()
) -> int:
    """Which episode a reset asks for: its seed, or drawn; options that the env does not have are refused.

    Raises:
        UnknownNameError: No such option.
    """
    for key in options or {}:
        if key not in known:
            raise UnknownNameError("option of reset", key, known)
    return int(rng.integers(2**31)) if seed is None else int(seed)


def checked_action(action: Any, body: Embodiment) -> np.ndarray:
    """The action as float32 (D,), clipped to the body's limits.

    Raises:
        ActionError: It has another shape, or is not finite; names the parts that are not.
    """
    given = np.asarray(action, np.float32)
    if given.shape != (body.action_dim,):
        raise ActionError(f"action has shape {given.shape}, expected ({body.action_dim},)")
    if not np.isfinite(given).all():
        bad = [name for name, part in body.action_slices().items() if not np.isfinite(given[part]).all()]
        raise ActionError(f"action is not finite in {bad}: {given.tolist()}")
    space = body.action_space()
    return np.clip(given, space.low, space.high)
