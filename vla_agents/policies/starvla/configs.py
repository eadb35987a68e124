"""StarVLA's config keys and weight shapes -> the configuration of our policies.

Widths are read from the weights, which cannot lie; only what leaves no trace there (heads, denoising steps, times) is
read from the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vla_agents.errors import CheckpointError
from vla_agents.policies.checkpoint import POLICIES
from vla_agents.policies.heads.flow import Semantics
from vla_agents.policies.heads.gr00t import PRESETS
from vla_agents.policies.starvla.options import StarVLAOptions, pi_semantics
from vla_agents.policies.starvla.run import FRAMEWORKS, StarVLARun, guess_framework

_HEAD = "framework.action_model."
_DIT = _HEAD + "diffusion_model_cfg."
_SAME = {
    "positional_embeddings": None,
    "norm_type": "ada_norm",
    "norm_eps": 1e-5,
    "activation_fn": "gelu-approximate",
}
"""Keys of `diffusion_model_cfg` that leave no trace in the weights, and the only values we compute with."""


def policy_config(
    run: StarVLARun, framework: str, options: StarVLAOptions, weights: Mapping[str, Tensor]
) -> Any:
    """The configuration of our policy of that framework.

    Args:
        run: The run.
        framework: Our name.
        options: Completed options.
        weights: StarVLA's state dict.
    """
    common = {
        "vlm": str(options.vlm),
        "horizon": run.horizon,
        "execute": run.horizon,  # StarVLA's clients carry out the whole chunk
        "prompt": run.prompt,
        "dtype": options.dtype,
    }
    build = {"qwen_oft": _oft, "qwen_gr00t": _gr00t, "qwen_pi": _pi, "qwen_fast": _fast}[framework]
    return POLICIES.get(framework).config_class(**common, **build(run, options, weights))


def action_sizes(
    run: StarVLARun, framework: str, weights: Mapping[str, Tensor], file: Any
) -> tuple[int, int]:
    """(D, S): action dimension of the weights (FAST: of the config), state dimension of the config."""
    name = {
        "qwen_oft": "model.fc2",
        "qwen_gr00t": "action_decoder.layer2",
        "qwen_pi": "action_decoder.layer2",
    }
    configured = run.get(_HEAD + "action_dim", default=None)
    if framework in name:
        size = shape(weights, f"action_model.{name[framework]}.weight", framework, file)[0]
        if configured is not None and int(configured) != size:
            raise CheckpointError(
                file,
                f"its actions have {size} values, config.yaml says action_dim {configured}",
                "check both",
            )
    else:
        size = int(run.get(_HEAD + "action_dim"))
    return size, int(run.get(_HEAD + "state_dim", default=0))


def shape(weights: Mapping[str, Tensor], name: str, framework: str, file: Any) -> tuple[int, ...]:
    """Shape of a parameter the framework must have."""
    if name not in weights:
        looks = guess_framework(weights)
        raise CheckpointError(
            file,
            f"no {name}, which every {FRAMEWORKS[framework]} has; the weights look like "
            f"{FRAMEWORKS[looks] if looks else 'none of StarVLA’s four'}",
            f"give framework={looks!r}" if looks else "give a StarVLA checkpoint",
        )
    return tuple(weights[name].shape)


def _oft(run: StarVLARun, options: StarVLAOptions, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = {
        name.split(".")[3] for name in weights if name.startswith("action_model.model.mlp_resnet_blocks.")
    }
    return {
        "queries": "prompt",
        "state": "text" if options.state else "none",
        "final_norm": bool(options.final_norm),
        "action_token": str(run.get(_HEAD + "action_token", default="🔍")),
        "head_width": shape(weights, "action_model.model.fc1.weight", "qwen_oft", run.weights)[0],
        "head_blocks": len(blocks),
    }


def _flow(
    run: StarVLARun, framework: str, options: StarVLAOptions, weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    def rows(name: str, axis: int = 0) -> int:
        return shape(weights, f"action_model.{name}.weight", framework, run.weights)[axis]

    def optional(name: str, axis: int = 0) -> int:
        found = weights.get(f"action_model.{name}.weight")
        return 0 if found is None else int(found.shape[axis])

    blocks = {
        name.split(".")[3] for name in weights if name.startswith("action_model.model.transformer_blocks.")
    }
    width = rows("model.transformer_blocks.0.attn1.to_q")
    _require_same(run)
    return {
        "width": width,
        "depth": len(blocks),
        "heads": width // int(run.get(_DIT + "attention_head_dim", default=64)),
        "hidden": rows("action_decoder.layer1"),
        "output": rows("model.proj_out_2"),
        "future_tokens": optional("future_tokens"),
        "positions": optional("position_embedding"),
        "state_size": optional("state_encoder.layer1", 1),
        "state": "head" if options.state else "none",
        "final_norm": bool(options.final_norm),
        "steps": int(run.get(_HEAD + "num_inference_timesteps", default=4)),
        "time_alpha": float(run.get(_HEAD + "noise_beta_alpha", default=1.5)),
        "time_beta": float(run.get(_HEAD + "noise_beta_beta", default=1.0)),
        "time_s": float(run.get(_HEAD + "noise_s", default=0.999)),
        "buckets": int(run.get(_HEAD + "num_timestep_buckets", default=1000)),
        "dropout": float(run.get(_DIT + "dropout", default=0.2)),
    }


def _require_same(run: StarVLARun) -> None:
    """Refuse a transformer whose weights would load and whose arithmetic is another."""
    for key, ours in _SAME.items():
        value = run.get(_DIT + key, default=ours)
        if value != ours:
            raise CheckpointError(
                run.folder / "config.yaml",
                f"{_DIT}{key} is {value!r}; only {ours!r} is supported",
                "such a checkpoint cannot be loaded",
            )


def _gr00t(run: StarVLARun, options: StarVLAOptions, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    found = _flow(run, "qwen_gr00t", options, weights)
    kind = str(run.get(_HEAD + "action_model_type", default="DiT-B"))
    heads = run.get(_DIT + "num_attention_heads", default=PRESETS[kind].heads if kind in PRESETS else None)
    if heads is None and run.get(_DIT + "attention_head_dim", default=None) is None:
        raise CheckpointError(
            run.folder / "config.yaml",
            f"action_model_type {kind!r} is none of {', '.join(PRESETS)}, and nothing says how many heads it has",
            f"add {_DIT}num_attention_heads to it",
        )
    heads = found["heads"] if heads is None else heads
    repeats = run.get(_HEAD + "repeated_diffusion_steps", "trainer.repeated_diffusion_steps", default=8)
    semantics = _gr00t_semantics(run, weights)
    return found | {"heads": int(heads), "repeats": int(repeats), "semantics": semantics}


def _gr00t_semantics(run: StarVLARun, weights: Mapping[str, Tensor]) -> Semantics:
    """Whether odd blocks attend to the tokens: by what their keys are made of, where that tells; else by the config."""
    blocks = "action_model.model.transformer_blocks."
    own, first, second = (
        shape(weights, f"{blocks}{name}.weight", "qwen_gr00t", run.weights)[1]
        for name in ("0.attn1.to_q", "0.attn1.to_k", "1.attn1.to_k")
    )
    if own != first:
        return "interleaved" if second == own else "cross_only"
    known = pi_semantics(run)
    return known or "interleaved"  # StarVLA's default


def _pi(run: StarVLARun, options: StarVLAOptions, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    # StarVLA overwrites repeated_diffusion_steps by 2, which is our default.
    return _flow(run, "qwen_pi", options, weights) | {"semantics": options.pi_semantics}


def _fast(run: StarVLARun, options: StarVLAOptions, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"fast": str(options.fast_tokenizer), "state": "none"}  # StarVLA's FAST is never told the state
