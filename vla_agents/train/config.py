"""What a training run is made of; the docstrings are the `--help`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vla_agents.arguments import Options
from vla_agents.errors import ConfigError
from vla_agents.policies.checkpoint import POLICIES
from vla_agents.train.keep import Keep
from vla_agents.train.strategy_config import (
    STRATEGIES,
    CurriculumConfig,
    LanguageConfig,
    MultitaskConfig,
    OnlineConfig,
)


@dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient becomes a step."""

    kind: Literal["muon", "adamw"] = "adamw"
    """muon: Muon for the matrices and AdamW for the rest (what lets tiny models learn); adamw: AdamW for all."""
    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon."""
    lr_of: dict[str, float] = field(default_factory=dict)
    """Peak learning rates of their own: regular expression -> rate for parameters with a match in their name (e.g. visual
    1e-5 head 1e-3), whichever optimiser they have; a pattern that matches nothing is an error."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's running-average factors."""
    warmup: int = 50
    """Steps of linear warm-up."""
    final_lr: float = 0.02
    """Learning rate at the end of the cosine, as a share of the peak."""
    clip: float = 1.0
    """Largest gradient norm; larger ones are scaled down."""

    def __post_init__(self) -> None:
        _check(self, "optimizer.", above_0=("lr", "muon_lr", "clip"), not_negative=("weight_decay", "warmup"))
        for pattern, rate in self.lr_of.items():
            if not (math.isfinite(rate) and rate > 0):
                raise ConfigError(f"optimizer.lr_of: {pattern!r} has the rate {rate}", "it must be above 0")
        if not 0 <= self.final_lr <= 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"optimizer: final_lr {self.final_lr}, betas {self.betas}",
                "expected 0 <= final_lr <= 1 and 0 <= beta < 1",
            )


@dataclass(frozen=True)
class RunConfig:
    """What every run of the Trainer has."""

    out: str = "runs/train"
    """Run folder: checkpoints, metrics, TensorBoard, run.yaml."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser."""
    steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 32
    """Samples per micro-batch and process."""
    accumulation: int = 1
    """Micro-batches per optimiser step; the step equals that of one large batch."""
    validate_every: int = 200
    """Steps between validations (and closed-loop evaluations where an env is given)."""
    save_every: int = 500
    """Steps between checkpoints one can resume from, beside those at validations; 0: only there."""
    keep: str = "best,last"
    """Checkpoints that stay: best, last, every=N (those whose step is a multiple of N), all."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is what gets validated and saved; 0 turns it off."""
    seed: int = 0
    """Of the initialisation of what is new and of the order of samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Autocast of the forward pass."""
    engine: Literal["auto", "ddp", "fsdp2", "zero2", "zero3"] = "auto"
    """Of several processes: what each keeps. auto: what `accelerate launch` was configured for, else ddp (all of it)."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    tensorboard: bool = True
    """Write TensorBoard event files beside metrics.jsonl."""
    track: Literal["no", "wandb", "trackio"] = "no"
    """Show the run in one of these services too, if it is installed and works; training does not depend on it."""

    def __post_init__(self) -> None:
        counts = "steps", "batch_size", "accumulation", "validate_every", "log_every"
        _check(self, "", above_0=counts, not_negative=("save_every", "threads"))
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}", "expected 0 <= ema < 1, e.g. 0.999; 0 turns it off")
        Keep.parse(self.keep)


def _check(config: Any, prefix: str, *, above_0: Sequence[str], not_negative: Sequence[str]) -> None:
    """Refuse numbers that no run can have."""
    for name in (*above_0, *not_negative):
        value, wanted = getattr(config, name), "above 0" if name in above_0 else "not negative"
        if not math.isfinite(value) or value < 0 or (value == 0 and name in above_0):
            raise ConfigError(f"{prefix}{name} is {value}", f"it must be {wanted}")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Train a policy: behaviour cloning from recorded episodes, or another strategy."""

    selector = "policy"  # the field that decides the type of another one, see `field_types`

    strategy: str = "bc"
    """What comes next: see docs/strategies.md; the options of each stand under its name."""
    multitask: MultitaskConfig = field(default_factory=MultitaskConfig)
    """Of --strategy multitask."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Of --strategy curriculum."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """Of --strategy cotrain and vlm."""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    """Of --strategy online."""
    dataset: tuple[str, ...] = ()
    """Folders of recorded episodes (LeRobot or HDF5); several are put together."""
    weights: tuple[float, ...] = ()
    """Share of each dataset in the samples; none: as large as they are."""
    mix: Literal["no", "pooled", "per_dataset"] = "no"
    """no: datasets must be of one body. pooled, per_dataset: bodies may differ, what one lacks is masked; statistics over
    all datasets that have a part, or each dataset normalised by its own."""
    fps: float | None = None
    """Steps per second to bring all datasets to; none: those of different rates are refused."""
    actions: Literal["absolute", "relative"] = "absolute"
    """As recorded; or chunks relative to the state they are planned in."""
    image_size: int = 0
    """Side of the pictures that the policy is given, here and when it acts; 0: as recorded."""
    cache: str = "auto"
    """Pictures. auto: in memory where they take at most a quarter of what is free, else decoded once into a cache on disk;
    off: in memory or straight from the files; or a folder: a cache there."""
    cache_format: Literal["auto", "raw", "jpeg"] = "auto"
    """Of the cache. raw: exact; jpeg: quality 90, some fifteen times smaller; auto: raw where that takes at most a quarter
    of the free disk."""
    workers: int = 0
    """Processes that load batches ahead; 0: the training process loads."""
    policy: str = "qwen_oft"
    """Which policy; decides what --model options there are: --policy NAME --help shows them."""
    model: Any = None
    """The policy's configuration."""  # an instance of the policy class's `config_class`; None: its defaults
    dry_run: bool = False
    """Do not train: show the first batch, what learns, and how much memory it takes."""
    find_batch_size: bool = False
    """Do not train: try which batch size fits and which is fastest."""
    init_from: str | None = None
    """Checkpoint whose weights and model options to start from (its embodiment must fit the data)."""
    modules: tuple[str, ...] = ()
    """With init_from: take only these modules' weights from there (regular expressions for the beginning of names, e.g.
    backbone), and make the rest anew; the checkpoint may then be of another policy and another body."""
    refit: bool = False
    """With init_from: learn anew from these data what gradients do not learn (Qwen-FAST's action tokenizer)."""
    normalization: dict[str, str] = field(default_factory=dict)
    """Mode per part (mean_std, min_max, q01_q99, none); '*' for all parts; default: q01_q99, binary grippers none."""
    first_steps: int = 4
    """How many leading steps of an episode count as its beginning ..."""
    first_steps_weight: float = 1.0
    """... and how much more often those are drawn: there the state says nothing and the policy must look."""
    validation_share: float = 0.05
    """Share of the episodes held out for the validation loss."""
    env: str = ""
    """Id of an env to evaluate in at every validation, closed loop; its success then decides which checkpoint is best."""
    env_args: Options = field(default_factory=dict)
    """Options of that env, e.g. task=lift."""
    eval_episodes: int = 20
    """Episodes per such evaluation."""
    eval_seed: int = 10_000_000
    """Its first seed; far from the seeds of the demonstrations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self, "", above_0=("eval_episodes", "first_steps_weight"), not_negative=("workers", "image_size")
        )
        if not 0 <= self.validation_share < 1:
            raise ConfigError(
                f"validation_share is {self.validation_share}", "expected 0 <= validation_share < 1"
            )
        wanted = POLICIES.get(self.policy).config_class
        if self.model is None:
            object.__setattr__(self, "model", wanted())
        elif not isinstance(self.model, wanted):
            raise ConfigError(
                f"model is a {type(self.model).__name__}, and the policy {self.policy!r} takes a {wanted.__name__}",
                "give the two together: policy=..., model=...",
            )

    @classmethod
    def field_types(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """The type of `model` for the policy that `data` names; `UnknownNameError` where there is none of that name."""
        name = data.get("policy", cls.policy)
        if not isinstance(name, str):
            raise ConfigError(f"policy is {name!r}, expected a name", f"known: {', '.join(POLICIES)}")
        return {
            "policy": Literal[tuple(POLICIES)],
            "strategy": Literal[tuple(STRATEGIES)],
            "model": POLICIES.get(name).config_class,
        }
