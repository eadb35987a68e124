"""Whole weights in every process: one process alone, or DDP, both by accelerate."""

from __future__ import annotations

import contextlib
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from vla_agents.errors import TrainingError
from vla_agents.train.config import RunConfig
from vla_agents.train.engines import processes
from vla_agents.train.engines.engine import Engine
from vla_agents.train.optimizers import make_optimizers, make_schedules


class PlainEngine(Engine):
    """See the module docstring."""

    def __init__(self, policy: nn.Module, config: RunConfig, learner: nn.Module | None = None) -> None:
        cpu = processes.local_device(config.device).type == "cpu"
        asked = processes.world()
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=config.mixed_precision)
        processes.leave_at_exit()
        super().__init__(policy, config, learner)
        if self.accelerator.num_processes != asked or self.world != asked:
            raise TrainingError(
                f"the launcher started {asked} processes, and {self.accelerator.num_processes} work together",
                "start them with torchrun (docs/scaling.md)",
            )
        self.kind = "one process" if asked == 1 else "ddp"
        self.device = self.accelerator.device
        raw = make_optimizers(policy, config.optimizer)
        self.schedules = make_schedules(raw, config.optimizer, config.steps)
        self.model: Any = self.accelerator.prepare(self.learner)
        self.optimizers = [self.accelerator.prepare(optimizer) for optimizer in raw]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """As accelerate does it."""
        return self.accelerator.autocast()

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """DDP exchanges gradients with the last micro-batch only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Processes average their gradients, where they should add up."""
        self.accelerator.backward(loss * self.world)

    def clip(self, largest: float) -> float:
        """See `Engine.clip`."""
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), largest))
