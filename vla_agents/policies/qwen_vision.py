"""The eyes of a Qwen-VL: all pictures of one size in one batch, nothing asked of the device on the way.

`transformers` runs the tower over one long sequence of patches, cuts it at every picture (or window) to attend, picture by
picture, and reads the cuts back from the device in every block. Here pictures of one grid are a batch; what depends on
the grid alone (rotary angles, places in the position table, order of the windows) is computed once and kept; the patch
embedding is one matrix product (its kernel does not overlap). So shapes are static: the tower compiles into one graph.
The arithmetic is that of the towers' `forward` in `transformers`; tests compare both.

    patches (n, P, 3 * temporal * patch²) -> blocks (n, P, width) -> merged 2 x 2 (n, P / 4, hidden)
    Qwen3: outputs of some blocks, merged as well, go to the decoder's first layers ("deepstack")
    Qwen2.5: most blocks attend within windows
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int, int]
"""A picture in patches: (1, rows, columns)."""


class GridConstants(NamedTuple):
    """What depends on a grid and not on the pictures.

    Args:
        cos: (P, d) of the rotary angles, patches in the order of the blocks.
        sin: (P, d), likewise.
        places: int64 (P, 4) rows of the position table to mix, None where there is none (Qwen2.5).
        weights: (P, 4), their shares.
        order: int64 (P / 4,), Qwen2.5: merged tokens sorted by window; None where there are no windows.
        back: int64 (P / 4,), the inverse of `order`.
        windows: Patches in each window, () where there are none.
    """

    cos: Tensor
    sin: Tensor
    places: Tensor | None
    weights: Tensor | None
    order: Tensor | None
    back: Tensor | None
    windows: tuple[int, ...]


def grid_constants(visual: Any, grid: Grid) -> GridConstants:
    """The constants of a grid for a vision tower, kept with the tower."""
    device = visual.patch_embed.proj.weight.device
    kept: dict[Any, GridConstants] = visual.__dict__.setdefault("_grid_constants", {})
    key = (grid, device)
    if key not in kept:
        with torch.inference_mode(False), torch.no_grad():
            kept[key] = _constants(visual, grid, device)
    return kept[key]


def _constants(visual: Any, grid: Grid, device: torch.device) -> GridConstants:
    from transformers.vision_utils import (
        get_vision_interpolation_indices_and_weights,
        get_vision_position_ids,
        get_vision_window_index,
    )

    grids = torch.tensor([grid])
    positions = get_vision_position_ids(grids, visual.spatial_merge_size).to(device)
    cos, sin = visual.rotary_pos_emb(positions, positions)
    if hasattr(visual, "pos_embed"):
        places, weights = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.spatial_merge_size,
        )
        return GridConstants(cos, sin, places.to(device), weights.to(device), None, None, ())
    order, ends = get_vision_window_index(
        grids, visual.spatial_merge_size, visual.window_size, visual.patch_size
    )
    sort = partial(_by_window, order=order.to(device), unit=visual.spatial_merge_unit)
    windows = tuple(ends.diff().tolist())
    back = order.argsort()
    return GridConstants(sort(cos), sort(sin), None, None, order.to(device), back.to(device), windows)


def _by_window(x: Tensor, *, order: Tensor, unit: int) -> Tensor:
    """(…, P, C) with the groups of `unit` patches in another order."""
    return x.unflatten(-2, (-1, unit))[..., order, :, :].flatten(-3, -2)


def see(
    visual: Any, pixels: Tensor, grids: Sequence[Grid], constants: Sequence[GridConstants]
) -> tuple[Tensor, list[Tensor]]:
    """What the decoder gets of B samples' pictures.

    Args:
        visual: The vision tower.
        pixels: (B, patches of all views, values of a patch).
        grids: Of each view.
        constants: `grid_constants` of each view.

    Returns:
        (B, T, hidden) for the T picture tokens of a prompt, in order; and a list of the same for deepstack.
    """
    samples, sizes = len(pixels), [rows * columns for _, rows, columns in grids]
    if len(set(grids)) == 1:  # all views of all samples at once
        features, deep = _tower(visual, pixels.reshape(-1, sizes[0], pixels.shape[-1]), constants[0])
        return features.reshape(samples, -1, features.shape[-1]), [
            level.reshape(samples, -1, level.shape[-1]) for level in deep
        ]
    seen = [
        _tower(visual, view, known) for view, known in zip(pixels.split(sizes, 1), constants, strict=True)
    ]
    levels = zip(*(deep for _, deep in seen), strict=True)
    return torch.cat([features for features, _ in seen], 1), [torch.cat(level, 1) for level in levels]


def _tower(visual: Any, pixels: Tensor, known: GridConstants) -> tuple[Tensor, list[Tensor]]:
    """(n, P, values) -> (n, P / 4, hidden), and deepstack's levels."""
    kernel = visual.patch_embed.proj
    x = F.linear(pixels.to(kernel.weight.dtype), kernel.weight.flatten(1), kernel.bias)
    if known.places is not None and known.weights is not None:
        x = x + (visual.pos_embed(known.places) * known.weights[..., None]).sum(1).to(x.dtype)
    if known.order is not None:
        x = _by_window(x, order=known.order, unit=visual.spatial_merge_unit)
    whole = getattr(visual, "fullatt_block_indexes", ()) if known.windows else range(len(visual.blocks))
    levels = list(getattr(visual, "deepstack_visual_indexes", ()))
    deep = []
    for number, block in enumerate(visual.blocks):
        run = partial(
            _block, block, cos=known.cos, sin=known.sin, windows=() if number in whole else known.windows
        )
        again = getattr(block, "gradient_checkpointing", False) and block.training
        x = block._gradient_checkpointing_func(run, x) if again else run(x)
        if number in levels:
            deep.append(_merged(visual.deepstack_merger_list[levels.index(number)], x))
    features = _merged(visual.merger, x)
    return (features if known.back is None else features[:, known.back]), deep


def _merged(merger: Any, x: Tensor) -> Tensor:
    merged: Tensor = merger(x.flatten(0, 1))
    return merged.unflatten(0, (len(x), -1))


def _block(block: Any, x: Tensor, *, cos: Tensor, sin: Tensor, windows: tuple[int, ...]) -> Tensor:
    """One block of the tower, (n, P, C) -> (n, P, C)."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1))  # (n, P, 3, h, d)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (n, h, P, d)
    query, key = _turn(query, cos, sin), _turn(key, cos, sin)
    x = x + attention.proj(_attend(attention, query, key, value, windows))
    return x + block.mlp(block.norm2(x))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (n, h, P, d), in float32."""
    first, second = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, windows: tuple[int, ...]) -> Tensor:
    """(n, h, P, d) three times -> (n, P, h * d), each patch seeing its window; all where there are none."""
    n, heads, patches, size = query.shape
    if len(set(windows)) > 1:
        parts = zip(*(tensor.split(list(windows), 2) for tensor in (query, key, value)), strict=True)
        return torch.cat([_attend(attention, q, k, v, ()) for q, k, v in parts], 1)
    if windows:  # of one size: a batch of windows

        def cut(x: Tensor) -> Tensor:
            return x.unflatten(2, (len(windows), windows[0])).transpose(1, 2).flatten(0, 1)

        return _attend(attention, cut(query), cut(key), cut(value), ()).reshape(n, patches, heads * size)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.qwen3_vl.modeling_qwen3_vl import eager_attention_forward

    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    out, _ = kernel(
        attention,
        query,
        key,
        value,
        attention_mask=None,
        scaling=attention.scaling,
        dropout=0.0,
        is_causal=False,
    )
    return out.flatten(2)
