"""Low-rank adapters in the VLM, by `peft`; and without it, merging them into the weights.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". A linear layer W (out, in) becomes
W + alpha / rank * B A, with A (rank, in) random and B (out, rank) zero; A and B learn, W does not.

A checkpoint holds W, A and B as tensors of one `model.safetensors`: it needs no other file, and training goes on from
it. `load_policy(..., merge_lora=True)` (which `load_agent` does) adds them up while reading: no peft is needed then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from vla_agents.errors import ConfigError, MissingDependencyError
from vla_agents.policies.learning import matching
from vla_agents.policies.policy_config import LoRAConfig

if TYPE_CHECKING:
    from vla_agents.policies.policy import Policy

_NAME = "default"
_P = TypeVar("_P", bound="Policy")


def add_lora(vlm: Any, config: LoRAConfig) -> None:
    """Put adapters into a model; of its own parameters only those that `config.learn` names go on learning.

    Layers that do not learn (frozen before, or of no use to the policy) and the language head get none.

    Args:
        vlm: A `PreTrainedModel`.
        config: With a positive rank.

    Raises:
        ConfigError: A pattern matches nothing.
        MissingDependencyError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError(
            "peft", "lora", "LoRA (acting does not: load_policy(..., merge_lora=True))"
        ) from error
    head = vlm.get_output_embeddings() if hasattr(vlm, "get_output_embeddings") else None
    linear = {
        name: layer
        for name, layer in vlm.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    }
    wanted = {name for pattern in config.targets for name in matching(linear, pattern, "lora.targets")}
    targets = [
        name
        for name, layer in linear.items()
        if layer.weight.requires_grad and (name in wanted or not config.targets)
    ]
    if not targets:
        raise ConfigError("lora: none of its target layers learns", "freeze less, or choose other targets")
    named = dict(vlm.named_parameters(remove_duplicate=False))
    learn = {name for pattern in config.learn for name in matching(named, pattern, "lora.learn")}
    kept = [named[name] for name in learn if named[name].requires_grad]
    adapters = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules="|".join(re.escape(name) for name in targets),
    )
    inject_adapter_in_model(adapters, vlm, adapter_name=_NAME)
    for parameter in kept:
        parameter.requires_grad_(True)


def merge_lora(policy: _P) -> _P:
    """Add a policy's adapters to its weights, in place; it is then one without LoRA, which acts alike and faster."""
    scale = policy.config.lora.alpha / max(1, policy.config.lora.rank)  # type: ignore[union-attr, operator]
    vlm = policy.backbone.vlm
    for name, layer in list(vlm.named_modules()):
        if _NAME in getattr(layer, "lora_A", {}):
            plain = layer.base_layer
            a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
            plain.weight.data = _merged(plain.weight.data, a.data, b.data, scale)
            vlm.set_submodule(name, plain)
    if hasattr(vlm, "peft_config"):
        del vlm.peft_config
    policy.config = replace(policy.config, lora=LoRAConfig())  # type: ignore[type-var, assignment]
    return policy


def merge_weights(weights: Mapping[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """The same for a state dict: names and values of a policy without LoRA."""
    merged: dict[str, Tensor] = {}
    for name, value in weights.items():
        if f".lora_A.{_NAME}." in name or f".lora_B.{_NAME}." in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            a, b = weights[f"{layer}.lora_A.{_NAME}.weight"], weights[f"{layer}.lora_B.{_NAME}.weight"]
            value = _merged(value, a, b, config.alpha / config.rank)
        merged[name.replace(".base_layer.", ".")] = value
    return merged


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.add(weight.float(), b.float() @ a.float(), alpha=scale).to(weight.dtype)
