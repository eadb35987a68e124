"""`vla-agents questions` makes conversations about rendered scenes; `vla-agents answers` says how well a VLM answers such.

Both are for the experiment that VLAs are about: does a VLM that learns to act still know what it knew before?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from vla_agents.arguments import Options
from vla_agents.data.conversations import Conversation, save_conversations
from vla_agents.errors import ConfigError
from vla_agents.policies.backbone import Backbone
from vla_agents.policies.backbones import load_backbone
from vla_agents.policies.checkpoint import load_policy
from vla_agents.policies.pretrained import resolve_vlm
from vla_agents.train.strategies.talk import answers_right, open_conversations
from vla_agents.train.strategy_config import LanguageConfig


@dataclass(frozen=True)
class QuestionsConfig:
    """Render scenes of the tabletop and ask about them: where things are, how many, which is nearest."""

    out: str = "data/questions"
    """Folder: conversations.json (QwenVL format) and images/."""
    scenes: int = 2000
    """How many scenes."""
    per_scene: int = 3
    """Questions about each, drawn at random; each is a conversation of its own, about the same picture."""
    seed: int = 0
    """Of scenes and questions."""
    moving: float = 0.5
    """Share of the scenes in which the gripper is on its way already."""
    env_args: Options = field(default_factory=dict)
    """Options of the tabletop, e.g. task=place difficulty=hard image_size=64."""


@dataclass(frozen=True)
class AnswersConfig:
    """Ask a VLM, or the one inside a policy, questions whose answers are known."""

    model: str
    """A VLM (folder, hub id, or 'tiny'), or a policy's checkpoint or run folder."""
    use: tuple[str, ...]
    """Folders or files of conversations; NAME%P takes a part."""
    questions: int = 500
    """How many to ask."""
    tolerance: float = 0.0
    """Numbers in an answer may be off by so much and still be right."""
    seed: int = 0
    """Decides what NAME%P takes."""
    device: str = "cpu"
    """Where the model runs."""


def make_questions(config: QuestionsConfig, *, progress: bool = True) -> Path:
    """Write the conversations; returns the folder."""
    if config.scenes < 1 or config.per_scene < 1:
        raise ConfigError(
            f"scenes is {config.scenes}, per_scene {config.per_scene}", "they must be at least 1"
        )
    shown = _scenes(config)
    if progress:
        shown = iter(track(shown, "rendering scenes", total=config.scenes))
    return save_conversations(config.out, [conversation for scene in shown for conversation in scene])


def _scenes(config: QuestionsConfig) -> Iterator[list[Conversation]]:
    from vla_agents.envs.tabletop.questions import ask_about_scenes

    rng = np.random.default_rng([config.seed, 0x9E5])
    options: dict[str, Any] = {"moving": config.moving, **config.env_args}
    for image, asked in ask_about_scenes(config.scenes, config.seed, **options):
        chosen = rng.permutation(len(asked))[: config.per_scene]
        yield [Conversation((image,), ((asked[n].text, asked[n].answer),)) for n in chosen]


def ask(config: AnswersConfig) -> float:
    """Share of right answers."""
    backbone = _backbone(config.model, config.device).eval()
    settings = LanguageConfig(use=config.use)
    conversations = open_conversations(settings, backbone.chat_encoder(), config.seed)
    right = answers_right(backbone, conversations, config.questions, config.tolerance)
    asked = min(config.questions, len(conversations))
    Console().print(f"{config.model}: {100 * right:.1f} % of {asked} questions right", highlight=False)
    return right


def _backbone(name: str, device: str) -> Backbone:
    folder = Path(name)
    if any((folder / at / "policy.yaml").is_file() for at in (".", "best", "last")):
        return load_policy(name, device=device, merge_lora=True).backbone
    return load_backbone(resolve_vlm(name), weights=True).to(device)
