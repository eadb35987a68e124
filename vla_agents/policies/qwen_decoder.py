"""A Qwen-VL from patches and token ids to hidden states: only the layers that somebody reads, only their outputs.

`transformers` gives either the last hidden state (after the final RMSNorm, which StarVLA's Qwen3 checkpoints never saw) or
all of them, with a KV cache and logits beside. Here a caller names the layers; deeper ones are not run. The arithmetic is
that of `Qwen3VLModel.forward`, `Qwen2_5_VLModel.forward` and `Qwen3_5Model.forward`; tests compare them.

    pixel_values, input_ids -> vision tower, embeddings -> x_0 (B, L, hidden)
    x_k = layer_k(x_{k-1}) (+ deepstack features at the picture tokens, Qwen3, first layers),   k = 1 .. N
    final: RMSNorm(x_N)

Qwen3.5 mixes full attention with gated delta layers (linear attention), which want the padding instead of a causal mask.

Where the pictures stand is known before: no shape depends on a value, nothing is read back from the device, and `decode`
compiles into one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vla_agents.errors import ConfigError
from vla_agents.policies.qwen_vision import Grid, GridConstants, grid_constants, see


class PromptInputs(dict[str, Any]):
    """The keyword arguments of a Qwen-VL's forward pass, and beside them what is known without asking the device.

    Args:
        arguments: `input_ids` (B, L), `attention_mask` (None where nothing is padded), `mm_token_type_ids`, `position_ids`
            (3, B, L), `pixel_values` (all patches of a sample, then of the next; as the model reads them, or uint8 as
            they were cut), `image_grid_thw`.
        grids: Of each view, the same for all samples.
        places: int64 (B, T): where the T picture tokens stand.
        mask: bool (B, L), False on padding.
        answers: Tokens of each of the B answers, where there are answers to learn.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        grids: Sequence[Grid],
        places: Tensor,
        mask: Tensor,
        answers: Sequence[int] = (),
    ) -> None:
        super().__init__(arguments)
        self.grids = tuple(grids)
        self.places = places
        self.mask = mask
        self.answers = tuple(answers)

    def to(self, device: Any) -> PromptInputs:
        """The same on another device."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.items()}
        return PromptInputs(moved, self.grids, self.places.to(device), self.mask.to(device), self.answers)

    def read_by(self, normalized: Callable[[Tensor], Tensor], dtype: torch.dtype) -> PromptInputs:
        """The same with pixels as a model reads them, in its dtype."""
        pixels = self["pixel_values"]
        pixels = (normalized(pixels) if pixels.dtype == torch.uint8 else pixels).to(dtype)
        made = {**self, "pixel_values": pixels}
        return PromptInputs(made, self.grids, self.places, self.mask, self.answers)

    def __reduce__(self) -> tuple[Any, ...]:
        return PromptInputs, (dict(self), self.grids, self.places, self.mask, self.answers)

    @property
    def pixels(self) -> Tensor:
        """(B, patches of a sample, values of a patch)."""
        flat: Tensor = self["pixel_values"]
        return flat.view(len(self.places), -1, flat.shape[-1])


def run_decoder(
    model: Any,
    inputs: PromptInputs,
    layers: Sequence[int],
    *,
    final_norm: bool,
    decoder: Any = None,
    cache: Any = None,
) -> list[Tensor]:
    """Outputs of chosen decoder layers.

    Args:
        model: `Qwen3VLModel`, `Qwen2_5_VLModel` or `Qwen3_5Model` (the `.model` of the conditional-generation class).
        inputs: See there.
        layers: Ascending layer numbers, 1 .. N; 0 is the embedding.
        final_norm: Whether layer N's output goes through the final RMSNorm.
        decoder: `decode`, or what `torch.compile` made of it.
        cache: See `decode`.

    Returns:
        One (B, L, hidden) for each of `layers`; positions of padding hold numbers without meaning.
    """
    depth = len(model.language_model.layers)
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] <= depth:
        raise ConfigError(f"layers {list(layers)} are not ascending numbers between 0 and {depth}")
    strange = set(_kinds(model.language_model)) - {"full_attention", "linear_attention"}
    if strange:
        raise ConfigError(f"layers of kind {', '.join(sorted(strange))} are not supported")
    known = tuple(grid_constants(model.visual, grid) for grid in inputs.grids)
    mask = None if inputs["attention_mask"] is None else inputs.mask
    arguments = (inputs["input_ids"], inputs["position_ids"], mask, inputs.places, inputs.pixels)
    outputs: list[Tensor] = (decoder or decode)(
        model, *arguments, inputs.grids, known, tuple(layers), final_norm, cache
    )
    return outputs


def decode(
    model: Any,
    ids: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    places: Tensor,
    pixels: Tensor,
    grids: tuple[Grid, ...],
    known: tuple[GridConstants, ...],
    layers: tuple[int, ...],
    final_norm: bool,
    cache: Any = None,
) -> list[Tensor]:
    """What `run_decoder` runs: tensors in, tensors out.

    Args:
        model: See `run_decoder`.
        ids: int64 (B, L).
        positions: int64 (3, B, L) of the M-RoPE.
        mask: bool (B, L), None where nothing is padded.
        places: See `PromptInputs`.
        pixels: See `PromptInputs`.
        grids: See `PromptInputs`.
        known: `grid_constants` of each view.
        layers: See `run_decoder`.
        final_norm: See `run_decoder`.
        cache: Keeps keys and values, for tokens that are to follow.
    """
    text = model.language_model
    features, deep = see(model.visual, pixels, grids, known)
    row = torch.arange(len(ids), device=ids.device)[:, None]  # (B, 1)
    x = text.embed_tokens(ids)
    x = x.index_put(
        (row, places), features.to(x.dtype)
    )  # under autocast the vision tower answers in half precision
    masks = {"full_attention": attention_mask(text.config, mask, x), "linear_attention": mask}
    kinds = _kinds(text)
    rotary = text.rotary_emb(x, positions)
    kept = [x] if layers[0] == 0 else []
    for number, layer in enumerate(text.layers[: layers[-1]], start=1):
        x = layer(
            x,
            attention_mask=masks[kinds[number - 1]],
            position_ids=None,
            past_key_values=cache,
            position_embeddings=rotary,
        )
        if number <= len(deep):
            x = x.index_put((row, places), x[row, places] + deep[number - 1].to(x.dtype))
        if number == len(text.layers) and final_norm:
            x = text.norm(x)
        if number in layers:
            kept.append(x)
    return kept


def _kinds(text: Any) -> Sequence[str]:
    """What each layer of a language model is."""
    return getattr(text.config, "layer_types", None) or ["full_attention"] * len(text.layers)


def attention_mask(config: Any, mask: Tensor | None, x: Tensor) -> Tensor | None:
    """What the attention implementation of a causal decoder wants: nothing, the padding (B, L), or a bias (B, 1, L, L).

    A position of padding attends to itself, so that no row is empty.
    """
    implementation, length = config._attn_implementation, x.shape[1]
    if "flash" in implementation or (implementation == "sdpa" and mask is None):
        return mask  # causal by themselves
    causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    allowed = causal[None, None]
    if mask is not None:
        allowed = causal & mask[:, None, None, :] | torch.eye(length, dtype=torch.bool, device=x.device)
    bias = torch.zeros(allowed.shape, dtype=x.dtype, device=x.device)
    return bias.masked_fill(~allowed, torch.finfo(x.dtype).min)
