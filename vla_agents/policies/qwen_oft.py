"""Qwen-OFT: a Qwen-VL that reads pictures and an instruction, and an MLP that reads H action query tokens at once.

Kim, Finn, Liang 2025, "Fine-Tuning Vision-Language-Action Models" (OpenVLA-OFT): parallel decoding of a whole chunk in one
forward pass, continuous actions, L1 loss.

    images (B, H, W, 3) x views, instruction
      -> prompt + H query tokens -> Qwen-VL -> hidden states at the queries   (B, H, hidden)
      -> joined with the normalised state (where there is one)                (B, H, hidden + S)
      -> MLPResNet                                                            (B, H, D) normalised actions

Where the queries stand: after the generation prompt (`queries="suffix"`, the default here), or inside the user text as
StarVLA trains it (`queries="prompt"`): what stands for `{instruction}` in the prompt is then `TEXT [STATE] 27 161 …
[ACTION] Please predict the next H robot actions: <action>`, H queries, `<action>.` Queries cannot see what follows the last
of them (causal attention), so it is not run (`cut=True`). The state is joined to the hidden states (`head`), written into
that text in 256 bins over [-1, 1] (`text`), or left out with its two marks (`none`).

Time: query h predicts the action h control steps ahead, h = 0 .. H-1. Loss: mean |prediction - action| over the entries of
the chunk that lie inside the episode, in normalised units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError
from vla_agents.normalize import Normalizer
from vla_agents.policies.backbone import QUERIES, Backbone, Queries
from vla_agents.policies.compiling import compiled
from vla_agents.policies.heads.mlp import MLP
from vla_agents.policies.heads.mlp_resnet import MLPResNet
from vla_agents.policies.policy import Batch, Policy
from vla_agents.policies.policy_config import PolicyConfig


@dataclass(frozen=True)
class QwenOFTConfig(PolicyConfig):
    """What makes a Qwen-OFT besides embodiment and statistics."""

    state: Literal["head", "text", "none"] = "head"
    """Where the proprioceptive state enters: at the action head, as text of the prompt, or nowhere."""
    queries: Literal["suffix", "prompt"] = "suffix"
    """Where the query tokens stand: after the generation prompt, or inside the user text as StarVLA has them."""
    cut: bool = True
    """Leave out of the forward pass what follows the last query token; nothing that is read depends on it."""
    final_norm: bool = True
    """Whether the last layer's output goes through the final norm; StarVLA's Qwen3-VL checkpoints: false."""
    action_token: str = "🔍"
    """Text of the query tokens; made a single token of the tokenizer where it is none."""
    head: Literal["mlp_resnet", "mlp"] = "mlp_resnet"
    """Action head: OpenVLA-OFT's residual one, or a plain MLP (with which tiny models learn sooner)."""
    head_width: int = 0
    """Width of the action head; 0 takes twice the hidden size."""
    head_blocks: int = 2
    """Residual blocks (or hidden layers) of the action head."""


class QwenOFT(Policy):
    """See the module docstring.

    Args:
        config: Its shape.
        backbone: The VLM.
        embodiment: What observations and actions mean.
        normalizers: Of `"state"` and `"action"`.
    """

    config_class = QwenOFTConfig
    needs = frozenset({QUERIES})

    def __init__(
        self,
        config: QwenOFTConfig,
        backbone: Backbone,
        embodiment: Embodiment,
        normalizers: Mapping[str, Normalizer],
    ) -> None:
        super().__init__(embodiment, normalizers, config.horizon, config.execute)
        self.config = config
        self.backbone = backbone
        if config.state == "text" and config.queries == "suffix":
            raise ConfigError(
                "state='text' is written beside the queries in the prompt", "set queries='prompt'"
            )
        self.queries = Queries(config.horizon, config.action_token, config.queries == "prompt", config.cut)
        backbone.prepare_queries(self.queries)
        state = embodiment.state_dim if config.state == "head" else 0
        hidden = backbone.hidden_size
        kind = {"mlp_resnet": MLPResNet, "mlp": MLP}[config.head]
        width = config.head_width or 2 * hidden
        self.head = kind(hidden + state, width, embodiment.action_dim, config.head_blocks)
        backbone.freeze_unused([backbone.num_layers], final_norm=config.final_norm, queries=True)

    def prompts(self, batch: Batch) -> list[str]:
        """The B user texts."""
        texts = batch.instructions
        if self.config.queries == "prompt":
            queries = self.config.action_token * self.horizon
            ask = f" Please predict the next {self.horizon} robot actions: <action>{queries}<action>."
            texts = [
                f"{text}{state}{ask}" for text, state in zip(texts, self._state_texts(batch), strict=True)
            ]
        return [self.config.told(text) for text in texts]

    def _state_texts(self, batch: Batch) -> list[str]:
        """ " [STATE] 27 161 … [ACTION]" per sample, or nothing: bins of the normalised state, -1 (too small) .. 255."""
        if self.config.state != "text" or not self.embodiment.state_dim:
            return [""] * len(batch)
        state = self._required_state(batch).float().cpu().numpy()
        bins = np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1
        return [f" [STATE] {' '.join(str(number) for number in row)} [ACTION]" for row in bins]

    def _required_state(self, batch: Batch) -> Tensor:
        state = self.normalized_state(batch)
        if state is None:
            raise ConfigError(
                f"the batch has no state, and this policy was made with state={self.config.state!r}"
            )
        return state

    def hidden_at_queries(self, batch: Batch) -> Tensor:
        """The hidden states that the head reads, (B, H, hidden)."""
        known = {} if batch.inputs is None else {"inputs": batch.inputs}
        encoding = self.backbone.encode(
            self.views(batch),
            () if known else self.prompts(batch),
            queries=replace(self.queries, cut=self.config.cut),
            final_norm=self.config.final_norm,
            **known,
        )
        assert encoding.queries is not None
        return encoding.queries

    def preprocess(self, batch: Batch) -> Batch:
        """See `Policy.preprocess`."""
        queries, cpu = replace(self.queries, cut=self.config.cut), torch.device("cpu")
        arguments = self.views(batch), self.prompts(batch)
        return replace(batch, inputs=self.backbone.prepare_inputs(*arguments, queries=queries, device=cpu))

    def normalized_actions(self, batch: Batch) -> Tensor:
        """Predicted chunks in normalised units, float32 (B, H, D)."""
        hidden = self.hidden_at_queries(batch).float()  # (B, H, hidden)
        if self.config.state == "head" and self.embodiment.state_dim:
            state = self._required_state(batch)
            hidden = torch.cat([hidden, state[:, None].expand(-1, self.horizon, -1)], dim=-1)
        head = self.head if torch.is_grad_enabled() or not self.is_compiled else self._graph
        return head(hidden)

    def compile_acting(self, *, graphs: bool = True) -> None:
        """See `Policy.compile_acting`."""
        super().compile_acting(graphs=graphs)
        self._graph = compiled(self.head.forward, self.device, constants=True, graphs=graphs)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`{"action_l1": ...}`, the mean over entries inside the episode."""
        target = self.target(batch)
        error = batch.mean_over_values((self.normalized_actions(batch) - target).abs())  # (B, H)
        mask = torch.ones_like(error) if batch.mask is None else batch.mask.float()
        return {"action_l1": (error * mask).sum() / mask.sum().clamp(min=1)}

    def predict_action(self, batch: Batch, prefix: Tensor | None = None) -> Tensor:
        """(B, H, D) in the embodiment's units."""
        if prefix is not None:
            raise ConfigError(
                "Qwen-OFT plans a chunk in one piece and cannot continue a prefix", "use a flow policy"
            )
        return self.normalizers["action"].unnormalize(self.normalized_actions(batch))
