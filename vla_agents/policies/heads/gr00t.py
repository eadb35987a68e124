"""The action head of GR00T N1: a diffusion transformer (DiT) over state, future and action tokens.

NVIDIA 2025, "GR00T N1: An Open Foundation Model for Generalist Humanoid Robots", section 2.1; Peebles & Xie 2023, "DiT".

    context = the VLM's last hidden states (B, L, C) and its padding mask
    blocks 0, 2, 4, … attend to the context, blocks 1, 3, 5, … to the tokens ("interleaved"), or all to the context
    out = proj_out_2(LN(tokens) * (1 + scale(t)) + shift(t));  actions = MLP(out)        (N, H, D)

Time convention and loss: `vla_agents.policies.heads.flow`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_agents.errors import UnknownNameError
from vla_agents.policies.heads.flow import FlowHead, FlowHeadShape, Semantics, crossing


class DiTSize(NamedTuple):
    """Width of the tokens, attention heads, blocks."""

    width: int
    heads: int
    depth: int = 16


PRESETS = {"DiT-B": DiTSize(768, 12), "DiT-L": DiTSize(1536, 32)}


def dit_size(preset: str) -> DiTSize:
    """A preset by name: about 160 (DiT-B) and 570 (DiT-L) million parameters over a 2048 wide VLM."""
    if preset not in PRESETS:
        raise UnknownNameError("DiT preset", preset, PRESETS)
    return PRESETS[preset]


class GR00THead(FlowHead):
    """See the module docstring."""

    def __init__(self, shape: FlowHeadShape, semantics: Semantics = "interleaved") -> None:
        super().__init__(shape, crossing(semantics, shape.depth), shape.output)

    def final_modulation(self, silu_time: Tensor) -> Tensor:
        """See `FlowHead.final_modulation`."""
        shift, scale = self.model.proj_out_1(silu_time)[:, None].chunk(2, -1)
        return torch.stack([scale, shift])

    def read_out(self, tokens: Tensor, final: Tensor | None) -> Tensor:
        """Final modulated norm and projection."""
        assert final is not None
        scale, shift = final
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        return self.model.proj_out_2(normed * (1 + scale) + shift)
