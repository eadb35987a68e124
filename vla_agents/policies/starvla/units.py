"""What the numbers of a StarVLA checkpoint mean: its embodiment, and how actions are un-normalised.

Neither is in the files. Two conventions are in the wild for the same checkpoint:

    "dec2025"  the evaluation clients of December 2025: clip to [-1, 1]; dimension 6 becomes 0 below 0.5 and 1 from there;
               then (x + 1) / 2 * (high - low) + low where the statistics' mask is true, unchanged elsewhere
    "head"     the policy server of 2026: no clipping; the inverse of the training transform, by data set: LIBERO min_max on
               the first six, gripper as it is; Open X-Embodiment q01_q99, gripper a step at 0.5
    "none"     actions stay normalised

`ranges` says which columns are high and low: `"min_max"` (LIBERO) or `"q01_q99"` (Open X-Embodiment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import CheckpointError, ConfigError
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.starvla.run import StarVLARun

Unnormalization = Literal["head", "dec2025", "none"]
Ranges = Literal["min_max", "q01_q99"]
UNNORMALIZATIONS: tuple[str, ...] = get_args(Unnormalization)
GRIPPER = 6  # the dimension that StarVLA's clients take for the gripper
_FIELDS = ("mean", "std", "min", "max", "q01", "q99")


def known_family(data_mix: str) -> str:
    """`"libero"` or `"oxe"` where StarVLA's name of the data says so; else empty."""
    name = data_mix.lower()
    if name.startswith("libero"):
        return "libero"
    return "oxe" if name.startswith(("oxe", "bridge", "fractal", "rt_1", "rt1")) else ""


def make_embodiment(
    run: StarVLARun, action_dim: int, state_dim: int, cameras: Sequence[str], mask: np.ndarray
) -> Embodiment:
    """LIBERO's body where the data set is one of it; else parts without a convention."""
    height, width = run.image_size
    libero = known_family(run.data_mix) == "libero"
    # StarVLA turns LIBERO's raw pictures by 180 degrees, which mirrors them (see docs/starvla.md).
    views = tuple(Camera(name, height, width, "mirrored" if libero else "upright") for name in cameras)
    if libero and action_dim == 7 and state_dim in (0, 8):
        action: tuple[Part, ...] = (
            Part("delta_position", 3, "delta_xyz", -1.0, 1.0, "0.05 m"),
            Part("delta_rotation", 3, "delta_axis_angle", -1.0, 1.0, "0.5 rad"),
            Part("gripper", 1, "gripper_open_01", 0.0, 1.0),
        )
        state: tuple[Part, ...] = (
            Part("eef_position", 3, "xyz", -3.0, 3.0, "m"),
            Part("eef_rotation", 3, "axis_angle", -2 * np.pi, 2 * np.pi, "rad"),
            Part("gripper", 2, "gripper_position", -0.1, 0.1, "m"),
        )
        return Embodiment("libero_panda", action, state if state_dim else (), views)
    action = tuple(
        Part(f"action{start}_{stop - 1}" if stop - start > 1 else f"action{start}", stop - start, "other")
        for start, stop in _runs(mask)
    )
    return Embodiment(
        "starvla", action, (Part("state", state_dim, "other"),) if state_dim else (), views, 20.0
    )


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of neighbours with the same mask, the gripper by itself."""
    cuts = {0, len(mask)} | {i for i in range(1, len(mask)) if mask[i] != mask[i - 1]}
    if len(mask) > GRIPPER:
        cuts |= {GRIPPER, GRIPPER + 1}
    edges = sorted(cuts)
    return list(pairwise(edges))


def vector_stats(entry: Mapping[str, Any], size: int, where: str) -> VectorStats:
    """One vector of dataset_statistics.json; columns that a file leaves out are zeros."""
    columns = {}
    for name in _FIELDS:
        values = np.asarray(entry.get(name, [0.0] * size), np.float64).reshape(-1)
        if len(values) != size:
            raise CheckpointError(where, f"{name} has {len(values)} values, the checkpoint {size}")
        columns[name] = tuple(float(value) for value in values)
    return VectorStats(count=int(entry.get("count", 0)), **columns)


def action_mask(entry: Mapping[str, Any], size: int) -> np.ndarray:
    """bool (D,): True where the statistics are applied (Dec-2025 convention)."""
    mask = np.asarray(entry.get("mask", [True] * size), bool).reshape(-1)
    return mask if len(mask) == size else np.ones(size, bool)


def action_normalizer(
    parts: tuple[Part, ...],
    entry: Mapping[str, Any],
    convention: Unnormalization,
    ranges: Ranges,
    *,
    where: str = "dataset_statistics.json",
) -> Normalizer:
    """Normalised actions -> the embodiment's units, by one of the conventions of the module docstring.

    Args:
        parts: The action vector.
        entry: The `action` of one tag.
        convention: Which.
        ranges: Which columns are high and low.
        where: Names the file in errors.
    """
    if convention not in UNNORMALIZATIONS:
        raise ConfigError(f"unnormalization={convention!r}", f"known: {', '.join(UNNORMALIZATIONS)}")
    size = sum(part.size for part in parts)
    stats = vector_stats(entry, size, where)
    if convention == "none":
        return Normalizer(parts, stats, {"*": "none"})
    gripper = _gripper(parts)
    if convention == "head":
        modes: dict[str, str] = {part.name: "none" if part.name == gripper else ranges for part in parts}
        binary = [gripper] if gripper and ranges == "q01_q99" else []
        return Normalizer(parts, stats, modes, exact=True, binary=binary)
    modes = _masked_modes(parts, action_mask(entry, size), ranges)
    return Normalizer(parts, stats, modes, exact=True, clip=1.0, binary=[gripper] if gripper else [])


def _gripper(parts: tuple[Part, ...]) -> str:
    start = 0
    for part in parts:
        if start <= GRIPPER < start + part.size:
            if part.size != 1:
                raise ConfigError(
                    f"StarVLA's clients take dimension {GRIPPER} for the gripper; in the embodiment it lies inside "
                    f"{part.name!r} ({part.size} values)",
                    "make it a part of its own",
                )
            return part.name
        start += part.size
    return ""


def _masked_modes(parts: tuple[Part, ...], mask: np.ndarray, ranges: Ranges) -> dict[str, str]:
    modes: dict[str, str] = {}
    start = 0
    for part in parts:
        here = mask[start : start + part.size]
        if here.any() != here.all():
            raise ConfigError(
                f"the statistics' mask {here.tolist()} splits the part {part.name!r}",
                "give an embodiment whose parts follow it",
            )
        modes[part.name] = ranges if here.all() else "none"
        start += part.size
    return modes
