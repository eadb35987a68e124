"""What a StarVLA run does not say about itself: taken from the files where they do, asked for where they do not.

Nothing is guessed: `complete` names every argument that is missing, with what speaks for which value, in one `ConfigError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, UnknownNameError, suggest
from vla_agents.policies.heads.flow import Semantics
from vla_agents.policies.starvla.run import StarVLARun, is_starvla
from vla_agents.policies.starvla.units import Ranges, Unnormalization, known_family


@dataclass(frozen=True)
class StarVLAOptions:
    """What a StarVLA run may not say about itself. None: take it from the files, or ask."""

    vlm: str | None = None
    """Folder or hub id with the VLM's config.json, tokenizer and preprocessor_config.json; its weights are not read."""
    framework: str | None = None
    """qwen_fast, qwen_oft, qwen_pi or qwen_gr00t; by default the config's framework.name."""
    unnorm_key: str | None = None
    """Which entry of dataset_statistics.json; asked for where there are several."""
    unnormalization: Unnormalization | None = None
    """head (StarVLA's server of 2026: no clipping), dec2025 (its clients of December 2025: clip to [-1, 1], gripper a
    step at 0.5), or none (actions stay normalised)."""
    ranges: Ranges | None = None
    """min_max or q01_q99: the statistics that actions were normalised by; known for LIBERO and Open X-Embodiment."""
    final_norm: bool | None = None
    """Qwen3-VL: false for checkpoints trained with the transformers 4.57 that StarVLA pins, true from 5.0 on."""
    pi_semantics: Semantics | None = None
    """Qwen-PI: cross_only for checkpoints trained before June 2026 (StarVLA's #373), interleaved for later ones."""
    state: bool | None = None
    """Whether the model is given the state; by default datasets.vla_data.include_state, absent means false in StarVLA."""
    cameras: tuple[str, ...] | None = None
    """Names of the views in the order of training; known for LIBERO (agentview, wrist)."""
    fast_tokenizer: str | None = None
    """Qwen-FAST: folder of the FAST tokenizer (physical-intelligence/fast)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the VLM's weights."""


def with_overrides(options: StarVLAOptions, overrides: Mapping[str, Any]) -> StarVLAOptions:
    """The options with some fields replaced; an unknown name is refused with a suggestion."""
    names = [field.name for field in dataclasses.fields(StarVLAOptions)]
    for name in overrides:
        if name not in names:
            raise UnknownNameError("argument for a StarVLA checkpoint", name, names)
    return dataclasses.replace(options, **overrides)


def policy_options(path: str | Path, overrides: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Those of `load_agent`'s options that are arguments of `load_policy`.

    Args:
        path: Of the checkpoint.
        overrides: What `load_agent` was given.
        own: The options that are `load_agent`'s own.

    Raises:
        ConfigError: An option that does not exist (with a suggestion), or that is for StarVLA checkpoints only.
    """
    names = {field.name: field.name for field in dataclasses.fields(StarVLAOptions)}
    names["policy_embodiment"] = "embodiment"
    for key in overrides:
        if key not in names and key not in own:
            raise ConfigError(
                f"load_agent has no option {key!r}{suggest(key, {*names, *own})}",
                f"known: {sorted(own)}; for StarVLA checkpoints also {sorted(names)}",
            )
    given = {key: value for key, value in overrides.items() if key in names}
    if given and not is_starvla(path):
        raise ConfigError(
            f"{', '.join(given)} is for StarVLA checkpoints, and {path} is none", "leave it out"
        )
    return {names[key]: value for key, value in given.items()}


def complete(
    run: StarVLARun,
    framework: str,
    weights: Mapping[str, Tensor],
    options: StarVLAOptions,
    embodiment: Embodiment | None,
) -> StarVLAOptions:
    """The options with every field filled that this framework needs.

    Raises:
        ConfigError: Listing what must be given, all of it at once.
    """
    known: dict[str, Any] = {
        "vlm": options.vlm or _local_vlm(run),
        "unnorm_key": options.unnorm_key or _only(run.statistics),
        "ranges": options.ranges or {"libero": "min_max", "oxe": "q01_q99"}.get(known_family(run.data_mix)),
        "final_norm": _final_norm(weights, framework, options),
        "pi_semantics": options.pi_semantics or pi_semantics(run),
        "state": _state(run, options),
        "cameras": options.cameras or _cameras(run, embodiment),
    }
    missing = _missing(run, framework, dataclasses.replace(options, **known))
    if missing:
        listing = "\n".join(f"  - {name}: {why}" for name, why in missing.items())
        raise ConfigError(
            f"{run.folder} is a {framework}, and its files do not say everything:\n{listing}",
            "pass these by name to load_policy / load_starvla, or as flags (--unnorm-key ...) on the command line",
        )
    if known["unnorm_key"] is not None and known["unnorm_key"] not in run.statistics:
        raise UnknownNameError("unnorm_key", known["unnorm_key"], run.statistics)
    return dataclasses.replace(options, **known)


def _missing(run: StarVLARun, framework: str, options: StarVLAOptions) -> dict[str, str]:
    base = run.get("framework.qwenvl.base_vlm", default="?")
    wanted = {
        "vlm": (
            options.vlm is None,
            f"folder or hub id of the VLM it was trained from (there: {base}); its weights are not needed",
        ),
        "unnormalization": (
            options.unnormalization is None,
            "'head' (the policy server of 2026, no clipping) or 'dec2025' (the clients of December 2025, clip to [-1, 1] "
            "and gripper 0 or 1): take the one its published scores were made with; 'none' keeps actions normalised",
        ),
        "unnorm_key": (
            options.unnorm_key is None and options.unnormalization != "none",
            f"which statistics: {', '.join(run.statistics) or 'dataset_statistics.json is missing or empty'}",
        ),
        "ranges": (
            options.ranges is None and options.unnormalization != "none",
            f"'min_max' or 'q01_q99', as the data {run.data_mix!r} was normalised for training",
        ),
        "final_norm": (
            options.final_norm is None,
            "False if it was trained with transformers 4.57 (what StarVLA pins: the action head saw the last layer before "
            "the final norm), True if with 5.0 or later",
        ),
        "pi_semantics": (
            framework == "qwen_pi" and options.pi_semantics is None,
            "'cross_only' if it was trained before June 2026 (every block reads its VLM layer), 'interleaved' if later "
            "(odd blocks attend to the action tokens)",
        ),
        "cameras": (
            options.cameras is None,
            "names of the views it was trained with, in order, e.g. ('agentview', 'wrist'); or give an embodiment",
        ),
        "fast_tokenizer": (
            framework == "qwen_fast" and options.fast_tokenizer is None,
            "folder of its FAST tokenizer (StarVLA reads playground/Pretrained_models/fast)",
        ),
    }
    return {name: why for name, (is_missing, why) in wanted.items() if is_missing}


def is_qwen3(weights: Mapping[str, Tensor]) -> bool:
    """Qwen3 normalises queries and keys, Qwen2.5 does not."""
    return any(key.endswith("self_attn.q_norm.weight") for key in weights)


def _local_vlm(run: StarVLARun) -> str | None:
    """The base model's folder of the training machine, where this machine has it too."""
    base = run.get("framework.qwenvl.base_vlm", default=None)
    return str(base) if base and (Path(str(base)) / "config.json").is_file() else None


def _only(statistics: Mapping[str, Any]) -> str | None:
    return next(iter(statistics)) if len(statistics) == 1 else None


def _final_norm(weights: Mapping[str, Tensor], framework: str, options: StarVLAOptions) -> bool | None:
    """Asked for where two versions of transformers differ: Qwen3-VL's last layer, which FAST reads through logits."""
    if options.final_norm is None and (framework == "qwen_fast" or not is_qwen3(weights)):
        return True
    return options.final_norm


def pi_semantics(run: StarVLARun) -> Semantics | None:
    """What the config says, where every version of StarVLA reads it alike; None where it does not say.

    `use_canonical_forward` came with the second semantics (June 2026), which also wants `interleave_self_attention` (true
    by default); since August 2026 it decides alone. Before June 2026 every block read its layer, whatever the config says.
    """
    cfg = "framework.action_model.diffusion_model_cfg."
    canonical = run.get(cfg + "use_canonical_forward", default=None)
    interleave = run.get(cfg + "interleave_self_attention", default=None)
    if canonical is False or (canonical is None and interleave is False):
        return "cross_only"
    return "interleaved" if canonical and interleave is not False else None


def _state(run: StarVLARun, options: StarVLAOptions) -> bool:
    if options.state is not None:
        return options.state
    include = run.get("datasets.vla_data.include_state", default=False)
    return str(include).lower() in ("true", "1", "yes")


def _cameras(run: StarVLARun, embodiment: Embodiment | None) -> tuple[str, ...] | None:
    if embodiment is not None:
        return embodiment.camera_names
    return ("agentview", "wrist") if known_family(run.data_mix) == "libero" else None
