"""Training a VLM on conversations: batches of questions and answers, and the module whose loss is their cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_agents.data.conversations import Conversation
from vla_agents.errors import ConfigError, TrainingError
from vla_agents.policies.heads.mlp_resnet import MLPResNet
from vla_agents.policies.qwen_vl import QwenVLBackbone

_Turns = tuple[tuple[str, str], ...]
_Stacked = tuple[Tensor, list[_Turns]]


@dataclass
class QuestionBatch:
    """B questions about one picture each.

    Args:
        images: uint8 (B, H, W, 3).
        questions: B texts.
        answers: B texts.
        points: float32 (B, 2), the place an answer names as (column, row) in [0, 1]; NaN where it names none.
    """

    images: Tensor
    questions: list[str]
    answers: list[str]
    points: Tensor

    @property
    def weight(self) -> int:
        """Questions in the batch."""
        return len(self.questions)

    def to(self, device: Any) -> QuestionBatch:
        """The same on another device."""
        return replace(self, images=self.images.to(device), points=self.points.to(device))

    def find_nonfinite(self) -> str:
        """Pixels and texts are always finite."""
        return ""


class LanguageModule(nn.Module):
    """A backbone whose `forward` is the loss of answering: what the Trainer trains.

    Half of the questions after a place are answered at a query token instead of in words, by a pointing head that
    is dropped afterwards. Action tokens are read the same way later; a model that has only ever looked while it
    spoke may take long to find that out.

    Args:
        backbone: The VLM.
        query: The query token.
    """

    def __init__(self, backbone: QwenVLBackbone, query: str) -> None:
        super().__init__()
        self.backbone, self.query = backbone, query
        self.head = MLPResNet(backbone.hidden_size, 2 * backbone.hidden_size, 2)

    def forward(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """`{"language": cross-entropy per answer token, "pointing": mean error, a quarter of the side is 1}`."""
        rows = torch.arange(len(batch.questions), device=batch.points.device)
        pointed = torch.isfinite(batch.points[:, 0]) & (rows % 2 == 1)
        spoken = [int(r) for r in rows[~pointed]]
        losses = {}
        if spoken:
            texts = [batch.questions[r] for r in spoken], [batch.answers[r] for r in spoken]
            losses["language"], _ = self.backbone.language_loss([batch.images[~pointed]], *texts)
        if pointed.any():
            questions = [batch.questions[int(r)] for r in rows[pointed]]
            hidden = self.backbone.encode([batch.images[pointed]], questions, suffix=self.query).hidden[:, -1]
            losses["pointing"] = (self.head(hidden) - (batch.points[pointed] * 4 - 2)).abs().mean()
        return losses


class VisualQuestions:
    """A strategy over single-picture conversations: draws a picture, then one of its questions.

    Args:
        conversations: All with one picture of the same size.
        batch_size: Questions per micro-batch.
        seed: The draw of step s on rank r depends on (seed, s, r) alone.
        validation: Conversations held out.
        prefer: A question that contains this is drawn more often ...
        prefer_weight: ... by this factor.
        point_of: The place (column, row) that an answer names, or None.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        batch_size: int,
        seed: int = 0,
        validation: Sequence[Conversation] = (),
        prefer: str = "",
        prefer_weight: float = 1.0,
        point_of: Callable[[str], np.ndarray | None] = lambda answer: None,
    ) -> None:
        if not conversations:
            raise TrainingError("there are no conversations to train on")
        self._train, self._held_out = _stack(conversations), _stack(validation) if validation else None
        self.batch_size, self.seed, self._point_of = batch_size, seed, point_of
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
            made.append(self._batch(images, turns, rows, picks))
        return made

    def validation(self) -> list[QuestionBatch]:
        """One question of every held-out picture, in turn."""
        if self._held_out is None:
            return []
        images, turns = self._held_out
        rows = np.arange(len(turns))
        picks = [int(r) % len(turns[r]) for r in rows]
        return [
            self._batch(images, turns, rows[i : i + 64], picks[i : i + 64]) for i in range(0, len(rows), 64)
        ]

    def _batch(self, images: Tensor, turns: list[_Turns], rows: Any, picks: Sequence[int]) -> QuestionBatch:
        asked = [turns[row][pick] for row, pick in zip(rows, picks, strict=True)]
        places = [self._point_of(answer) for _, answer in asked]
        points = np.array([(np.nan, np.nan) if p is None else p for p in places], np.float32)
        return QuestionBatch(
            images[torch.as_tensor(rows)],
            [q for q, _ in asked],
            [a for _, a in asked],
            torch.from_numpy(points),
        )

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Does not react."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the draw is a function of the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def _stack(conversations: Sequence[Conversation]) -> _Stacked:
    shapes = {image.shape for c in conversations for image in c.images}
    if any(len(c.images) != 1 for c in conversations) or len(shapes) != 1:
        raise ConfigError("VisualQuestions takes one picture per conversation, all of one size")
    images = torch.from_numpy(np.stack([c.images[0] for c in conversations]))
    return images, [c.turns for c in conversations]
