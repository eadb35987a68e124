"""The inputs of a StarVLA fixture: `inputs/ex0.json`, `ex0_view0.png`, `ex0_action.npy`, `ex0_state.npy`, `ex1...`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vla_agents.errors import CheckpointError
from vla_agents.policies.policy import Batch


def find_inputs(folder: Path) -> tuple[tuple[str, ...], int]:
    """Names of the views, number of examples."""
    count = len(list(folder.glob("ex*.json")))
    views = len(list(folder.glob("ex0_view*.png")))
    if not count or not views:
        raise CheckpointError(
            folder, "no ex0.json with ex0_view0.png", "give a folder with the fixtures' layout"
        )
    for index in range(1, count):
        other = len(list(folder.glob(f"ex{index}_view*.png")))
        if other != views:
            raise CheckpointError(
                folder,
                f"ex0 has {views} views, ex{index} has {other}: a policy has the same for all",
                "compare them as two fixtures",
            )
    return tuple(f"view{index}" for index in range(views)), count


def read_batch(
    folder: Path,
    cameras: tuple[str, ...],
    count: int,
    size: tuple[int, int] | None,
    rows: int | None = None,
) -> Batch:
    """The first `count` inputs as a batch; `action` is what StarVLA was given, i.e. normalised.

    Args:
        folder: `inputs/` of a fixture.
        cameras: The views' names.
        count: How many.
        size: (width, height) to which pictures are brought by Pillow's bicubic; None leaves them.
        rows: How many of the last actions are learnt; None: all.
    """

    def array(index: int, what: str) -> np.ndarray | None:
        file = folder / f"ex{index}_{what}.npy"
        return np.load(file, allow_pickle=False).astype(np.float32) if file.is_file() else None

    def picture(index: int, name: str) -> np.ndarray:
        image = Image.open(folder / f"ex{index}_{name}.png").convert("RGB")
        return np.asarray(image if size is None else image.resize(size))

    states = [array(index, "state") for index in range(count)]
    actions = [array(index, "action") for index in range(count)]
    texts = [json.loads((folder / f"ex{i}.json").read_text(encoding="utf-8"))["lang"] for i in range(count)]
    return Batch(
        images={name: _pile([picture(i, name) for i in range(count)], folder, name) for name in cameras},
        instructions=texts,
        state=_stack([state.reshape(-1) for state in states if state is not None]),
        action=_stack([action[-(rows or len(action)) :] for action in actions if action is not None]),
    )


def _stack(rows: list[np.ndarray]) -> Tensor | None:
    return torch.from_numpy(np.stack(rows)) if rows else None


def _pile(pictures: list[np.ndarray], folder: Path, name: str) -> Tensor:
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise CheckpointError(
            folder,
            f"the examples' pictures of {name} have different sizes: {sorted(sizes)}",
            "make them one size",
        )
    return torch.from_numpy(np.stack(pictures))
