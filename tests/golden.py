"""Fixtures made by running StarVLA (`shared/golden`), which live beside the repository and not in it.

Looked for at `<repository>/../shared/golden`, then at `$VLA_AGENTS_SHARED/golden`. Where neither is there, a test that asks
is skipped and says so.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vla_agents.policies.policy import Batch

REPOSITORY = Path(__file__).resolve().parent.parent
CAMERAS = ("view0", "view1")  # how the views of a fixture are called in the batches made here


def find_golden() -> Path | None:
    """The folder of the fixtures, or None."""
    places = [REPOSITORY.parent / "shared"]
    if os.environ.get("VLA_AGENTS_SHARED"):
        places.append(Path(os.environ["VLA_AGENTS_SHARED"]))
    return next((place / "golden" for place in places if (place / "golden").is_dir()), None)


def golden(*names: str) -> Path:
    """A file or folder of the fixtures, e.g. `golden("QwenOFT", "qwen3")`; skips the test where it is not there."""
    root = find_golden()
    if root is None:
        pytest.skip(
            f"no fixtures: neither {REPOSITORY.parent / 'shared' / 'golden'} nor $VLA_AGENTS_SHARED/golden is there"
        )
    path = root.joinpath(*names)
    if not path.exists():
        pytest.skip(f"the fixtures hold no {path.relative_to(root)}")
    return path


def vlm() -> Path:
    """Architecture, tokenizer and processor of the fixtures' VLM, without weights."""
    return golden("vlm", "Qwen3-VL-Tiny-Action")


def fixture(framework: str, family: str = "qwen3") -> Path:
    """The folder of one framework: `run/`, `inputs/`, `outputs.npz`, `meta.json`."""
    return golden(framework, family)


@cache
def _outputs(path: Path) -> dict[str, np.ndarray]:
    with np.load(path / "outputs.npz") as file:
        return {name: file[name] for name in file.files}


def outputs(framework: str, family: str = "qwen3") -> dict[str, np.ndarray]:
    """Everything StarVLA computed, by name (`"single.normalized_actions"`, `"train.loss"`, ...)."""
    return _outputs(fixture(framework, family))


def meta(framework: str, family: str = "qwen3") -> dict[str, Any]:
    """Prompts, keys with shapes, gradient norms, FAST tokens."""
    return json.loads((fixture(framework, family) / "meta.json").read_text(encoding="utf-8"))


def run_file(framework: str, family: str = "qwen3") -> Path:
    """The `.pt` of a fixture's run folder."""
    return next((fixture(framework, family) / "run" / "checkpoints").glob("*.pt"))


def state_dict(framework: str, family: str = "qwen3") -> dict[str, torch.Tensor]:
    """The stored weights under StarVLA's names, bf16."""
    return torch.load(run_file(framework, family), map_location="cpu", weights_only=True)


def examples(framework: str, family: str = "qwen3", count: int = 2, *, size: int | None = 224) -> Batch:
    """The first `count` inputs as a batch; `action` is what StarVLA was given, i.e. normalised already.

    Args:
        framework: e.g. `"QwenOFT"`.
        family: `"qwen3"` or `"qwen2_5"`.
        count: 1 for the quantities called `single.*`, 2 for `batch.*` and `train.*`.
        size: Pictures are brought to this size by Pillow's bicubic, as StarVLA does before its processor; None: as stored.
    """
    folder = fixture(framework, family) / "inputs"
    texts, states, actions = [], [], []
    views: dict[str, list[np.ndarray]] = {name: [] for name in CAMERAS}
    for index in range(count):
        texts.append(json.loads((folder / f"ex{index}.json").read_text(encoding="utf-8"))["lang"])
        for name, pictures in views.items():
            picture = Image.open(folder / f"ex{index}_{name}.png").convert("RGB")
            pictures.append(np.asarray(picture if size is None else picture.resize((size, size))))
        actions.append(np.load(folder / f"ex{index}_action.npy").astype(np.float32))
        file = folder / f"ex{index}_state.npy"
        if file.is_file():
            states.append(np.load(file).astype(np.float32).reshape(-1))
    return Batch(
        images={name: torch.from_numpy(np.stack(pictures)) for name, pictures in views.items()},
        instructions=texts,
        state=torch.from_numpy(np.stack(states)) if states else None,
        action=torch.from_numpy(np.stack(actions)),
    )
