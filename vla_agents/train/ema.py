"""An exponential moving average of the weights (Polyak averaging): what is validated and saved, where it is kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MovingAverage:
    """Averages of a module's parameters, each of the shape the parameter has here (a shard under FSDP2).

    Args:
        module: Its parameters at the start are the first average.
        decay: What is kept per step, in the long run; short memory at first: (1 + step) / (10 + step).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.values: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin with the parameters as they are."""
        self.values = {name: p.detach().clone() for name, p in self.module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.module.named_parameters():
            self.values[name].lerp_(parameter.detach(), 1 - decay)
