"""`vla-agents train` and `vla-agents search`: what they hand to the library."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_agents.cli import parse
from vla_agents.eval.evaluate import EvalConfig, PolicyEvaluator
from vla_agents.train.bar import in_words
from vla_agents.train.callbacks import Callback
from vla_agents.train.config import TrainConfig
from vla_agents.train.engines import processes
from vla_agents.train.run import prepare, train
from vla_agents.train.trainer import TrainResult


def train_command(args: Sequence[str]) -> None:
    """Train; or with `--dry-run` and `--find-batch-size`, only tell."""
    config = parse(TrainConfig, args, "train")
    main = processes.rank() == 0
    if main:
        logging.getLogger("vla_agents.train").setLevel(
            logging.INFO
        )  # rounds and stages, beside what is amiss
    if config.dry_run or config.find_batch_size:
        _tell(config)
        return
    result = train_run(config)
    if main:
        line = f"step {result.step}  {in_words(result.metrics)}\nbest checkpoint: {Path(config.out) / 'best'}"
        Console().print(line, highlight=False, markup=False, soft_wrap=True)
    if result.interrupted:
        raise KeyboardInterrupt


def train_run(
    config: TrainConfig, callbacks: Sequence[Callback] = (), *, progress: bool = True
) -> TrainResult:
    """A run with its closed-loop evaluation, whose reports and videos go into the run folder."""
    with contextlib.ExitStack() as stack:
        folder = Path(config.out) / "evaluations"

        def make_evaluate(env: str, env_args: dict[str, Any]) -> PolicyEvaluator:
            settings = EvalConfig(
                env=env, env_args=env_args, episodes=config.eval_episodes, seed=config.eval_seed
            )
            return stack.enter_context(contextlib.closing(PolicyEvaluator(settings, folder=folder)))

        evaluate = make_evaluate(config.env, config.env_args) if config.env else None
        return train(config, evaluate, make_evaluate=make_evaluate, progress=progress, callbacks=callbacks)


def _tell(config: TrainConfig) -> None:
    from vla_agents.policies.policy import Batch
    from vla_agents.train.batch_size import find_batch_size, tell
    from vla_agents.train.dry_run import dry_run
    from vla_agents.train.engines.processes import local_device

    prepared = prepare(replace(config, workers=0))
    policy, console = prepared.policy, Console()
    if config.dry_run:
        dry_run(policy, prepared.strategy, prepared.config, console)
    if config.find_batch_size:

        def make_batch(size: int) -> Batch:
            windows = prepared.training
            rows = [k % len(windows) for k in range(size)]
            return Batch.from_numpy(windows.get_batch(rows))  # type: ignore[arg-type]

        device = local_device(config.device)
        tell(find_batch_size(policy.to(device), make_batch, prepared.config), prepared.config, console)


def search_command(args: Sequence[str]) -> None:
    """Search hyper-parameters."""
    from vla_agents.train.search import SearchConfig, search
    from vla_agents.train.search_report import values_of

    config = parse(SearchConfig, args, "search")
    logging.getLogger("vla_agents.train").setLevel(logging.INFO)

    def train_one(run: TrainConfig, callbacks: list[Callback]) -> Any:
        return train_run(replace(run, dry_run=False, find_batch_size=False), callbacks, progress=False)

    study = search(config, train_one)
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    found = (
        f"best: {study.best_value:.4g} with {values_of(study.best_trial)}" if done else "none was completed"
    )
    line = f"{len(study.trials)} trials; {found}\nstudy: {config.out}"
    Console().print(line, highlight=False, markup=False, soft_wrap=True)
