"""The Trainer: exact accumulation, exact resume, what Ctrl-C and a full disk leave behind."""

from __future__ import annotations

import json
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ArrayWindows, random_batch, rows, tiny_policy

from vla_agents.errors import CheckpointError, ConfigError, TrainingError
from vla_agents.policies.checkpoint import load_policy
from vla_agents.policies.policy import Batch
from vla_agents.train.callbacks import Callback
from vla_agents.train.checkpoints import newest_checkpoint
from vla_agents.train.config import OptimizerConfig, TrainConfig
from vla_agents.train.metrics import MetricsLog
from vla_agents.train.optimizers import make_optimizers, make_schedules
from vla_agents.train.strategy import BehaviourCloning, Strategy
from vla_agents.train.trainer import Trainer

BASE = TrainConfig(
    steps=6,
    batch_size=4,
    validate_every=3,
    save_every=2,
    log_every=1,
    device="cpu",
    tensorboard=False,
    optimizer=OptimizerConfig(kind="muon", lr=1e-3, muon_lr=0.01, warmup=2),
)


def bc(seed: int = 0, **options: Any) -> BehaviourCloning:
    return BehaviourCloning(
        ArrayWindows(random_batch(40)), ArrayWindows(random_batch(9, seed=5)), 4, seed, **options
    )


def trainer(
    out: Path, config: TrainConfig = BASE, strategy: Strategy | None = None, **changes: Any
) -> Trainer:
    return Trainer(tiny_policy(), strategy or bc(), replace(config, out=str(out), **changes))


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


class Fixed:
    """A strategy that hands out the same micro-batches at every step."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def batches(self, step: int, count: int, rank: int, world: int) -> list[Batch]:
        assert count == len(self._batches)
        return self._batches

    def validation(self) -> list[Batch]:
        return []

    def observe(self, step: int, metrics: dict[str, float]) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    """Micro-batches of unequal size, with chunks that reach past the end: the same gradient and the same loss."""
    whole = random_batch(10)
    parts = [rows(whole, [0, 1]), rows(whole, [2, 3, 4, 5, 6]), rows(whole, [7, 8, 9])]
    one, many = (
        trainer(tmp_path / name, strategy=Fixed(batches), accumulation=len(batches), steps=2)
        for name, batches in (("one", [whole]), ("many", parts))
    )
    for _ in range(2):
        whole_step, in_parts = one._train_step(), many._train_step()
        assert in_parts.losses["action_l1"] == pytest.approx(whole_step.losses["action_l1"], rel=1e-5)
        assert in_parts.norm == pytest.approx(whole_step.norm, rel=1e-3)
    with torch.no_grad():
        expected = float(one.policy(whole)["action_l1"])
        assert float(many.policy(whole)["action_l1"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_equals_the_unbroken_one_to_the_bit(tmp_path: Path, ema: float) -> None:
    whole = trainer(tmp_path / "whole", ema=ema)
    whole.fit()
    first = trainer(tmp_path / "broken", ema=ema)
    first.strategy.observe = lambda step, metrics: setattr(first, "stopping", step == 3)  # type: ignore[method-assign]
    result = first.fit()
    assert result.interrupted and result.step == 3
    torch.rand(7)  # another process would have another random state
    second = trainer(tmp_path / "broken", ema=ema, resume=True)
    result = second.fit()
    assert result.step == 6 and not result.interrupted
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for (name, ours), theirs in zip(second.policy.named_parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    batch = random_batch(2)
    saved = [load_policy(tmp_path / run / "last").predict_action(batch) for run in ("whole", "broken")]
    assert torch.equal(*saved)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer(tmp_path / name, strategy=bc(seed), steps=3).fit()
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_it_learns_what_it_sees(tmp_path: Path) -> None:
    batch = random_batch(8)
    run = trainer(
        tmp_path, strategy=Fixed([batch]), steps=120, log_every=1, validate_every=1000, save_every=0
    )
    run.fit()
    curve = losses(tmp_path)
    assert curve[-1] < 0.35 * curve[0]


def test_best_is_the_best_success_and_both_links_are_complete(tmp_path: Path) -> None:
    scores = {3: 0.9, 6: 0.2}
    run = Trainer(
        tiny_policy(), bc(), replace(BASE, out=str(tmp_path)), lambda policy, step: {"success": scores[step]}
    )
    result = run.fit()
    assert result.best.name == "step_000003" and result.last.name == "step_000006"
    assert load_policy(tmp_path / "best").horizon == 4
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_000003", "step_000006"]


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    run = trainer(tmp_path, steps=50, validate_every=100)
    draw = run.strategy.batches

    def draw_and_interrupt(step: int, *rest: int) -> Any:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(step, *rest)

    run.strategy.batches = draw_and_interrupt  # type: ignore[method-assign]
    result = run.fit()
    assert result.interrupted and result.step == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert "--resume" in capfd.readouterr().err
    assert (tmp_path / "last" / "training" / "state.json").is_file()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Full(Callback):
        """From the second checkpoint on no file gets larger than 1,000 bytes, as the operating system sees to."""

        def on_saved(self, trainer: Trainer, folder: Path) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    run = trainer(tmp_path, steps=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run.callbacks.append(Full())
    try:
        with pytest.raises(
            CheckpointError, match=r"could not be written .*File too large(.|\n)*free some space"
        ):
            run.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # somebody made room
    assert load_policy(tmp_path / "last").horizon == 4
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]
    assert trainer(tmp_path, steps=4, resume=True).fit().step == 4


def test_a_run_does_not_end_for_its_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log._file.close()
    log._file = Path("/dev/full").open("w")  # noqa: SIM115 - every write says that there is no space left
    for step in range(3):
        log.write(step, loss=1.0)
    log.close()
    assert [record.message for record in caplog.records] == [
        "metrics are not written: [Errno 28] No space left on device"
    ]


def test_a_half_written_checkpoint_is_never_resumed_from(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2).fit()
    fake = tmp_path / "checkpoints" / "step_000009"
    fake.mkdir()
    (fake / "model.safetensors").write_bytes(b"half")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step_000002"
    with pytest.raises(TrainingError, match="nothing to resume"):
        trainer(tmp_path / "empty", resume=True).fit()


def test_nan_in_the_data_names_the_sample(tmp_path: Path) -> None:
    batch = random_batch(3)
    assert batch.action is not None
    batch.action[1, 0, 2] = float("nan")
    with pytest.raises(TrainingError, match=r"action of sample 1 \('lift it'\)"):
        trainer(tmp_path, strategy=Fixed([batch])).fit()


def test_beginnings_are_drawn_more_often() -> None:
    windows = ArrayWindows(random_batch(70))
    strategy = BehaviourCloning(windows, None, 4000, first_steps=2, first_steps_weight=5.0)
    drawn: list[int] = []
    windows.get_batch = lambda index: (
        drawn.extend(index.tolist())
        or {  # type: ignore[method-assign,assignment,func-returns-value]
            "images": {},
            "instruction": [""] * len(index),
        }
    )
    strategy.batches(0, 1)
    share = np.mean(windows.step_of[drawn] < 2)
    assert share == pytest.approx(2 * 5 / (2 * 5 + 5), abs=0.03)
    assert strategy.batches(1, 1) is not None and drawn[:4000] != drawn[4000:]


def test_optimizers_take_every_parameter_once_and_the_schedule_is_what_it_says() -> None:
    policy = tiny_policy()
    config = OptimizerConfig(kind="muon", lr=1e-3, muon_lr=0.02, warmup=10, final_lr=0.1)
    optimizers = make_optimizers(policy, config)
    taken = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(taken) == len({id(p) for p in taken}) == sum(p.requires_grad for p in policy.parameters())
    assert {p.ndim for p in optimizers[0].param_groups[0]["params"]} == {2}
    schedules = make_schedules(optimizers, config, 100)
    rates = []
    for _ in range(101):
        rates.append(schedules[0].get_last_lr()[0])
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    assert rates[0] == pytest.approx(0.02 / 10, rel=1e-3)
    assert max(rates) == pytest.approx(0.02, rel=0.03)
    assert rates[55] == pytest.approx(0.02 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 0.55))))
    assert rates[-1] == pytest.approx(0.002)


def test_a_used_run_folder_is_not_overwritten(tmp_path: Path) -> None:
    from vla_agents.train.run import train

    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="holds a run"):
        train(replace(BASE, out=str(tmp_path), dataset=("x",)))
    with pytest.raises(ConfigError, match="no dataset"):
        train(replace(BASE, out=str(tmp_path / "new")))
