"""Observations, single and of vector envs: counted, taken apart, checked against an embodiment.

A single one is `{"images": {camera: uint8 (H, W, 3)}, "state": float32 (S,), "instruction": str}`; a vector one carries
a leading N on every array and a sequence of N instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ObservationError

Observation = dict[str, Any]


def batch_size(obs: Observation) -> int | None:
    """N of a vector observation, None of a single one."""
    if not isinstance(obs, dict):
        raise ObservationError(
            f"the observation is a {type(obs).__name__}, not a dict",
            "env.reset() returns (obs, info): pass obs",
        )
    instruction = obs.get("instruction")
    return None if isinstance(instruction, str) or not isinstance(instruction, Sized) else len(instruction)


def take(obs: Observation, slot: int) -> Observation:
    """The observation of one slot of a vector observation (views, no copies)."""
    return _map(obs, lambda value: value[slot])


def _map(obs: Observation, function: Callable[[Any], Any]) -> Observation:
    return {
        k: {c: function(v) for c, v in value.items()} if k == "images" else function(value)
        for k, value in obs.items()
    }


def _picture_remedy(height: int, width: int, shape: tuple[int, ...] | None, dtype: Any) -> str:
    if shape is None or len(shape) != 3 or shape[2] != 3:
        return "give RGB pictures as arrays: rows, columns, then red, green and blue"
    if dtype != np.uint8:
        return "give whole numbers 0 .. 255 as uint8, not scaled"
    return f"make the env with that image size, or add ResizeImages({height}, {width})"


def check_observation(obs: Observation, embodiment: Embodiment, *, slot: int | None = None) -> None:
    """Raise `ObservationError` naming the field unless a single observation fits the embodiment."""
    where = "" if slot is None else f" (env {slot})"
    if embodiment.cameras and "images" not in obs:
        raise ObservationError(f"the observation{where} has no 'images'; it has {sorted(obs)}")
    if not isinstance(obs.get("instruction"), str):
        raise ObservationError(
            f"the observation{where} has no instruction string: {obs.get('instruction')!r}"
        )
    for camera in embodiment.cameras:
        image = obs["images"].get(camera.name)
        if image is None:
            raise ObservationError(
                f"camera {camera.name!r} is missing{where}; the observation has {sorted(obs['images'])}",
                "use the transform RenameCameras or SelectCameras where only the names differ",
            )
        shape = (camera.height, camera.width, 3)
        if getattr(image, "shape", None) != shape or image.dtype != np.uint8:
            got = getattr(image, "shape", None), getattr(image, "dtype", type(image))
            raise ObservationError(
                f"camera {camera.name!r}{where}: got {got[1]} {got[0] or ''}, expected uint8 {shape}",
                _picture_remedy(camera.height, camera.width, *got),
            )
    if embodiment.state_dim:
        state = obs.get("state")
        given = None if state is None else np.shape(state)
        if state is None or given != (embodiment.state_dim,):
            raise ObservationError(f"state{where} has shape {given}, expected ({embodiment.state_dim},)")
        if not np.isfinite(state).all():
            bad = [n for n, part in embodiment.state_slices().items() if not np.isfinite(state[part]).all()]
            raise ObservationError(f"state{where} is not finite in {bad}: {np.asarray(state).tolist()}")
