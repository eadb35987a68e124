"""`vla-agents pretrain-tiny`: a million-parameter Qwen3-VL that has learned to answer questions about pictures.

VLAs start from a VLM that was pretrained on questions about images; this is our miniature of it. Scenes of the tabletop are
rendered on the spot and asked about ("where is the red block?" -> "31 52"); a true Qwen3-VL of `transformers` learns the
answers token by token, and some places by pointing (a head at a query token, dropped afterwards). Without this
stage behaviour cloning from scratch stays near 0 % success although its loss falls.

What lets so small a model learn to see in minutes: Muon on the matrices, pixel mean and spread of the data itself, and
position embeddings that start large (see `docs/training.md`). First it learns to point at blocks in plain
scenes; then to answer everything, on all difficulties, with the gripper on its way.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import track

from vla_agents.config import save_yaml
from vla_agents.data.conversations import Conversation, save_conversations
from vla_agents.errors import ConfigError
from vla_agents.policies.checkpoint import write_checkpoint
from vla_agents.policies.qwen_vl import QwenVLBackbone
from vla_agents.policies.tiny import ACTION_TOKEN, TinySize, make_tiny_vlm
from vla_agents.train.config import OptimizerConfig, RunConfig
from vla_agents.train.strategy import TrainingBatch
from vla_agents.train.trainer import Trainer
from vla_agents.train.vlm import LanguageModule, QuestionBatch, VisualQuestions

if TYPE_CHECKING:
    from vla_agents.envs.tabletop.questions import Question

_Scene = tuple[np.ndarray, list["Question"]]
RECORD = "pretraining.yaml"  # in the model's folder: how it was made and how well it answers


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Make a tiny Qwen3-VL and teach it to answer questions about the tabletop."""

    out: str = "runs/pretrain"
    """Run folder; the finished model is in its `model` folder."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(kind="muon", lr=2e-3, muon_lr=0.03, warmup=50, final_lr=0.05)
    )
    """The optimiser."""
    steps: int = 1200
    """Optimiser steps of both stages together."""
    first_stage: int = 500
    """Steps of pointing at blocks in plain scenes (three blocks, the gripper above) before the mixture of everything."""
    scenes: int = 8000
    """Scenes to render for each stage."""
    held_out: int = 600
    """Further scenes of the mixture, to test on."""
    validate_every: int = 250
    """Steps between tests on held-out scenes."""
    save_every: int = 0
    """Steps between checkpoints one can resume from, beside those at validations; 0: only there."""
    family: str = "qwen3_vl"
    """Architecture: qwen3_vl or qwen2_5_vl."""
    size: TinySize = field(default_factory=TinySize)
    """Its shape."""
    export_data: str = ""
    """Write the rendered conversations to this folder too (QwenVL JSON and PNGs), e.g. for co-training."""


class Staged:
    """One strategy after the other, by step."""

    def __init__(self, first: VisualQuestions, second: VisualQuestions, switch: int) -> None:
        self._first, self._second, self._switch = first, second, switch

    def batches(self, step: int, count: int, rank: int = 0, world: int = 1) -> Sequence[TrainingBatch]:
        """From the strategy whose turn it is."""
        return (self._first if step < self._switch else self._second).batches(step, count, rank, world)

    def validation(self) -> Sequence[QuestionBatch]:
        """The second stage's, from the start."""
        return self._second.validation()

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Does not react."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the stage is a function of the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def pretrain_tiny(config: PretrainConfig, *, progress: bool = True) -> tuple[Path, dict[str, float]]:
    """Run both stages.

    Returns:
        The model folder, and the last metrics: `point_error` (median distance of named places from the truth, in shares
        of the picture's side), `points_read` (share of those answers that are points at all), `success` (share within
        5 % of the side), `other_right` (share of right answers to the other questions), `val_loss`.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    plain = _render(config, config.scenes, 1, "plain scenes", progress, mixed=False)
    mixture = _render(config, config.scenes, 2, "mixed scenes", progress, mixed=True)
    held_out = _conversations(_render(config, config.held_out, 3, "held-out scenes", progress, mixed=True))
    if config.export_data:
        save_conversations(config.export_data, _conversations([*plain, *mixture]))
    folder = _make(config, _conversations([*plain, *mixture]))
    module = LanguageModule(QwenVLBackbone.from_pretrained(folder), ACTION_TOKEN)
    blocks = [
        (image, [q for q in asked if q.place and "where" in q.text and "block" in q.text])
        for image, asked in plain
    ]
    blocks = [(image, asked) for image, asked in blocks if asked]
    common = config.batch_size, config.seed
    strategy = Staged(
        VisualQuestions(_conversations(blocks), *common, places=_places(blocks), pointing=1.0),
        VisualQuestions(
            _conversations(mixture), *common, held_out, _places(mixture), place_weight=3.0, pointing=0.5
        ),
        config.first_stage,
    )

    def test(model: LanguageModule, step: int) -> dict[str, float]:
        return score_answers(model.backbone, held_out)

    trainer = Trainer(module, strategy, config, test, title="pretraining the tiny Qwen-VL", save=_save)
    save_yaml(config, Path(config.out) / "run.yaml")
    result = trainer.fit()
    final = Path(config.out) / "model"
    shutil.rmtree(final, ignore_errors=True)
    module.backbone.save_assets(final)
    module.backbone.vlm.save_pretrained(final)
    save_yaml(
        {"made_by": "vla-agents pretrain-tiny", "config": config, "held_out": result.metrics}, final / RECORD
    )
    return final, result.metrics


def score_answers(backbone: QwenVLBackbone, conversations: Sequence[Conversation]) -> dict[str, float]:
    """How well a VLM answers: one question after a place and one other per scene."""
    from vla_agents.envs.tabletop.questions import parse_point

    places, others = [], []
    for number, conversation in enumerate(conversations):
        where = [turn for turn in conversation.turns if parse_point(turn[1]) is not None]
        rest = [turn for turn in conversation.turns if parse_point(turn[1]) is None]
        places.append((conversation.images[0], *where[number % len(where)]))
        others.append((conversation.images[0], *rest[number % len(rest)]))
    told, truth = _answers(backbone, places), [parse_point(answer) for _, _, answer in places]
    points = [parse_point(text) for text in told]
    errors = [
        float(np.linalg.norm(p - t))
        for p, t in zip(points, truth, strict=True)
        if p is not None and t is not None
    ]
    right = [text == answer for text, (_, _, answer) in zip(_answers(backbone, others), others, strict=True)]
    return {
        "point_error": float(np.median(errors)) if errors else 1.0,
        "points_read": len(errors) / len(places),
        "other_right": float(np.mean(right)),
        "success": float(np.mean([error < 0.05 for error in errors] + [False] * (len(places) - len(errors)))),
    }


def _conversations(scenes: Sequence[_Scene]) -> list[Conversation]:
    return [Conversation((image,), tuple((q.text, q.answer) for q in asked)) for image, asked in scenes]


def _places(scenes: Sequence[_Scene]) -> list[list[tuple[float, float] | None]]:
    return [[q.place for q in asked] for _, asked in scenes]


def _answers(backbone: QwenVLBackbone, asked: Sequence[tuple[np.ndarray, str, str]]) -> list[str]:
    out: list[str] = []
    for start in range(0, len(asked), 100):
        part = asked[start : start + 100]
        images = torch.from_numpy(np.stack([image for image, _, _ in part])).to(
            next(backbone.parameters()).device
        )
        out += backbone.answer([images], [question for _, question, _ in part], max_tokens=8)
    return [text.strip() for text in out]


def _render(
    config: PretrainConfig, count: int, stream: int, title: str, progress: bool, *, mixed: bool
) -> list[_Scene]:
    """Scenes of one stage: plain ones, or a third each of plain with motion, full tables, and tables with pads."""
    from vla_agents.envs.tabletop.questions import ask_about_scenes

    kinds: list[dict[str, Any]] = [{"task": "lift", "difficulty": "medium", "moving": 0.0}]
    if mixed:
        kinds = [
            {"task": "lift", "difficulty": "medium", "moving": 0.5},
            {"task": "lift", "difficulty": "hard", "moving": 0.5},
            {"task": "place", "difficulty": "medium", "moving": 0.5},
        ]
    seed = config.seed * 10 + stream
    sources = [
        ask_about_scenes(count // len(kinds), seed, image_size=config.size.image_size, **kind)
        for kind in kinds
    ]
    scenes = (scene for source in sources for scene in source)
    shown: Iterable[Any] = track(scenes, f"rendering {title}", total=count) if progress else scenes
    made = list(shown)
    if not made:
        raise ConfigError(f"{count} scenes are too few", "at least 3")
    return made


def _make(config: PretrainConfig, conversations: Sequence[Conversation]) -> Path:
    """The random model: tokenizer from the words of questions and instructions, pixel statistics from the pictures."""
    pixels = np.stack([c.images[0] for c in conversations[::7]]).astype(np.float32) / 255
    mean, spread = pixels.mean((0, 1, 2)), float(pixels.std())
    return make_tiny_vlm(
        Path(config.out) / "untrained",
        family=config.family,
        size=config.size,
        corpus=[*_texts(conversations), *_instructions()],
        pixel_mean=tuple(float(m) for m in mean),  # type: ignore[arg-type]
        pixel_std=(spread,) * 3,
        seed=config.seed,
    )


def _texts(conversations: Sequence[Conversation]) -> list[str]:
    return sorted({question for c in conversations for question, _ in c.turns}) * 20


def _instructions() -> list[str]:
    """What the tabletop may ask for, in all wordings, so that its words are whole tokens."""
    from vla_agents.envs.tabletop.scene import COLOURS
    from vla_agents.envs.tabletop.tasks import FAMILIES

    return [
        wording.format(block=colour, where=where)
        for family in FAMILIES.values()
        for wording in family.wordings
        for colour in COLOURS
        for where in (*COLOURS, "left", "right", "away", "closer")
    ]


def _save(module: LanguageModule, folder: Path, *, extra: dict[str, Any], attach: dict[str, Path]) -> Path:
    def write(temporary: Path) -> None:
        save_yaml(
            {"format": 1, "policy": "tiny_vlm", "config": {}, "extra": extra}, temporary / "policy.yaml"
        )

    return write_checkpoint(module, folder, write, attach)
