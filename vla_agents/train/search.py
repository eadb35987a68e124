"""Hyper-parameter search with Optuna: `vla-agents search`. Each trial is a training run in a folder of its own.

    space.yaml                        study.db (SQLite)              runs/search/trial_0007/
      optimizer.lr: {log: [1e-5,1e-3]}   trials of all processes        run.yaml, metrics.jsonl, best, last

Any number of processes, on machines that see the same file system, work on one study: each asks the storage for the next
trial. A trial that does worse than the median of the others at a validation is pruned. A process that was killed leaves its
trial `RUNNING`; `--resume` takes it up again from its newest checkpoint, with the same values.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vla_agents.arguments import Options
from vla_agents.config import from_dict, load_yaml, save_yaml
from vla_agents.errors import ConfigError, MissingDependencyError, TrainingError
from vla_agents.train.callbacks import Callback
from vla_agents.train.checkpoints import newest_checkpoint
from vla_agents.train.config import TrainConfig
from vla_agents.train.search_report import write_report
from vla_agents.train.search_space import ask, first_value, load_space, vary

if TYPE_CHECKING:
    from vla_agents.train.trainer import Trainer, TrainResult

_log = logging.getLogger(__name__)
_OWNER = "process"  # attribute of a trial: host and process id


@dataclass(frozen=True)
class SearchConfig:
    """Search hyper-parameters of a training run; several processes may share one study."""

    run: str = ""
    """The run to vary: a YAML file for `vla-agents train` (a recipe, or the run.yaml of a run)."""
    set: Options = field(default_factory=dict)
    """Other values than that file's, for all trials: `dataset=[data/lift] steps=300 model.horizon=8`."""
    space: str = ""
    """What to vary: a YAML file, e.g. `optimizer.lr: {log: [1.0e-5, 1.0e-3]}`; see docs/training.md."""
    out: str = "runs/search"
    """Folder of the study: study.db, a run folder per trial, pictures."""
    storage: str = ""
    """Where the study is kept, as a database URL; default: study.db in the folder."""
    trials: int = 20
    """Trials of the study in all, by whichever processes; those that failed do not count."""
    metric: str = "auto"
    """What is best: a metric of the validations. auto: success where the run has an env, else val_loss."""
    pruning: Literal["median", "no"] = "median"
    """Stop trials that are worse than the median of the earlier ones at the same step."""
    pruning_after: int = 3
    """Trials that are carried to their end before any is pruned."""
    seed: int = 0
    """Of the sampler; processes that share a study should have different ones."""
    resume: bool = False
    """Go on with the study in the folder, and with the trials of processes that are gone."""


TrainOne = Callable[[TrainConfig, list[Callback]], "TrainResult"]


def search(config: SearchConfig, train_one: TrainOne) -> Any:
    """Run trials until the study has as many as wanted.

    Args:
        config: The search.
        train_one: Trains: given a run and callbacks.

    Returns:
        The Optuna study.

    Raises:
        ConfigError: The space names a field that does not exist, a range that is none, ...
        MissingDependencyError: Optuna is not installed.
    """
    optuna = _optuna()
    base, space = _base(config), load_space(config.space)
    for name, entry in space.items():  # before anything runs
        vary(base, {name: first_value(entry)})
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    metric, direction = _goal(config, base)
    study = _study(optuna, config, out, direction)
    study.set_user_attr("metric", metric)
    save_yaml({"search": config, "space": space, "run": base}, out / f"search_{os.getpid()}.yaml")
    if config.resume:
        _requeue(optuna, study)
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)

    def objective(trial: Any) -> float:
        return _run_trial(optuna, trial, base, space, out, metric, train_one)

    def enough(study: Any, trial: Any) -> None:
        if len(study.get_trials(deepcopy=False, states=finished)) >= config.trials:
            study.stop()

    if len(study.get_trials(deepcopy=False, states=finished)) < config.trials:
        study.optimize(objective, callbacks=[enough], catch=(TrainingError,))
    write_report(study, out)
    return study


def _run_trial(
    optuna: Any,
    trial: Any,
    base: TrainConfig,
    space: Mapping[str, Any],
    out: Path,
    metric: str,
    train_one: TrainOne,
) -> float:
    values = {name: ask(trial, name, entry) for name, entry in space.items()}
    number = trial.user_attrs.get("folder_of", trial.number)
    folder = out / f"trial_{number:04d}"
    trial.set_user_attr(_OWNER, f"{socket.gethostname()}:{os.getpid()}")
    trial.set_user_attr("folder", str(folder))
    told = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
    _log.info("trial %d: %s", trial.number, told)
    run = replace(vary(base, values), out=str(folder))
    run = replace(run, resume=newest_checkpoint(folder) is not None)
    pruner = _Pruner(trial, metric)
    try:
        result = train_one(run, [pruner])
    except KeyboardInterrupt:
        trial.study.stop()
        raise
    except (
        TrainingError
    ) as error:  # e.g. a learning rate under which the loss is not finite: no reason to end the study
        _log.warning("trial %d failed: %s", trial.number, error)
        raise
    if result.interrupted and not pruner.pruned:
        trial.study.stop()
        raise KeyboardInterrupt
    if pruner.pruned:
        _log.info("trial %d: pruned, with %s %.4g", trial.number, metric, pruner.best)
        raise optuna.TrialPruned
    if metric not in result.metrics:
        raise ConfigError(
            f"the run has no metric {metric!r}",
            f"its validations gave: {', '.join(result.metrics) or 'nothing'}",
        )
    found = pruner.best if pruner.best is not None else result.metrics[metric]
    _log.info("trial %d: %s %.4g", trial.number, metric, found)
    return found


class _Pruner(Callback):
    """Reports every validation; stops the run where the study says so.

    Attributes:
        best: The best value so far: what counts is the checkpoint that `best` names.
        pruned: Whether it was stopped.
    """

    def __init__(self, trial: Any, metric: str) -> None:
        self._trial, self._metric = trial, metric
        self._better = max if trial.study.direction.name == "MAXIMIZE" else min
        self.best: float | None = None
        self.pruned = False

    def on_validated(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Report, and ask."""
        value = metrics.get(self._metric)
        if value is None or not math.isfinite(value):
            return
        self.best = value if self.best is None else self._better(self.best, value)
        if trainer.step not in self._trial.storage.get_trial(self._trial._trial_id).intermediate_values:
            self._trial.report(value, trainer.step)
        if trainer.step < trainer.config.steps and self._trial.should_prune():
            self.pruned = True
            trainer.stop()


# ---- the study ----------------------------------------------------------------------------------------------
def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError("optuna", "search", "hyper-parameter search") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # trials and what fails are told by us
    return optuna


def _base(config: SearchConfig) -> TrainConfig:
    if not config.run or not config.space:
        raise ConfigError("a search needs a run to vary and a space", "--run recipe.yaml --space space.yaml")
    base = vary(from_dict(TrainConfig, load_yaml(config.run), where=config.run), config.set, where="set")
    if not base.dataset and base.strategy not in ("curriculum", "vlm"):
        raise ConfigError(f"{config.run} names no dataset", "say which: --set 'dataset=[data/lift]'")
    return base


def _goal(config: SearchConfig, base: TrainConfig) -> tuple[str, str]:
    metric = config.metric
    if metric == "auto":
        metric = "success" if base.env else "val_loss"
    return metric, "minimize" if "loss" in metric else "maximize"


def _study(optuna: Any, config: SearchConfig, out: Path, direction: str) -> Any:
    """The study; several processes may make it at the same time, and one does."""
    url = config.storage or f"sqlite:///{(out / 'study.db').resolve()}"
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None
    storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
    sampler = optuna.samplers.TPESampler(seed=config.seed)
    pruner: Any = optuna.pruners.NopPruner()
    if config.pruning == "median":
        pruner = optuna.pruners.MedianPruner(n_startup_trials=config.pruning_after)
    study = optuna.create_study(
        storage=storage,
        study_name="vla_agents",
        sampler=sampler,
        pruner=pruner,
        direction=direction,
        load_if_exists=True,
    )
    if study.direction.name.lower() != direction:
        raise ConfigError(f"the study in {out} is of another metric", "choose another --out")
    return study


def _requeue(optuna: Any, study: Any) -> None:
    """Trials of processes that are gone (on this machine) get a successor with the same values and the same folder."""
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    for trial in running:
        owner = trial.user_attrs.get(_OWNER, "")
        host, _, pid = owner.rpartition(":")
        if host != socket.gethostname() or not pid.isdigit() or Path(f"/proc/{pid}").exists():
            continue
        folder = trial.user_attrs.get("folder_of", trial.number)
        study.enqueue_trial(trial.params, user_attrs={"folder_of": folder})
        study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        _log.warning("trial %d of a process that is gone is taken up again", trial.number)
