"""Qwen-PI: a Qwen-VL and an action expert of as many blocks as it has layers, each reading its layer.

After Black et al. 2024, "π0: A Vision-Language-Action Flow Model for General Robot Control", with cross-attention to the
layers of a Qwen-VL as in StarVLA.

    images (B, H, W, 3) x views, instruction
      -> Qwen-VL -> hidden states of layers 1 .. N                        N x (B, L, C), all tokens, and their padding mask
    normalised state (B, S) -> MLP -> 1 token;  32 learned tokens;  noisy actions (B, H, D) -> MLP with time -> H tokens
      -> N blocks as wide as the VLM; block i reads layer i + 1           (B, 1 + 32 + H, C)
      -> MLP                                                              (B, H, D) velocity

Semantics of the same weights: `interleaved` (odd blocks attend to the tokens instead of their layer) and `cross_only` (all
blocks read their layer). In `interleaved` mode layers that only odd blocks would read are not kept, and deeper ones than
the last one read are not run.

Time: t = 0 is noise, t = 1 the action; x_t = (1 - t) noise + t action; Euler steps from noise.
Loss: |v - (action - noise)|² in normalised units, a mean over the entries inside the episode and over `repeats` noises and
times for each sample. In contrast to Qwen-GR00T: one context per block, times may lie 0.001 below 0, the action MLP reads
the tokens directly. (StarVLA's loss is the same without the mask at the episode's end.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError
from vla_agents.normalize import Normalizer
from vla_agents.policies.backbone import Backbone
from vla_agents.policies.flow_policy import FlowConfig, FlowPolicy
from vla_agents.policies.heads.flow import FlowHeadShape, Semantics
from vla_agents.policies.heads.layerwise import LayerwiseHead


@dataclass(frozen=True)
class QwenPIConfig(FlowConfig):
    """What makes a Qwen-PI besides embodiment and statistics."""

    semantics: Semantics = "interleaved"
    """interleaved: odd blocks attend to the tokens; cross_only: none does (StarVLA checkpoints up to spring 2026)."""
    width: int = 0
    """Width of the tokens; 0 takes the VLM's (as StarVLA's checkpoints have)."""
    heads: int = 0
    """Attention heads; 0 takes heads of 64 numbers, or of the largest power of two below that divides the width."""
    depth: int = 0
    """Blocks; 0 takes one for each layer of the VLM, fewer read its last layers."""
    hidden: int = 1024
    """Width inside the MLPs that read the state and write the actions."""
    output: int = 26
    """Outputs of a projection that nothing reads and StarVLA's checkpoints hold."""
    repeats: int = 2
    """Noises and times drawn for each training sample; the VLM runs once for all of them."""


class QwenPI(FlowPolicy):
    """See the module docstring.

    Args:
        config: Its shape.
        backbone: The VLM.
        embodiment: What observations and actions mean.
        normalizers: Of `"state"` and `"action"`.
    """

    config_class = QwenPIConfig

    def __init__(
        self,
        config: QwenPIConfig,
        backbone: Backbone,
        embodiment: Embodiment,
        normalizers: Mapping[str, Normalizer],
    ) -> None:
        width, depth = config.width or backbone.hidden_size, config.depth or backbone.num_layers
        if depth > backbone.num_layers:
            raise ConfigError(f"depth {depth} is more than the VLM's {backbone.num_layers} layers")
        shape = FlowHeadShape(
            action_dim=embodiment.action_dim,
            horizon=config.horizon,
            context_dim=backbone.hidden_size,
            width=width,
            heads=config.heads or width // math.gcd(width, 64),
            depth=depth,
            state_dim=config.state_size or (embodiment.state_dim if config.state == "head" else 0),
            hidden=config.hidden,
            output=config.output,
            future_tokens=config.future_tokens,
            max_positions=config.positions,
            dropout=config.dropout,
        )
        head = LayerwiseHead(shape, config.semantics)
        first = backbone.num_layers - depth + 1
        layers = [first + index for index, cross in enumerate(head.crosses) if cross]
        super().__init__(config, backbone, embodiment, normalizers, head, layers, config.repeats)
