"""Behaviour cloning from folders of episodes: what `vla-agents train` does."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from vla_agents.config import save_yaml
from vla_agents.data import WindowDataset, open_dataset
from vla_agents.embodiment import Embodiment
from vla_agents.errors import ConfigError
from vla_agents.normalize import Normalizer, StatsAccumulator
from vla_agents.policies.checkpoint import load_policy, make_policy
from vla_agents.policies.policy import Policy
from vla_agents.train.config import TrainConfig
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.trainer import Evaluate, Trainer, TrainResult

_log = logging.getLogger(__name__)


def train(config: TrainConfig, evaluate: Evaluate | None = None, *, progress: bool = True) -> TrainResult:
    """Train a policy as a config says.

    Args:
        config: The run; written to `run.yaml` in its folder.
        evaluate: Closed-loop evaluation, called with (policy, step) at every validation.
        progress: Show a bar while episodes are decoded.

    Raises:
        DatasetError: A dataset is missing or damaged.
        CheckpointError: `init_from` or the VLM cannot be read.
        EmbodimentMismatchError: Datasets, or dataset and `init_from`, do not fit each other.
        TrainingError: The run folder is taken, the loss is not finite, ...
    """
    if not config.dataset:
        raise ConfigError(
            "no dataset was given", "e.g. --dataset data/tabletop; `vla-agents collect` records one"
        )
    out = Path(config.out)
    if not config.resume and (out / "checkpoints").is_dir():
        raise ConfigError(f"{out} holds a run already", "choose another --out, or go on with it by --resume")
    if config.threads:
        torch.set_num_threads(config.threads)
    readers = [open_dataset(path) for path in config.dataset]
    windows = WindowDataset(readers, config.model.horizon, progress=progress)
    training, held_out = windows.split(config.validation_share, config.seed)
    policy = _policy(config, training)
    strategy = BehaviourCloning(
        training, held_out, config.batch_size, config.seed, config.first_steps, config.first_steps_weight
    )
    trainer = Trainer(policy, strategy, config, evaluate, title=f"training {config.policy}")
    out.mkdir(parents=True, exist_ok=True)
    save_yaml(config, out / "run.yaml")
    _log.info("training on %d windows of %d episodes", len(training), len(training.lengths))
    return trainer.fit()


def _policy(config: TrainConfig, windows: WindowDataset) -> Policy:
    if config.init_from:
        policy = load_policy(config.init_from, device="cpu")
        policy.embodiment.require(windows.embodiment, ours=f"checkpoint {config.init_from}", theirs="dataset")
        if policy.horizon != config.model.horizon:
            raise ConfigError(
                f"checkpoint {config.init_from} plans {policy.horizon} actions, the run asks for {config.model.horizon}",
                f"use --model.horizon {policy.horizon}",
            )
        return policy.train()
    normalizers = fit_normalizers(windows, config.normalization)
    return make_policy(config.policy, config.model, windows.embodiment, normalizers, seed=config.seed)


def fit_normalizers(windows: WindowDataset, modes: dict[str, str]) -> dict[str, Normalizer]:
    """Statistics of states and actions over all steps.

    Args:
        windows: The data.
        modes: Part name -> mode, `"*"` for all; a name may belong to the state or the action.
    """
    embodiment: Embodiment = windows.embodiment
    known = {part.name for part in (*embodiment.state, *embodiment.action)} | {"*"}
    for name in modes:
        if name not in known:
            raise ConfigError(f"normalization: no part {name!r}", f"known: {sorted(known)}")
    made = {}
    for what, parts, rows in (
        ("state", embodiment.state, windows.state if embodiment.state else None),
        ("action", embodiment.action, windows.action),
    ):
        if rows is None:
            continue
        statistics = StatsAccumulator(rows.shape[1])
        statistics.update(rows, where=f"{what}s of the dataset")
        mine = {n: m for n, m in modes.items() if n == "*" or n in {part.name for part in parts}}
        made[what] = Normalizer(parts, statistics.finish(), mine)
    return made
