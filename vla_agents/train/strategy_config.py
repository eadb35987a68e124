"""The strategies by name, and their options; the docstrings are the `--help`.

    bc          windows of episodes, drawn at random                        .strategy
    multitask   tasks, each with its share                                  .strategies.multitask
    curriculum  stage after stage, by closed-loop success                   .strategies.curriculum
    cotrain     episodes and conversations in every step                    .strategies.cotrain
    online      episodes that the policy plays, round by round              .strategies.online
    vlm         conversations alone: trains a VLM, no policy                .vlm_run

Each is a builder `(Ingredients) -> Strategy`; one of your own joins by `STRATEGIES.register("mine", "my_package:build")`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from vla_agents.arguments import Options
from vla_agents.errors import ConfigError
from vla_agents.registry import Registry

STRATEGIES = Registry(
    "strategy",
    {
        "bc": "vla_agents.train.strategies.ingredients:behaviour_cloning",
        "multitask": "vla_agents.train.strategies.multitask:build",
        "curriculum": "vla_agents.train.strategies.curriculum:build",
        "cotrain": "vla_agents.train.strategies.cotrain:build",
        "online": "vla_agents.train.strategies.online:build",
        "vlm": "vla_agents.train.vlm_run:train_vlm",  # instead of a strategy
    },
)


@dataclass(frozen=True)
class MultitaskConfig:
    """--strategy multitask: several tasks, each with its share of the samples."""

    tasks: dict[str, str] = field(default_factory=dict)
    """Task -> regular expression of the instructions that belong to it (the first match counts); none: every dataset is a
    task, by the name of its folder."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each task in the samples; none: by its number of steps and the temperature."""
    temperature: float = 1.0
    """Without weights: shares proportional to steps ** (1 / temperature). 1: as large as they are; the larger, the more
    alike."""
    embedding: bool = False
    """Tell the model its task by a learnt token at the beginning of the prompt; needs tasks by regular expression, by
    which it is found again when acting."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"multitask.temperature is {self.temperature}", "it must be above 0")
        if self.weights and self.temperature != 1:
            raise ConfigError(
                "multitask: weights and a temperature contradict each other", "give one of the two"
            )
        if self.embedding and not self.tasks:
            raise ConfigError(
                "multitask.embedding needs multitask.tasks",
                "say by regular expressions which instructions are which task: when acting there is nothing else to tell",
            )


@dataclass(frozen=True)
class StageConfig:
    """A stage of a curriculum."""

    name: str
    """What it is called in metrics and errors."""
    dataset: tuple[str, ...]
    """Its folders of episodes."""
    env_args: Options = field(default_factory=dict)
    """Options of the env that decides when it is over."""
    env: str = ""
    """Id of that env; by default the run's."""
    threshold: float | None = None
    """Success at which it is over; by default the curriculum's."""


@dataclass(frozen=True)
class CurriculumConfig:
    """--strategy curriculum: stage after stage, each until the policy succeeds in its env."""

    stages: Annotated[tuple[StageConfig, ...], tyro.conf.Suppress] = ()
    """From easy to hard; in YAML: name, dataset, env_args, and if need be env and threshold. Leave `dataset` of the run
    empty."""
    threshold: float = 0.8
    """Closed-loop success at which a stage is over."""
    replay: float = 0.25
    """Share of the samples that come from the stages before, so that they are not forgotten."""
    max_steps: int = 0
    """A stage is left after so many steps at the latest; 0: the run's steps divided by the number of stages."""
    back_off: float = 0.05
    """Go back to the stage before where success stays below this ...; 0: never."""
    patience: int = 3
    """... at so many validations one after the other ..."""
    max_back_offs: int = 2
    """... but not more often than so many times in the whole run."""

    def __post_init__(self) -> None:
        if not (0 < self.threshold <= 1 and 0 <= self.back_off < self.threshold):
            raise ConfigError(
                f"curriculum: threshold {self.threshold}, back_off {self.back_off}",
                "expected 0 < threshold <= 1 and 0 <= back_off < threshold",
            )
        if not 0 <= self.replay < 1 or self.patience < 1 or min(self.max_steps, self.max_back_offs) < 0:
            raise ConfigError(
                f"curriculum: replay {self.replay}, patience {self.patience}, max_steps {self.max_steps}, "
                f"max_back_offs {self.max_back_offs}",
                "expected 0 <= replay < 1, patience of at least 1, the others not negative",
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ConfigError(f"curriculum: stages of the same name: {names}", "give each its own")
        for stage in self.stages:
            if not stage.dataset:
                raise ConfigError(f"curriculum: stage {stage.name!r} has no dataset", "name its folders")
            if stage.threshold is not None and not 0 < stage.threshold <= 1:
                raise ConfigError(
                    f"curriculum: stage {stage.name!r} has threshold {stage.threshold}", "0 < threshold <= 1"
                )


def stage_datasets(settings: CurriculumConfig) -> tuple[str, ...]:
    """All folders that the stages of a curriculum name, in order."""
    return tuple(folder for stage in settings.stages for folder in stage.dataset)


@dataclass(frozen=True)
class ConversationSource:
    """Where a dataset of conversations lies."""

    annotations: str
    """A QwenVL JSON or JSONL file, or a folder with `conversations.json`."""
    images: str = ""
    """Folder that picture paths are relative to; by default that of the annotations."""


@dataclass(frozen=True)
class LanguageConfig:
    """--strategy cotrain and vlm: conversations in the QwenVL format."""

    datasets: Annotated[dict[str, ConversationSource], tyro.conf.Suppress] = field(default_factory=dict)
    """Name -> annotations and images (in YAML)."""
    use: tuple[str, ...] = ()
    """Which to train on: names of `datasets`, or paths; `name%50` takes half of the entries, always the same half."""
    weights: tuple[float, ...] = ()
    """Share of each in the conversations; none: as large as they are."""
    batch_size: int = 16
    """Conversations per micro-batch, beside the windows that `--batch-size` says (vlm: `--batch-size` alone counts)."""
    action_scale: float = 1.0
    """What the losses of actions are multiplied by ..."""
    scale: float = 0.1
    """... and the loss of answers."""
    max_tokens: int = 4096
    """Longer conversations are cut."""
    validation_share: float = 0.05
    """Share of the conversations held out."""
    tolerance: float = 0.0
    """Numbers in an answer may be off by so much and still be right ..."""
    questions: int = 100
    """... of the questions held out, of which so many are asked at every validation (`answers_right`); 0: none."""

    def __post_init__(self) -> None:
        scales = self.action_scale, self.scale
        if not all(math.isfinite(s) and s >= 0 for s in scales) or not any(scales):
            raise ConfigError(
                f"language: action_scale {scales[0]}, scale {scales[1]}", "not negative, and not both 0"
            )
        if self.batch_size < 1 or self.questions < 0 or not 0 <= self.validation_share < 1:
            raise ConfigError(
                f"language: batch_size {self.batch_size}, questions {self.questions}, "
                f"validation_share {self.validation_share}",
                "at least 1 conversation; questions not negative; 0 <= validation_share < 1",
            )


@dataclass(frozen=True)
class OnlineConfig:
    """--strategy online: rounds of acting in the run's env (or robot) and learning from what came of it."""

    method: Literal["dagger", "takeover", "filtered", "awr"] = "dagger"
    """dagger: the expert labels what the policy ran into. takeover: a person (or the expert) takes over where the policy
    goes wrong, and only that is learnt (HG-DAgger). filtered: own episodes that succeeded. awr: own episodes, weighted by
    how much better they went than was to be expected."""
    rounds: int = 4
    """How often to act; the run's steps are divided evenly among them, after each."""
    episodes: int = 40
    """Episodes per round."""
    num_envs: int = 8
    """Envs side by side; 1 for a robot."""
    seed: int = 2_000_000
    """Reset seed of the first episode; each round has the next ones."""
    max_steps: int | None = None
    """Cut episodes off after so many steps, beside the env's own limit."""
    demonstrations: float = 0.5
    """Share of the samples that come from the run's datasets, however large the buffer grows."""
    expert_share: float = 0.5
    """dagger: share of the steps that the expert drives in the first round; in round r it is this to the power of r + 1."""
    human: str = "expert"
    """takeover: who takes over: "expert" (the env's own, which looks on and corrects), or a teleoperation device."""
    disagreement: float = 0.6
    """takeover by the expert: it takes over when an action is off by more than this (in units of half its range) ..."""
    patience: int = 2
    """... so many steps in a row ..."""
    hold: int = 8
    """... and drives for so many steps."""
    exploration: float = 0.1
    """filtered, awr: standard deviation of the noise on the actions (but grippers), in units of half their range."""
    temperature: float = 0.5
    """awr: a window is drawn exp(advantage / temperature) times as often ..."""
    most_weight: float = 20.0
    """... but at most so many times; advantages are in units of their standard deviation."""
    discount: float = 0.98
    """awr: success that comes a step later counts so much less."""
    retries: int = 3
    """How often in a row an env or robot may die before the run ends; the buffer is on the disk."""

    def __post_init__(self) -> None:
        for name in ("rounds", "episodes", "num_envs", "patience", "hold"):
            if getattr(self, name) < 1:
                raise ConfigError(f"online.{name} is {getattr(self, name)}", "it must be at least 1")
        for name in ("demonstrations", "expert_share", "discount"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"online.{name} is {getattr(self, name)}", "it must lie between 0 and 1")
        if not (
            self.temperature > 0 and self.most_weight >= 1 and self.exploration >= 0 and self.disagreement > 0
        ):
            raise ConfigError(
                f"online: temperature {self.temperature}, most_weight {self.most_weight}, exploration "
                f"{self.exploration}, disagreement {self.disagreement}",
                "temperature and disagreement above 0, most_weight at least 1, exploration not negative",
            )
