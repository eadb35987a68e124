"""Real-time chunking: a chunk that goes on from actions already committed to.

Black, Galliker, Levine 2025, "Real-Time Execution of Action Chunking Flow Policies" (arXiv:2506.07339): while a new chunk
is computed, the robot carries out the first d actions of the old one; they are a fact the new chunk has to start with.

Guidance (their equations 2 to 5). At x_t the network's estimate of the final chunk is  Â = x_t + (1 - t) v(x_t, t).
The velocity is corrected towards the known actions Y with weights W along the transposed Jacobian of Â (pseudo-inverse
guidance, Song et al. 2023; Pokle et al. 2023):

    v' = v + min(β, (1 - t) / (t r²)) * (∂Â/∂x_t)ᵀ W (Y - Â),      r² = (1 - t)² / (t² + (1 - t)²)

W_i = 1 for the committed actions i < d; for later known ones, which only pull, with c = (P - i) / (P - d + 1):
W_i = c (e^c - 1) / (e - 1); 0 from P on, where nothing is known.

Replacement ("inpainting" as in RePaint, Lugmayr et al. 2022). The committed actions stay on their own straight path
(1 - t) noise + t Y and arrive at Y exactly; what follows them hears of it through self-attention.

Both are done together: each alone continues the prefix less well (docs/flow.md has numbers). With β = 0 only the
replacement is left, which needs no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vla_agents.errors import ConfigError
from vla_agents.policies.heads.flow import Guide


def prefix_weights(known: int, committed: int, horizon: int) -> Tensor:
    """(horizon,) weights W.

    Args:
        known: P, actions the prefix holds.
        committed: d of them that will be carried out for sure.
        horizon: H.
    """
    if not 0 < committed <= known <= horizon:
        raise ConfigError(
            f"a prefix of {known} actions of which {committed} are committed does not fit a horizon of {horizon}",
            "need 1 <= committed <= prefix length <= horizon",
        )
    weights = torch.zeros(horizon)
    weights[:committed] = 1.0
    c = (known - torch.arange(committed, known)) / (known - committed + 1)
    weights[committed:known] = c * torch.expm1(c) / (math.e - 1)
    return weights


def pad_prefix(prefix: Tensor, horizon: int) -> Tensor:
    """(B, P, D) -> (B, H, D), zeros behind."""
    return torch.nn.functional.pad(prefix, (0, 0, 0, horizon - prefix.shape[1]))


def guide_to(target: Tensor, weights: Tensor, committed: int, noise: Tensor, strength: float) -> Guide:
    """The velocity of a chunk that goes on from known actions.

    Args:
        target: (B, H, D) normalised, known where `weights` are not 0.
        weights: (H,) from `prefix_weights`.
        committed: d; the first d actions of the result are those of `target`.
        noise: (B, H, D) the chunk starts from.
        strength: β; 0 for replacement alone.
    """
    path = (target - noise)[:, :committed]

    def guide(x: Tensor, t: float, velocity: Callable[[Tensor], Tensor]) -> Tensor:
        if not strength:
            return torch.cat([path, velocity(x)[:, committed:]], 1)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            v = velocity(x)
            final = x + (1 - t) * v
            error = (target - final.detach()) * weights[:, None]
            (pull,) = torch.autograd.grad(final, x, error)
        r2 = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
        weight = strength if t == 0 else min(strength, (1 - t) / (t * r2))
        return torch.cat([path, (v.detach() + weight * pull)[:, committed:]], 1)

    return guide
