"""A fixture of StarVLA's numbers, its inputs, and the policy made from its run: what `check` compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import CheckpointError
from vla_agents.policies.policy import Batch
from vla_agents.policies.starvla.configs import action_sizes
from vla_agents.policies.starvla.fixture import find_inputs, read_batch
from vla_agents.policies.starvla.load import load_starvla
from vla_agents.policies.starvla.options import StarVLAOptions, is_qwen3
from vla_agents.policies.starvla.run import read_run, read_weights, require_framework
from vla_agents.policies.starvla.trial import (
    Size,
    acting_sizes,
    fit_cameras,
    questions,
    same_pixels,
    settle,
)

ACTIONS = 1e-4
"""Bound on the difference of actions."""


class Case:
    """A fixture and the policy made from it.

    Args:
        config: See `check.CheckConfig`.
    """

    def __init__(self, config: Any) -> None:
        self.folder = Path(config.fixture)
        for name in ("run", "inputs", "outputs.npz", "meta.json"):
            if not (self.folder / name).exists():
                raise CheckpointError(
                    self.folder, f"{name} is missing", "give a folder with the fixtures' layout"
                )
        self.run = read_run(self.folder / "run")
        self.framework = require_framework(config.framework or self.run.framework)
        with np.load(self.folder / "outputs.npz", allow_pickle=False) as file:
            self.outputs = {name: file[name] for name in file.files}
        self.meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        self.cameras, self.count = find_inputs(self.folder / "inputs")
        given = StarVLAOptions(
            vlm=config.vlm,
            framework=self.framework,
            unnormalization="none",
            final_norm=True if self.framework == "qwen_fast" else config.final_norm,
            pi_semantics=config.pi_semantics,
            state=(self.folder / "inputs" / "ex0_state.npy").is_file(),
            cameras=self.cameras,
            fast_tokenizer=config.fast_tokenizer,
        )
        qwen3 = is_qwen3(read_weights(self.run.weights))
        near = [self.folder, self.folder / "run", *self.folder.resolve().parents[:3]]
        near += Path(config.vlm).resolve().parents[:2]
        asked = questions(self.run, self.framework, given, qwen3=qwen3, near=near)
        self.options, self.policy, self.assumed = settle(asked, given, self._load, self._misfit, ACTIONS)

    def _load(self, options: StarVLAOptions) -> Any:
        body = self._body(options)
        policy = load_starvla(self.folder / "run", options, embodiment=body, device="cpu")
        sizes = acting_sizes(self.run, self.framework)
        wanted, grids = (self.outputs.get(f"single.{name}") for name in ("pixel_values", "image_grid_thw"))
        for size in sizes:
            batch = self._read(1, size)
            fit_cameras(policy, batch)
            if same_pixels(policy, batch, wanted, grids):
                break
        else:
            size = sizes[0]
        self.acting_size = size
        return policy

    def _body(self, options: StarVLAOptions) -> Embodiment:
        """A part for each value, as many as the weights and the inputs have: the config may not say."""
        weights = read_weights(self.run.weights)
        size, _ = action_sizes(self.run, self.framework, weights, self.run.weights)
        state = read_batch(self.folder / "inputs", (), 1, None).state if options.state else None
        values = 0 if state is None else state.shape[1]
        height, width = self.run.image_size
        return Embodiment(
            "fixture",
            tuple(Part(f"action{index}", 1, "other") for index in range(size)),
            (Part("state", values, "other"),) if values else (),
            tuple(Camera(name, height, width) for name in self.cameras),
        )

    def count_of(self, how: str) -> int:
        """How many of the inputs a run of StarVLA was given."""
        names = (f"{how}.input_ids", f"{how}.normalized_actions")
        return next((len(self.outputs[name]) for name in names if name in self.outputs), self.count)

    def _misfit(self, policy: Any) -> float:
        """How far a policy's numbers are from StarVLA's, as far as they tell one reading from another."""
        raise NotImplementedError

    def batch(self, count: int, size: Size | Literal["acting"] = "acting") -> Batch:
        """The first `count` inputs, which the policy then takes; `action` is normalised already."""
        batch = self._read(count, self.acting_size if size == "acting" else size)
        fit_cameras(self.policy, batch)
        return batch

    def _read(self, count: int, size: Size) -> Batch:
        rows = None if self.framework == "qwen_fast" else self.run.horizon
        return read_batch(self.folder / "inputs", self.cameras, count, size, rows)

    def noise(self, how: str, *names: str) -> dict[str, Tensor]:
        """What StarVLA drew, by our name: what a flow policy started from, and for training the times.

        Raises:
            CheckpointError: A flow policy's noise is not kept.
        """
        keys = {"noise": f"{how}.noise"} | {name: f"{how}.{name[0]}" for name in names}
        lacking = [key for key in keys.values() if key not in self.outputs]
        if self.framework not in ("qwen_pi", "qwen_gr00t"):
            return {}
        if lacking:
            raise CheckpointError(
                self.folder / "outputs.npz",
                f"{', '.join(lacking)} is missing: a flow policy's numbers follow from what was drawn",
                "keep what StarVLA drew beside what it computed",
            )
        return {name: torch.from_numpy(self.outputs[key]) for name, key in keys.items()}
