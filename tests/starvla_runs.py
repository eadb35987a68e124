"""StarVLA runs made here: folders as StarVLA writes them, from tiny policies of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tiny import random_batch, tiny_policy

from vla_agents.policies.policy import Policy

PROMPT = "Your task is {instruction}. Locate the key objects."


def starvla_policy(**config: Any) -> Policy:
    """A Qwen-OFT as StarVLA has it."""
    settings = {"queries": "prompt", "state": "text", "prompt": PROMPT, "final_norm": False, "execute": 4}
    return tiny_policy(**(settings | config))


def starvla_names(policy: Policy) -> dict[str, torch.Tensor]:
    """Its weights as StarVLA calls them."""
    found = {}
    for name, value in policy.state_dict().items():
        head = "action_model." if hasattr(policy, "schedule") else "action_model.model."
        name = name.replace("backbone.vlm.", "qwen_vl_interface.model.", 1)
        name = head + name.removeprefix("head.") if name.startswith("head.") else name
        found[name] = value.clone()
    return found


CONFIG: dict[str, Any] = {
    "framework": {
        "name": "QwenOFT",
        "qwenvl": {"base_vlm": "/nowhere/Qwen3-VL-Tiny"},
        "action_model": {
            "action_dim": 4,
            "state_dim": 3,
            "action_horizon": 4,
            "future_action_window_size": 3,
        },
    },
    "datasets": {"vla_data": {"data_mix": "my_robot", "CoT_prompt": PROMPT, "obs_image_size": [32, 32]}},
}
STATISTICS = {
    "arm": {
        "action": {
            "mean": [0.0] * 4, "std": [1.0] * 4, "min": [-2.0, -1.0, 0.0, 0.0], "max": [2.0, 3.0, 0.0, 1.0],
            "q01": [-1.0] * 4, "q99": [1.0] * 4, "mask": [True, True, True, False],
        },
        "state": {"mean": [0.0] * 3, "std": [1.0] * 3},
    }
}  # fmt: skip


def write_run(
    folder: Path,
    weights: dict[str, torch.Tensor],
    config: dict[str, Any] = CONFIG,
    name: str = "steps_10_model.pt",
) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    file = folder / "checkpoints" / name
    if file.suffix == ".pt":
        torch.save(weights, file)
    else:
        save_file(weights, file)
    return folder


def write_fixture(folder: Path, run: Path, policy: Any, noise: torch.Tensor | None = None) -> Path:
    """A folder that check-starvla takes, with one sample and the actions that a policy gives for it."""
    batch = random_batch(1)
    (folder / "inputs").mkdir(parents=True)
    run.rename(folder / "run")
    inputs = folder / "inputs"
    (inputs / "ex0.json").write_text(json.dumps({"lang": batch.instructions[0]}))
    for index, view in enumerate(batch.images.values()):
        Image.fromarray(view[0].numpy()).save(inputs / f"ex0_view{index}.png")
    assert batch.state is not None and batch.action is not None
    np.save(inputs / "ex0_state.npy", batch.state.numpy())
    np.save(inputs / "ex0_action.npy", batch.action[0].numpy())
    given = {} if noise is None else {"noise": noise}
    with torch.no_grad():
        actions = policy.normalized_actions(batch, **given).numpy()
    stored = {name: value.numpy() for name, value in given.items()} | {"normalized_actions": actions}
    np.savez(folder / "outputs.npz", **{f"single.{name}": value for name, value in stored.items()})
    (folder / "meta.json").write_text("{}")
    return folder
