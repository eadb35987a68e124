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
from vla_agents.policies.heads.mlp import MLP
from vla_agents.policies.qwen_vl import QwenVLBackbone

Place = tuple[float, float]
_Turns = tuple[tuple[str, str], ...]
_Stacked = tuple[Tensor, list[_Turns]]


@dataclass
class QuestionBatch:
    """B questions about one picture each.

    Args:
        images: uint8 (B, H, W, 3).
        questions: B texts.
        answers: B texts.
        points: float32 (B, 2), the place to point at, about within [-1, 1]; NaN where the answer is in words.
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

    Some questions after a place are answered at a query token instead of in words, by a pointing head that is dropped
    afterwards. Action tokens are read the same way later; a model that has only ever looked while it spoke may take
    long to find that out.

    Args:
        backbone: The VLM.
        query: The query token.
    """

    def __init__(self, backbone: QwenVLBackbone, query: str) -> None:
        super().__init__()
        self.backbone, self.query = backbone, query
        self.head = MLP(backbone.hidden_size, 128, 2, layers=1)

    def forward(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """`{"language": cross-entropy per answer token, "pointing": mean error in half units}`."""
        pointed = torch.isfinite(batch.points[:, 0])
        spoken = (~pointed).nonzero().flatten().tolist()
        losses = {}
        if spoken:
            texts = [batch.questions[r] for r in spoken], [batch.answers[r] for r in spoken]
            losses["language"], _ = self.backbone.language_loss([batch.images[~pointed]], *texts)
        if pointed.any():
            questions = [batch.questions[r] for r in pointed.nonzero().flatten().tolist()]
            hidden = self.backbone.encode([batch.images[pointed]], questions, suffix=self.query).hidden[:, -1]
            losses["pointing"] = (self.head(hidden) - 2 * batch.points[pointed]).abs().mean()
        return losses

    def loss_weight(self, batch: QuestionBatch) -> dict[str, int]:
        """Answer tokens, and questions answered by pointing."""
        pointed = torch.isfinite(batch.points[:, 0])
        end = self.backbone.tokenizer.eos_token
        spoken = [batch.answers[r] + end for r in (~pointed).nonzero().flatten().tolist()]
        tokens = self.backbone.tokenizer(spoken, add_special_tokens=False)["input_ids"] if spoken else []
        return {"language": sum(map(len, tokens)), "pointing": int(pointed.sum())}


class VisualQuestions:
    """A strategy over single-picture conversations: draws a picture, then one of its questions.

    Args:
        conversations: All with one picture of the same size.
        batch_size: Questions per micro-batch.
        seed: The draw of step s on rank r depends on (seed, s, r) alone.
        validation: Conversations held out.
        places: For every training conversation, a place per turn to point at, or None; all None by default.
        place_weight: How much more often questions after a place are drawn than others.
        pointing: Share of the places to be answered by pointing, the others in words.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        batch_size: int,
        seed: int = 0,
        validation: Sequence[Conversation] = (),
        places: Sequence[Sequence[Place | None]] = (),
        place_weight: float = 1.0,
        pointing: float = 0.0,
    ) -> None:
        if not conversations:
            raise TrainingError("there are no conversations to train on")
        self._train, self._held_out = _stack(conversations), _stack(validation) if validation else None
        self.batch_size, self.seed, self._pointing = batch_size, seed, pointing
        self._places = list(places) or [[None] * len(turns) for turns in self._train[1]]
        self._odds = [
            np.cumsum([1.0 if place is None else place_weight for place in mine]) for mine in self._places
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
            told = round(
                self.batch_size * self._pointing
            )  # the draw is random: the first ones are as good as any
            points = [self._places[r][p] for r, p in zip(rows[:told], picks, strict=False)]
            made.append(_batch(images, turns, rows, picks, points))
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


def _stack(conversations: Sequence[Conversation]) -> _Stacked:
    shapes = {image.shape for c in conversations for image in c.images}
    if any(len(c.images) != 1 for c in conversations) or len(shapes) != 1:
        raise ConfigError("VisualQuestions takes one picture per conversation, all of one size")
    images = torch.from_numpy(np.stack([c.images[0] for c in conversations]))
    return images, [c.turns for c in conversations]


def _batch(
    images: Tensor, turns: list[_Turns], rows: Any, picks: Sequence[int], places: Sequence[Place | None] = ()
) -> QuestionBatch:
    asked = [turns[row][pick] for row, pick in zip(rows, picks, strict=True)]
    points = torch.full((len(asked), 2), float("nan"))
    for row, place in enumerate(places):
        if place is not None:
            points[row] = torch.tensor(place)
    return QuestionBatch(images[torch.as_tensor(rows)], [q for q, _ in asked], [a for _, a in asked], points)
