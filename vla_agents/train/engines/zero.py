"""DeepSpeed ZeRO: optimiser state and gradients in parts (stage 2), weights too (stage 3).

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models". DeepSpeed takes the
step; what is exact stays ours: how much each micro-batch counts, the schedule, and checkpoints, which are whole tensors in
safetensors instead of DeepSpeed's pickles.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla_agents.errors import ConfigError, MissingDependencyError
from vla_agents.train.config import RunConfig
from vla_agents.train.engines.sharded import ShardedEngine
from vla_agents.train.optimizers import make_optimizers, make_schedules

_ENTRIES = ("exp_avg", "exp_avg_sq")


class ZeroEngine(ShardedEngine):
    """See the module docstring.

    Args:
        policy: The module.
        config: The run.
        learner: See `Engine`.
        stage: 2 or 3.
    """

    def __init__(
        self, policy: nn.Module, config: RunConfig, learner: nn.Module | None = None, *, stage: int = 2
    ) -> None:
        self.kind, self.stage, self.can_undo = f"zero{stage}", stage, False  # clipping is part of the step
        _refuse(config, self.kind)
        super().__init__(policy, config, learner)
        deepspeed = _import(self.device)
        raw = make_optimizers(policy, config.optimizer)
        self.schedules = make_schedules(raw, config.optimizer, config.steps)
        self.model, *_ = deepspeed.initialize(
            model=self.learner.to(self.device), optimizer=raw[0], config=_settings(config, stage, self.world)
        )
        self.optimizers = raw
        self._shards: Any = self.model.optimizer

    # ---- a step -------------------------------------------------------------------------------------------
    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """DeepSpeed's own, by its settings."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Tell DeepSpeed which micro-batch is the last."""
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Processes average their gradients, where they should add up."""
        self.model.backward(loss * self.world, scale_wrt_gas=False)

    def clip(self, largest: float) -> float:
        """DeepSpeed clips within its step; the norm is known after it."""
        self.model.step()
        return float(self.model.get_global_grad_norm())

    def step(self) -> None:
        """It is taken; only the schedule goes on."""
        for schedule in self.schedules:
            schedule.step()

    # ---- whole tensors ------------------------------------------------------------------------------------
    def weights(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See `Engine.weights`."""
        if values is not None:
            return super().weights(values)
        import deepspeed

        found = {}
        for name, parameter in self.policy.named_parameters():
            with (
                deepspeed.zero.GatheredParameters([parameter])
                if self.stage == 3
                else contextlib.nullcontext()
            ):
                if self.is_main:
                    found[name] = parameter.detach().to("cpu", copy=True).contiguous()
        return found

    def set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Also into the optimiser's own copies."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                value = values[name].to(self.device, torch.float32)
                if self.stage == 3:
                    mine = self._mine(parameter, value)
                    parameter.ds_tensor.copy_(mine)  # type: ignore[attr-defined]
                    if parameter.requires_grad:
                        safe_set_local_fp32_param(parameter, mine)
                else:
                    parameter.copy_(value)
                    safe_set_full_fp32_param(parameter, value)

    def _mine(self, parameter: Any, whole: Tensor) -> Tensor:
        """This process' piece of a parameter of stage 3, padded as DeepSpeed does."""
        size = parameter.ds_tensor.numel()
        flat = whole.flatten()
        padded = torch.cat([flat, flat.new_zeros(size * self.world - len(flat))])
        return padded[size * self.rank : size * (self.rank + 1)].clone()

    # ---- optimiser state ----------------------------------------------------------------------------------
    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine.optimizer_state`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = [entry["step"] for entry in self._base.state.values() if "step" in entry]
        if not steps:
            return
        self._link()
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad:
                for entry in _ENTRIES:
                    yield f"0/{name}/{entry}", safe_get_full_optimizer_state(parameter, entry)
                yield f"0/{name}/step", torch.as_tensor(steps[0]).detach().float().cpu()

    def set_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine.set_optimizer_state`."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        steps = [value for key, value in state.items() if key.endswith("/step")]
        if not steps:
            return
        fused = any(group.get("fused") for group in self._base.param_groups)
        for flat in self._flat:
            step = steps[0].clone()
            entries = {entry: torch.zeros_like(flat) for entry in _ENTRIES}
            self._base.state[flat] = entries | {"step": step.to(flat.device) if fused else step}
        self._link()
        for name, parameter in self.policy.named_parameters():
            for entry in _ENTRIES if parameter.requires_grad else ():
                value = state[f"0/{name}/{entry}"].to(self.device)
                if self.stage == 3:
                    safe_set_local_optimizer_state(parameter, self._mine(parameter, value), entry)
                else:
                    safe_set_full_optimizer_state(parameter, value, entry)

    @property
    def _flat(self) -> list[Any]:
        """This process' flat pieces of the weights, in float32, which torch's optimiser knows."""
        name = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        return list(getattr(self._shards, name))

    def _link(self) -> None:
        """Stage 2: find each parameter's piece of the flat state. DeepSpeed does it in the step of the first group, when
        the others have none yet."""
        if self.stage != 3:
            self._shards._hp_optimizer_states_linked = False
            self._shards._lazy_init_hp_params_optimizer_state()

    @property
    def _base(self) -> Any:
        """Torch's optimiser, over DeepSpeed's flat parts."""
        return self._shards.optimizer


def _refuse(config: RunConfig, kind: str) -> None:
    if config.optimizer.kind != "adamw":
        raise ConfigError(
            f"engine {kind} cannot run {config.optimizer.kind}: it cuts matrices into flat pieces",
            "use --optimizer.kind adamw, or --engine fsdp2",
        )
    if config.ema:
        raise ConfigError(
            f"engine {kind} keeps no average of the weights", "leave out --ema, or use --engine fsdp2"
        )


def _settings(config: RunConfig, stage: int, world: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a run."""
    half = config.mixed_precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "train_batch_size": config.batch_size * config.accumulation * world,
        "gradient_clipping": config.optimizer.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "contiguous_gradients": True, "overlap_comm": False},
        # Weights and gradients travel in float32, as with DDP. DeepSpeed would send those of linear layers in half,
        # but not what a module reads of another one when it does so for the first time (stage 3): the first step after a
        # restart would be another one than in an unbroken run.
        "torch_autocast": {"enabled": half, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def _import(device: torch.device) -> Any:
    """DeepSpeed, without the C++ it would compile for CPUs (a build that is killed leaves a lock that hangs later runs)."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise MissingDependencyError("deepspeed", "deepspeed", "the engines zero2 and zero3") from error
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
