"""The vision tower against `transformers`: pictures of one size, of several, in windows, and with gradients."""

from __future__ import annotations

import pytest
import torch
from tiny import vlm_folder

from vla_agents.policies.qwen_vision import grid_constants, see
from vla_agents.policies.qwen_vl import QwenVLBackbone

ONE = [(32, 32), (32, 32)]
OTHERS = [(32, 48), (64, 16)]
WINDOWS = [(128, 128), (128, 128)]  # four windows of 64 pixels each
UNEQUAL = [(160, 96)]  # windows of several sizes


def views_of(sizes: list[tuple[int, int]], samples: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (samples, *size, 3), dtype=torch.uint8, generator=generator) for size in sizes
    ]


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "sizes", [ONE, OTHERS, WINDOWS, UNEQUAL], ids=["one", "others", "windows", "unequal"]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pictures_are_seen_as_by_transformers(
    family: str, sizes: list[tuple[int, int]], attention: str
) -> None:
    backbone = QwenVLBackbone.from_pretrained(vlm_folder(family), attention=attention).eval()
    inputs = backbone.inputs(views_of(sizes), ["lift it", "pick up the red block"])
    visual = backbone.vlm.model.visual
    constants = [grid_constants(visual, grid) for grid in inputs.grids]
    features, deep = see(visual, inputs.pixels, inputs.grids, constants)
    theirs = backbone.vlm.model.get_image_features(
        inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
    )
    torch.testing.assert_close(features.flatten(0, 1), torch.cat(theirs.pooler_output), atol=1e-5, rtol=1e-4)
    levels = getattr(theirs, "deepstack_features", [])
    assert len(levels) == len(deep) == (1 if family == "qwen3_vl" else 0)
    for own, level in zip(deep, levels, strict=True):
        torch.testing.assert_close(own.flatten(0, 1), torch.cat(level), atol=1e-5, rtol=1e-4)
    if sizes is WINDOWS and family == "qwen2_5_vl":
        assert constants[0].windows == (64,) * 4
    if sizes is UNEQUAL and family == "qwen2_5_vl":
        assert len(set(constants[0].windows)) > 1


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_gradients_are_those_of_transformers(family: str, again: bool) -> None:
    backbone = QwenVLBackbone.from_pretrained(vlm_folder(family)).train()
    views, texts = views_of(OTHERS), ["lift it", "pick up the red block"]
    with torch.inference_mode():
        backbone.encode(views, texts)  # what is kept from acting must serve learning too
    backbone.set_gradient_checkpointing(again)
    encoding = backbone.encode(views, texts)
    encoding.hidden[encoding.mask].square().mean().backward()
    own = {name: p.grad for name, p in backbone.vlm.named_parameters()}
    backbone.zero_grad(set_to_none=True)
    inputs = backbone.inputs(views, texts)
    theirs = backbone.vlm.model(**inputs, use_cache=False).last_hidden_state
    theirs[inputs.mask].square().mean().backward()
    assert any("visual" in name and grad is not None for name, grad in own.items())
    for name, p in backbone.vlm.named_parameters():
        torch.testing.assert_close(own[name], p.grad, atol=1e-6, rtol=1e-3)
