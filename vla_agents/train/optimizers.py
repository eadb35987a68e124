"""Optimisers and their schedule.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum of matrices;
embeddings, the last layer of a head, norms and biases take AdamW.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vla_agents.train.config import OptimizerConfig
from vla_agents.train.transfer import groups_by_rate


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """One or two optimisers over the parameters that want gradients."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices: list[tuple[str, nn.Parameter]] = []
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in named:
        inner = config.kind == "muon" and _is_inner_matrix(name, parameter)
        (matrices if inner else rest).append((name, parameter))
    rates = _rates(named, config)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                _groups(matrices, rates, config.muon_lr),
                lr=config.muon_lr,
                momentum=0.95,
                weight_decay=config.weight_decay,
                adjust_lr_fn="original",
            )
        )
    if rest:
        decayed = [(name, p) for name, p in rest if p.ndim >= 2]
        plain = [(name, p) for name, p in rest if p.ndim < 2]
        groups = [
            group | {"weight_decay": decay}
            for part, decay in ((decayed, config.weight_decay if not matrices else 0.0), (plain, 0.0))
            for group in _groups(part, rates, config.lr)
        ]
        fused = all(p.is_floating_point() for _, p in rest)
        optimizers.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused))
    return optimizers


def _rates(named: list[tuple[str, nn.Parameter]], config: OptimizerConfig) -> dict[str, float]:
    """Parameter name -> its own learning rate, for those that have one."""
    if not config.lr_of:
        return {}
    groups = groups_by_rate(named, config.lr_of, math.nan)
    return {name: rate for rate, part in groups if not math.isnan(rate) for name, _ in part}


def _groups(
    named: list[tuple[str, nn.Parameter]], rates: dict[str, float], default: float
) -> list[dict[str, Any]]:
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        found.setdefault(rates.get(name, default), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in found.items()]


_INNER = ("head.hidden.", "head.model.transformer_blocks.")


def _is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Matrices between hidden layers: no embeddings, no output layer, and not OpenVLA-OFT's head of ReLUs, which
    Muon's large steps kill. Of the action heads: hidden layers of a plain MLP, transformer blocks of the flow heads."""
    outer = "embed" in name or ("head." in name and not any(part in name for part in _INNER))
    return parameter.ndim == 2 and not outer


def make_schedules(
    optimizers: list[torch.optim.Optimizer], config: OptimizerConfig, steps: int
) -> list[LambdaLR]:
    """Linear warm-up, then a cosine down to `final_lr` of the peak."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, config.warmup))
        share = min(1.0, step / max(1, steps))
        return warm * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))

    return [LambdaLR(optimizer, factor) for optimizer in optimizers]
