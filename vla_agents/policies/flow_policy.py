"""What the flow-matching policies share: encode once, learn a velocity, denoise, continue a prefix.

    images (B, H, W, 3) x views, instruction -> Qwen-VL -> contexts (B, L, C) x blocks that read one
    training: R noises and times for each sample -> |v - (action - noise)|²
    acting:   keys and values once -> Euler steps from noise -> (B, H, D) normalised -> un-normalised

Time convention and loss: `vla_agents.policies.heads.flow`. Noise of predictions comes from a generator of the policy's own
(`seed`), drawn row by row, so that a batch gets what its samples would get one after the other. Noise and times of training
are drawn for each sample from its `Batch.seeds`, which the trainer gives: however samples are shared out over micro-batches
and processes, they get the same. Without seeds they come from torch's global generator; in eval mode then from
seeds 0, 1, 2, …, so that losses can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError
from vla_agents.normalize import Normalizer
from vla_agents.policies.backbone import LAYERS, Backbone
from vla_agents.policies.heads.flow import FlowHead, Guide
from vla_agents.policies.heads.flow_schedule import FlowSchedule
from vla_agents.policies.heads.inpainting import guide_to, pad_prefix, prefix_weights
from vla_agents.policies.policy import Batch, Policy
from vla_agents.policies.policy_config import PolicyConfig


@dataclass(frozen=True)
class FlowConfig(PolicyConfig):
    """What every flow policy has besides embodiment and statistics."""

    steps: int = 4
    """Denoising (Euler) steps of a prediction."""
    state: Literal["head", "none"] = "head"
    """Where the proprioceptive state enters: as a token of the action head, or nowhere."""
    state_size: int = 0
    """Inputs of the state encoder; 0 takes the embodiment's. StarVLA checkpoints have one even where state is 'none'."""
    final_norm: bool = True
    """Whether the VLM's last layer is read after its final norm; false for StarVLA checkpoints over Qwen3-VL."""
    future_tokens: int = 32
    """Learned tokens beside state and actions."""
    positions: int = 1024
    """Rows of the position table of the actions; 0 for none."""
    dropout: float = 0.0
    """Of the head while training (StarVLA: 0.2)."""
    time_alpha: float = 1.5
    """Training times are t = (s - x) / s with x ~ Beta(alpha, beta)."""
    time_beta: float = 1.0
    """See time_alpha."""
    time_s: float = 0.999
    """See time_alpha."""
    buckets: int = 1000
    """Number of time buckets the network tells apart."""
    guidance: float = 5.0
    """Real-time chunking: largest weight of the pull towards a prefix; 0 for none (faster, less smooth)."""
    head_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the head's weights; noise, Euler steps and loss stay in float32."""


class FlowPolicy(Policy):
    """Base of the flow policies; subclasses give the head and the VLM layers it reads.

    Args:
        config: Its shape.
        backbone: The VLM.
        embodiment: What observations and actions mean.
        normalizers: Of `"state"` and `"action"`.
        head: The action head.
        layers: Numbers (1 .. N) of the VLM layers whose outputs are the head's contexts.
        repeats: R: noises and times drawn for each sample of a training batch.
    """

    clamp_time = False
    continues = True
    needs = frozenset({LAYERS})

    def __init__(
        self,
        config: FlowConfig,
        backbone: Backbone,
        embodiment: Embodiment,
        normalizers: Mapping[str, Normalizer],
        head: FlowHead,
        layers: Sequence[int],
        repeats: int,
    ) -> None:
        super().__init__(embodiment, normalizers, config.horizon, config.execute)
        if config.steps < 1 or repeats < 1:
            raise ConfigError(f"steps={config.steps} and repeats={repeats} must be at least 1")
        self.config: Any = config
        self.backbone = backbone
        self.head = head.to(getattr(torch, config.head_dtype))
        backbone.require(LAYERS)
        self.layers = tuple(layers)
        self.repeats = repeats
        self.schedule = FlowSchedule(config.time_alpha, config.time_beta, config.time_s, config.buckets)
        self._generator = torch.Generator().manual_seed(0)
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """What no action can depend on must not wait for gradients."""
        self.backbone.freeze_unused(self.layers, final_norm=self.config.final_norm)
        if self.head.state_encoder is not None and self.config.state == "none":
            self.head.state_encoder.requires_grad_(False)

    # ---- what the head reads ------------------------------------------------------------------------------
    def encode(self, batch: Batch) -> tuple[list[Tensor], Tensor | None]:
        """Contexts (B, L, C) in the head's dtype, and the padding mask where there can be padding."""
        texts = [self.config.told(text) for text in batch.instructions]
        wanted = sorted(set(self.layers))
        known = {} if batch.inputs is None else {"inputs": batch.inputs}
        encoding = self.backbone.encode(
            self.views(batch), texts, layers=wanted, final_norm=self.config.final_norm, **known
        )
        by_layer = dict(zip(wanted, encoding.layers, strict=True))
        dtype = self.head.action_encoder.layer1.weight.dtype
        read = {number: hidden.to(dtype) for number, hidden in by_layer.items()}
        return [read[number] for number in self.layers], encoding.mask if encoding.padded else None

    def preprocess(self, batch: Batch) -> Batch:
        """See `Policy.preprocess`."""
        texts = [self.config.told(text) for text in batch.instructions]
        made = self.backbone.prepare_inputs(self.views(batch), texts, device=torch.device("cpu"))
        return replace(batch, inputs=made)

    def head_state(self, batch: Batch) -> Tensor | None:
        """The normalised state (B, S), None where the head takes none."""
        if self.config.state == "none" or self.head.state_encoder is None:
            return None
        state = self.normalized_state(batch)
        if state is None:
            raise ConfigError("the batch has no state, and this policy was made with state='head'")
        return state

    # ---- learning -----------------------------------------------------------------------------------------
    def forward(
        self, batch: Batch, *, noise: Tensor | None = None, time: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`{"action_flow": ...}`, the mean squared error of the velocity over entries inside the episode.

        Entries past the end of the episode count nothing and are not attended to. Without a mask, as in StarVLA, all
        entries count.

        Args:
            batch: With actions.
            noise: (R * B, H, D) to use in place of random ones; row n belongs to sample n % B.
            time: (R * B,), likewise.
        """
        action = self.target(batch)
        if time is None or noise is None:
            drawn_time, drawn_noise = self._draw(batch, action)
            time = drawn_time if time is None else time
            noise = drawn_noise if noise is None else noise
        contexts, mask = self.encode(batch)
        valid = None if batch.mask is None else batch.mask.repeat(len(noise) // len(batch), 1)
        error = self.head.errors(
            action, noise, time, self.head_state(batch), contexts, mask, self.schedule.bucket(time), valid
        )
        error = batch.mean_over_values(error)  # (R * B, H)
        weight = torch.ones_like(error) if valid is None else valid.float()
        return {"action_flow": (error * weight).sum() / weight.sum().clamp(min=1)}

    def _draw(self, batch: Batch, action: Tensor) -> tuple[Tensor, Tensor]:
        """Times (R * B,) and noise (R * B, H, D) to learn from, row n for sample n % B, on the actions' device."""
        repeats, size = self.repeats, tuple(action.shape[1:])
        if batch.seeds is None and self.training:
            time = self.schedule.sample(repeats * len(batch))
            noise = torch.randn(len(time), *size)
        else:
            seeds = range(len(batch)) if batch.seeds is None else batch.seeds.tolist()
            generator = torch.Generator()
            times, noises = [], []
            for seed in seeds:
                generator.manual_seed(seed)
                times.append(self.schedule.sample(repeats, generator))
                noises.append(torch.randn(repeats, *size, generator=generator))
            time = torch.stack(times, 1).flatten()  # (R, B)
            noise = torch.stack(noises, 1).flatten(0, 1)
        time = time.clamp(min=0.0) if self.clamp_time else time
        return time.to(action.device), noise.to(action.device)

    # ---- acting -------------------------------------------------------------------------------------------
    def seed(self, seed: int) -> None:
        """Seed the noise of predictions."""
        self._generator.manual_seed(seed)

    def draw_noise(self, count: int, generators: Sequence[torch.Generator | None] = ()) -> Tensor:
        """(count, H, D), row by row, on the policy's device.

        Args:
            count: Rows.
            generators: One for each row; None, and by default: the policy's own.
        """
        size = (self.horizon, self.embodiment.action_dim)
        given = generators or [None] * count
        rows = [torch.randn(size, generator=each or self._generator) for each in given]
        return torch.stack(rows).to(self.device)

    def compile_acting(self, *, graphs: bool = True) -> None:
        """See `Policy.compile_acting`. A chunk that goes on from a prefix is computed without the head's graph."""
        super().compile_acting(graphs=graphs)
        self.head.compile_acting(graphs=graphs)

    def sample_action(self, batch: Batch, generators: Sequence[torch.Generator | None]) -> Tensor:
        """See `Policy.sample_action`."""
        return self.predict_action(batch, noise=self.draw_noise(len(batch), generators))

    def continue_action(
        self, batch: Batch, generators: Sequence[torch.Generator | None], prefix: Tensor, committed: int
    ) -> Tensor:
        """Real-time chunking; see `predict_action`."""
        noise = self.draw_noise(len(batch), generators)
        return self.predict_action(batch, prefix.to(noise), committed=committed, noise=noise)

    def predict_action(
        self,
        batch: Batch,
        prefix: Tensor | None = None,
        *,
        committed: int | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """(B, H, D) in the embodiment's units.

        Args:
            batch: Observations.
            prefix: (B, P, D) known first actions, in the embodiment's units: the chunk goes on from them.
            committed: d: how many of them will be carried out for sure; the chunk returns these exactly. The rest only
                pulls. By default all.
            noise: (B, H, D) to start from in place of a random one.
        """
        noise = self.draw_noise(len(batch)) if noise is None else noise
        normalizer = self.normalizers["action"]
        if prefix is None:
            return normalizer.unnormalize(self.normalized_actions(batch, noise))
        if prefix.ndim != 3 or prefix.shape[::2] != (len(batch), self.embodiment.action_dim):
            raise ConfigError(
                f"a prefix of shape {tuple(prefix.shape)} does not fit {len(batch)} observations "
                f"and {self.embodiment.action_dim} action dimensions"
            )
        committed = prefix.shape[1] if committed is None else committed
        guide = self._guide(normalizer.normalize(prefix.to(noise)), committed, noise)
        chunk = normalizer.unnormalize(self.normalized_actions(batch, noise, guide))
        return torch.cat([prefix[:, :committed].to(chunk), chunk[:, committed:]], 1)

    def _guide(self, prefix: Tensor, committed: int, noise: Tensor) -> Guide:
        known = prefix.shape[1]
        weights = prefix_weights(known, committed, self.horizon).to(noise.device)
        target = pad_prefix(prefix, self.horizon)
        return guide_to(target, weights, committed, noise, self.config.guidance)

    def normalized_actions(self, batch: Batch, noise: Tensor, guide: Guide | None = None) -> Tensor:
        """Chunks in normalised units, float32 (B, H, D), from given noise; without a gradient when guided."""
        guided = guide is not None  # then a gradient with respect to x_t is taken, within
        with (
            torch.inference_mode(False) if guided else nullcontext(),
            torch.no_grad() if guided else nullcontext(),
        ):
            contexts, mask = self.encode(batch)
            conditioning = self.head.step_conditioning(self.schedule, self.config.steps)
            return self.head.sample(noise, conditioning, contexts, mask, self.head_state(batch), guide)
