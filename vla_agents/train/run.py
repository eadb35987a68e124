"""A policy from folders of episodes, by whatever strategy: what `vla-agents train` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vla_agents.config import save_yaml, to_dict
from vla_agents.data import Mixture, WindowDataset, load_windows
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError, TrainingError
from vla_agents.normalize import Normalizer
from vla_agents.policies.checkpoint import POLICIES, load_policy, make_policy
from vla_agents.policies.learning import learning_table
from vla_agents.policies.policy import Policy
from vla_agents.policies.policy_config import CHANGEABLE, PolicyConfig
from vla_agents.train.callbacks import Callback
from vla_agents.train.checkpoints import newest_checkpoint
from vla_agents.train.config import TrainConfig
from vla_agents.train.curves import Curves
from vla_agents.train.engines import processes
from vla_agents.train.record import write_record
from vla_agents.train.resuming import check_resumed
from vla_agents.train.strategies.ingredients import Ingredients, MakeEvaluate, check_evaluation
from vla_agents.train.strategy_config import STRATEGIES, stage_datasets
from vla_agents.train.trackers import Tracker
from vla_agents.train.trainer import Evaluate, Trainer, TrainResult
from vla_agents.train.transfer import load_modules
from vla_agents.train.vlm_run import train_vlm

_log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    evaluate: Evaluate | None = None,
    *,
    make_evaluate: MakeEvaluate | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train a policy as a config says.

    Args:
        config: The run; written to `run.yaml` in its folder.
        evaluate: Closed-loop evaluation, called with (policy, step) at every validation.
        make_evaluate: Makes one for an env of the strategy's choice (a curriculum's stages).
        progress: Show a bar while episodes are decoded, and the table of what learns.
        callbacks: What else shall happen beside the steps.

    Raises:
        DatasetError: A dataset is missing or damaged.
        CheckpointError: `init_from` or the VLM cannot be read.
        EmbodimentMismatchError: Datasets, or dataset and `init_from`, do not fit each other.
        TrainingError: The run folder is taken, the loss is not finite, ...
    """
    out = Path(config.out)
    if not config.resume and (out / "checkpoints").is_dir():
        raise ConfigError(f"{out} holds a run already", "choose another --out, or go on with it by --resume")
    if config.resume:
        check_resumed(config)
    if config.strategy == "vlm":
        return train_vlm(config)
    prepared = prepare(config, evaluate, make_evaluate, progress=progress)
    config, policy, strategy = prepared.config, prepared.policy, prepared.strategy
    if processes.rank() == 0:  # the one that evaluates
        check_evaluation(prepared.evaluate, policy)
    title = f"training {config.policy}"
    shown = [*_shown(config), *callbacks]
    table = str(learning_table(policy))  # an engine may leave nothing but pieces here
    trainer = Trainer(policy, strategy, config, prepared.evaluate, title, callbacks=shown)
    if trainer.engine.is_main:
        out.mkdir(parents=True, exist_ok=True)
        save_yaml(config, out / "run.yaml")
        write_record(out, resumed=config.resume)
        if progress:
            Console(stderr=True).print(table, highlight=False, markup=False)
    try:
        return trainer.fit()
    finally:
        strategy.close()


@dataclass(frozen=True)
class Prepared:
    """All that a run needs before its first step.

    Args:
        config: The run, with the model options of the checkpoint it starts from.
        policy: The policy.
        strategy: What it is trained on.
        evaluate: How it is evaluated, where it is.
        training: The windows it learns from.
    """

    config: TrainConfig
    policy: Policy
    strategy: Any
    evaluate: Evaluate | None
    training: WindowDataset | Mixture


def prepare(
    config: TrainConfig,
    evaluate: Evaluate | None = None,
    make_evaluate: MakeEvaluate | None = None,
    *,
    progress: bool = True,
) -> Prepared:
    """Data, policy and strategy of a run; see `train`."""
    datasets, weights = _datasets(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed + processes.rank())  # of dropout; all else has generators of its own
    if config.strategy == "multitask" and config.multitask.embedding:
        config = replace(config, model=replace(config.model, tasks=config.multitask.tasks))
    given = _given_policy(config)
    config = config if given is None else replace(config, model=given.config)
    load = partial(
        load_windows,
        horizon=config.model.horizon,
        cache=config.cache,
        cache_format=config.cache_format,
        image_size=config.image_size,
        actions=config.actions,
        fps=config.fps,
        mix=config.mix,
        modes=config.normalization,
    )
    windows = load(datasets, weights=weights, progress=progress)
    training, held_out = windows.split(config.validation_share, config.seed)
    policy = _policy(config, training, given)
    policy.bodies = windows.bodies()
    _take_modules(policy, config, progress)
    parts = Ingredients(
        config, policy, training, held_out, evaluate, make_evaluate, lambda folder: load([folder])
    )
    strategy = STRATEGIES.get(config.strategy)(parts)
    _log.info("training on %d windows of %d episodes", len(training), len(training.lengths))
    return Prepared(config, policy, strategy, parts.evaluate, training)


def _take_modules(policy: Policy, config: TrainConfig, progress: bool) -> None:
    """The weights that `modules` names, from `init_from`."""
    if not config.modules or config.resume:
        return
    if config.init_from is None:
        raise ConfigError("modules without init_from", "say where from: --init-from CHECKPOINT")
    taken = load_modules(policy, config.init_from, config.modules)
    if progress:
        Console(stderr=True).print(f"taken over:\n{taken}", highlight=False, markup=False)


def _shown(config: TrainConfig) -> list[Callback]:
    """Where a run can be looked at, beside the bar and the log."""
    found: list[Callback] = [Curves()]
    if config.track != "no":
        found.append(Tracker(config.track, project="vla_agents"))
    return found


def _datasets(config: TrainConfig) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Folders of episodes, and their weights; where a strategy tells datasets apart, all have one."""
    datasets, weights = config.dataset, config.weights
    if config.strategy == "curriculum":
        if datasets or weights or not config.curriculum.stages:
            raise ConfigError(
                "a curriculum names the datasets of its stages, and the run none",
                "curriculum.stages in a YAML file: see examples/recipes/curriculum.yaml",
            )
        datasets = stage_datasets(config.curriculum)
    if not datasets:
        raise ConfigError(
            "no dataset was given", "e.g. --dataset data/tabletop; `vla-agents collect` records one"
        )
    by_dataset = config.strategy == "multitask" and not config.multitask.tasks
    if config.strategy == "curriculum" or (by_dataset and not weights):
        weights = (1.0,) * len(datasets)
    return datasets, weights


def _given_policy(config: TrainConfig) -> Policy | None:
    """The policy to go on from, that of `resume` or of `init_from`, if the run asks for one like it."""
    source: str | Path | None = None if config.modules else config.init_from
    if config.resume:
        source = newest_checkpoint(Path(config.out))
        if source is None:
            raise TrainingError(
                f"{config.out}: nothing to resume from", "leave out --resume to start a new run"
            )
    if source is None:
        return None
    defaults = to_dict(type(config.model)())
    asked = to_dict(config.model)
    changes = {} if config.resume else _changes(config.model)
    policy = load_policy(source, device="cpu", changes=changes)
    if not isinstance(policy, POLICIES.get(config.policy)):
        raise ConfigError(
            f"checkpoint {source} is a {type(policy).__name__}, the run asks for {config.policy}",
            "give the --policy that the checkpoint was trained as",
        )
    there = to_dict(policy.config)
    other = [name for name in asked if asked[name] not in (defaults[name], there[name])]
    if other:
        listing = ", ".join(f"{name}={asked[name]!r} (there {there[name]!r})" for name in other)
        raise ConfigError(
            f"the run asks for other model options than checkpoint {source} has: {listing}",
            "leave them out: a checkpoint keeps the options it was made with",
        )
    return policy


def _changes(model: PolicyConfig) -> dict[str, Any]:
    """What a run asks for of how to learn and compute, which a checkpoint does not decide."""
    default = type(model)()
    return {
        name: getattr(model, name) for name in CHANGEABLE if getattr(model, name) != getattr(default, name)
    }


def _policy(config: TrainConfig, windows: WindowDataset | Mixture, given: Policy | None) -> Policy:
    if given is None:
        normalizers = fit_normalizers(windows, config.normalization)
        policy = make_policy(config.policy, config.model, windows.embodiment, normalizers, seed=config.seed)
        policy.prepare(action_chunks(windows, config.seed))
        return policy
    source = "of this run" if config.resume else str(config.init_from)
    given.embodiment.require(windows.embodiment, ours=f"checkpoint {source}", theirs="dataset")
    if config.refit and not config.resume:
        given.prepare(action_chunks(windows, config.seed), again=True)
    return given.train()


def action_chunks(windows: WindowDataset | Mixture, seed: int = 0, most: int = 65_536) -> np.ndarray:
    """(N, H, D) chunks of actions in the embodiment's units: all windows, or `most` of them drawn at random."""
    rows = np.arange(len(windows))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng([seed, 0xFA57]).choice(rows, most, replace=False))
    return windows.chunks(rows)[0]


def fit_normalizers(windows: WindowDataset | Mixture, modes: dict[str, str]) -> dict[str, Normalizer]:
    """Statistics of states and actions over all steps.

    Args:
        windows: The data.
        modes: Part name -> mode, `"*"` for all; a name may belong to the state or the action.
    """
    embodiment: Embodiment = windows.embodiment
    if isinstance(windows, Mixture) and windows.statistics_mode == "per_dataset":
        modes = {}  # it has used them already
    known = {part.name for part in (*embodiment.state, *embodiment.action)} | {"*"}
    for name in modes:
        if name not in known:
            raise ConfigError(f"normalization: no part {name!r}", f"known: {sorted(known)}")
    made = {}
    for what, statistics in windows.statistics().items():
        parts = embodiment.state if what == "state" else embodiment.action
        mine = {n: m for n, m in modes.items() if n == "*" or n in {part.name for part in parts}}
        made[what] = Normalizer(parts, statistics, mine)
    return made
