"""Hyper-parameter search: spaces, pruning, several processes on one study, a killed trial taken up again."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_train import BASE
from tiny import ArrayWindows, random_batch

from vla_agents.config import load_yaml, save_yaml
from vla_agents.errors import ConfigError
from vla_agents.train.callbacks import Callback
from vla_agents.train.config import TrainConfig
from vla_agents.train.search import SearchConfig, search
from vla_agents.train.search_space import load_space, vary
from vla_agents.train.strategy import BehaviourCloning
from vla_agents.train.trainer import Trainer, TrainResult

optuna = pytest.importorskip("optuna", reason="pip install 'vla-agents[search]'")
SPACE = {
    "optimizer.lr": {"log": [1e-5, 1e-1]},
    "accumulation": {"choice": [1, 2]},
    "optimizer.warmup": {"int": [1, 9, 4]},
}


def settings(out: Path, **changes: Any) -> SearchConfig:
    out.mkdir(parents=True, exist_ok=True)
    run, space = out / "run.yaml", out / "space.yaml"
    if not run.exists():
        base = replace(BASE, steps=4, validate_every=1, save_every=0, dataset=("x",))
        save_yaml(base, run)
        space.write_text(yaml.safe_dump(SPACE))
    return SearchConfig(run=str(run), space=str(space), out=str(out), **({"trials": 3} | changes))


class Two:
    """A module of two numbers in the place of a policy: a trial takes milliseconds."""

    def __new__(cls) -> Any:
        import torch

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(2, 2))

            def forward(self, batch: Any) -> dict[str, Any]:
                return {"loss_of_two": (batch.action[:, 0, :2] @ self.weight - 0.3).square().mean()}

        return Module()


def train_two(run: TrainConfig, callbacks: list[Callback]) -> TrainResult:
    from vla_agents.policies.checkpoint import write_checkpoint

    def save(module: Any, folder: Path, *, extra: Any, attach: Any) -> Path:
        return write_checkpoint(
            module, folder, lambda temporary: save_yaml(extra, temporary / "policy.yaml"), attach
        )

    data, held_out = ArrayWindows(random_batch(40)), ArrayWindows(random_batch(9, seed=5))
    strategy = BehaviourCloning(data, held_out, 4, run.seed)
    return Trainer(Two(), strategy, run, save=save, callbacks=callbacks).fit()


def test_a_study_finds_prunes_and_reports(tmp_path: Path) -> None:
    study = search(settings(tmp_path, trials=9, pruning_after=2), train_two)
    states = [trial.state.name for trial in study.trials]
    assert len(states) == 9 and set(states) <= {"COMPLETE", "PRUNED"} and states.count("COMPLETE") >= 4
    best = load_yaml(tmp_path / "best.yaml")
    assert best["metric"] == "val_loss" and best["value"] == pytest.approx(
        min(t.value for t in study.trials if t.value)
    )
    run = load_yaml(tmp_path / "run.yaml")
    assert set(best["values"]) == set(SPACE) and run["optimizer"]["lr"] == BASE.optimizer.lr
    assert best["values"]["accumulation"] in (1, 2)  # as a run takes it
    folder = Path(best["folder"])
    assert (folder / "best").exists() and (folder / "metrics.jsonl").exists()
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 10
    for name in ("history.png", "importance.png"):
        assert (tmp_path / name).stat().st_size > 5000
    again = search(settings(tmp_path, trials=10), train_two)  # one more
    assert len(again.trials) == 10
    same = search(settings(tmp_path / "same", trials=9, pruning_after=2), train_two)  # same seed, same study
    assert [t.params for t in same.trials] == [t.params for t in study.trials[:9]]
    assert [t.value for t in same.trials] == [t.value for t in study.trials[:9]]


class Hang(Callback):
    """Stops for good once a checkpoint is there."""

    def __init__(self, ready: Path) -> None:
        self.ready = ready

    def on_step(self, trainer: Trainer, report: Any) -> None:
        if trainer.step == 3:
            self.ready.touch()
            time.sleep(300)


def hang(ready: Path, run: TrainConfig, callbacks: list[Callback]) -> TrainResult:
    return train_two(run, [*callbacks, Hang(ready)])


def test_processes_share_a_study_and_a_killed_trial_is_taken_up(tmp_path: Path) -> None:
    config, ready = settings(tmp_path, trials=4, pruning="no"), tmp_path / "ready"
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, dead
    killed = context.Process(target=search, args=(replace(config, seed=1), partial(hang, ready)))
    killed.start()
    limit = time.monotonic() + 200
    while not ready.exists() and time.monotonic() < limit and killed.is_alive():
        time.sleep(0.05)
    killed.kill()
    killed.join()
    assert ready.exists()
    other = context.Process(target=search, args=(replace(config, seed=2), train_two))
    other.start()
    study = search(replace(config, resume=True, seed=3), train_two)
    other.join(200)
    assert other.exitcode == 0
    study = optuna.load_study(study_name="vla_agents", storage=study._storage)
    states = [trial.state.name for trial in study.trials]
    assert states[0] == "FAIL" and states.count("COMPLETE") >= 4 and "RUNNING" not in states
    taken = [t for t in study.trials if t.user_attrs.get("folder_of") == 0]
    assert len(taken) == 1 and taken[0].params == study.trials[0].params
    assert taken[0].user_attrs["folder"].endswith("trial_0000")
    owners = {trial.user_attrs["process"] for trial in study.trials[1:]}
    assert len(owners) == 2 or len(study.trials) <= 5  # on a busy machine one may have done it all


def test_bad_spaces_are_refused_before_anything_runs(tmp_path: Path) -> None:
    bare = settings(tmp_path / "bare")
    save_yaml(replace(BASE, dataset=()), bare.run)
    with pytest.raises(ConfigError, match="names no dataset"):
        search(bare, train_two)
    with pytest.raises(ConfigError, match=r"set: a run has no 'stpes'. Did you mean 'steps'"):
        search(replace(bare, set={"stpes": 3}), train_two)
    assert not (tmp_path / "bare/study.db").exists()
    file = tmp_path / "space.yaml"

    def refused(content: Any, match: str) -> None:
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=match):
            for name, entry in load_space(file).items():
                vary(TrainConfig(), {name: next(iter(entry.values()))[0]})

    refused({"optimizer.rl": {"log": [1e-5, 1e-3]}}, r"no 'optimizer.rl'. Did you mean 'lr'")
    refused({"optimiser.lr": {"log": [1e-5, 1e-3]}}, "Did you mean 'optimizer'")
    refused({"optimizer.lr": {"log": [0, 1]}}, "is no range")
    refused({"optimizer.lr": {"log": [2, 1]}}, "is no range")
    refused({"optimizer.lr": {"uniform": [2, 1]}}, "is no range")
    refused({"optimizer.lr": {"float": "abc"}}, "needs a list")
    refused({"optimizer.kind": {"choice": ["adam"]}}, "'adam' is not one of")
    refused({"steps": {"float": [0.5, 2]}}, "expected int")
    refused({}, "expected fields")
    refused({"optimizer.lr": {"log": ["1e-5", "x"]}}, "no number")
    with pytest.raises(ConfigError, match="a run to vary and a space"):
        search(SearchConfig(out=str(tmp_path / "s")), train_two)
    assert vary(TrainConfig(), {"model.lora.rank": 4}).model.lora.rank == 4
