"""Hooks of the Trainer: what happens beside the gradient step (reporting, stopping early, pruning trials) is a Callback."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_agents.train.trainer import Trainer


@dataclass(frozen=True)
class StepReport:
    """One optimiser step, over all processes.

    Args:
        losses: By name, those of one large batch.
        norm: Of the gradient before clipping.
        samples: Of all micro-batches and processes.
        seconds: Wall time.
        waited: Of these, spent waiting for the data.
    """

    losses: dict[str, float]
    norm: float
    samples: int
    seconds: float
    waited: float

    @property
    def loss(self) -> float:
        """The sum of all losses."""
        return sum(self.losses.values())


class Callback:
    """Does nothing; override what you need. Called on every process, `trainer.engine.is_main` says on which one we are.

    `trainer.step` is the number of finished steps; `trainer.stop()` ends the run after this step, with a checkpoint.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step (after resuming)."""

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """After each step."""

    def on_validated(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """After each validation."""

    def on_saved(self, trainer: Trainer, folder: Path) -> None:
        """After each checkpoint (on the main process only)."""

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """At the end, whatever it was."""
