"""A strategy says which batches come next and sees the metrics; the Trainer only takes the gradient step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from vla_agents.data import Draws, Loader, Mixture
from vla_agents.data.loading.orders import row_weights
from vla_agents.errors import TrainingError
from vla_agents.policies.policy import Batch


class TrainingBatch(Protocol):
    """What the Trainer needs of a batch; the model's `forward` takes the batch itself."""

    @property
    def weight(self) -> int:
        """Number of entries its mean loss is a mean over."""

    def to(self, device: Any) -> TrainingBatch:
        """The same on another device."""

    def find_nonfinite(self) -> str:
        """Which sample is not finite, in words; empty where all are."""


@runtime_checkable
class Strategy(Protocol):
    """What the Trainer asks for. A strategy may further have `learner(policy)`: a module over the policy, without weights
    of its own, whose losses are taken instead of the policy's (see `vla_agents.train.strategies.cotrain`)."""

    def batches(self, step: int, count: int, rank: int, world: int) -> Sequence[TrainingBatch]:
        """The micro-batches of one optimiser step for one of `world` processes: a pure function of its arguments and
        of the state that `state_dict` returns, so that a resumed run sees what the unbroken one would have."""

    def validation(self) -> Sequence[TrainingBatch] | Mapping[str, Sequence[TrainingBatch]]:
        """Fixed batches for the validation loss, or groups of them by name, each of which gets a loss of its own; empty
        where nothing is held out."""

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Sees the metrics of every validation."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, as plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


class WindowSource(Protocol):
    """What behaviour cloning needs of a dataset (see `data.loading.windows` and `mixture`; the latter has `shares`)."""

    step_of: np.ndarray

    def __len__(self) -> int: ...

    def get_batch(self, indices: np.ndarray) -> dict[str, Any]:
        """Arrays for the windows that start at these rows."""


class BehaviourCloning:
    """Windows drawn at random, with replacement, the beginnings of episodes more often if wanted.

    Args:
        train: Windows to learn from.
        validation: Windows held out.
        batch_size: Samples per micro-batch.
        seed: What step s draws depends on (seed, s) and the number of samples of all processes alone; how these are cut
            into micro-batches and processes does not matter.
        first_steps: How many leading steps are the beginning of an episode.
        first_steps_weight: How much more often those are drawn.
        workers: Processes that load the batches of the steps to come; 0: this one loads when asked.
        start_method: How these are started (see `Loader`).
        preprocess: What of `forward` can be done beforehand, in the workers (`Policy.preprocess`).
    """

    def __init__(
        self,
        train: WindowSource,
        validation: WindowSource | None,
        batch_size: int,
        seed: int = 0,
        first_steps: int = 4,
        first_steps_weight: float = 1.0,
        workers: int = 0,
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
        preprocess: Callable[[Batch], Batch] | None = None,
    ) -> None:
        if len(train) == 0:
            raise TrainingError(
                "there is nothing to train on: the dataset has no steps", "record episodes first"
            )
        self.train, self.held_out = train, validation
        self.batch_size, self.seed = batch_size, seed
        weights = np.where(train.step_of < first_steps, first_steps_weight, 1.0)
        if isinstance(train, Mixture):  # each dataset keeps its share
            weights = row_weights(train.sizes, train.shares, weights)
        self._order = Draws(weights, batch_size, seed)
        self._workers, self._start_method = workers, start_method
        self._finish = Finish(preprocess)
        self._loader: Loader[Batch] | None = None
        self._cut = (0, 0, 0)

    def batches(self, step: int, count: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """`count` micro-batches of `batch_size` samples."""
        if self._loader is None or self._cut != (count, rank, world):
            self.close()
            self._cut = (count, rank, world)
            self._loader = Loader(
                self.train,
                self._order,
                rank=rank,
                world=world,
                count=count,
                workers=self._workers,
                start_method=self._start_method,
                finish=self._finish,
            )
        return self._loader.step(step)

    def close(self) -> None:
        """End the processes that load; the next batch starts them again."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def validation(self) -> list[Batch]:
        """The held-out windows in order, at most some two thousand of them, evenly spread."""
        if self.held_out is None or len(self.held_out) == 0:
            return []
        stride = max(1, len(self.held_out) // 2048)
        rows = np.arange(0, len(self.held_out), stride)
        return [
            Batch.from_numpy(self.held_out.get_batch(part))
            for part in np.split(rows, range(128, len(rows), 128))
        ]

    def describe(self, rows: Sequence[int]) -> list[str]:
        """Which episodes training windows are of, in words."""
        describe = getattr(self.train, "describe", None)
        return [f"window {row}" for row in rows] if describe is None else describe(rows)

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Behaviour cloning does not react."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the draw is a function of the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Finish:
    """What loader workers make of the arrays of a batch: tensors, and what a policy reads.

    Args:
        preprocess: `Policy.preprocess`; None: nothing beside tensors.
    """

    def __init__(self, preprocess: Callable[[Batch], Batch] | None = None) -> None:
        self._preprocess = preprocess

    def __call__(self, data: dict[str, Any]) -> Batch:
        """Arrays -> a batch."""
        batch = Batch.from_numpy(data)
        return batch if self._preprocess is None else self._preprocess(batch)


def with_seeds(
    batches: Sequence[TrainingBatch], key: Sequence[int], rank: int = 0, world: int = 1
) -> list[TrainingBatch]:
    """Give samples that have none a seed of their own (`Batch.seeds`), a function of `key` and their place among all.

    Args:
        batches: Of this process; a `Batch`, or something that holds one as `actions`; others stay as they are.
        key: E.g. run seed and step.
        rank: Of this process ...
        world: ... among so many, with as many samples each.
    """
    windows = [batch if isinstance(batch, Batch) else getattr(batch, "actions", None) for batch in batches]
    sizes = [0 if window is None else len(window) for window in windows]
    mine = sum(sizes)
    drawn = np.random.default_rng([*key, 0x5EED]).integers(2**63, size=world * mine)
    seeds, done = torch.from_numpy(drawn[rank * mine : (rank + 1) * mine]), 0
    made = []
    for batch, window, size in zip(batches, windows, sizes, strict=True):
        if window is not None and window.seeds is None:
            seeded = replace(window, seeds=seeds[done : done + size])
            batch = seeded if window is batch else replace(batch, actions=seeded)  # type: ignore[type-var, call-arg]
        done += size
        made.append(batch)
    return made
