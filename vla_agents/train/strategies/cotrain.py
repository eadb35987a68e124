"""Episodes and conversations in every step, so that a VLM that learns to act does not forget how to talk.

A micro-batch holds windows of episodes and conversations; its losses are those of the policy times `action_scale`, and
`language`, the cross-entropy of the answers, times `scale`. Both come from one forward pass of the module that is trained,
so that on several processes every weight has its gradient in every backward pass. Each loss is a mean over its own entries
(actions, tokens) of the whole step, however it is cut into micro-batches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vla_agents.policies.backbone import WORDS
from vla_agents.policies.chat import ChatBatch
from vla_agents.policies.policy import Batch, Policy
from vla_agents.train.strategies.ingredients import Evaluate, Ingredients
from vla_agents.train.strategies.talk import (
    Conversations,
    TalkLoader,
    answers_right,
    open_conversations,
    validation_batches,
)
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.strategy_config import LanguageConfig


@dataclass
class CotrainBatch:
    """Windows and conversations; one of the two may be missing (in validation)."""

    actions: Batch | None
    talk: ChatBatch | None

    @property
    def weight(self) -> int:
        """Actions inside their episodes."""
        return 0 if self.actions is None else self.actions.weight

    def to(self, device: Any) -> CotrainBatch:
        """The same on another device."""
        actions = None if self.actions is None else self.actions.to(device)
        return CotrainBatch(actions, None if self.talk is None else self.talk.to(device))

    def find_nonfinite(self) -> str:
        """Which window is not finite."""
        return "" if self.actions is None else self.actions.find_nonfinite()


class Cotrained(nn.Module):
    """A policy whose `forward` also gives the loss of answering.

    Args:
        policy: Its VLM must predict words.
        settings: Scales.
    """

    def __init__(self, policy: Policy, settings: LanguageConfig) -> None:
        super().__init__()
        policy.backbone.require(WORDS)
        self.policy, self.settings = policy, settings
        _let_words_learn(policy)

    def forward(self, batch: CotrainBatch) -> dict[str, Tensor]:
        """The policy's losses and `language`, each times its scale."""
        losses = {}
        if batch.actions is not None:
            found = self.policy(batch.actions)
            losses = {name: loss * self.settings.action_scale for name, loss in found.items()}
        if batch.talk is not None:
            losses["language"] = self.policy.backbone.chat_loss(batch.talk) * self.settings.scale
        return losses

    def loss_weight(self, batch: CotrainBatch) -> dict[str, int]:
        """Entries per loss; those of the policy may stand under the empty name, for all of them."""
        found: Any = 0 if batch.actions is None else self.policy.loss_weight(batch.actions)
        counts = dict(found) if isinstance(found, dict) else {"": int(found)}
        return counts | {"language": 0 if batch.talk is None else batch.talk.weight}


def _let_words_learn(policy: Policy) -> None:
    """Parts that acting alone does not use (a language head, the last layers) learn again, unless frozen on purpose."""
    if policy.config.lora.rank:
        return
    kept = [re.compile(pattern) for pattern in policy.config.freeze]
    names: dict[int, list[str]] = {}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for parameter in policy.backbone.vlm.parameters():
        if not any(pattern.search(name) for pattern in kept for name in names[id(parameter)]):
            parameter.requires_grad_(True)


class Cotrain:
    """The strategy.

    Args:
        windows: Behaviour cloning of the episodes.
        train: Conversations to learn from.
        held_out: Conversations to validate on.
        settings: Sizes and scales.
        seed: Decides the draws.
        workers: Processes that make tensors of conversations ahead.
    """

    def __init__(
        self,
        windows: BehaviourCloning,
        train: Conversations,
        held_out: Conversations,
        settings: LanguageConfig,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self._windows, self._held_out, self._settings = windows, held_out, settings
        self._talk = TalkLoader(train, settings.weights, settings.batch_size, seed, workers)

    def learner(self, policy: Policy) -> Cotrained:
        """See `vla_agents.train.strategy.Strategy`."""
        return Cotrained(policy, self._settings)

    def batches(self, step: int, count: int, rank: int = 0, world: int = 1) -> list[CotrainBatch]:
        """`count` micro-batches."""
        pairs = zip(
            self._windows.batches(step, count, rank, world),
            self._talk.step(step, count, rank, world),
            strict=True,
        )
        return [CotrainBatch(actions, talk) for actions, talk in pairs]

    def validation(self) -> dict[str, list[CotrainBatch]]:
        """Actions and language, each with a loss of its own."""
        actions = [CotrainBatch(batch, None) for batch in self._windows.validation()]
        talk = [CotrainBatch(None, b) for b in validation_batches(self._held_out, self._settings.batch_size)]
        return {name: group for name, group in (("actions", actions), ("language", talk)) if group}

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Does not react."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the draws are functions of the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """End the processes that load."""
        self._windows.close()
        self._talk.close()


class WithQuestions:
    """Closed-loop evaluation, and beside it the share of held-out questions answered right."""

    def __init__(self, evaluate: Evaluate | None, held_out: Conversations, settings: LanguageConfig) -> None:
        self._evaluate, self._held_out, self._settings = evaluate, held_out, settings

    def __call__(self, policy: Any, step: int) -> dict[str, float]:
        """The metrics of both."""
        found = {} if self._evaluate is None else dict(self._evaluate(policy, step))
        settings = self._settings
        right = answers_right(policy.backbone, self._held_out, settings.questions, settings.tolerance)
        return found | {"answers_right": right}


def build(parts: Ingredients) -> Cotrain:
    """As a run's configuration says."""
    config, settings = parts.config, parts.config.language
    encoder = parts.policy.backbone.chat_encoder(settings.max_tokens)
    train, held_out = open_conversations(settings, encoder, config.seed).split(
        settings.validation_share, config.seed
    )
    windows = BehaviourCloning(parts.train, parts.held_out, **parts.draws())
    if settings.questions and len(held_out):
        parts.evaluate = WithQuestions(parts.evaluate, held_out, settings)
    return Cotrain(windows, train, held_out, settings, config.seed, config.workers)
