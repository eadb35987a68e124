"""What engines with sharded weights share: a second policy, whole, in the main process, for saving and acting."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla_agents.train.config import RunConfig
from vla_agents.train.engines import processes
from vla_agents.train.engines.engine import Engine


class ShardedEngine(Engine):
    """Base of FSDP2 and ZeRO.

    Args:
        policy: The module; it must have the same weights in every process (it is made from a seed, or from files).
        config: The run.
        learner: See `Engine`.
    """

    def __init__(self, policy: nn.Module, config: RunConfig, learner: nn.Module | None = None) -> None:
        self.device = processes.local_device(config.device)
        processes.start(self.device)
        super().__init__(policy, config, learner)
        self._shape = _without_weights(policy) if self.is_main else None

    @contextlib.contextmanager
    def complete_policy(self, values: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module | None]:
        """A second policy with whole weights, in the main process; see `Engine.complete_policy`."""
        weights = self.weights(values)
        if self._shape is None:
            yield None
            processes.wait()
            return
        whole = _without_weights(self._shape)
        whole.load_state_dict(weights, strict=False, assign=True)
        _tie(whole, self._shape)
        for parameter in whole.parameters():
            parameter.requires_grad_(False)
        yield whole.to(self.device).eval()
        processes.wait()

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        """Through the wrapper, which fetches the weights."""
        found: dict[str, Tensor] = self.model(batch)
        return found


def _without_weights(module: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory; buffers are copied."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, memo)


def _tie(whole: nn.Module, shape: nn.Module) -> None:
    """Give the other names of tied parameters, which are still empty, the tensor of the first."""
    first = {id(p): name for name, p in shape.named_parameters()}
    filled = dict(whole.named_parameters(remove_duplicate=False))
    for name, parameter in shape.named_parameters(remove_duplicate=False):
        source = first[id(parameter)]
        if source != name:
            owner, _, leaf = name.rpartition(".")
            whole.get_submodule(owner)._parameters[leaf] = filled[source]
