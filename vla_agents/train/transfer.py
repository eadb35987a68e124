"""Starting from parts of a checkpoint: some modules' weights from there, everything else new.

The policies need not be of one kind, nor their bodies alike: only the modules that are named must be of the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from vla_agents.config import from_dict, load_yaml
from vla_agents.errors import ConfigError
from vla_agents.policies.checkpoint import POLICIES, find_checkpoint
from vla_agents.policies.learning import matching
from vla_agents.policies.lora import merge_weights
from vla_agents.policies.weights import by_module, module_of, read_safetensors


def load_modules(policy: nn.Module, source: str | Path, modules: Sequence[str]) -> str:
    """Take the weights of some modules from a checkpoint.

    Args:
        policy: Gets them.
        source: A checkpoint or run folder, or a hub id. Adapters it has are added to its weights first.
        modules: Regular expressions for the beginning of parameter names: `backbone`, `head`,
            `backbone.vlm.model.visual`.

    Returns:
        What was taken, a line per module.

    Raises:
        ConfigError: A pattern matches nothing there or here, or shapes differ.
        CheckpointError: There is no checkpoint.
    """
    folder = find_checkpoint(source)
    record = load_yaml(folder / "policy.yaml")
    saved = from_dict(POLICIES.get(record["policy"]).config_class, record["config"], where=str(folder))
    weights = read_safetensors(folder / "model.safetensors")
    if saved.lora.rank:
        weights = merge_weights(weights, saved.lora)
    own = dict(policy.named_parameters(remove_duplicate=False)) | dict(policy.named_buffers())
    taken: dict[str, None] = {}
    for pattern in modules:
        anchored = rf"^(?:{pattern})(?:\.|$)"
        here = matching(own, anchored, f"modules of the new policy ({pattern!r})")
        there = matching(weights, anchored, f"modules of {source} ({pattern!r})")
        ours = [name for name in here if name in weights]
        odd = [name for name in there if name not in own]
        wrong = [
            f"{n} {tuple(weights[n].shape)} -> {tuple(own[n].shape)}"
            for n in ours
            if _differs(weights[n], own[n])
        ]
        tied = {id(own[name]) for name in ours}
        missing = [
            n
            for n in here
            if n not in weights and id(own[n]) not in tied and isinstance(own[n], nn.Parameter)
        ]
        if odd or wrong or missing:
            lines = [f"only there   {line}" for line in by_module(odd)] + [
                f"only here    {line}" for line in by_module(missing)
            ]
            lines += [f"other shape  {line}" for line in wrong[:6]]
            raise ConfigError(
                f"{pattern!r} of {source} does not fit this policy:\n  " + "\n  ".join(lines),
                "name smaller modules that are alike, or make the policy as the checkpoint's is (the same --model.vlm)",
            )
        taken |= dict.fromkeys(ours)
    with torch.no_grad():
        for name in taken:
            own[name].copy_(weights[name])
    counts: dict[str, int] = {}
    for name in taken:
        counts[module_of(name)] = counts.get(module_of(name), 0) + weights[name].numel()
    width = max(map(len, counts))
    return "\n".join(f"{name:<{width}}  {count:>14,}  from {folder}" for name, count in counts.items())


def _differs(there: torch.Tensor, here: torch.Tensor) -> bool:
    return there.shape != here.shape


def groups_by_rate(
    named: Sequence[tuple[str, nn.Parameter]], rates: dict[str, float], default: float
) -> list[tuple[float, list[tuple[str, nn.Parameter]]]]:
    """Parameters by their learning rate.

    Args:
        named: Those that learn.
        rates: Regular expression -> learning rate of the parameters with a match in their name.
        default: Of all others.

    Raises:
        ConfigError: A pattern matches nothing, or two patterns with different rates match one parameter.
    """
    found: dict[str, tuple[float, str]] = {}
    for pattern, rate in rates.items():
        for name in matching([name for name, _ in named], pattern, "optimizer.lr_of"):
            if name in found and found[name][0] != rate:
                raise ConfigError(
                    f"optimizer.lr_of: {name} has a match of {found[name][1]!r} ({found[name][0]:g}) "
                    f"and of {pattern!r} ({rate:g})",
                    "make the patterns narrower, so that each parameter has one rate",
                )
            found[name] = rate, pattern
    groups: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        groups.setdefault(found[name][0] if name in found else default, []).append((name, parameter))
    return list(groups.items())
