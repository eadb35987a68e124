"""When a flow head is trained and asked: the distribution of training times, the Euler steps, the time buckets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlowSchedule:
    """How times are drawn and buckets counted.

    Args:
        alpha: Of the Beta distribution.
        beta: Of the Beta distribution.
        s: Largest noise share; t = (s - β) / s.
        buckets: Number of time buckets.
    """

    alpha: float = 1.5
    beta: float = 1.0
    s: float = 0.999
    buckets: int = 1000

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(count,) float32 times on the CPU, at most 1 and never below 1 - 1/s (about -0.001).

        A Beta(a, b) variable is G_a / (G_a + G_b) of two Gamma variables.
        """
        shapes = torch.tensor([self.alpha, self.beta]).expand(count, 2)
        gamma = torch._standard_gamma(shapes, generator)
        return (self.s - gamma[:, 0] / gamma.sum(1)) / self.s

    def bucket(self, time: Tensor) -> Tensor:
        """(N,) times -> (N,) int64, towards zero."""
        return (time * self.buckets).long()

    def step_buckets(self, steps: int) -> Tensor:
        """(steps,) buckets of the Euler steps."""
        return torch.tensor([int(step / steps * self.buckets) for step in range(steps)])
