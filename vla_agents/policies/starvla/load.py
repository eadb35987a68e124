"""StarVLA checkpoints (QwenFast, QwenOFT, QwenPI, QwenGR00T) as policies of ours; facts in docs/starvla.md.

read_run, read_weights       config.yaml, dataset_statistics.json, weights              run.py
complete                     ask what the files do not say                              options.py
QwenVLBackbone.from_config   architecture, tokenizer, pixels of `vlm`, never its weights
make_embodiment, ...         what the numbers mean                                      units.py
policy_config                StarVLA's keys and shapes -> our configuration             configs.py
load_weights                 StarVLA's parameter names -> ours, strictly                weights.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vla_agents.embodiment import Embodiment
from vla_agents.errors import CheckpointError, ConfigError
from vla_agents.normalize import Normalizer, VectorStats
from vla_agents.policies.starvla.configs import action_sizes, policy_config
from vla_agents.policies.starvla.options import StarVLAOptions, complete, is_qwen3, with_overrides
from vla_agents.policies.starvla.run import (
    FRAMEWORKS,
    StarVLARun,
    guess_framework,
    read_run,
    read_weights,
    require_framework,
)
from vla_agents.policies.starvla.units import (
    action_mask,
    action_normalizer,
    known_family,
    make_embodiment,
    vector_stats,
)
from vla_agents.policies.starvla.weights import load_weights

if TYPE_CHECKING:
    from vla_agents.policies.policy import Policy
    from vla_agents.policies.qwen_vl import QwenVLBackbone


def load_starvla(
    path: str | Path,
    options: StarVLAOptions | None = None,
    *,
    embodiment: Embodiment | None = None,
    device: str | None = None,
    **overrides: Any,
) -> Policy:
    """A policy from a StarVLA run folder or weights file.

    Args:
        path: RUN, or RUN/checkpoints/steps_N_pytorch_model.pt (or .safetensors).
        options: What the files do not say.
        embodiment: What observations and actions mean; by default LIBERO's where it is, else parts without a convention.
        device: Where to put it; by default a GPU where there is one.
        overrides: Fields of `StarVLAOptions`, by name.

    Raises:
        ConfigError: Naming everything that has to be given and is not.
        CheckpointError: The files are damaged, or belong to something else.
    """
    import torch

    options = with_overrides(options or StarVLAOptions(), overrides)
    run = read_run(path)
    weights = read_weights(run.weights)
    framework = _framework(run, options, weights)
    sizes = action_sizes(run, framework, weights, run.weights)
    options = complete(run, framework, weights, options, embodiment)
    body = embodiment or _embodiment(run, options, sizes)
    if body.action_dim != sizes[0]:
        raise ConfigError(
            f"the embodiment {body.name!r} has {body.action_dim} action values, the checkpoint {sizes[0]}"
        )
    policy = _build(run, framework, options, weights, body, starvla_normalizers(run, options, body))
    load_weights(policy, weights, run.weights, framework)
    return policy.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _framework(run: StarVLARun, options: StarVLAOptions, weights: Mapping[str, Tensor]) -> str:
    """The one asked for, else the config's; `CheckpointError` where the weights look like another."""
    wanted = options.framework or run.framework
    looks = guess_framework(weights)
    if not wanted:
        raise ConfigError(
            f"{run.folder / 'config.yaml'} names no framework",
            f"give framework={looks!r}, which the weights look like" if looks else "give framework=...",
        )
    framework = require_framework(wanted)
    if looks != framework:
        raise CheckpointError(
            run.weights,
            f"this should be a {FRAMEWORKS[framework]}, but the weights look like "
            f"{FRAMEWORKS[looks] if looks else 'none of StarVLA’s four frameworks'} "
            f"(they hold {_summary(weights)})",
            f"give framework={looks!r}, or the config.yaml that belongs to them"
            if looks
            else "give a StarVLA checkpoint",
        )
    return framework


def _summary(weights: Mapping[str, Tensor]) -> str:
    groups: dict[str, int] = {}
    for name in weights:
        group = ".".join(name.split(".")[:2])
        groups[group] = groups.get(group, 0) + 1
    return ", ".join(f"{group}.* ({count})" for group, count in sorted(groups.items())[:6]) or "nothing"


def _embodiment(run: StarVLARun, options: StarVLAOptions, sizes: tuple[int, int]) -> Embodiment:
    entry = run.statistics.get(options.unnorm_key or "", {})
    if options.state and not sizes[1]:
        raise ConfigError("the config has no state_dim, and state=True was asked for", "give an embodiment")
    mask = action_mask(entry.get("action", {}), sizes[0])
    return make_embodiment(run, sizes[0], sizes[1] if options.state else 0, options.cameras or (), mask)


def starvla_normalizers(run: StarVLARun, options: StarVLAOptions, body: Embodiment) -> dict[str, Normalizer]:
    """Of the action by the chosen convention, of the state as StarVLA's data transforms have it (LIBERO: as it is)."""
    where = str(run.folder / "dataset_statistics.json")
    entry = run.statistics.get(options.unnorm_key or "", {})
    convention = options.unnormalization or "none"
    found = {
        "action": action_normalizer(
            body.action, entry.get("action", {}), convention, options.ranges or "min_max", where=where
        )
    }
    if body.state_dim and options.state:
        raw = convention == "none" or known_family(run.data_mix) != "oxe"
        stats = None if raw else entry.get("state")
        found["state"] = Normalizer(
            body.state,
            vector_stats(stats, body.state_dim, where) if stats else VectorStats.identity(body.state_dim),
            {"*": "q01_q99" if stats else "none"},
            exact=True,
        )
    return found


def _build(
    run: StarVLARun,
    framework: str,
    options: StarVLAOptions,
    weights: Mapping[str, Tensor],
    body: Embodiment,
    normalizers: Mapping[str, Normalizer],
) -> Policy:
    from vla_agents.policies.backbones import uninitialized
    from vla_agents.policies.checkpoint import POLICIES

    with uninitialized():
        backbone = _backbone(options, is_qwen3(weights))
        config = policy_config(run, framework, options, weights)
        policy: Policy = POLICIES.get(framework)(config, backbone, body, normalizers)
    return policy


def _backbone(options: StarVLAOptions, qwen3: bool) -> QwenVLBackbone:
    """The VLM's architecture; pixels as StarVLA has them (Qwen3: its processor resizes, Qwen2.5: Pillow before it)."""
    from vla_agents.policies.qwen_vl import QwenVLBackbone

    backbone = QwenVLBackbone.from_config(str(options.vlm), dtype=options.dtype)
    kind = backbone.vlm.config.model_type
    if (kind == "qwen3_vl") != qwen3:
        raise CheckpointError(
            str(options.vlm),
            f"this is a {kind}, the checkpoint was trained from a {'Qwen3-VL' if qwen3 else 'Qwen2.5-VL'}",
            "give vlm= the model named by framework.qwenvl.base_vlm in its config.yaml",
        )
    settings = backbone.image_settings
    backbone.image_settings = dataclasses.replace(settings, resize="torch" if qwen3 else "pillow")
    return backbone
