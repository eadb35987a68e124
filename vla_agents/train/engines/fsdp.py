"""FSDP2 (torch's own `fully_shard`): each process keeps a part of every weight, gradient and optimiser state.

Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel". The layers of the language model
are units: their weights are put together just before they are used. What is called otherwise than by `forward` (the vision
tower, embeddings, the action head) is one unit, put together once for the forward pass and once for the backward
pass. On a GPU by NCCL, on a CPU by gloo.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vla_agents.train.config import RunConfig
from vla_agents.train.engines.sharded import ShardedEngine
from vla_agents.train.optimizers import make_optimizers, make_schedules


class FSDPEngine(ShardedEngine):
    """See the module docstring."""

    kind = "fsdp2"

    def __init__(self, policy: nn.Module, config: RunConfig, learner: nn.Module | None = None) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(policy, config, learner)
        self.learner.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.world,))
        half = torch.bfloat16 if config.mixed_precision == "bf16" else None
        # Sums over processes stay in float32. The language model's weights travel in half precision; what else there is
        # (action heads compute normalisations and losses in float32) travels whole, and autocast decides where it is used.
        kept = MixedPrecisionPolicy(param_dtype=None, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mixed = replace(kept, param_dtype=half)
        for unit in units(policy):
            fully_shard(unit, mesh=mesh, mp_policy=mixed)
        # Torch would leave the last unit whole after a forward pass; saving and averaging want parts.
        fully_shard(self.learner, mesh=mesh, mp_policy=kept, reshard_after_forward=True)
        self.model: Any = self.learner
        self.optimizers = make_optimizers(policy, config.optimizer)
        self.schedules = make_schedules(self.optimizers, config.optimizer, config.steps)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Gradients are exchanged with the last micro-batch only."""
        self.model.set_requires_gradient_sync(last)
        self.model.set_is_last_backward(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Processes average their gradients, where they should add up."""
        (loss * self.world).backward()

    def clip(self, largest: float) -> float:
        """See `Engine.clip`."""
        norm: Any = nn.utils.clip_grad_norm_(self.model.parameters(), largest)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def whole(self, tensor: Tensor) -> Tensor:
        """See `Engine.whole`."""
        found: Any = tensor.detach()
        return found.full_tensor() if hasattr(found, "full_tensor") else found

    def part(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """See `Engine.part`."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(parameter, DTensor):
            return whole.to(parameter.device)
        placed = whole.to(self.device)
        return distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None)


def units(policy: nn.Module) -> list[nn.Module]:
    """The layers of the language model: many, and called by `forward` alone.

    The blocks of a flow head are not among them: their keys and values are computed beforehand, past their `forward`.
    Nor are layers deeper than those a flow policy reads: they never run, and such a unit has nothing to exchange.
    """
    deepest = max(getattr(policy, "layers", ()), default=None)
    for name, module in policy.named_modules():
        if name.endswith("language_model.layers") and isinstance(module, nn.ModuleList):
            return list(module)[:deepest]
    return []
