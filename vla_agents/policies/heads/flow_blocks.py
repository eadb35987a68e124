"""The parts of a flow-matching action head: embeddings of time and action, attention, the AdaLN transformer block.

Names of parameters are those of StarVLA's checkpoints (which took them from Isaac-GR00T and diffusers), so that weights
load by name; the arithmetic is that of Peebles & Xie 2023 ("DiT") with two changes of GR00T N1 (NVIDIA 2025): a block
attends either to the tokens themselves or to a context, and only the first norm of a block is modulated by time.

    N samples of a flow batch; several of them may share one of B contexts: N = R * B, sample n belongs to context n % B
    T tokens, W width, h heads of d = W / h, L context positions of width C
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_agents.policies.packed import PackedLinear


def sinusoid(position: Tensor, size: int, *, cosine_first: bool, last: bool) -> Tensor:
    """(N,) integers -> (N, size), float32: sines and cosines of wavelengths from 2π to 10000 * 2π.

    Args:
        position: What to encode.
        size: Even.
        cosine_first: Cosines in the first half, else sines.
        last: Whether the longest wavelength itself is reached (diffusers' downscale_freq_shift = 1).
    """
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=position.device)
    angle = position.float()[:, None] * torch.exp(-math.log(10000.0) * steps / (half - last))
    parts = (angle.cos(), angle.sin()) if cosine_first else (angle.sin(), angle.cos())
    return torch.cat(parts, -1)


class MLP(nn.Module):
    """layer2(relu(layer1(x)))."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layer1 = PackedLinear(inputs, hidden)
        self.layer2 = PackedLinear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) -> (…, outputs)."""
        return self.layer2(F.relu(self.layer1(x)))


class TimestepEmbedder(nn.Module):
    """linear_2(silu(linear_1(x)))."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, width)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class TimestepEncoder(nn.Module):
    """The time bucket as a vector that modulates the blocks: 256 sinusoids, then an MLP."""

    SINUSOIDS = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(self.SINUSOIDS, width)

    def forward(self, bucket: Tensor) -> Tensor:
        """(N,) -> (N, W)."""
        code = sinusoid(bucket, self.SINUSOIDS, cosine_first=True, last=True)
        return self.timestep_embedder(code.to(self.timestep_embedder.linear_1.weight.dtype))


class ActionEncoder(nn.Module):
    """layer3(silu(layer2([layer1(action), sinusoid(bucket)]))).

    The half of `layer2` that sees the time bucket does not depend on the action: `time_bias` gives it on its own, so that
    it is computed once per bucket.
    """

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layer1 = nn.Linear(action_dim, width)
        self.layer2 = nn.Linear(2 * width, width)
        self.layer3 = PackedLinear(width, width)

    def time_bias(self, bucket: Tensor) -> Tensor:
        """(N,) -> (N, 1, W)."""
        code = sinusoid(bucket, self.width, cosine_first=False, last=False).to(self.layer2.weight.dtype)
        return F.linear(code, self.layer2.weight[:, self.width :], self.layer2.bias)[:, None]

    def forward(self, action: Tensor, time_bias: Tensor) -> Tensor:
        """(N, H, D) -> (N, H, W)."""
        x = F.linear(self.layer1(action), self.layer2.weight[:, : self.width]) + time_bias
        return self.layer3(F.silu(x))


class ContextKV(NamedTuple):
    """Keys and values of one context for one block, projected once.

    Args:
        key: (B, h, L, d).
        value: (B, h, L, d).
        mask: bool (B, 1, 1, L), False on padding; None where there is none.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None


class Attention(nn.Module):
    """Multi-head attention with biases; keys and values come from the queries' tokens or from a context."""

    def __init__(self, width: int, context: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = PackedLinear(width, width)
        self.to_k = PackedLinear(context, width)
        self.to_v = PackedLinear(context, width)
        self.to_out = nn.ModuleList([PackedLinear(width, width), nn.Dropout(dropout)])

    def project(self, context: Tensor, mask: Tensor | None) -> ContextKV:
        """(B, L, C) and bool (B, L) -> what `forward` takes as `kv`."""
        if mask is not None:
            mask = mask[:, None, None]
        return ContextKV(self._split(self.to_k(context)), self._split(self.to_v(context)), mask)

    def forward(
        self, query: Tensor, tokens: Tensor, kv: ContextKV | None, visible: Tensor | None = None
    ) -> Tensor:
        """(N, Q, W) queries; keys and values of `tokens` (N, T, W), those `visible` (N, T), or of `kv` where given."""
        n, q, width = query.shape
        queries = self._split(self.to_q(query))  # (N, h, Q, d)
        if kv is None:
            mask = None if visible is None else visible[:, None, None]
            key, value = self._split(self.to_k(tokens)), self._split(self.to_v(tokens))
            x = F.scaled_dot_product_attention(queries, key, value, attn_mask=mask)
        else:  # the R samples of one context ask it together: no copies of keys and values
            b, d = len(kv.key), width // self.heads
            repeats = n // b
            queries = queries.view(repeats, b, self.heads, q, d).permute(1, 2, 0, 3, 4)
            x = F.scaled_dot_product_attention(
                queries.reshape(b, self.heads, repeats * q, d), kv.key, kv.value, attn_mask=kv.mask
            )
            x = x.view(b, self.heads, repeats, q, d).permute(2, 0, 1, 3, 4).reshape(n, self.heads, q, d)
        x = x.transpose(1, 2).reshape(n, q, width)
        for layer in self.to_out:
            x = layer(x)
        return x

    def _split(self, x: Tensor) -> Tensor:
        """(…, L, W) -> (…, h, L, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class AdaNorm(nn.Module):
    """norm(x) * (1 + scale) + shift, where scale and shift are linear in silu(time embedding)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def modulation(self, silu_time: Tensor) -> Tensor:
        """(N, W) -> (2, N, 1, W), scale and shift."""
        return torch.stack(self.linear(silu_time)[:, None].chunk(2, -1))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(N, T, W) -> (N, T, W)."""
        scale, shift = modulation
        return F.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + scale) + shift


class GELUProjection(nn.Module):
    """gelu_tanh(proj(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = PackedLinear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, hidden)."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """width -> 4 * width -> width, with dropout after both."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GELUProjection(width, 4 * width),
            nn.Dropout(dropout),
            PackedLinear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        return self.net(x)


class Block(nn.Module):
    """x = x + attention(AdaNorm(x, t));  x = x + FF(LN(x)). LN has no parameters; one kind of attention per block."""

    def __init__(self, width: int, context: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = AdaNorm(width)
        self.attn1 = Attention(width, context, heads, dropout)
        self.final_dropout = nn.Dropout(dropout)
        self.ff = FeedForward(width, dropout)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        kv: ContextKV | None,
        tail: int = 0,
        visible: Tensor | None = None,
    ) -> Tensor:
        """(N, T, W) -> (N, T, W), or the last `tail` tokens of it, the others being computed no further.

        Tokens that are not `visible`, bool (N, T), are not attended to.
        """
        normed = self.norm1(x, modulation)
        x = x[:, -tail:] + self.final_dropout(self.attn1(normed[:, -tail:], normed, kv, visible))
        return x + self.ff(F.layer_norm(x, x.shape[-1:], eps=1e-5))
