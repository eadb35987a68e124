"""Which engine a run gets. What was asked for and cannot be had is refused; nothing else is put in its place.

Asked for by `--engine`, or by the configuration file of `accelerate launch`, which speaks through environment variables.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from vla_agents.errors import TrainingError
from vla_agents.train.config import RunConfig
from vla_agents.train.engines import processes
from vla_agents.train.engines.engine import Engine

_HOW = "start the processes with torchrun --nproc-per-node N (docs/scaling.md)"


def make_engine(policy: nn.Module, config: RunConfig, learner: nn.Module | None = None) -> Engine:
    """The engine for a run, holding its policy.

    Args:
        policy: Has the weights.
        config: The run.
        learner: A module over the policy that gives the losses; None: the policy itself.

    Raises:
        TrainingError: What was asked for cannot be had here.
    """
    kind = engine_kind(config)
    if kind in ("auto", "ddp"):
        from vla_agents.train.engines.plain import PlainEngine

        return PlainEngine(policy, config, learner)
    _refuse_mixed_weights(policy, kind)
    if kind == "fsdp2":
        from vla_agents.train.engines.fsdp import FSDPEngine

        return FSDPEngine(policy, config, learner)
    from vla_agents.train.engines.zero import ZeroEngine

    return ZeroEngine(policy, config, learner, stage=int(kind[-1]))


def engine_kind(config: RunConfig) -> str:
    """`auto` (one process, or DDP), `ddp`, `fsdp2`, `zero2` or `zero3`; contradictions are refused."""
    launcher = _launcher_asks()
    if config.engine != "auto" and launcher not in ("auto", config.engine):
        raise TrainingError(
            f"--engine {config.engine}, and the configuration of accelerate launch asks for {launcher}",
            "give one of them",
        )
    kind = config.engine if config.engine != "auto" else launcher
    world = processes.world()
    if kind != "auto" and world == 1:
        raise TrainingError(f"engine {kind} is for several processes, and this is one", _HOW)
    expected = _processes_of_launcher()
    if world == 1 and expected > 1:
        raise TrainingError(
            f"accelerate launch was asked for {expected} processes and started one (it does so on CPUs)",
            _HOW + ", with ACCELERATE_USE_CPU=true on CPUs",
        )
    return kind


def _launcher_asks() -> str:
    """What `accelerate launch` was configured to use."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise TrainingError(f"FSDP version {version} was asked for", "set fsdp_version: 2")
        return "fsdp2"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in ("2", "3"):
            raise TrainingError(f"ZeRO stage {stage} was asked for", "use zero_stage 2 or 3")
        return f"zero{stage}"
    return "auto"


def _processes_of_launcher() -> int:
    """What `--num_processes` the parent, if it is `accelerate launch`, was given; 1 where there is none."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return 1
    if "launch" not in words or not any("accelerate" in word for word in words):
        return 1
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            number = value or following
            return int(number) if number.isdigit() else 1
    return 1


def _refuse_mixed_weights(policy: nn.Module, kind: str) -> None:
    types = {str(p.dtype).removeprefix("torch.") for p in policy.parameters()}
    if len(types) > 1 or "float32" not in types:
        raise TrainingError(
            f"engine {kind} keeps weights in float32, and these are {', '.join(sorted(types))}",
            "use --model.dtype float32 with --mixed-precision bf16: shards are small, and learn better",
        )
