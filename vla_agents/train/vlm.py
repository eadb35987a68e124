"""Training a VLM on conversations: batches of questions and answers, and the module whose loss is their cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_agents.data.conversations import Conversation
from vla_agents.errors import ConfigError, TrainingError
from vla_agents.policies.qwen_vl import QwenVLBackbone


@dataclass
class QuestionBatch:
    """B questions about one picture each.

    Args:
        images: uint8 (B, H, W, 3).
        questions: B texts.
        answers: B texts.
    """

    images: Tensor
    questions: list[str]
    answers: list[str]

    @property
    def weight(self) -> int:
        """Questions in the batch."""
        return len(self.questions)

    def to(self, device: Any) -> QuestionBatch:
        """The same on another device."""
        return replace(self, images=self.images.to(device))

    def find_nonfinite(self) -> str:
        """Pixels and texts are always finite."""
        return ""


class LanguageModule(nn.Module):
    """A backbone whose `forward` is the language loss: what the Trainer trains."""

    def __init__(self, backbone: QwenVLBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """`{"language": mean cross-entropy per answer token}`."""
        loss, _ = self.backbone.language_loss([batch.images], batch.questions, batch.answers)
        return {"language": loss}


class VisualQuestions:
    """A strategy over single-picture conversations: draws a picture, then one of its questions.

    Args:
        conversations: All with one picture of the same size.
        batch_size: Questions per micro-batch.
        seed: The draw of step s on rank r depends on (seed, s, r) alone.
        validation: Conversations held out.
        prefer: A question that contains this is drawn more often ...
        prefer_weight: ... by this factor.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        batch_size: int,
        seed: int = 0,
        validation: Sequence[Conversation] = (),
        prefer: str = "",
        prefer_weight: float = 1.0,
    ) -> None:
        if not conversations:
            raise TrainingError("there are no conversations to train on")
        self._train, self._held_out = _stack(conversations), _stack(validation) if validation else None
        self.batch_size, self.seed = batch_size, seed
        self._odds = [
            np.cumsum([prefer_weight if prefer and prefer in question else 1.0 for question, _ in turns])
            for turns in self._train[1]
        ]

    def batches(self, step: int, count: int, rank: int = 0, world: int = 1) -> list[QuestionBatch]:
        """`count` micro-batches."""
        rng = np.random.default_rng([self.seed, step, rank, 0x51])
        images, turns = self._train
        made = []
        for _ in range(count):
            rows = rng.integers(len(turns), size=self.batch_size)
            draws = rng.random(self.batch_size)
            picks = [
                int(np.searchsorted(self._odds[r], d * self._odds[r][-1]))
                for r, d in zip(rows, draws, strict=True)
            ]
            made.append(_batch(images, turns, rows, picks))
        return made

    def validation(self) -> list[QuestionBatch]:
        """One question of every held-out picture, in turn."""
        if self._held_out is None:
            return []
        images, turns = self._held_out
        rows = np.arange(len(turns))
        picks = [int(r) % len(turns[r]) for r in rows]
        return [_batch(images, turns, rows[i : i + 64], picks[i : i + 64]) for i in range(0, len(rows), 64)]

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Does not react."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the draw is a function of the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


_Stacked = tuple[Tensor, list[tuple[tuple[str, str], ...]]]


def _stack(conversations: Sequence[Conversation]) -> _Stacked:
    shapes = {image.shape for c in conversations for image in c.images}
    if any(len(c.images) != 1 for c in conversations) or len(shapes) != 1:
        raise ConfigError("VisualQuestions takes one picture per conversation, all of one size")
    images = torch.from_numpy(np.stack([c.images[0] for c in conversations]))
    return images, [c.turns for c in conversations]


def _batch(
    images: Tensor, turns: list[tuple[tuple[str, str], ...]], rows: Any, picks: Sequence[int]
) -> QuestionBatch:
    asked = [turns[row][pick] for row, pick in zip(rows, picks, strict=True)]
    return QuestionBatch(images[torch.as_tensor(rows)], [q for q, _ in asked], [a for _, a in asked])
