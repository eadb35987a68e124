"""What policies learn from and act on: pictures, instructions, state and chunks of B samples, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_agents.embodiment import Embodiment


@dataclass
class Batch:
    """B samples, for training and for acting alike.

    Args:
        images: Camera name -> uint8 (B, H, W, 3).
        instructions: B strings.
        state: float32 (B, S) in the embodiment's units, or None.
        action: float32 (B, H, D) in the embodiment's units; None when acting.
        mask: bool (B, H), False where a chunk reaches past the end of its episode; None when acting.
        seeds: int64 (B,): where a policy learns by drawing (flow matching), it draws for each sample from that sample's
            seed, so that the loss does not depend on how samples are put together; None: from torch's generator.
        action_mask: bool (B, D): what of the action the sample's body has (`data.loading.mixture`); None: all.
        rows: int64 (B,): which windows of the training data the samples are, where that is known.
        inputs: What the VLM reads, made from pictures and texts beforehand (`Policy.preprocess`); None: `forward` makes it.
        answers: B texts to learn to say, made beforehand likewise.
    """

    images: dict[str, Tensor]
    instructions: list[str]
    state: Tensor | None = None
    action: Tensor | None = None
    mask: Tensor | None = None
    seeds: Tensor | None = None
    action_mask: Tensor | None = None
    rows: Tensor | None = None
    inputs: Any = None
    answers: list[str] | None = None

    def __len__(self) -> int:
        return len(self.instructions)

    @property
    def weight(self) -> int:
        """Number of entries that a mean loss of this batch is a mean over: the actions inside their episodes."""
        if self.mask is not None:
            return int(self.mask.sum())
        return len(self) if self.action is None else self.action.shape[0] * self.action.shape[1]

    def find_nonfinite(self) -> str:
        """Which sample holds NaN or infinity, in words; empty where none does."""
        for name, tensor in self._vectors().items():
            if tensor is not None and tensor.is_floating_point() and not torch.isfinite(tensor).all():
                row = int((~torch.isfinite(tensor)).flatten(1).any(1).nonzero()[0])
                return f"the {name} of sample {row} ({self.instructions[row]!r}) is not finite"
        return ""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; pictures of which `inputs` were made stay, nobody reads them there."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        images = self.images
        if self.inputs is None:
            images = {name: image.to(device) for name, image in images.items()}
        vectors: dict[str, Any] = {name: move(tensor) for name, tensor in self._vectors().items()}
        inputs = None if self.inputs is None else self.inputs.to(device)
        # Draws are made on the CPU.
        return Batch(
            images,
            self.instructions,
            **vectors,
            seeds=self.seeds,
            rows=self.rows,
            inputs=inputs,
            answers=self.answers,
        )

    def sample(self, row: int) -> Batch:
        """One sample, as a batch."""
        some = slice(row, row + 1)

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[some]

        vectors: dict[str, Any] = {name: cut(tensor) for name, tensor in self._vectors().items()}
        images = {name: image[some] for name, image in self.images.items()}
        return Batch(images, self.instructions[some], **vectors, seeds=cut(self.seeds), rows=cut(self.rows))

    def _vectors(self) -> dict[str, Tensor | None]:
        names = ("state", "action", "mask", "action_mask")
        return {name: getattr(self, name) for name in names}

    def mean_over_values(self, error: Tensor) -> Tensor:
        """(R * B, H, D) -> (R * B, H): the mean over the values that a sample's body has; row n is of sample n % B."""
        if self.action_mask is None:
            return error.mean(-1)
        counts = self.action_mask.to(error).repeat(len(error) // len(self), 1)[:, None]
        return (error * counts).sum(-1) / counts.sum(-1)

    @classmethod
    def from_numpy(cls, data: Mapping[str, Any]) -> Batch:
        """From a dict of arrays with the same keys (singular or plural `instruction`)."""

        def tensor(key: str) -> Tensor | None:
            value = data.get(key)
            return None if value is None else torch.from_numpy(np.ascontiguousarray(value))

        instructions = data["instructions"] if "instructions" in data else data["instruction"]
        images = {
            name: torch.from_numpy(np.ascontiguousarray(image)) for name, image in data["images"].items()
        }
        vectors: dict[str, Any] = {
            name: tensor(name) for name in ("state", "action", "mask", "seeds", "action_mask", "rows")
        }
        return cls(images, [str(t) for t in instructions], **vectors)

    @classmethod
    def from_observations(cls, observations: Sequence[Mapping[str, Any]], embodiment: Embodiment) -> Batch:
        """From single observations (see `vla_agents.agent`)."""
        images = {
            name: torch.from_numpy(np.stack([obs["images"][name] for obs in observations]))
            for name in embodiment.camera_names
        }
        state = None
        if embodiment.state_dim:
            state = torch.from_numpy(np.stack([np.asarray(obs["state"], np.float32) for obs in observations]))
        return cls(images, [str(obs["instruction"]) for obs in observations], state)
