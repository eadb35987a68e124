"""What a policy is: `forward(batch)` gives losses, `predict_action(batch)` gives chunks of actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from vla_agents.bodies import Body
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ActionError, ConfigError, ObservationError
from vla_agents.normalize import Normalizer
from vla_agents.policies.backbone import Backbone
from vla_agents.policies.batch import Batch
from vla_agents.policies.compiling import begin_act, round_up

__all__ = ["Batch", "Policy"]


class Policy(nn.Module):
    """Base of all policies. Subclasses write `forward` and `predict_action`; `needs` names what they ask of a backbone.

    Args:
        embodiment: What observations and actions mean.
        normalizers: `"state"` (where there is one) and `"action"`.
        horizon: H, actions per chunk.
        default_execute: How many of them a receding-horizon chunker carries out by default.

    Attributes:
        continues: Whether chunks can go on from a prefix (real-time chunking).
        bodies: What lies between the policy and the bodies it was trained on, by name (see `vla_agents.bodies`).
    """

    continues = False

    needs: ClassVar[frozenset[str]] = frozenset()
    backbone: Backbone
    config: Any

    def __init__(
        self,
        embodiment: Embodiment,
        normalizers: Mapping[str, Normalizer],
        horizon: int,
        default_execute: int,
    ) -> None:
        super().__init__()
        if not 1 <= default_execute <= horizon:
            raise ConfigError(f"execute={default_execute} must lie between 1 and the horizon {horizon}")
        self.embodiment = embodiment
        self.normalizers = dict(normalizers)
        self.horizon = horizon
        self.default_execute = default_execute
        self.bodies: dict[str, Body] = {}
        self.is_compiled = False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, each a mean over the valid entries of the batch."""
        raise NotImplementedError

    def preprocess(self, batch: Batch) -> Batch:
        """What `forward` does to a batch before it reaches the weights, done beforehand, on the CPU: `batch.inputs`.

        Loader workers call it: tokens, positions and pixels then cost the training process nothing. `forward` gives the
        same numbers with and without. By default, for policies that cannot, the batch as it is.
        """
        return batch

    def loss_weight(self, batch: Batch) -> int | dict[str, int]:
        """How many entries each loss of `forward` is a mean over, or a number for each name where they differ.

        The trainer weighs micro-batches by it, so that several of them, on one process or many, take the step that one
        large batch would. By default the actions inside their episodes.
        """
        return batch.weight

    def predict_action(self, batch: Batch, prefix: Tensor | None = None) -> Tensor:
        """Chunks of actions in the embodiment's units, float32 (B, H, D).

        Args:
            batch: Observations.
            prefix: (B, P, D) actions already committed to, where the policy can take them into account
                (real-time chunking); policies that cannot raise `ConfigError`.
        """
        raise NotImplementedError

    def prepare(self, chunks: np.ndarray, *, again: bool = False) -> None:
        """Learn what is not learnt by gradients; called once before training.

        Args:
            chunks: (N, H, D) actions of the training data in the embodiment's units.
            again: Also where it was learnt before; else what is there stays.
        """

    def save_parts(self, folder: Path) -> None:
        """What a checkpoint holds beside weights, configuration, embodiment and statistics."""
        self.backbone.save_assets(folder / "vlm")

    @classmethod
    def load_parts(cls, folder: Path) -> dict[str, Any]:
        """Arguments of the constructor that `save_parts` left in a checkpoint."""
        return {}

    @torch.no_grad()
    def plan(
        self,
        observations: Sequence[Mapping[str, Any]],
        generators: Sequence[torch.Generator | None] = (),
        prefix: np.ndarray | None = None,
        committed: int = 0,
    ) -> np.ndarray:
        """Chunks for single observations, float32 (n, H, D): what `PolicyAgent` calls.

        Args:
            observations: n of them.
            generators: One for each, which a policy that samples draws from; None: the policy's own.
            prefix: (n, P, D) first actions that are known already, where the policy `continues` chunks.
            committed: How many of those will be carried out for sure.
        """
        count = len(observations)
        if not count:
            raise ObservationError("there is no observation to plan for", "give one or more")
        extra = round_up(count) - count if self.is_compiled else 0  # few batch sizes: each is compiled once
        if self.is_compiled:
            begin_act()
        observations = [*observations, *[observations[-1]] * extra]
        generators = [*(generators or [None] * count), *[self.generator(0)] * extra]
        batch = Batch.from_observations(observations, self.embodiment).to(self.device)
        if prefix is None:
            chunks = self.sample_action(batch, generators)
        else:
            known = torch.from_numpy(np.asarray(prefix, np.float32))
            known = torch.cat([known, known[-1:].expand(extra, -1, -1)])
            chunks = self.continue_action(batch, generators, known, committed)
        return chunks[:count].float().cpu().numpy()

    def continue_action(
        self, batch: Batch, generators: Sequence[torch.Generator | None], prefix: Tensor, committed: int
    ) -> Tensor:
        """`sample_action` from a prefix (B, P, D) on; for policies with `continues`."""
        raise ConfigError(f"{type(self).__name__} cannot continue a chunk", "plan without a prefix")

    def compile_acting(self, *, graphs: bool = True) -> None:
        """Act by compiled graphs of static shapes; see `vla_agents.policies.compiling`. `train()` undoes it.

        Args:
            graphs: GPU: record CUDA graphs as well.

        Raises:
            ConfigError: Not for this VLM, or there is no C++ compiler.
        """
        self.backbone.compile_acting(graphs=graphs)
        self.is_compiled = True

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; undoes `compile_acting` when training begins."""
        self.is_compiled = self.is_compiled and not mode
        return super().train(mode)

    def warm_up(
        self, instructions: Sequence[str] = ("pick up the block",), batches: Sequence[int] = (1,)
    ) -> None:
        """Act on black pictures, so that the first real act need not wait for the compiler.

        Args:
            instructions: What the policy will be told: prompts of other lengths are other shapes.
            batches: How many observations will be planned for at once.
        """
        blank: dict[str, Any] = {
            "images": {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in self.embodiment.cameras},
            "state": np.zeros(self.embodiment.state_dim, np.float32),
        }
        for instruction in instructions:
            for count in batches:
                for _ in range(3 if self.device.type == "cuda" else 1):  # run, record, replay
                    self.plan([blank | {"instruction": instruction}] * count, [self.generator(0)] * count)

    def sample_action(self, batch: Batch, generators: Sequence[torch.Generator | None]) -> Tensor:
        """`predict_action`, each sample drawn from a generator of its own; policies that sample override it."""
        return self.predict_action(batch)

    def generator(self, seed: int) -> torch.Generator:
        """A source of randomness for `plan`."""
        return torch.Generator().manual_seed(seed)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def seed(self, seed: int) -> None:
        """Seed the policy's own sampling; deterministic policies have none."""

    def normalized_state(self, batch: Batch) -> Tensor | None:
        """The batch's state, normalised; None for a body without state."""
        if batch.state is None or "state" not in self.normalizers:
            return None
        self._check_vectors(batch)
        return self.normalizers["state"].normalize(batch.state)

    def target(self, batch: Batch) -> Tensor:
        """The actions to learn, normalised, (B, horizon, D).

        Raises:
            ActionError: There are none, or they are not chunks of this policy.
        """
        if batch.action is None:
            raise ActionError("a training batch needs actions, this one has none")
        self._check_vectors(batch)
        if batch.action.shape[1] != self.horizon:
            raise ActionError(
                f"the batch's chunks have {batch.action.shape[1]} actions, the policy's horizon is {self.horizon}",
                f"cut the data into windows of {self.horizon}, or make the policy with that horizon",
            )
        return self.normalizers["action"].normalize(batch.action)

    def views(self, batch: Batch) -> list[Tensor]:
        """The batch's pictures, uint8 (B, H, W, 3), in the order of the embodiment's cameras.

        Raises:
            ObservationError: A camera is missing, or its pictures or the state are not what the policy was made for.
            ActionError: Nor are the actions to learn.
        """
        self._check_vectors(batch)
        found = []
        for camera in self.embodiment.cameras:
            view = batch.images.get(camera.name)
            if view is None:
                raise ObservationError(
                    f"camera {camera.name!r} is missing; the batch has {sorted(batch.images)}",
                    f"the policy was made for {', '.join(self.embodiment.camera_names)}",
                )
            shape = (len(batch), camera.height, camera.width, 3)
            if view.dtype != torch.uint8 or view.shape != shape:
                raise ObservationError(
                    f"camera {camera.name!r}: {view.dtype} {tuple(view.shape)}, the policy was made for uint8 {shape}",
                    f"bring the pictures to that size (ResizeImages({camera.height}, {camera.width}))",
                )
            found.append(view)
        return found

    def _check_vectors(self, batch: Batch) -> None:
        body, count = self.embodiment, len(batch)
        if batch.state is not None and body.state_dim and batch.state.shape != (count, body.state_dim):
            raise ObservationError(
                f"the batch's state has shape {tuple(batch.state.shape)}, "
                f"expected {(count, body.state_dim)} for {body.name!r}"
            )
        if batch.action is not None and batch.action.shape[::2] != (count, body.action_dim):
            raise ActionError(
                f"the batch's actions have shape {tuple(batch.action.shape)}, "
                f"expected ({count}, H, {body.action_dim}) for {body.name!r}"
            )
