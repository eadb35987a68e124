"""How much each micro-batch's mean loss counts in an optimiser step, so that the step is that of one large batch.

A loss is a mean over its own entries: actions for one head, tokens for another. The mean over all micro-batches of all
processes is the sum of theirs, each times its share of all entries. A module says what its losses count in
`loss_weight(batch) -> int | {name: int}`; one without counts what `batch.weight` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vla_agents.errors import TrainingError
from vla_agents.train.strategy import TrainingBatch

_ALL = ""  # the key of a number that holds for every loss


def loss_weights(module: Any, batch: TrainingBatch) -> dict[str, int]:
    """Entries per loss name; one number for all of them stands under the empty name."""
    weigh = getattr(module, "loss_weight", None)
    found = batch.weight if weigh is None else weigh(batch)
    return found if isinstance(found, dict) else {_ALL: int(found)}


class Shares:
    """The shares of the micro-batches of one process in a step of all processes.

    Args:
        module: Says what its losses count.
        batches: Micro-batches of this process.
        engine: Sums over the processes; None for this one alone.

    Attributes:
        names: The losses, where the module names them; the same on all processes.
    """

    def __init__(self, module: Any, batches: Sequence[TrainingBatch], engine: Any = None) -> None:
        self._weights = [loss_weights(module, batch) for batch in batches]
        names = sorted(self._weights[0])
        counts = [[float(weights[name]) for name in names] for weights in self._weights]
        total = torch.tensor(counts, dtype=torch.float64).sum(0)
        if engine is not None:
            total = engine.sum(total.to(engine.device)).cpu()
        self._totals = dict(zip(names, total.tolist(), strict=True))
        self.names = [name for name in names if name != _ALL]

    def weigh(self, index: int, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of micro-batch `index`, each times its share; summed over all micro-batches they are the step's."""
        return {name: loss.float() * self._share(index, name) for name, loss in losses.items()}

    def _share(self, index: int, name: str) -> float:
        key = name if name in self._totals else _ALL
        if key not in self._totals:
            raise TrainingError(
                f"the module gives a loss {name!r}, and its loss_weight counts only {sorted(self._totals)}",
                "count every loss that forward gives, with 0 where a batch has nothing for it",
            )
        return self._weights[index][key] / max(1.0, self._totals[key])
