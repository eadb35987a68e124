"""The decoder of a Qwen-VL, layer by layer: only the layers that somebody reads are run, only their outputs are kept.

`transformers` gives either the last hidden state (after the final RMSNorm, which StarVLA's Qwen3 checkpoints never saw) or
all of them, with a KV cache and logits beside. Here a caller names the layers; deeper ones are not run. The arithmetic is
that of `Qwen3VLModel.forward` and `Qwen2_5_VLModel.forward`; tests compare both.

    pixel_values, input_ids -> vision tower, embeddings -> x_0 (B, L, hidden)
    x_k = layer_k(x_{k-1}) (+ deepstack features at the picture tokens, Qwen3, first layers),   k = 1 .. N
    final: RMSNorm(x_N)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vla_agents.errors import ConfigError


def run_decoder(
    model: Any, inputs: Mapping[str, Any], mask: Tensor, layers: Sequence[int], *, final_norm: bool
) -> list[Tensor]:
    """Outputs of chosen decoder layers.

    Args:
        model: `Qwen3VLModel` or `Qwen2_5_VLModel` (the `.model` of the conditional-generation class).
        inputs: `input_ids`, `attention_mask` (None where nothing is padded), `position_ids` (3, B, L), `pixel_values`,
            `image_grid_thw`.
        mask: bool (B, L), False on padding.
        layers: Ascending layer numbers, 1 .. N; 0 is the embedding.
        final_norm: Whether layer N's output goes through the final RMSNorm.

    Returns:
        One (B, L, hidden) for each of `layers`; positions of padding hold numbers without meaning.
    """
    text = model.language_model
    depth = len(text.layers)
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] <= depth:
        raise ConfigError(f"layers {list(layers)} are not ascending numbers between 0 and {depth}")
    x, deep, seen = _embed(model, inputs)
    attention = attention_mask(text.config, mask, inputs["attention_mask"] is not None, x.dtype)
    rotary = text.rotary_emb(x, inputs["position_ids"])
    kept = [x] if layers[0] == 0 else []
    for number, layer in enumerate(text.layers[: layers[-1]], start=1):
        x = layer(
            x, attention_mask=attention, position_ids=None, past_key_values=None, position_embeddings=rotary
        )
        if number <= len(deep):
            x = x.masked_scatter(seen, x[seen].view_as(deep[number - 1]) + deep[number - 1].to(x.dtype))
        if number == depth and final_norm:
            x = text.norm(x)
        if number in layers:
            kept.append(x)
    return kept


def _embed(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, list[Tensor], Tensor]:
    """Embeddings with the pictures in place (B, L, hidden), deepstack features (image tokens, hidden), picture mask."""
    ids = inputs["input_ids"]
    x = model.get_input_embeddings()(ids)
    seen = (ids == model.config.image_token_id).unsqueeze(-1).expand_as(x)
    if inputs.get("pixel_values") is None:
        return x, [], seen
    features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    x = x.masked_scatter(seen, torch.cat(tuple(features.pooler_output)).to(x.dtype))
    deep = [_joined(level) for level in getattr(features, "deepstack_features", None) or ()]
    return x, deep, seen


def _joined(level: Any) -> Tensor:
    return level if isinstance(level, Tensor) else torch.cat(tuple(level))


def attention_mask(config: Any, mask: Tensor, padded: bool, dtype: torch.dtype) -> Tensor | None:
    """What the attention implementation of a causal decoder wants: nothing, the padding (B, L), or a bias (B, 1, L, L).

    A position of padding attends to itself, so that no row is empty.
    """
    implementation = config._attn_implementation
    if "flash" in implementation:
        return mask if padded else None
    if implementation == "sdpa" and not padded:
        return None  # causal by itself
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    allowed = causal & mask[:, None, None, :] | torch.eye(length, dtype=torch.bool, device=mask.device)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~allowed, torch.finfo(dtype).min)
