"""A strategy of your own in one file: the episodes' beginnings first, then everything. python examples/my_strategy.py

A strategy says which batches come next and sees the metrics. This one looks at the validation loss before it moves on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.collect.collect import CollectConfig, collect
from vla_agents.data import WindowDataset, open_dataset
from vla_agents.policies.checkpoint import make_policy
from vla_agents.policies.policy import Batch
from vla_agents.policies.qwen_oft import QwenOFTConfig
from vla_agents.train.config import TrainConfig
from vla_agents.train.run import fit_normalizers
from vla_agents.train.trainer import Trainer


class BeginningsFirst:
    """Draws from the first `steps` steps of episodes until the validation loss falls below `enough`."""

    def __init__(
        self, train: WindowDataset, held_out: WindowDataset, steps: int = 4, enough: float = 0.5
    ) -> None:
        self._train, self._held_out, self._enough = train, held_out, enough
        self._beginnings = np.flatnonzero(train.step_of < steps)
        self.beginnings_only = True

    def batches(self, step: int, count: int, rank: int, world: int) -> Sequence[Batch]:
        rng = np.random.default_rng([step, rank])
        rows = self._beginnings if self.beginnings_only else np.arange(len(self._train))
        return [Batch.from_numpy(self._train.get_batch(rng.choice(rows, 16))) for _ in range(count)]

    def validation(self) -> Sequence[Batch]:
        return [Batch.from_numpy(self._held_out.get_batch(np.arange(min(64, len(self._held_out)))))]

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        self.beginnings_only &= metrics["val_loss"] > self._enough

    def state_dict(self) -> dict[str, Any]:
        return {"beginnings_only": self.beginnings_only}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.beginnings_only = state["beginnings_only"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        collect(CollectConfig(out=Path(folder) / "data", episodes=30, env_args={"cameras": ["front"]}))
        windows = WindowDataset(open_dataset(Path(folder) / "data"), horizon=4)
        train, held_out = windows.split(0.1)
        policy = make_policy(
            "qwen_oft", QwenOFTConfig(horizon=4, execute=4), windows.embodiment, fit_normalizers(windows, {})
        )
        strategy = BeginningsFirst(train, held_out)
        config = TrainConfig(
            out=f"{folder}/run", steps=40, validate_every=10, device="cpu", tensorboard=False
        )
        result = Trainer(policy, strategy, config).fit()
        print(
            f"validation loss {result.metrics['val_loss']:.3f}; beginnings only: {strategy.beginnings_only}"
        )


if __name__ == "__main__":
    main()
