"""Flow matching over chunks of actions, for every head that denoises with a transformer (GR00T, layer-wise PI).

Lipman et al. 2023, "Flow Matching for Generative Modeling"; Black et al. 2024, "π0"; NVIDIA 2025, "GR00T N1".

Time runs from noise (t = 0) to action (t = 1):   x_t = (1 - t) * noise + t * action,   v = action - noise.
Training: t = (s - β) / s with β ~ Beta(1.5, 1), s = 0.999, so that t near 0 (noise) is seen most; the network is told
the bucket trunc(1000 t) only; the loss is |v_network - v|², a mean over the entries that count.
Acting: Euler steps x += v / n from noise, at the buckets trunc(1000 i / n), i = 0 .. n-1.

    tokens of a sample: [state (1)] [learned "future" tokens (F)] [actions (H)]      (N, 1 + F + H, W)
    a block attends to the tokens or to a context; see `vla_agents.policies.heads.gr00t` and `.layerwise`

What does not depend on x_t is computed once per prediction: keys and values of the context (`ContextKV`), state and future
tokens, and everything that depends on the time bucket (`Conditioning`, all steps in one go). The last block computes the
action tokens only.

Real-time chunking is in `vla_agents.policies.heads.inpainting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_agents.errors import ConfigError
from vla_agents.policies.compiling import compiled
from vla_agents.policies.heads.flow_blocks import MLP, ActionEncoder, Block, ContextKV, TimestepEncoder
from vla_agents.policies.heads.flow_schedule import FlowSchedule
from vla_agents.policies.packed import PackedLinear

Guide = Callable[[Tensor, float, Callable[[Tensor], Tensor]], Tensor]
"""(x_t, t, velocity function) -> the velocity to follow; see `inpainting`."""
Semantics = Literal["interleaved", "cross_only"]
"""Whether odd blocks attend to the tokens, or all blocks to a context."""


def crossing(semantics: Semantics, depth: int) -> list[bool]:
    """For each of `depth` blocks whether it attends to a context."""
    return [semantics == "cross_only" or index % 2 == 0 for index in range(depth)]


@dataclass(frozen=True)
class FlowHeadShape:
    """Sizes of a flow head.

    Args:
        action_dim: D.
        horizon: H.
        context_dim: C, width of the context.
        width: W of the tokens.
        heads: Attention heads.
        depth: Blocks.
        state_dim: S; 0 for a head without state encoder.
        hidden: Width inside the MLPs that read the state and write the actions.
        output: Outputs of the final projection.
        future_tokens: F, learned tokens.
        max_positions: Rows of the position table of the actions; 0 for none.
        dropout: In attention outputs and feed-forwards, while training.
    """

    action_dim: int
    horizon: int
    context_dim: int
    width: int
    heads: int
    depth: int
    state_dim: int = 0
    hidden: int = 1024
    output: int = 1024
    future_tokens: int = 32
    max_positions: int = 1024
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 2:
            raise ConfigError(
                f"width {self.width} must be even and a multiple of heads {self.heads}",
                "choose another width, or the number of heads",
            )
        if 0 < self.max_positions < self.horizon:
            raise ConfigError(f"{self.max_positions} positions are too few for a horizon of {self.horizon}")


class Conditioning(NamedTuple):
    """All that depends on the time bucket: one row for each of N times.

    Args:
        action_bias: (N, 1, W), see `ActionEncoder`.
        blocks: (depth, 2, N, 1, W), scale and shift of each block.
        final: (2, N, 1, W), scale and shift of the final norm; None for a head without one.
    """

    action_bias: Tensor
    blocks: Tensor
    final: Tensor | None

    def row(self, index: int) -> Conditioning:
        """One time, for all samples."""
        one = slice(index, index + 1)
        final = None if self.final is None else self.final[:, one]
        return Conditioning(self.action_bias[one], self.blocks[:, :, one], final)


class FlowTransformer(nn.Module):
    """The parameters of the blocks, under StarVLA's names. A block whose context is 0 wide attends to the tokens."""

    def __init__(self, shape: FlowHeadShape, contexts: Sequence[int]) -> None:
        super().__init__()
        self.timestep_encoder = TimestepEncoder(shape.width)
        self.transformer_blocks = nn.ModuleList(
            [Block(shape.width, context or shape.width, shape.heads, shape.dropout) for context in contexts]
        )
        self.proj_out_1 = nn.Linear(shape.width, 2 * shape.width)
        self.proj_out_2 = PackedLinear(shape.width, shape.output)


class FlowHead(nn.Module):
    """Base of the flow heads.

    Args:
        shape: Sizes.
        crosses: For each block, whether it attends to a context; the others attend to the tokens.
        decoder_inputs: Width of what the action decoder reads.
    """

    def __init__(self, shape: FlowHeadShape, crosses: Sequence[bool], decoder_inputs: int) -> None:
        super().__init__()
        self.shape = shape
        self._kept: tuple[Any, Conditioning] | None = None
        self._graphs: dict[str, Callable[..., Any]] = {}
        self.crosses = tuple(crosses)
        self.mixes = not all(self.crosses)  # else no token sees another, and those without an action are idle
        self.model = FlowTransformer(shape, [shape.context_dim if cross else 0 for cross in crosses])
        self.state_encoder = MLP(shape.state_dim, shape.hidden, shape.width) if shape.state_dim else None
        self.action_encoder = ActionEncoder(shape.action_dim, shape.width)
        self.action_decoder = MLP(decoder_inputs, shape.hidden, shape.action_dim)
        self.future_tokens = nn.Embedding(shape.future_tokens, shape.width)
        nn.init.normal_(self.future_tokens.weight, std=0.02)
        self.position_embedding = (
            nn.Embedding(shape.max_positions, shape.width) if shape.max_positions else None
        )
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding.weight, std=0.02)
        if not self.mixes:
            self.future_tokens.requires_grad_(False)
            if self.state_encoder is not None:
                self.state_encoder.requires_grad_(False)

    # ---- to be said by a head -----------------------------------------------------------------------------
    def read_out(self, tokens: Tensor, final: Tensor | None) -> Tensor:
        """What the action decoder reads, (N, H, W) -> (N, H, decoder inputs)."""
        raise NotImplementedError

    def final_modulation(self, silu_time: Tensor) -> Tensor | None:
        """(N, W) -> (2, N, 1, W), `Conditioning.final`."""
        return None

    # ---- once per prediction ------------------------------------------------------------------------------
    def project(self, contexts: Sequence[Tensor], mask: Tensor | None) -> list[ContextKV | None]:
        """Keys and values for each block, None where it attends to the tokens.

        Args:
            contexts: One (B, L, C) for each block that attends to a context, in order.
            mask: bool (B, L), False on padding; None where nothing is padded.
        """
        given = iter(contexts)
        return [
            block.attn1.project(next(given), mask) if cross else None  # type: ignore[union-attr, operator]
            for block, cross in zip(self.model.transformer_blocks, self.crosses, strict=True)
        ]

    def condition(self, buckets: Tensor) -> Conditioning:
        """(N,) int64 buckets -> everything that depends on them."""
        silu_time = F.silu(self.model.timestep_encoder(buckets))
        blocks = torch.stack([block.norm1.modulation(silu_time) for block in self.model.transformer_blocks])  # type: ignore[union-attr, operator]
        return Conditioning(self.action_encoder.time_bias(buckets), blocks, self.final_modulation(silu_time))

    def step_conditioning(self, schedule: FlowSchedule, steps: int) -> Conditioning:
        """`condition` of the Euler steps, kept from one prediction to the next while the head is in eval mode.

        A change of a weight in place, by an optimiser or by loading, is noticed; one through `.data` is not.
        """
        parameters = [
            *self.model.timestep_encoder.parameters(),
            *self.model.proj_out_1.parameters(),
            *self.action_encoder.layer2.parameters(),
            *(p for block in self.model.transformer_blocks for p in block.norm1.parameters()),  # type: ignore[union-attr]
        ]
        buckets = schedule.step_buckets(steps).to(parameters[0].device)
        if self.training or torch.is_grad_enabled() or any(p.is_inference() for p in parameters):
            return self.condition(buckets)
        key = (schedule, steps, tuple((p._version, p.data_ptr(), p.dtype) for p in parameters))
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # in this order: the first turns gradients on
                self._kept = (key, self.condition(buckets))
        return self._kept[1]

    def train(self, mode: bool = True) -> FlowHead:
        """As `nn.Module.train`; forgets what was kept, and, when training begins, what was compiled."""
        self._kept = None
        if mode:
            self._graphs.clear()
        return super().train(mode)

    def compile_acting(self, *, graphs: bool = True) -> None:
        """Run `begin` and `step` as compiled graphs where no gradient is wanted; see `vla_agents.policies.compiling`."""
        device = self.future_tokens.weight.device
        for function in (self.begin, self.step):
            self._graphs[function.__name__] = compiled(function, device, constants=True, graphs=graphs)

    def begin(
        self, contexts: Sequence[Tensor], mask: Tensor | None, state: Tensor | None, count: int
    ) -> tuple[list[ContextKV | None], Tensor | None]:
        """What an act computes once: `project` and `static_tokens`."""
        return self.project(contexts, mask), self.static_tokens(state, count)

    def step(
        self,
        x: Tensor,
        row: Conditioning,
        kv: Sequence[ContextKV | None],
        tokens: Tensor | None,
        steps: int,
    ) -> Tensor:
        """One Euler step of `steps`, (N, H, D) -> (N, H, D)."""
        return x + self.velocity(x, row, tokens, kv) / steps

    def static_tokens(self, state: Tensor | None, count: int) -> Tensor | None:
        """The tokens that are no actions, (count, 1 + F, W); None where they could not matter."""
        if not self.mixes:
            return None
        tokens = self.future_tokens.weight.expand(count, -1, -1)
        if state is None or self.state_encoder is None:
            return tokens
        encoded = self.state_encoder(state.to(tokens.dtype))[:, None]
        return torch.cat([encoded.repeat(count // len(state), 1, 1), tokens], 1)

    # ---- the network --------------------------------------------------------------------------------------
    def velocity(
        self,
        x: Tensor,
        conditioning: Conditioning,
        tokens: Tensor | None,
        kv: Sequence[ContextKV | None],
        visible: Tensor | None = None,
    ) -> Tensor:
        """v at x_t, (N, H, D) -> (N, H, D).

        Args:
            x: Noisy actions, N = R * B, sample n belonging to context n % B.
            conditioning: Of N times, or of one for all.
            tokens: From `static_tokens`.
            kv: From `project`.
            visible: bool (N, H), False for actions that the others must not see; None where they see all.
        """
        horizon = x.shape[1]
        hidden = self.action_encoder(x.to(self.action_encoder.layer1.weight.dtype), conditioning.action_bias)
        if self.position_embedding is not None:
            hidden = hidden + self.position_embedding.weight[:horizon]
        if tokens is not None:
            hidden = torch.cat([tokens, hidden], 1)
            if visible is not None:
                visible = F.pad(visible, (tokens.shape[1], 0), value=True)
        last = self.shape.depth - 1
        for index, block in enumerate(self.model.transformer_blocks):
            tail = horizon if index == last else 0
            hidden = block(hidden, conditioning.blocks[index], kv[index], tail, visible)
        return self.action_decoder(self.read_out(hidden, conditioning.final)).to(x.dtype)

    def errors(
        self,
        action: Tensor,
        noise: Tensor,
        time: Tensor,
        state: Tensor | None,
        contexts: Sequence[Tensor],
        mask: Tensor | None,
        buckets: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Squared errors of the velocity, (N, H, D): the training loss before its mean.

        Args:
            action: (B, H, D) normalised.
            noise: (N, H, D), N = R * B: R draws for each sample, sample n being n % B.
            time: (N,).
            state: (B, S) normalised, or None.
            contexts: See `project`.
            mask: See `project`.
            buckets: (N,) of `time`.
            valid: bool (N, H), False past the end of an episode: the other actions do not see these.
        """
        action = action.repeat(len(noise) // len(action), 1, 1)
        share = time[:, None, None]
        x = (1 - share) * noise + share * action
        kv = self.project(contexts, mask)
        tokens = self.static_tokens(state, len(noise))
        return (self.velocity(x, self.condition(buckets), tokens, kv, valid) - (action - noise)) ** 2

    def sample(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        contexts: Sequence[Tensor],
        mask: Tensor | None = None,
        state: Tensor | None = None,
        guide: Guide | None = None,
    ) -> Tensor:
        """Actions from noise by Euler steps, (B, H, D) normalised.

        Args:
            noise: (B, H, D).
            conditioning: Of the steps, from `step_conditioning`.
            contexts: See `project`.
            mask: See `project`.
            state: (B, S) normalised, or None.
            guide: Changes the velocity at each step (real-time chunking).
        """
        graphs = {} if guide or torch.is_grad_enabled() else self._graphs
        begin, step = graphs.get("begin", self.begin), graphs.get("step", self.step)
        kv, tokens = begin(contexts, mask, state, len(noise))
        x, steps = noise, len(conditioning.action_bias)
        for number in range(steps):
            row = conditioning.row(number)
            if guide is None:
                x = step(x, row, kv, tokens, steps)
                continue

            def velocity(at: Tensor, row: Conditioning = row) -> Tensor:
                return self.velocity(at, row, tokens, kv)

            x = x + guide(x, number / steps, velocity) / steps
        return x
