"""The layer-wise action head: block i attends to the VLM's layer i.

After Black et al. 2024, "π0", whose action expert reads the VLM layer by layer; here by cross-attention (StarVLA's QwenPI).

    context of block i = output of VLM layer i + 1 of N (B, L, C), as many blocks as layers
    "interleaved": blocks 0, 2, 4, … attend to their layer, blocks 1, 3, 5, … to the tokens
    "cross_only":  every block attends to its layer; no action sees another one, the state or the future tokens, so these
                   are not computed
    actions = MLP(tokens), without a final norm                                          (N, H, D)

Weights of both semantics have the same shapes: which one a checkpoint was trained with cannot be read from it.
`proj_out_1` and `proj_out_2` exist for the sake of StarVLA's checkpoints; nothing reads or trains them.

Time convention and loss: `vla_agents.policies.heads.flow`.
"""

from __future__ import annotations

from torch import Tensor

from vla_agents.policies.heads.flow import FlowHead, FlowHeadShape, Semantics, crossing


class LayerwiseHead(FlowHead):
    """See the module docstring."""

    def __init__(self, shape: FlowHeadShape, semantics: Semantics) -> None:
        super().__init__(shape, crossing(semantics, shape.depth), shape.width)
        self.model.proj_out_1.requires_grad_(False)
        self.model.proj_out_2.requires_grad_(False)

    def read_out(self, tokens: Tensor, final: Tensor | None) -> Tensor:
        """The tokens as they are."""
        return tokens
