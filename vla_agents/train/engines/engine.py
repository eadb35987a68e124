"""What the Trainer asks of an engine. Behind it lie one process, DDP, FSDP2 or DeepSpeed.

A checkpoint knows nothing of engines: weights and optimiser state are whole tensors under their parameters' names, so a run
can be taken up by another engine, or on another number of processes (by the same one: to the bit).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla_agents.train.config import RunConfig
from vla_agents.train.engines import processes


class Engine:
    """Base of all engines; this one's methods do for whole weights.

    Args:
        policy: The module to train.
        config: The run.
        learner: A module over the policy that gives the losses; None: the policy itself.

    Attributes:
        policy: The module, whose `named_parameters` may be shards.
        learner: What gives the losses.
        model: What is called: the learner, wrapped.
        optimizers: Of torch.
        schedules: One for each.
        device: Where batches go.
        rank: Of this process.
        world: Number of processes.
    """

    kind = "one process"
    can_undo = True  # the weights are untouched until `step`

    policy: nn.Module
    model: Any
    optimizers: list[Any]
    schedules: list[Any]
    device: torch.device

    def __init__(self, policy: nn.Module, config: RunConfig, learner: nn.Module | None = None) -> None:
        self.policy, self.config = policy, config
        self.learner = policy if learner is None else learner
        self.rank, self.world = processes.rank(), processes.world()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    # ---- a step -------------------------------------------------------------------------------------------
    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of the forward pass."""
        on = self.config.mixed_precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward pass of a micro-batch; gradients are exchanged in the last one."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this process' part of a loss; parts of all processes are added up."""
        raise NotImplementedError

    def clip(self, largest: float) -> float:
        """Scale the gradient down to a norm; returns the norm before."""
        raise NotImplementedError

    def step(self) -> None:
        """Take the step, and forget the gradient."""
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        """Losses of a batch that every process has, without a gradient."""
        found: dict[str, Tensor] = self.learner(batch)
        return found

    def sum(self, values: Tensor) -> Tensor:
        """Added up over all processes."""
        return processes.add_up(values)

    # ---- whole tensors ------------------------------------------------------------------------------------
    def whole(self, tensor: Tensor) -> Tensor:
        """A parameter, or what belongs to one, put together from all processes; all must ask."""
        return tensor.detach()

    def part(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """The inverse: what this process keeps of `whole` where it keeps `parameter`; dtype is that of `whole`."""
        return whole.to(parameter.device)

    def weights(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Whole parameters by name, on the CPU of the main process; elsewhere nothing.

        Args:
            values: Others in their place, of the same shapes as the parameters here (averages).
        """
        found = {}
        for name, parameter in self.policy.named_parameters():
            value = self.whole(parameter if values is None else values[name])
            if self.is_main:
                found[name] = value.to("cpu", copy=True).contiguous()
        return found

    def set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Take whole parameters; every process gives them all."""
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(self.part(parameter, values[name].to(parameter.dtype)))

    @contextlib.contextmanager
    def complete_policy(self, values: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module | None]:
        """The policy with all its weights, for saving and acting; None on all processes but the main one.

        Args:
            values: Weights to use, of the shapes that are here; None: the current ones.
        """
        if values is None:
            yield self.policy if self.is_main else None
            return
        raw = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        self._put(values)
        try:
            yield self.policy if self.is_main else None
        finally:
            self._put(raw)

    @contextlib.contextmanager
    def averaged(self, values: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Inside, `model` has these weights; None: the current ones."""
        if values is None:
            yield
            return
        raw = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        self._put(values)
        try:
            yield
        finally:
            self._put(raw)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(values[name])

    # ---- optimiser state ----------------------------------------------------------------------------------
    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """`"NUMBER/PARAMETER/ENTRY"` and the whole tensor, one after the other; all processes must ask for all."""
        names = {id(p): name for name, p in self.policy.named_parameters()}
        for number, optimizer in enumerate(self.optimizers):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    for entry, value in sorted(optimizer.state.get(parameter, {}).items()):
                        whole = self.whole(torch.as_tensor(value))
                        yield f"{number}/{names[id(parameter)]}/{entry}", whole

    def set_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `optimizer_state`."""
        own = dict(self.policy.named_parameters())
        for key, value in state.items():
            number, rest = key.split("/", 1)
            name, entry = rest.rsplit("/", 1)
            parameter = own[name]
            scalar = value.ndim == 0  # a count of steps, which is nobody's shard
            kept = value.clone() if scalar else self.part(parameter, value)
            optimizer = self.optimizers[int(number)]
            fused = scalar and any(group.get("fused") for group in optimizer.param_groups)
            getattr(optimizer, "optimizer", optimizer).state.setdefault(parameter, {})[entry] = (
                kept.to(parameter.device) if fused else kept
            )
