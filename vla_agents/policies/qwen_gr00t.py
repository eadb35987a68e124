"""Qwen-GR00T: a Qwen-VL that is read by a diffusion transformer through its last hidden states.

NVIDIA 2025, "GR00T N1: An Open Foundation Model for Generalist Humanoid Robots" (system 2 / system 1), with a Qwen-VL as
system 2 as in StarVLA.

    images (B, H, W, 3) x views, instruction
      -> Qwen-VL -> hidden states of the last layer                       (B, L, C), all tokens, and their padding mask
    normalised state (B, S) -> MLP -> 1 token;  32 learned tokens;  noisy actions (B, H, D) -> MLP with time -> H tokens
      -> DiT: 16 blocks, even ones attend to the hidden states, odd ones to the tokens    (B, 1 + 32 + H, W)
      -> modulated norm, projection, MLP                                  (B, H, D) velocity

Time: t = 0 is noise, t = 1 the action; x_t = (1 - t) noise + t action; Euler steps from noise.
Loss: |v - (action - noise)|² in normalised units, a mean over the entries inside the episode and over `repeats` noises and
times for each sample. In contrast to Qwen-PI: one context for all blocks, times are kept at or above 0, and the output goes
through a last norm and projection. (StarVLA's loss is the same without the mask at the episode's end.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vla_agents.embodiment import Embodiment
from vla_agents.normalize import Normalizer
from vla_agents.policies.backbone import Backbone
from vla_agents.policies.flow_policy import FlowConfig, FlowPolicy
from vla_agents.policies.heads.flow import FlowHeadShape, Semantics
from vla_agents.policies.heads.gr00t import GR00THead, dit_size


@dataclass(frozen=True)
class QwenGR00TConfig(FlowConfig):
    """What makes a Qwen-GR00T besides embodiment and statistics."""

    size: Literal["DiT-B", "DiT-L"] = "DiT-B"
    """Shape of the transformer: DiT-B (768 wide, 12 heads, 16 blocks) or DiT-L (1536, 32, 16)."""
    width: int = 0
    """Width of the tokens in place of the preset's; 0 keeps that."""
    heads: int = 0
    """Attention heads in place of the preset's; 0 keeps that."""
    depth: int = 0
    """Blocks in place of the preset's; 0 keeps that."""
    hidden: int = 1024
    """Width inside the MLPs that read the state and write the actions."""
    output: int = 1024
    """Outputs of the last projection, which the action MLP reads."""
    semantics: Semantics = "interleaved"
    """interleaved: odd blocks attend to the tokens; cross_only: none does (for checkpoints trained so)."""
    repeats: int = 8
    """Noises and times drawn for each training sample; the VLM runs once for all of them."""


class QwenGR00T(FlowPolicy):
    """See the module docstring.

    Args:
        config: Its shape.
        backbone: The VLM.
        embodiment: What observations and actions mean.
        normalizers: Of `"state"` and `"action"`.
    """

    config_class = QwenGR00TConfig
    clamp_time = True

    def __init__(
        self,
        config: QwenGR00TConfig,
        backbone: Backbone,
        embodiment: Embodiment,
        normalizers: Mapping[str, Normalizer],
    ) -> None:
        preset = dit_size(config.size)
        shape = FlowHeadShape(
            action_dim=embodiment.action_dim,
            horizon=config.horizon,
            context_dim=backbone.hidden_size,
            width=config.width or preset.width,
            heads=config.heads or preset.heads,
            depth=config.depth or preset.depth,
            state_dim=config.state_size or (embodiment.state_dim if config.state == "head" else 0),
            hidden=config.hidden,
            output=config.output,
            future_tokens=config.future_tokens,
            max_positions=config.positions,
            dropout=config.dropout,
        )
        head = GR00THead(shape, config.semantics)
        layers = [backbone.num_layers] * sum(head.crosses)
        super().__init__(config, backbone, embodiment, normalizers, head, layers, config.repeats)
